"""Every provider over its real part, for the tests that run over all of them."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from kms.errors import StoreUnavailable, Timeout
from kms.kid import Kid, parse_kid
from kms.primitive import Primitive
from kms.providers.file import FileProvider, open_file_provider
from kms.providers.inmem import InMemoryProvider
from kms.providers.pkcs11 import Pkcs11Provider, open_pkcs11_provider
from kms.providers.sealed_root import Kdf, KdfCost
from tests.support import moto_kms, softhsm, swtpm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from kms.providers.provider import KeyHandle, Provider
    from kms.providers.tpm import TpmProvider

PASSPHRASE = b"correct horse battery staple\n"
# The least costs that a store may have: what is slow in production is not what these tests are about.
QUICK_SCRYPT = KdfCost(Kdf.SCRYPT, 14, 8, 1)
QUICK_ARGON2ID = KdfCost(Kdf.ARGON2ID, 1, 19_456, 1)
WIRE_ALG = {
    Primitive.ML_DSA_65: "ml-dsa",
    Primitive.ML_KEM_768: "ml-kem",
    Primitive.HKDF_ROOT: "hkdf",
}


def missing_part(what: str) -> NoReturn:
    """Fail in CI, where every part must be there; skip on a machine that could not have it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing: run tools/parts.sh", pytrace=False)
    pytest.skip(f"{what} is missing: run tools/parts.sh")


def kid_of(primitive: Primitive, version: int = 1, tenant: str = "acme") -> Kid:
    """Name a key of `primitive`."""
    alg = WIRE_ALG.get(primitive, primitive.value)
    return parse_kid(f"{tenant}/auth/{alg}/0198a7b2-0000-7000-8000-000000000001#v{version}")


def write_passphrase(folder: Path, content: bytes = PASSPHRASE) -> Path:
    """Write a passphrase file as the file provider wants it."""
    path = folder / "passphrase"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def open_quick_file_provider(folder: Path, kdf: str = "scrypt", aead: str = "chacha20poly1305") -> FileProvider:
    """Open a store in `folder`/sealed with a passphrase file beside it."""
    passphrase = folder / "passphrase"
    if not passphrase.exists():
        write_passphrase(folder)
    cost = QUICK_SCRYPT if kdf == "scrypt" else QUICK_ARGON2ID
    return open_file_provider(folder / "sealed", passphrase, kdf, aead, cost=cost)


@contextmanager
def _inmem(_folder: Path) -> Iterator[Provider]:
    yield InMemoryProvider()


@contextmanager
def _file(folder: Path) -> Iterator[Provider]:
    yield open_quick_file_provider(folder)


@contextmanager
def _file_argon2id_aes(folder: Path) -> Iterator[Provider]:
    yield open_quick_file_provider(folder, "argon2id", "aes-gcm")


@contextmanager
def _pkcs11(folder: Path) -> Iterator[Provider]:
    with running_softhsm(folder) as hsm:
        yield open_softhsm_provider(hsm)


@contextmanager
def running_softhsm(folder: Path) -> Iterator[softhsm.SoftHsm]:
    """Give a SoftHSM2 with an empty token."""
    if not softhsm.is_there():
        missing_part("softhsm2")
    hsm = softhsm.SoftHsm(folder)
    try:
        yield hsm
    finally:
        hsm.stop()


def open_softhsm_provider(
    hsm: softhsm.SoftHsm,
    monotonic_s: Callable[[], float] = time.monotonic,
    random: Callable[[], float] = lambda: 1.0,
    **settings: Any,
) -> Pkcs11Provider:
    """Open the provider on a SoftHSM2's token."""
    return open_pkcs11_provider(
        softhsm.MODULE, softhsm.LABEL, softhsm.PIN_ENV, hsm.environ, monotonic_s, random, **settings
    )


@contextmanager
def running_swtpm(folder: Path) -> Iterator[swtpm.SwTpm]:
    """Give a software TPM with a state of its own."""
    if not swtpm.is_there():
        missing_part("swtpm or tpm2-pytss")
    tpm = swtpm.SwTpm(folder)
    try:
        yield tpm
    finally:
        tpm.stop()


def open_swtpm_provider(
    tpm: swtpm.SwTpm, folder: Path, monotonic_s: Callable[[], float] = time.monotonic, **settings: Any
) -> TpmProvider:
    """Open the provider on a software TPM."""
    from kms.providers.tpm import open_tpm_provider

    return open_tpm_provider(folder, tpm.tcti, monotonic_s, lambda: 1.0, **settings)


@contextmanager
def _tpm(folder: Path) -> Iterator[Provider]:
    with running_swtpm(folder) as tpm:
        yield open_swtpm_provider(tpm, folder / "sealed")


@contextmanager
def _cloud(_folder: Path) -> Iterator[Provider]:
    with moto_kms.credentials():
        yield moto_kms.open_provider(moto_kms.new_key())


_OPENERS: dict[str, Callable[[Path], AbstractContextManager[Provider]]] = {
    "inmem": _inmem,
    "file": _file,
    "file-argon2id-aes-gcm": _file_argon2id_aes,
    "pkcs11": _pkcs11,
    "tpm": _tpm,
    "cloud": _cloud,
}
PROVIDER_NAMES = tuple(_OPENERS)


@contextmanager
def open_named(name: str, folder: Path) -> Iterator[Provider]:
    """Open one provider in a folder of its own and close it at the end."""
    with _OPENERS[name](folder) as provider:
        try:
            yield provider
        finally:
            provider.close()


def use(provider: Provider, primitive: Primitive, handle: KeyHandle) -> None:
    """Use a key in the way of its primitive."""
    if provider.wraps_itself:
        provider.wrap(handle, b"secret", b"")
    elif primitive.signs:
        provider.sign(handle, primitive, bytes(32))
    elif primitive is Primitive.X25519:
        provider.agree(handle, bytes([9]) + bytes(31))
    elif primitive is Primitive.ML_KEM_768:
        provider.decapsulate(handle, bytes(1088))
    else:
        provider.derive(handle, b"x", Primitive.ED25519, kid_of(Primitive.ED25519))


def under_load(work: Callable[[], None], disturb: Callable[[], None], recovered: Callable[[], bool]) -> list[str]:
    """Run `work` in four threads while `disturb` breaks and mends what is behind it, until `recovered` and once more.

    Returns the reasons of what failed as StoreUnavailable or Timeout; any other error is raised.
    """
    stop, reasons, failures = threading.Event(), list[str](), list[BaseException]()

    def run() -> None:
        while not stop.is_set():
            try:
                work()
            except (StoreUnavailable, Timeout) as error:
                reasons.append(error.reason)
                time.sleep(0.001)
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        disturb()
        end_s = time.monotonic() + 30
        while not recovered() and time.monotonic() < end_s:
            time.sleep(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    work()
    return reasons
