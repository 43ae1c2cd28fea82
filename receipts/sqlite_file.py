"""Opening the SQLite file of a receipt store: private, durable, and with typed errors."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receipts.durable_file import sync
from receipts.errors import ReceiptStoreUnavailable
from receipts.turnstile import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE_MODE: Final = 0o600
_PAGE_BYTES: Final = 8192  # Receipts of about 2 KB pack better than in 4096; measured best for batches of 16.
_JOURNAL_SIZE_LIMIT_BYTES: Final = 64 * 1024 * 1024


def connect(path: Path, busy_timeout_ms: int) -> sqlite3.Connection:
    """Open an existing file for reading and durable writing, in WAL mode.

    `busy_timeout_ms`: how long statements wait for other connections. Raises ReceiptStoreUnavailable,
    sqlite3.Error.
    """
    # mode=rw: a file that vanished is a fault, not a reason to begin an empty store.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=busy_timeout_ms / 1000,
    )
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")  # Only heeded while the file is empty.
        _set_wal(connection, busy_timeout_ms)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_SIZE_LIMIT_BYTES}")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        close(connection)
        raise
    return connection


def _set_wal(connection: sqlite3.Connection, busy_timeout_ms: int) -> None:
    """Switch to WAL, waiting as SQLite does not when another process is doing the same."""

    def attempt() -> bool:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
            return False
        if mode != "wal":
            raise ReceiptStoreUnavailable("the file system does not take a write-ahead log")
        return True

    if not wait_for(attempt, time.monotonic() + busy_timeout_ms / 1000):
        raise ReceiptStoreUnavailable("another process kept the store locked")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A connection and the file that it is open on: device and inode."""

    connection: sqlite3.Connection
    inode: tuple[int, int]

    def in_place(self, path: Path) -> bool:
        """Tell whether `path` still is that file: SQLite goes on with one that was removed or replaced."""
        return _inode(path) == self.inode


def open_file(path: Path, busy_timeout_ms: int) -> OpenFile:
    """Open `path` as `connect` does, and remember which file it was."""
    inode = _inode(path)
    connection = connect(path, busy_timeout_ms)
    if inode is None or _inode(path) != inode:
        close(connection)
        raise ReceiptStoreUnavailable("the file was replaced while it was opened")
    return OpenFile(connection, inode)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def close(connection: sqlite3.Connection | None) -> None:
    """Close, if open; nothing is lost by an error here, since commits are durable already."""
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def create_private(path: Path) -> None:
    """Make an empty file of mode 0600 if there is none; SQLite's -wal and -shm files get the same mode.

    Raises ReceiptStoreUnavailable when the file that is there gives others access, OSError.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE))
        # The new name must survive a power cut together with the receipts.
        sync(path.parent)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise ReceiptStoreUnavailable("the file must be a regular one of mode 0600")


def try_begin(connection: sqlite3.Connection) -> bool:
    """Take the write lock; return False when another connection has it."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if not _is_busy(error):
            raise
        return False
    return True


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Turn what SQLite and the system raise into ReceiptStoreUnavailable; name the code, never a value."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise ReceiptStoreUnavailable(f"SQLite: {name}") from error
    except OSError as error:
        raise ReceiptStoreUnavailable(f"system: {type(error).__name__} {error.errno}") from error
