"""Seal and open short secrets with an AEAD whose associated data is the whole header (IDB.md §3.3 and §3.5).

Every sealed text has a key of its own: HKDF-SHA256 of the store's master key, with a salt that is never used twice.
So no key ever meets two nonces (G-15); the 96-bit nonce is random all the same, and stands in the header.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kms.providers.secret_buffer import SecretBuffer

if TYPE_CHECKING:
    from cryptography.utils import Buffer

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16


class SealedFileError(ValueError):
    """Sealed bytes that are not what was written: cut, changed, of another key, store, passphrase or version."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Aead(IntEnum):
    """The AEADs by the code in a header. Codes never change their meaning."""

    CHACHA20_POLY1305 = 1
    AES_256_GCM = 2


AEAD_BY_NAME: Final = {"chacha20poly1305": Aead.CHACHA20_POLY1305, "aes-gcm": Aead.AES_256_GCM}


def seal(key: SecretBuffer, aead: Aead, header: bytes, nonce: bytes, secret: SecretBuffer) -> bytes:
    """Encrypt `secret` under `key` with `header` as associated data. Returns ciphertext ‖ tag."""
    return _cipher(aead, key.view).encrypt(nonce, secret.view, header)


def unseal(key: SecretBuffer, aead: Aead, header: bytes, nonce: bytes, sealed: bytes) -> SecretBuffer:
    """Decrypt into memory that is wiped. Raises SealedFileError when anything was altered."""
    if len(sealed) <= TAG_BYTES:
        raise SealedFileError("the sealed bytes are cut", "truncated")
    secret = SecretBuffer(len(sealed) - TAG_BYTES)
    try:
        _cipher(aead, key.view).decrypt_into(nonce, sealed, header, secret.view)
    except InvalidTag as error:
        secret.wipe()
        raise SealedFileError("the seal does not hold", "seal_broken") from error
    return secret


def derive_seal_key(master: SecretBuffer, salt: bytes, purpose: bytes) -> SecretBuffer:
    """Derive the key of one sealed text. `salt` is used once for one text. The caller wipes the result."""
    key = SecretBuffer(KEY_BYTES)
    HKDF(hashes.SHA256(), KEY_BYTES, salt, purpose).derive_into(master.view, key.view)
    return key


def _cipher(aead: Aead, key: Buffer) -> ChaCha20Poly1305 | AESGCM:
    return ChaCha20Poly1305(key) if aead is Aead.CHACHA20_POLY1305 else AESGCM(key)


class HeaderReader:
    """Take fields off the front of a header. Raises SealedFileError where the bytes end too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        """Take `count` bytes."""
        taken = self._data[self.offset : self.offset + count]
        if len(taken) != count:
            raise SealedFileError("the file is cut", "truncated")
        self.offset += count
        return taken

    def number(self, size: int) -> int:
        """Take a big-endian number of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def magic(self, expected: bytes, version: int) -> None:
        """Take the magic bytes and the version byte, and refuse any others."""
        if self.take(len(expected)) != expected:
            raise SealedFileError("this is no such file", "bad_magic")
        if (found := self.number(1)) != version:
            raise SealedFileError(f"format version {found} is not known", "unknown_version")

    def aead(self) -> Aead:
        """Take the AEAD's code."""
        try:
            return Aead(self.number(1))
        except ValueError as error:
            if isinstance(error, SealedFileError):
                raise
            raise SealedFileError("the AEAD is not known", "unknown_aead") from error
