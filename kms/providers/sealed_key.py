"""The file of one sealed key, format version 1 (docs/reference/kms-providers.md §3).

    "SGNTKEY\\0" | version u8 | aead u8 | store id 16 | handle 32 | primitive u8 len, text | kid u16 len, text
    | public u16 len, bytes | nonce 12 | ciphertext of the seed | tag 16

Everything before the ciphertext is its associated data. The key is derived from the store's master key and the handle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kms.errors import NotFound
from kms.kid import MAX_KID_CHARS
from kms.primitive import Primitive
from kms.providers.key_handle import check_handle_binding
from kms.providers.provider import KeyHandle
from kms.providers.sealed_bytes import (
    NONCE_BYTES,
    TAG_BYTES,
    Aead,
    HeaderReader,
    SealedFileError,
    derive_seal_key,
    seal,
    unseal,
)
from kms.providers.software_key import SEED_BYTES, SoftwareKey

if TYPE_CHECKING:
    from kms.providers.secret_buffer import SecretBuffer

MAGIC: Final = b"SGNTKEY\0"
VERSION: Final = 1
STORE_ID_BYTES: Final = 16
HANDLE_BYTES: Final = 32
MAX_PUBLIC_BYTES: Final = 2592  # ML-DSA-87, FIPS 204 table 2
MAX_SEALED_KEY_BYTES: Final = 4096
_PURPOSE: Final = b"signet-kms sealed key v1"
_MAX_PRIMITIVE_CHARS: Final = 32


@dataclass(frozen=True, slots=True)
class SealedKeyHeader:
    """What a sealed key says of itself in the clear; all of it is bound by the seal."""

    store_id: bytes
    handle: KeyHandle
    primitive: Primitive
    kid: str
    public: bytes
    aead: Aead
    nonce: bytes

    def encode(self) -> bytes:
        """Write the header."""
        primitive, kid = self.primitive.value.encode(), self.kid.encode()
        return b"".join(
            (
                MAGIC,
                bytes([VERSION, self.aead]),
                self.store_id,
                bytes.fromhex(self.handle),
                len(primitive).to_bytes(1, "big") + primitive,
                len(kid).to_bytes(2, "big") + kid,
                len(self.public).to_bytes(2, "big") + self.public,
                self.nonce,
            )
        )


def parse_sealed_key(data: bytes) -> tuple[SealedKeyHeader, bytes]:
    """Read a sealed key into its header and its ciphertext. Nothing is believed until `open_sealed_key`.

    Raises SealedFileError.
    """
    if len(data) > MAX_SEALED_KEY_BYTES:
        raise SealedFileError("the file is too long", "too_long")
    reader = HeaderReader(data)
    reader.magic(MAGIC, VERSION)
    aead = reader.aead()
    store_id, handle = reader.take(STORE_ID_BYTES), KeyHandle(reader.take(HANDLE_BYTES).hex())
    primitive = _primitive(_text(reader, 1, _MAX_PRIMITIVE_CHARS))
    kid = _text(reader, 2, MAX_KID_CHARS)
    public_length = reader.number(2)
    if public_length > MAX_PUBLIC_BYTES:
        raise SealedFileError("the public key is too long", "bad_length")
    public, nonce = reader.take(public_length), reader.take(NONCE_BYTES)
    sealed = data[reader.offset :]
    if len(sealed) != SEED_BYTES[primitive] + TAG_BYTES:
        raise SealedFileError("the sealed seed has the wrong length", "bad_length")
    return SealedKeyHeader(store_id, handle, primitive, kid, public, aead, nonce), sealed


def write_sealed_key(master: SecretBuffer, header: SealedKeyHeader, seed: SecretBuffer) -> bytes:
    """Seal a seed. `header`'s handle was never sealed under before."""
    encoded = header.encode()
    with derive_seal_key(master, bytes.fromhex(header.handle), _PURPOSE) as key:
        return encoded + seal(key, header.aead, encoded, header.nonce, seed)


def open_sealed_key(master: SecretBuffer, store_id: bytes, handle: KeyHandle, data: bytes) -> SoftwareKey:
    """Open the sealed key that `handle` names, and check that it is that one.

    Raises SealedFileError when the file is of another store, another handle or another kid, or was altered.
    """
    header, sealed = parse_sealed_key(data)
    if header.store_id != store_id:
        raise SealedFileError("the file is of another store", "other_store")
    if header.handle != handle:
        raise SealedFileError("the file is of another key", "other_key")
    try:
        check_handle_binding(handle, header.kid, header.primitive)
    except NotFound as error:
        raise SealedFileError("the file is of another kid", "other_kid") from error
    encoded = header.encode()
    with (
        derive_seal_key(master, bytes.fromhex(handle), _PURPOSE) as key,
        unseal(key, header.aead, encoded, header.nonce, sealed) as seed,
    ):
        opened = SoftwareKey(header.primitive, seed)
    if opened.public != header.public:
        raise SealedFileError("the public key is not the seed's", "other_public")
    return opened


def _text(reader: HeaderReader, size: int, limit: int) -> str:
    length = reader.number(size)
    if not 0 < length <= limit:
        raise SealedFileError("a text has no fitting length", "bad_length")
    try:
        return reader.take(length).decode("ascii")
    except UnicodeDecodeError as error:
        raise SealedFileError("a text is not ASCII", "bad_text") from error


def _primitive(text: str) -> Primitive:
    try:
        return Primitive(text)
    except ValueError as error:
        raise SealedFileError("the primitive is not known", "unknown_primitive") from error
