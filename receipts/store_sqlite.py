"""The SQLite receipt store: one file in WAL mode, written by several processes, durable at every commit.

`synchronous=FULL` makes COMMIT return only after the write-ahead log is synced. `BEGIN IMMEDIATE` takes the
write lock before anything is read, so tails, duplicates and `seq` are decided under it.

Ownership: `_writing` and `_turnstile` belong to the one thread that appends; `_reading` to `_read_lock`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from receipts.errors import ReceiptFormatError, ReceiptStoreUnavailable, StoreError
from receipts.sealed_batch import seal_batch
from receipts.sqlite_file import OpenFile, close, connect, create_private, open_file, try_begin, typed_errors
from receipts.sqlite_schema import migrate
from receipts.store import MAX_BATCH_RECEIPTS, Appended, StoredReceipt, WriterTail, receipt_of
from receipts.store_reads import ReadStatements, StoreReads
from receipts.turnstile import Turnstile, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import LiteralString

    from receipts.receipt import ReceiptDraft
    from receipts.sealed_batch import SealedDraft

DEFAULT_BUSY_TIMEOUT_MS: Final = 1000
MIN_FREE_BYTES: Final = 16 * 1024 * 1024
"""Below this much free disk `check` reports the store as not ready."""

CHECKPOINT_AFTER_BYTES: Final = 4 * 1024 * 1024
"""Receipts that one writer adds between checkpoints; the write-ahead log is about twice that for each writer."""

_SELECT: Final = "SELECT id, seq, writer, wseq, raw, decision, reason, status, leaf_hash FROM receipts "
_BY_ID: Final = _SELECT + "WHERE id = ?"
_BY_KEY: Final = _SELECT + "WHERE idempotency_key = ?"
_READS: Final = ReadStatements(
    by_id=_BY_ID,
    latest=_SELECT + "ORDER BY seq DESC LIMIT ?",
    read=_SELECT + "WHERE seq > ? ORDER BY seq LIMIT ?",
    tail="SELECT wseq, leaf_hash FROM receipts WHERE writer = ? ORDER BY wseq DESC LIMIT 1",
    pruned_to="SELECT coalesce(max(up_to_seq), 0) FROM prunings",
    first_since="SELECT min(seq) FROM receipts WHERE seq > ? AND seq <= ? AND time_ms >= ?",
)
_DROP: Final = """
    WITH done (seq) AS (SELECT coalesce(max(seq), 0) FROM receipts WHERE length(raw) = 0),
         last (seq) AS (SELECT min(done.seq + :limit, (SELECT coalesce(max(up_to_seq), 0) FROM prunings)) FROM done)
    UPDATE receipts SET raw = x'', trace_id = NULL
    WHERE seq > (SELECT seq FROM done) AND seq <= (SELECT seq FROM last)
