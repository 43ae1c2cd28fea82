"""Files that others replace while we run: reading one whole, noticing a change, replacing one atomically."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PRIVATE_MODE: Final = 0o600
SETTLED_NS: Final = 1_000_000_000
"""A file changed less than this before it was read may change again unseen: time stamps are coarse."""


class FileRefusedError(Exception):
    """A file is absent, unreadable, too large, no file or too widely accessible; the message says which."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells that a file changed. `settled`: whether a later change is sure to show; not compared."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    settled: bool = field(compare=False)


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file as it was read; `repr` leaves the content out, which may be secret."""

    identity: FileIdentity
    content: bytes

    def __repr__(self) -> str:
        return f"FileContent({self.identity.size_bytes} bytes)"


def identity_of(path: Path) -> FileIdentity | None:
    """Look at a file without reading it; None when it cannot be looked at."""
    try:
        return _identity(path.stat())
    except OSError:
        return None


def read_file(path: Path, *, max_bytes: int, forbidden_mode: int) -> FileContent:
    """Read a regular file whole.

    `forbidden_mode`: permission bits it must not have. Raises `FileRefusedError`.
    """
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise FileRefusedError(f"{path}: is not a regular file")
            if before.st_mode & forbidden_mode:
                raise FileRefusedError(
                    f"{path}: has mode {stat.S_IMODE(before.st_mode):04o},"
                    f" of which {before.st_mode & forbidden_mode:04o} is not accepted"
                )
            content = file.read(max_bytes + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise FileRefusedError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise FileRefusedError(f"{path}: is larger than {max_bytes} bytes")
    if _identity(before) != _identity(after):
        raise FileRefusedError(f"{path}: changed while it was read")
    return FileContent(_identity(after), content)


def unchanged(known: FileIdentity | None, path: Path) -> bool:
    """Tell whether the file in `path` is surely the one that `known` describes."""
    return known is not None and known.settled and identity_of(path) == known


def write_new(path: Path, content: bytes, mode: int = PRIVATE_MODE) -> bool:
    """Create a file with its whole content at once; False when one was there first, which then stays.

    Of several processes that race, one wins, and nobody ever sees a part of the content. Raises OSError.
    """
    with _temporary(path, content, mode) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _sync_folder(path.parent)
        return True


def replace(path: Path, content: bytes, mode: int) -> None:
    """Replace a file atomically and durably, keeping the old owner where we may. Raises OSError."""
    with _temporary(path, content, mode) as temporary:
        with contextlib.suppress(OSError):
            old = path.stat()
            os.chown(temporary, old.st_uid, old.st_gid)
        temporary.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock beside `path` (`<path>.lock`) against others who change it. Raises OSError."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    temporary = Path(f"{path}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> FileIdentity:
    # The machine's own clock: the file system stamped the file with it.
    settled = abs(time.time_ns() - status.st_mtime_ns) > SETTLED_NS
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, settled)
