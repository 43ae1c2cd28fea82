"""Which keys a TPM's folder holds, at which count: what tells a folder that was put back from one that was not (I-6).

Format version 1: "SGNTLIST" | version u8 | store id 16 | count u64 | number of handles u32 | handles, 32 each
| HMAC-SHA256 32, over the file's root (SHA-256) and everything before it.

The count follows the TPM's NV counter. A change writes the list with the next count, then increments the counter; so
after a crash the list may be one ahead, and only one.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from kms.providers.provider import KeyHandle
from kms.providers.sealed_bytes import HeaderReader, SealedFileError
from kms.providers.sealed_key import HANDLE_BYTES, STORE_ID_BYTES

if TYPE_CHECKING:
    from kms.providers.secret_buffer import SecretBuffer

MAGIC: Final = b"SGNTLIST"
VERSION: Final = 1
MAC_BYTES: Final = 32
MAX_LISTED_KEYS: Final = 4096
MAX_MANIFEST_BYTES: Final = 8 + 1 + STORE_ID_BYTES + 8 + 4 + MAX_LISTED_KEYS * HANDLE_BYTES + MAC_BYTES


@dataclass(frozen=True, slots=True)
class Manifest:
    """The keys at one count."""

    store_id: bytes
    count: int
    handles: frozenset[KeyHandle]

    def changed(self, handles: frozenset[KeyHandle]) -> Manifest:
        """Give the next one."""
        return Manifest(self.store_id, self.count + 1, handles)


def write_manifest(manifest: Manifest, key: SecretBuffer, root: bytes) -> bytes:
    """Write a manifest under the store's MAC key; `root` is the root file's content."""
    content = b"".join(
        (
            MAGIC,
            bytes([VERSION]),
            manifest.store_id,
            manifest.count.to_bytes(8, "big"),
            len(manifest.handles).to_bytes(4, "big"),
            *(bytes.fromhex(handle) for handle in sorted(manifest.handles)),
        )
    )
    return content + _mac(key, root, content).finalize()


def parse_manifest(data: bytes, key: SecretBuffer, root: bytes) -> Manifest:
    """Read what `write_manifest` wrote. Raises SealedFileError for anything else."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise SealedFileError("the list of keys is too long", "too_long")
    content, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
    try:
        _mac(key, root, content).verify(mac)
    except InvalidSignature as error:
        raise SealedFileError("the list of keys is not as it was written", "seal_broken") from error
    reader = HeaderReader(content)
    reader.magic(MAGIC, VERSION)
    store_id, count = reader.take(STORE_ID_BYTES), reader.number(8)
    handles = frozenset(KeyHandle(reader.take(HANDLE_BYTES).hex()) for _ in range(reader.number(4)))
    return Manifest(store_id, count, handles)


def _mac(key: SecretBuffer, root: bytes, content: bytes) -> HMAC:
    mac = HMAC(key.view, hashes.SHA256())
    mac.update(sha256(root).digest())
    mac.update(content)
    return mac