"""
_INSERT: Final = """
    INSERT INTO receipts (id, writer, wseq, time_ms, kind, trace_id, decision, reason, status,
                          idempotency_key, leaf_hash, raw)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class SqliteReceiptStore(StoreReads):
    """A ReceiptStore in the SQLite file at `path`, made with mode 0600 when absent.

    `busy_timeout_ms`: how long a write waits for another process's. Raises ReceiptStoreUnavailable when the
    file cannot be opened, StoreCorrupt when it is another program's or a newer Signet's.
    """

    _statements = _READS

    def __init__(
        self,
        path: Path | str,
        *,
        busy_timeout_ms: int = DEFAULT_BUSY_TIMEOUT_MS,
        now_ms: Callable[[], int] = _wall_clock_ms,
    ) -> None:
        self._path = Path(path)
        self._busy_timeout_ms = busy_timeout_ms
        self._read_lock = threading.Lock()
        self._writing: OpenFile | None = None
        self._turnstile: Turnstile | None = None
        self._unchecked_bytes = 0
        self._reading: OpenFile | None = None
        with typed_errors():
            create_private(self._path)
            with contextlib.closing(connect(self._path, self._busy_timeout_ms)) as connection:
                migrate(connection, now_ms)

    def append(self, drafts: Sequence[ReceiptDraft], tail: WriterTail) -> Appended:
        """Seal and store `drafts` after `tail` in one transaction; see `ReceiptStore.append`."""
        if not 1 <= len(drafts) <= MAX_BATCH_RECEIPTS:
            raise ValueError(f"a batch has 1 to {MAX_BATCH_RECEIPTS} receipts")
        batch = seal_batch(drafts, tail)  # Before the lock is taken, so that other processes need not wait for it.
        try:
            with typed_errors():
                file = self._begin()
                connection = file.connection
                outcomes: list[StoredReceipt | StoreError | ReceiptFormatError] = []
                for sealed in batch:
                    # A duplicate took no place in the chain, so whatever comes after it moves up.
                    outcome, tail = _insert(connection, sealed.moved_to(tail))
                    outcomes.append(outcome)
                connection.execute("COMMIT")
                if not file.in_place(self._path):
                    # What was just written no one will ever find.
                    raise ReceiptStoreUnavailable("the file was removed or replaced")
        except BaseException:
            # Whatever state the connection is in, closing it drops the lock and an open transaction.
            self.close_writer()
            raise
        self._checkpoint_when_due(sum(len(each.raw) for each in outcomes if isinstance(each, StoredReceipt)))
        return Appended(tuple(outcomes), tail)

    def permit_pruning(self, event_seq: int, up_to_seq: int) -> None:
        """Permit dropping payloads; see `PrunableStore.permit_pruning`."""
        with self._transaction() as connection:
            connection.execute("INSERT INTO prunings VALUES (?, ?)", (event_seq, up_to_seq))

    def drop_payloads(self, limit: int) -> int:
        """Drop payloads, oldest first; see `PrunableStore.drop_payloads`."""
        with self._transaction() as connection:
            connection.execute("PRAGMA secure_delete = ON")  # Overwritten with zeros, not left in free pages.
            connection.execute(_DROP, {"limit": limit})
            dropped: int = connection.execute("SELECT changes()").fetchone()[0]
        if dropped == 0:
            # The last copies are in the write-ahead log. A reader in another process may keep them there for now.
            with typed_errors(), contextlib.closing(connect(self._path, self._busy_timeout_ms)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return dropped

    def check(self) -> None:
        """Raise unless the write lock and `MIN_FREE_BYTES` of disk can be had; see `ReceiptStore.check`."""
        with typed_errors():
            with contextlib.closing(connect(self._path, self._busy_timeout_ms)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            if shutil.disk_usage(self._path.parent).free < MIN_FREE_BYTES:
                raise ReceiptStoreUnavailable(f"less than {MIN_FREE_BYTES} bytes of disk are free")

    def close_writer(self) -> None:
        """Close the writing connection; see `ReceiptStore.close_writer`."""
        file, self._writing = self._writing, None
        turnstile, self._turnstile = self._turnstile, None
        close(None if file is None else file.connection)
        if turnstile is not None:
            turnstile.close()

    def close(self) -> None:
        """Close both connections; see `ReceiptStore.close`."""
        self.close_writer()
        with self._read_lock:
            self._close_reading()

    def _close_reading(self) -> None:
        file, self._reading = self._reading, None
        close(None if file is None else file.connection)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock and commit at the end; after an error, close what writes."""
        try:
            with typed_errors():
                connection = self._begin().connection
                yield connection
                connection.execute("COMMIT")
        except BaseException:
            self.close_writer()
            raise

    def _begin(self) -> OpenFile:
        """Open what is not open, wait our turn, and take the write lock."""
        if self._writing is None:
            self._writing = open_file(self._path, self._busy_timeout_ms)
            # The waiting is done here: see receipts.turnstile.
            self._writing.connection.execute("PRAGMA busy_timeout = 0")
        if self._turnstile is None:
            self._turnstile = Turnstile(self._path.with_name(f"{self._path.name}-turn"))
        file, turnstile = self._writing, self._turnstile
        deadline_s = time.monotonic() + self._busy_timeout_ms / 1000
        if not turnstile.enter(deadline_s):
            raise ReceiptStoreUnavailable("other writers kept the store busy")
        try:
            if not wait_for(lambda: try_begin(file.connection), deadline_s):
                raise ReceiptStoreUnavailable("another writer kept the store locked")
        finally:
            turnstile.leave()
        return file

    def _checkpoint_when_due(self, written_bytes: int) -> None:
        """Move the write-ahead log into the database once enough was written, with other writers kept out.

        SQLite's automatic checkpoint never reaches the end of a log to which another process keeps adding:
        the log would grow without bound, with two more syncs at every commit. The receipts are durable
        already, so a checkpoint that fails is only put off.
        """
        self._unchecked_bytes += written_bytes
        file, turnstile = self._writing, self._turnstile
        if self._unchecked_bytes < CHECKPOINT_AFTER_BYTES or file is None or turnstile is None:
            return
        with contextlib.suppress(sqlite3.Error):
            if not turnstile.enter(time.monotonic() + self._busy_timeout_ms / 1000):
                return
            try:
                file.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self._unchecked_bytes = 0
            finally:
                turnstile.leave()

    def _fetch(self, statement: LiteralString, parameters: tuple[object, ...]) -> list[Any]:
        with self._read_lock, typed_errors():
            if self._reading is not None and not self._reading.in_place(self._path):
                self._close_reading()
            if self._reading is None:
                self._reading = open_file(self._path, self._busy_timeout_ms)
            try:
                return self._reading.connection.execute(statement, parameters).fetchall()
            except BaseException:
                self._close_reading()
                raise


def _insert(
    connection: sqlite3.Connection, sealed: SealedDraft
) -> tuple[StoredReceipt | StoreError | ReceiptFormatError, WriterTail]:
    """Insert one sealed draft; return its outcome and the tail it leaves."""
    if sealed.problem is not None:
        return sealed.problem, sealed.before
    draft, after = sealed.draft, sealed.after
    cursor = connection.execute(
        _INSERT,
        (
            draft.id,
            after.writer,
            after.wseq,
            draft.time_ms,
            draft.kind,
            draft.trace_id,
            draft.decision,
            draft.reason,
            draft.status,
            draft.idempotency_key,
            after.leaf_hash,
            sealed.raw,
        ),
    )
    if cursor.rowcount != 1:
        return _conflict(connection, draft), sealed.before
    return sealed.stored(cast("int", cursor.lastrowid)), after


def _conflict(connection: sqlite3.Connection, draft: ReceiptDraft) -> StoredReceipt | StoreError:
    """Say which uniqueness the insert ran into. Raises ReceiptStoreUnavailable when it was the chain's."""
    if draft.idempotency_key is not None:
        row = connection.execute(_BY_KEY, (draft.idempotency_key,)).fetchone()
        if row is not None:
            return dataclasses.replace(receipt_of(row), duplicate=True)
    if connection.execute(_BY_ID, (draft.id,)).fetchone() is not None:
        return StoreError("another receipt has this id")
    raise ReceiptStoreUnavailable("the writer's chain went on without this process")
