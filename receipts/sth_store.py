"""The signed tree heads in a small SQLite file of their own, written before a head is published.

Ownership: the connection belongs to `_lock`; any thread may call. One process writes, any number read.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receipts.errors import StoreCorrupt
from receipts.log_errors import LogBusy
from receipts.merkle import HASH_BYTES
from receipts.sqlite_file import close, connect, create_private, typed_errors
from receipts.sth import SignedTreeHead

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

APPLICATION_ID: Final = 0x53474E4C
"""SQLite's application id of a Signet log database ("SGNL")."""
SCHEMA_VERSION: Final = 1
MAX_HEADS: Final = 1000
"""Heads that one call returns at most."""
CHECKPOINT_AFTER_PAGES: Final = 1000
DEFAULT_BUSY_TIMEOUT_MS: Final = 1000

_SCHEMA: Final = (
    """
    CREATE TABLE sth (
        number      INTEGER PRIMARY KEY CHECK (number >= 1),
        size        INTEGER NOT NULL CHECK (size >= 0),
        root        BLOB    NOT NULL CHECK (length(root) = 32),
        time_s      INTEGER NOT NULL,
        note        BLOB    NOT NULL,
        prev        BLOB    CHECK (length(prev) = 32),
        consistency BLOB    NOT NULL CHECK (length(consistency) % 32 = 0)
    ) STRICT
    """,
    "CREATE INDEX sth_by_size ON sth (size)",
    "CREATE INDEX sth_by_time ON sth (time_s)",
    "CREATE TRIGGER sth_keep_rows BEFORE DELETE ON sth BEGIN SELECT RAISE (ABORT, 'heads are append-only'); END",
    "CREATE TRIGGER sth_keep_values BEFORE UPDATE ON sth BEGIN SELECT RAISE (ABORT, 'heads are append-only'); END",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_SELECT: Final = "SELECT number, note, size, root, time_s, prev, consistency FROM sth "
# Compare and swap: the row is added only if the last one is the one that it names.
_APPEND: Final = """
    INSERT INTO sth (number, note, size, root, time_s, prev, consistency) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
    WHERE (SELECT coalesce(max(number), 0) FROM sth) = ?1 - 1
      AND (SELECT note FROM sth WHERE number = ?1 - 1) IS ?8
"""


class SthStore:
    """The heads in the SQLite file at `path`, made with mode 0600 when absent.

    Raises ReceiptStoreUnavailable when the file cannot be opened, StoreCorrupt when it is another program's.
    """

    def __init__(self, path: Path | str, *, busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS) -> None:
        self._path = Path(path)
        self._busy_timeout_ms = busy_timeout_ms
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        with typed_errors():
            create_private(self._path)
        with self._connected() as connection:
            _migrate(connection)

    def append(self, head: SignedTreeHead, after: SignedTreeHead | None) -> None:
        """Add `head` durably, if `after` is still the last one.

        Raises LogBusy when it is not, ReceiptStoreUnavailable: the head may then be stored or not.
        """
        with self._connected() as connection:
            row = (
                head.number,
                head.note,
                head.size,
                head.root,
                head.time_s,
                head.prev,
                b"".join(head.consistency),
                None if after is None else after.note,
            )
            if connection.execute(_APPEND, row).rowcount != 1:
                raise LogBusy("another process added a head to this log")

    def last(self) -> SignedTreeHead | None:
        """Return the newest head. Raises ReceiptStoreUnavailable."""
        return self._first("ORDER BY number DESC LIMIT 1")

    def read(self, after_number: int, limit: int) -> list[SignedTreeHead]:
        """Return 1 to `MAX_HEADS` heads above `after_number`, in order. Raises ReceiptStoreUnavailable."""
        if not 1 <= limit <= MAX_HEADS:
            raise ValueError(f"limit is 1 to {MAX_HEADS}")
        return self._fetch("WHERE number > ? ORDER BY number LIMIT ?", after_number, limit)

    def covering(self, size: int) -> SignedTreeHead | None:
        """Return the first head of at least `size` entries. Raises ReceiptStoreUnavailable."""
        return self._first("WHERE size >= ? ORDER BY size, number LIMIT 1", size)

    def at_or_before(self, time_s: int) -> SignedTreeHead | None:
        """Return the newest head that is not later than `time_s` (POSIX seconds). Raises ReceiptStoreUnavailable."""
        return self._first("WHERE time_s <= ? ORDER BY time_s DESC, number DESC LIMIT 1", time_s)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            connection, self._connection = self._connection, None
            close(connection)

    def _first(self, condition: str, *parameters: object) -> SignedTreeHead | None:
        heads = self._fetch(condition, *parameters)
        return heads[0] if heads else None

    def _fetch(self, condition: str, *parameters: object) -> list[SignedTreeHead]:
        with self._connected() as connection:
            return [_head(row) for row in connection.execute(_SELECT + condition, parameters)]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock, typed_errors():
            if self._connection is None:
                self._connection = connect(self._path, self._busy_timeout_ms)
                self._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_AFTER_PAGES}")
            try:
                yield self._connection
            except BaseException:
                # Whatever state the connection is in, closing it drops an open transaction.
                connection, self._connection = self._connection, None
                close(connection)
                raise


def _head(row: tuple[Any, ...]) -> SignedTreeHead:
    number, note, size, root, time_s, prev, consistency = row
    hashes = tuple(consistency[at : at + HASH_BYTES] for at in range(0, len(consistency), HASH_BYTES))
    return SignedTreeHead(number, note, size, root, time_s, prev, hashes)


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if (application_id, version, tables) == (0, 0, 0):
        for statement in _SCHEMA:
            connection.execute(statement)
    elif (application_id, version) != (APPLICATION_ID, SCHEMA_VERSION):
        raise StoreCorrupt("the file is not a log database that this program knows")
    connection.execute("COMMIT")
