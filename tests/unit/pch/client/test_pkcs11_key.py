"""Keys in a token: a real SoftHSM, its keys used through their URI, and everything that is no such key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pch.client import Client, InvalidRequest, TokenFailed, Unsupported, pkcs11_key
from pch.client.cli import main
from pch.client.pkcs11_key import Pkcs11Signer, parse_uri
from pch.client.signers import signers_of
from pch.keys import generate, public_jwk, public_key_from_jwk

PIN = "314159"
MODULE = "/usr/lib/softhsm/libsofthsm2.so"
# Everything about a token happens in a process of its own: a module keeps state for the life of a process, and reads
# its configuration once.
SET_UP = """
import pkcs11, sys
from pkcs11 import KeyType, Mechanism, Attribute
from pkcs11.util.ec import encode_named_curve_parameters
session = pkcs11.lib(sys.argv[1]).get_token(token_label="signet").open(rw=True, user_pin=sys.argv[2])
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


def test_softhsm_is_here() -> None:
    assert Path(MODULE).exists(), "softhsm2 is missing: run `make parts`"
    assert shutil.which("softhsm2-util")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an initialised token and the PIN's file."""
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    environment = os.environ | {"SOFTHSM2_CONF": str(configuration)}
    start = ["softhsm2-util", "--init-token", "--free", "--label", "signet", "--pin", PIN, "--so-pin", "271828"]
    subprocess.run(start, env=environment, check=True, capture_output=True, timeout=60)
    subprocess.run(
        [sys.executable, "-c", SET_UP, MODULE, PIN], env=environment, check=True, capture_output=True, timeout=120
    )
    (folder / "pin").write_text(PIN + "\n")
    (folder / "pin").chmod(0o600)
    former = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    yield folder
    if former is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = former


def uri(token: Path, name: str, pin: str = "pin") -> str:
    return f"pkcs11:token=signet;{name}?module-path={MODULE}&pin-source=file:{token / pin}"


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("object=p256", "ecdsa-p256-sha256"), ("id=%01", "ed25519"), ("object=ed;id=%02", "ed25519")],
)
def test_a_key_in_a_token_signs_what_its_public_key_verifies(token: Path, name: str, algorithm: str) -> None:
    signer = Pkcs11Signer(uri(token, name))
    try:
        assert signer.algorithm.name == algorithm
        assert len(signer.key_id) == 43
        first, second = signer.sign(b"one"), signer.sign(b"two")
        assert len(first) == len(second) == 64
        assert first != second
        assert signers_of((signer, generate("ml-dsa-65")))[0] is signer
        Client(key=signer).close()
    finally:
        signer.close()
    with pytest.raises(TokenFailed):
        signer.sign(b"three")
    signer.close()


def test_a_token_that_hangs_is_a_typed_error(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Pkcs11Signer(uri(token, "object=p256"))
    released = threading.Event()
    monkeypatch.setattr(pkcs11_key, "TOKEN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(signer, "_sign", lambda _data: released.wait(10))
    with pytest.raises(TokenFailed, match="in time"):
        signer.sign(b"x")
    released.set()
    monkeypatch.setattr(pkcs11_key, "TOKEN_TIMEOUT_S", 10.0)
    signer.close()


def test_a_token_whose_signature_is_none_is_a_typed_error(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Pkcs11Signer(uri(token, "object=p256"))
    monkeypatch.setattr(signer, "_sign", lambda _data: b"short")
    with pytest.raises(TokenFailed, match="wrong length"):
        signer.sign(b"x")
    signer.close()


def test_without_the_package_a_token_is_unsupported(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(Unsupported, match="python-pkcs11"):
        Pkcs11Signer(uri(token, "object=p256"))


def test_a_public_key_that_is_not_the_private_keys_is_refused(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = public_key_from_jwk(public_jwk(generate("ecdsa-p256-sha256")))
    monkeypatch.setattr(pkcs11_key, "public_key_from_jwk", lambda _jwk: foreign)
    with pytest.raises(TokenFailed, match="not that of its private key"):
        Pkcs11Signer(uri(token, "object=p256"))


@pytest.mark.parametrize("name", ["p384", "rsa"])
def test_a_key_of_another_kind_is_unsupported(token: Path, name: str) -> None:
    with pytest.raises(Unsupported, match="ed25519 or ecdsa-p256-sha256"):
        Pkcs11Signer(uri(token, f"object={name}"))


@pytest.mark.parametrize(("name", "message"), [("object=absent", "no key pair"), ("object=ed", "several keys")])
def test_a_key_that_is_not_there_or_not_alone_is_refused(token: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Pkcs11Signer(uri(token, name))


def test_a_wrong_pin_fails_without_telling_it(token: Path) -> None:
    wrong = token / "wrong"
    wrong.write_text("000000")
    wrong.chmod(0o600)
    with pytest.raises(TokenFailed) as caught:
        Pkcs11Signer(uri(token, "object=p256", "wrong"))
    assert "000000" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_pin_file_that_others_may_read_or_that_holds_no_pin_is_refused(token: Path) -> None:
    for content, mode in (("314159", 0o644), ("", 0o600), ("1\n2", 0o600), ("x" * 300, 0o600), ("pän", 0o600)):
        path = token / "odd"
        path.write_text(content)
        path.chmod(mode)
        with pytest.raises(InvalidRequest, match="PIN"):
            Pkcs11Signer(uri(token, "object=p256", "odd"))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Pkcs11Signer(uri(token, "object=p256", "absent"))


def test_a_module_that_is_none_fails(token: Path) -> None:
    with pytest.raises(TokenFailed):
        Pkcs11Signer(f"pkcs11:token=signet;object=p256?module-path=/absent.so&pin-source={token / 'pin'}")


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:",
        "file:token=a;object=b?module-path=m",
        "pkcs11:token=a?module-path=m",
        "pkcs11:object=a?module-path=m",
        "pkcs11:token=a;object=b",
        "pkcs11:token=a;object=b;token=c?module-path=m",
        "pkcs11:token=a;object=b;slot-id=1?module-path=m",
        "pkcs11:token=a;object=b?module-path=m&pin-value=1234",
        "pkcs11:token=a;object=b?module-path",
        "pkcs11:token=%ff;object=b?module-path=m",
        "pkcs11:token=a;object=b?module-path=" + "m" * 2100,
    ],
)
def test_a_uri_that_says_too_little_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_uri(text)


def test_a_uri_is_decoded() -> None:
    read = parse_uri("pkcs11:token=my%20hsm;object=a%3Bb;id=%00%ff?module-path=/m%26.so&pin-source=file:/p")
    assert (read.token, read.label, read.key_id, read.module) == ("my hsm", "a;b", b"\x00\xff", "/m&.so")
    assert read.pin_file == Path("/p")


def test_the_command_signs_with_a_token_and_says_what_a_token_cannot(
    token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["https://app.example/x", "--challenge", "AQAAAAc" + "A" * 53]
    assert main(["sign", *common, "--key", uri(token, "object=p256")]) == 0
    assert 'alg="ecdsa-p256-sha256"' in capsys.readouterr().out
    assert main(["sign", *common, "--key", uri(token, "object=p256"), "--alg", "ml-dsa-65"]) == 2
    assert main(["sign", *common, "--key", uri(token, "object=rsa")]) == 2
    assert "ML-DSA keys are kept in files" in capsys.readouterr().err
    assert main(["sign", *common, "--key", uri(token, "object=absent")]) == 2
