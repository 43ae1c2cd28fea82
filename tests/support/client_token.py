"""A SoftHSM2 token with a client's keys, and their PKCS#11 URIs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pkcs11

from tests.support import softhsm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = str(softhsm.MODULE)
# In a process of its own: a module that is at work in this one keeps what it read of its configuration.
SET_UP = """
import pkcs11, sys
from pkcs11 import KeyType, Mechanism, Attribute
from pkcs11.util.ec import encode_named_curve_parameters
session = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[3]).open(rw=True, user_pin=sys.argv[2])
def domain(key_type, curve):
    parameters = {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}
    return session.create_domain_parameters(key_type, parameters, local=True)
for label, curve in (("p256", "secp256r1"), ("p384", "secp384r1")):
    domain(KeyType.EC, curve).generate_keypair(label=label, id=label.encode(), store=True)
edwards = domain(KeyType.EC_EDWARDS, "1.3.101.112")
for number in (1, 2):
    edwards.generate_keypair(
        mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, label="ed", id=bytes([number]), store=True
    )
session.generate_keypair(KeyType.RSA, 2048, label="rsa", store=True)
session.close()
"""


@contextlib.contextmanager
def client_token(folder: Path) -> Iterator[Path]:
    """Give a folder with a token: p256, p384, two keys called ed (ids 1 and 2), rsa; and `pin`, its PIN's file."""
    hsm = softhsm.SoftHsm(folder)
    command = [sys.executable, "-c", SET_UP, MODULE, softhsm.PIN, softhsm.LABEL]
    subprocess.run(command, env=dict(os.environ), check=True, capture_output=True, timeout=120)
    (folder / "pin").write_text(softhsm.PIN + "\n")
    (folder / "pin").chmod(0o600)
    _forget()
    try:
        yield folder
    finally:
        _forget()
        hsm.stop()


def _forget() -> None:
    """Have the module read its configuration again: it does so once for each initialisation, in the whole process."""
    library = pkcs11.lib(MODULE)
    library.finalize()


def key_uri(folder: Path, name: str, pin: str = "pin") -> str:
    """Name a key of the token, `object=…` or `id=…`."""
    return f"pkcs11:token={softhsm.LABEL};{name}?module-path={MODULE}&pin-source=file:{folder / pin}"
