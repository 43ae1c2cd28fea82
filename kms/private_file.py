"""Small files that only their owner may read: read whole, replaced atomically, noticed when they change."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

PRIVATE_MODE: Final = 0o600
OTHERS_MODE: Final = 0o077
SETTLED_NS: Final = 1_000_000_000
"""A file changed less than this before it was looked at may change again unseen: its time stamps are coarse."""


class PrivateFileError(Exception):
    """A file is absent, unreadable, too long, no file, not ours or open to others; the message says which."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a file changed. `settled`: whether a later change is sure to show; it is not compared."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    settled: bool = field(compare=False)


def stamp_of(path: Path) -> FileStamp | None:
    """Look at a file without reading it; None when it cannot be looked at."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def read_private(path: Path, max_bytes: int) -> bytes:
    """Read a regular file whole that belongs to us (or to root) and is closed to everyone else.

    Raises FileNotFoundError when there is none, PrivateFileError for every other reason.
    """
    with open_private(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise PrivateFileError(f"{path}: is longer than {max_bytes} bytes")
    return content


@contextlib.contextmanager
def open_private(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read that is as `read_private` wants it, for what is read in parts. Raises as that does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_private(path, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PrivateFileError(f"{path}: cannot be read: {error.strerror}") from error


def replace_private(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, atomically and durably, with mode 0600. Raises PrivateFileError."""
    with _unfinished(path, content) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def create_private(path: Path, content: bytes) -> None:
    """Make a file that was not there, whole from its first moment, with mode 0600.

    Raises FileExistsError when there is one, which then stays as it is; PrivateFileError.
    """
    with _unfinished(path, content) as temporary:
        os.link(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Hold the lock beside `path` (`<path>.lock`) against others who change it. Raises PrivateFileError."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
    except OSError as error:
        raise PrivateFileError(f"{path}: cannot be locked: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _unfinished(path: Path, content: bytes) -> Iterator[Path]:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        try:
            with os.fdopen(os.open(temporary, flags, PRIVATE_MODE), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise PrivateFileError(f"{path}: cannot be written: {error.strerror}") from error


def check_private_folder(folder: Path) -> None:
    """Check that a folder is ours (or root's) and closed to everyone else. Raises PrivateFileError."""
    try:
        status = folder.stat()
    except OSError as error:
        raise PrivateFileError(f"{folder}: cannot be looked at: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise PrivateFileError(f"{folder}: is not a folder")
    if status.st_mode & OTHERS_MODE:
        raise PrivateFileError(f"{folder}: may be used by others: its mode must be 0700")
    if status.st_uid not in {0, os.geteuid()}:
        raise PrivateFileError(f"{folder}: belongs to another user")


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PrivateFileError(f"{path}: is not a regular file")
    if status.st_mode & OTHERS_MODE:
        raise PrivateFileError(f"{path}: may be used by others: its mode must be 0600")
    if status.st_uid not in {0, os.geteuid()}:
        raise PrivateFileError(f"{path}: belongs to another user")


def _stamp(status: os.stat_result) -> FileStamp:
    # The machine's own clock: the file system stamped the file with it.
    settled = abs(time.time_ns() - status.st_mtime_ns) > SETTLED_NS
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, settled)
