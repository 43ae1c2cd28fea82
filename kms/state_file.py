"""The SQLite file of the key store: one process, mode 0600, WAL, every commit on disk before it returns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kms.errors import StoreUnavailable
from kms.private_file import PrivateFileError, check_private_folder
from receipts import sqlite_file
from receipts.errors import ReceiptStoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_NAME: Final = "keys.sqlite3"
APPLICATION_ID: Final = 0x534B4D53  # "SKMS"
SCHEMA_VERSION: Final = 1
_BUSY_TIMEOUT_MS: Final = 2000
_WAL_CHECKPOINT_PAGES: Final = 1000
_TABLES: Final = (
    "CREATE TABLE keys (name TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL CHECK (epoch >= 0)) STRICT",
    "INSERT INTO state VALUES (1, 0)",
    """
    CREATE TRIGGER state_epoch_grows BEFORE UPDATE ON state WHEN new.epoch <= old.epoch
    BEGIN SELECT RAISE (ABORT, 'the epoch only grows'); END
    """,
    """
    CREATE TABLE ops (
        tenant TEXT NOT NULL, op TEXT NOT NULL, op_id TEXT NOT NULL, request_digest BLOB NOT NULL,
        answer BLOB NOT NULL, epoch INTEGER NOT NULL, created_ms INTEGER NOT NULL, PRIMARY KEY (tenant, op, op_id)
    ) STRICT, WITHOUT ROWID
    """,
    # Mutations whose audit event is not known to be on disk: written with the mutation, deleted some time after it.
    "CREATE TABLE unaudited (epoch INTEGER PRIMARY KEY, change BLOB NOT NULL) STRICT",
)


@dataclass(frozen=True, slots=True)
class StateFile:
    """An open store and the lock that keeps other processes out (-1: in memory)."""

    connection: sqlite3.Connection
    lock_fd: int

    def close(self) -> None:
        """Close the file and let go of the lock."""
        sqlite_file.close(self.connection)
        if self.lock_fd >= 0:
            os.close(self.lock_fd)


def open_state(directory: Path | None) -> StateFile:
    """Open or create the store in `directory` (None: in memory, amnesia).

    Raises StoreUnavailable, also when others may use the directory.
    """
    with unavailable():
        if directory is None:
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            _prepare(connection)
            return StateFile(connection, -1)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            check_private_folder(directory)
        except PrivateFileError as error:
            raise StoreUnavailable(str(error), reason="key_store_folder") from error
        lock_fd = _lock(directory)
        try:
            path = directory / FILE_NAME
            sqlite_file.create_private(path)
            connection = sqlite_file.connect(path, _BUSY_TIMEOUT_MS)
            try:
                connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_CHECKPOINT_PAGES}")
                _prepare(connection)
            except BaseException:
                sqlite_file.close(connection)
                raise
        except BaseException:
            os.close(lock_fd)
            raise
        return StateFile(connection, lock_fd)


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """Turn what SQLite and the system raise into StoreUnavailable; the cause is kept for the log."""
    try:
        with sqlite_file.typed_errors():
            yield
    except ReceiptStoreUnavailable as error:
        raise StoreUnavailable("the key store cannot be used", reason="key_store") from error


def _lock(directory: Path) -> int:
    """Take the directory for this process; the system lets go of it when the process ends, however it ends."""
    lock_fd = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise StoreUnavailable("another process has the key store open", reason="key_store_locked") from error
    return lock_fd


def _prepare(connection: sqlite3.Connection) -> None:
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
        return
    if (application, version) != (0, 0) or connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise StoreUnavailable("the file is no key store of this version", reason="key_store_format")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
