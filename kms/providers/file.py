"""Keys in sealed files under a passphrase: the default provider (IDB.md §3.5, CONFIG.md `[backends.file]`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kms.errors import StoreUnavailable, Unsupported
from kms.private_file import PrivateFileError, read_private
from kms.providers.key_folder import MAX_KEY_FILES, KeyFolder
from kms.providers.sealed_bytes import AEAD_BY_NAME, SealedFileError
from kms.providers.sealed_provider import MAX_OPEN_KEYS, SealedProvider
from kms.providers.sealed_root import COST_BY_NAME, SEALED_ROOT_BYTES, KdfCost, new_sealed_root, open_sealed_root
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random

if TYPE_CHECKING:
    from pathlib import Path

ROOT_NAME: Final = "root.sealed"
MIN_PASSPHRASE_BYTES: Final = 16
MAX_PASSPHRASE_BYTES: Final = 1024


class FileProvider(SealedProvider):
    """The provider `file`. The passphrase is read once, at the start, and wiped."""

    name = "file"


def open_file_provider(
    folder_path: Path,
    passphrase_file: Path | None,
    kdf: str = "scrypt",
    aead: str = "chacha20poly1305",
    *,
    cost: KdfCost | None = None,
    random_fill: RandomFill = os_random,
    max_key_files: int = MAX_KEY_FILES,
    max_open_keys: int = MAX_OPEN_KEYS,
) -> FileProvider:
    """Open the folder, or make a new store in an empty one.

    `kdf` (scrypt, argon2id) and its `cost` are those of a new store; an existing one says itself what it was made
    with. `aead` (chacha20poly1305, aes-gcm) seals new keys.

    Raises Unsupported for `age` and unknown names, StoreUnavailable for a passphrase file that is missing, open to
    others or too short, for a wrong passphrase, an altered root, a folder in use, and for keys without their root.
    """
    if kdf not in COST_BY_NAME:
        raise Unsupported("backends.file.kdf must be scrypt or argon2id", reason="unsupported_kdf")
    if aead not in AEAD_BY_NAME:
        raise Unsupported("backends.file.aead must be chacha20poly1305 or aes-gcm", reason="unsupported_aead")
    with read_passphrase(passphrase_file) as passphrase:
        folder = KeyFolder(folder_path, max_key_files)
        try:
            sealed = folder.read(ROOT_NAME, SEALED_ROOT_BYTES)
            if sealed is not None:
                store_id, master = open_sealed_root(passphrase, sealed)
            else:
                if folder.keys or folder.unreadable:
                    raise StoreUnavailable("there are sealed keys but no root.sealed", reason="root_missing")
                new_cost = cost if cost is not None else COST_BY_NAME[kdf]
                sealed, store_id, master = new_sealed_root(passphrase, new_cost, AEAD_BY_NAME[aead], random_fill)
                folder.create(ROOT_NAME, sealed)
        except SealedFileError as error:
            folder.close()
            message = "root.sealed does not open: another passphrase, or an altered file"
            raise StoreUnavailable(message, reason=f"root_{error.reason}") from error
        except BaseException:
            folder.close()
            raise
    return FileProvider(folder, store_id, master, AEAD_BY_NAME[aead], random_fill, max_open_keys)


def read_passphrase(path: Path | None) -> SecretBuffer:
    """Read the passphrase, 16 to 1024 bytes, one newline at its end left out. The caller wipes it.

    Raises StoreUnavailable when there is none, it is open to others (its mode must be 0600), or of another length.
    """
    if path is None:
        raise StoreUnavailable("backends.file.passphrase_file is required", reason="passphrase_file_unset")
    try:
        text = bytearray(read_private(path, MAX_PASSPHRASE_BYTES + 1))
    except FileNotFoundError as error:
        raise StoreUnavailable("the passphrase file is missing", reason="passphrase_file_missing") from error
    except PrivateFileError as error:
        raise StoreUnavailable(
            "the passphrase file cannot be used: it must be a file of ours with mode 0600",
            reason="passphrase_file_refused",
        ) from error
    length = len(text) - text.endswith(b"\n")
    try:
        if not MIN_PASSPHRASE_BYTES <= length <= MAX_PASSPHRASE_BYTES:
            raise StoreUnavailable("the passphrase must have 16 to 1024 bytes", reason="passphrase_length")
        passphrase = SecretBuffer(length)
        passphrase.view[:] = memoryview(text)[:length]
        return passphrase
    finally:
        text[:] = bytes(len(text))
