"""The folder of a store's sealed files: read whole at the start, changed durably, held by one process.

A new file is written beside its place, synced, linked into place, and the folder is synced (`kms.private_file`): after
a crash a key is there whole or not at all. The files are in memory from the start: no use of a key waits for a disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from kms.errors import KmsError, NotFound, StoreUnavailable
from kms.private_file import PrivateFileError, create_private, read_private, replace_private, sync_folder
from kms.providers.key_handle import check_handle_form
from kms.providers.provider import KeyHandle
from kms.providers.sealed_key import MAX_SEALED_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER_MODE: Final = 0o700
MAX_KEY_FILES: Final = 16_384
KEY_SUFFIX: Final = ".key"
UNFINISHED_SUFFIX: Final = ".tmp"
LOCK_NAME: Final = ".lock"
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class KeyFolder:
    """An open folder. `keys` holds the bytes of every sealed key; the provider's lock guards it and every change."""

    def __init__(self, path: Path, max_key_files: int = MAX_KEY_FILES) -> None:
        """Make the folder where it is missing, take its lock and read it.

        Raises StoreUnavailable when it is not ours alone, held by another process, or cannot be read.
        """
        self._path = path
        self.max_key_files = max_key_files
        self.keys: dict[KeyHandle, bytes] = {}
        # Files that stand there but may not be read; their keys are refused one by one.
        self.unreadable: set[KeyHandle] = set()
        with disk_errors():
            path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            self._check_owner()
            self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with disk_errors():
                self._take_lock()
                self._read()
        except BaseException:
            os.close(self._lock)
            raise

    def read(self, name: str, max_bytes: int) -> bytes | None:
        """Read a file beside the keys, None when there is none."""
        with disk_errors():
            try:
                return read_private(self._path / name, max_bytes)
            except FileNotFoundError:
                return None

    def create(self, name: str, content: bytes) -> None:
        """Make a file that must not be there yet, durably."""
        with disk_errors():
            create_private(self._path / name, content)

    def replace(self, name: str, content: bytes) -> None:
        """Put a file in place of another, durably and at once."""
        with disk_errors():
            replace_private(self._path / name, content)

    def add(self, handle: KeyHandle, content: bytes) -> None:
        """Keep a sealed key; durable when this returns, not there when it raises."""
        if len(self.keys) + len(self.unreadable) >= self.max_key_files:
            raise StoreUnavailable("the provider holds as many keys as it may", reason="key_limit")
        path = self._key_path(handle)
        try:
            with disk_errors():
                create_private(path, content)
        except KmsError:
            # The folder's sync may have failed with the name in it already: nobody was told of this key.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        self.keys[handle] = content

    def remove(self, handle: KeyHandle) -> None:
        """Erase a sealed key durably; one that is gone is no error."""
        path = self._key_path(handle)
        with disk_errors():
            path.unlink(missing_ok=True)
            sync_folder(self._path)
        self.keys.pop(handle, None)
        self.unreadable.discard(handle)

    def check(self) -> None:
        """Raise StoreUnavailable when the folder that is locked is no longer the one at its path."""
        with disk_errors():
            there, locked = (self._path / LOCK_NAME).stat(), os.fstat(self._lock)
        if (there.st_dev, there.st_ino) != (locked.st_dev, locked.st_ino):
            raise StoreUnavailable("the key folder was replaced", reason="folder_replaced")

    def close(self) -> None:
        """Forget the files and let go of the lock. The caller closes once."""
        self.keys.clear()
        os.close(self._lock)

    def _key_path(self, handle: KeyHandle) -> Path:
        check_handle_form(handle)
        return self._path / f"{handle}{KEY_SUFFIX}"

    def _check_owner(self) -> None:
        status = self._path.stat()
        if status.st_uid not in {0, os.geteuid()} or stat.S_IMODE(status.st_mode) & 0o077:
            raise StoreUnavailable("the key folder is not ours alone: its mode must be 0700", reason="folder_mode")

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreUnavailable("another process holds the key folder", reason="folder_locked") from error

    def _read(self) -> None:
        for path in sorted(self._path.iterdir()):
            if path.name.endswith(UNFINISHED_SUFFIX):
                path.unlink(missing_ok=True)
            elif path.name.endswith(KEY_SUFFIX):
                self._read_key(path)

    def _read_key(self, path: Path) -> None:
        handle = KeyHandle(path.name.removesuffix(KEY_SUFFIX))
        try:
            check_handle_form(handle)
        except NotFound:
            return
        if len(self.keys) + len(self.unreadable) >= self.max_key_files:
            raise StoreUnavailable("the key folder holds more keys than it may", reason="key_limit")
        try:
            self.keys[handle] = read_private(path, MAX_SEALED_KEY_BYTES)
        except PrivateFileError:
            self.unreadable.add(handle)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn what a disk can do to us into StoreUnavailable; a full one has a reason of its own."""
    try:
        yield
    except (OSError, PrivateFileError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        full = isinstance(cause, OSError) and cause.errno in _DISK_FULL
        reason = "disk_full" if full else "disk"
        raise StoreUnavailable("the key folder cannot be read or written", reason=reason) from error
