"""The file that holds a store's master key under a passphrase, format version 1 (docs/reference/kms-providers.md §3).

    "SGNTROOT" | version u8 | kdf u8 | cost u32 | memory or block u32 | lanes u32 | salt 32 | aead u8 | store id 16
    | nonce 12 | ciphertext of the master key 32 | tag 16

The passphrase goes through its slow function once, when the store is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from kms.providers.sealed_bytes import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Aead,
    HeaderReader,
    SealedFileError,
    seal,
    unseal,
)
from kms.providers.sealed_key import STORE_ID_BYTES
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random, os_random_bytes

MAGIC: Final = b"SGNTROOT"
VERSION: Final = 1
SALT_BYTES: Final = 32
SEALED_ROOT_BYTES: Final = 8 + 1 + 1 + 12 + SALT_BYTES + 1 + STORE_ID_BYTES + NONCE_BYTES + KEY_BYTES + TAG_BYTES


class Kdf(IntEnum):
    """The slow functions by the code in a header. Codes never change their meaning."""

    SCRYPT = 1
    ARGON2ID = 2


@dataclass(frozen=True, slots=True)
class KdfCost:
    """What a passphrase guess costs. scrypt (RFC 7914): log2 N, r, p. Argon2id (RFC 9106): passes, KiB, lanes."""

    kdf: Kdf
    cost: int
    memory: int
    lanes: int


# scrypt: 64 MiB, twice; Argon2id: 64 MiB, three passes, four lanes (RFC 9106 §4, second choice).
SCRYPT_COST: Final = KdfCost(Kdf.SCRYPT, 16, 8, 2)
ARGON2ID_COST: Final = KdfCost(Kdf.ARGON2ID, 3, 65_536, 4)
COST_BY_NAME: Final = {"scrypt": SCRYPT_COST, "argon2id": ARGON2ID_COST}
# A header from outside is followed only so far: neither a trifle nor more memory than the service may use (256 MiB).
_BOUNDS: Final = {
    Kdf.SCRYPT: (range(14, 19), range(8, 9), range(1, 5)),
    Kdf.ARGON2ID: (range(1, 17), range(19_456, 262_145), range(1, 9)),
}


@dataclass(frozen=True, slots=True)
class SealedRootHeader:
    """What a sealed root says of itself in the clear; all of it is bound by the seal."""

    cost: KdfCost
    salt: bytes
    aead: Aead
    store_id: bytes
    nonce: bytes

    def encode(self) -> bytes:
        """Write the header."""
        numbers = b"".join(value.to_bytes(4, "big") for value in (self.cost.cost, self.cost.memory, self.cost.lanes))
        return (
            MAGIC
            + bytes([VERSION, self.cost.kdf])
            + numbers
            + self.salt
            + bytes([self.aead])
            + self.store_id
            + self.nonce
        )


def parse_sealed_root(data: bytes) -> tuple[SealedRootHeader, bytes]:
    """Read a sealed root into its header and its ciphertext. Raises SealedFileError."""
    reader = HeaderReader(data)
    reader.magic(MAGIC, VERSION)
    if len(data) != SEALED_ROOT_BYTES:
        raise SealedFileError("the file has the wrong length", "truncated")
    code = reader.number(1)
    if code not in Kdf.__members__.values():
        raise SealedFileError("the key derivation is not known", "unknown_kdf")
    cost = KdfCost(Kdf(code), reader.number(4), reader.number(4), reader.number(4))
    check_cost(cost)
    salt, aead = reader.take(SALT_BYTES), reader.aead()
    store_id, nonce = reader.take(STORE_ID_BYTES), reader.take(NONCE_BYTES)
    return SealedRootHeader(cost, salt, aead, store_id, nonce), data[reader.offset :]


def check_cost(cost: KdfCost) -> None:
    """Raise SealedFileError for a cost beyond the bounds that are followed."""
    given = (cost.cost, cost.memory, cost.lanes)
    if any(value not in allowed for value, allowed in zip(given, _BOUNDS[cost.kdf], strict=True)):
        raise SealedFileError("the cost of the key derivation is out of bounds", "bad_kdf_cost")


def new_sealed_root(
    passphrase: SecretBuffer, cost: KdfCost, aead: Aead, random_fill: RandomFill = os_random
) -> tuple[bytes, bytes, SecretBuffer]:
    """Make a store's master key. Returns the file's bytes, the store's id and the key, which the caller wipes."""
    check_cost(cost)
    header = SealedRootHeader(
        cost, os_random_bytes(SALT_BYTES), aead, os_random_bytes(STORE_ID_BYTES), os_random_bytes(NONCE_BYTES)
    )
    encoded, master = header.encode(), SecretBuffer(KEY_BYTES)
    try:
        random_fill(master.view)
        with _passphrase_key(passphrase, header) as key:
            return encoded + seal(key, aead, encoded, header.nonce, master), header.store_id, master
    except BaseException:
        master.wipe()
        raise


def open_sealed_root(passphrase: SecretBuffer, data: bytes) -> tuple[bytes, SecretBuffer]:
    """Open a sealed root. Returns the store's id and the master key, which the caller wipes.

    Raises SealedFileError; a wrong passphrase and an altered file look the same.
    """
    header, sealed = parse_sealed_root(data)
    with _passphrase_key(passphrase, header) as key:
        return header.store_id, unseal(key, header.aead, header.encode(), header.nonce, sealed)


def _passphrase_key(passphrase: SecretBuffer, header: SealedRootHeader) -> SecretBuffer:
    cost, key = header.cost, SecretBuffer(KEY_BYTES)
    slow: Scrypt | Argon2id
    if cost.kdf is Kdf.SCRYPT:
        slow = Scrypt(salt=header.salt, length=KEY_BYTES, n=1 << cost.cost, r=cost.memory, p=cost.lanes)
    else:
        slow = Argon2id(
            salt=header.salt, length=KEY_BYTES, iterations=cost.cost, lanes=cost.lanes, memory_cost=cost.memory
        )
    # Argon2id's stub asks for bytes; the library takes any buffer.
    slow.derive_into(passphrase.view, key.view)  # type: ignore[arg-type]
    return key
