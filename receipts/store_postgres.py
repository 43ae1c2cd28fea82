"""The PostgreSQL receipt store: one schema in one database, written by any number of processes on any machines.

Whoever appends first takes an advisory lock, which PostgreSQL hands out in the order of asking and holds until the
transaction is visible to all: so `seq` has no gap, and its order is that of the commits. Two round trips make a
batch: lock and look, then insert and commit. A commit returns when its write-ahead log is on disk.

Ownership: `_writing` belongs to the one thread that appends; `_reading` to `_read_lock`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from typing import TYPE_CHECKING, Any, Final, LiteralString

import psycopg

from receipts.errors import ReceiptFormatError, ReceiptStoreUnavailable, StoreError
from receipts.postgres_connection import BoundedConnection, connect, parse_url, typed_errors
from receipts.postgres_schema import migrate
from receipts.sealed_batch import SealedDraft, seal_batch
from receipts.store import MAX_BATCH_RECEIPTS, Appended, StoredReceipt, WriterTail, receipt_of
from receipts.store_reads import ReadStatements, StoreReads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from receipts.receipt import ReceiptDraft

APPEND_LOCK: Final = 0x53474E52_00000002
"""Advisory lock of whoever appends."""
DEFAULT_LOCK_TIMEOUT_MS: Final = 1000

_SELECT: Final = "SELECT id, seq, writer, wseq, raw, decision, reason, status, leaf_hash FROM signet.receipts "
_BY_PLACE: Final = _SELECT + "WHERE writer = %s AND wseq = %s"
_BY_TRACE: Final = _SELECT + "WHERE trace_id = %s ORDER BY seq LIMIT %s"
_READS: Final = ReadStatements(
    by_id=_SELECT + "WHERE id = %s",
    latest=_SELECT + "ORDER BY seq DESC LIMIT %s",
    read=_SELECT + "WHERE seq > %s ORDER BY seq LIMIT %s",
    tail="SELECT wseq, leaf_hash FROM signet.receipts WHERE writer = %s ORDER BY wseq DESC LIMIT 1",
    pruned_to="SELECT coalesce(max(up_to_seq), 0) FROM signet.prunings",
    first_since="SELECT min(seq) FROM signet.receipts WHERE seq > %s AND seq <= %s AND time_ms >= %s",
)
# Read committed: each statement sees what is committed when it begins, which for those after the lock is everything.
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_LOCK: Final = "SELECT pg_advisory_xact_lock(%s)"
_END: Final = """
    SELECT head.seq, tail.wseq, tail.leaf_hash
    FROM (SELECT coalesce(max(seq), 0) AS seq FROM signet.receipts) AS head
    LEFT JOIN LATERAL (
        SELECT wseq, leaf_hash FROM signet.receipts WHERE writer = %s ORDER BY wseq DESC LIMIT 1
    ) AS tail ON true
"""
_KNOWN: Final = """
    SELECT idempotency_key, id, seq, writer, wseq, raw, decision, reason, status, leaf_hash FROM signet.receipts
    WHERE idempotency_key = ANY (%b::bytea[]) OR id = ANY (%b::text[])
"""
_INSERT: Final = """
    INSERT INTO signet.receipts (seq, id, writer, wseq, time_ms, kind, trace_id, decision, reason, status,
                                 idempotency_key, leaf_hash, raw)
    SELECT %b::bigint + place, id, %b::text, %b::bigint + place, time_ms, kind, trace_id, decision, reason, status,
           idempotency_key, leaf_hash, raw
    FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::text[], %b::smallint[], %b::bytea[],
                %b::bytea[], %b::bytea[])
         WITH ORDINALITY AS new (id, time_ms, kind, trace_id, decision, reason, status, idempotency_key, leaf_hash,
                                 raw, place)
"""
_DROP: Final = """
    WITH done AS (SELECT coalesce(max(seq), 0) AS seq FROM signet.receipts WHERE octet_length(raw) = 0),
         permitted AS (SELECT coalesce(max(up_to_seq), 0) AS seq FROM signet.prunings)
    UPDATE signet.receipts SET raw = '', trace_id = NULL
    WHERE seq > (SELECT seq FROM done)
      AND seq <= (SELECT least(done.seq + %s, permitted.seq) FROM done, permitted)
"""
_CAN_WRITE: Final = """
    SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'
       AND has_table_privilege('signet.receipts', 'INSERT')
"""


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class PostgresReceiptStore(StoreReads):
    """A ReceiptStore in the schema `signet` of the database at `url` (`postgresql://…`), made when absent.

    `lock_timeout_ms`: how long a write waits for other writers. Raises StoreUrlError, ReceiptStoreUnavailable when
    the server cannot be reached, StoreCorrupt when the schema is another program's or a newer Signet's.
    """

    _statements = _READS

    def __init__(
        self,
        url: str,
        *,
        lock_timeout_ms: int = DEFAULT_LOCK_TIMEOUT_MS,
        now_ms: Callable[[], int] = _wall_clock_ms,
    ) -> None:
        self._conninfo = parse_url(url)
        self._lock_timeout_ms = lock_timeout_ms
        self._read_lock = threading.Lock()
        self._writing: BoundedConnection | None = None
        self._reading: BoundedConnection | None = None
        with typed_errors(), contextlib.closing(self._connect()) as connection:
            migrate(connection, now_ms)

    def append(self, drafts: Sequence[ReceiptDraft], tail: WriterTail) -> Appended:
        """Seal and store `drafts` after `tail` in one transaction; see `ReceiptStore.append`."""
        if not 1 <= len(drafts) <= MAX_BATCH_RECEIPTS:
            raise ValueError(f"a batch has 1 to {MAX_BATCH_RECEIPTS} receipts")
        batch = seal_batch(drafts, tail)  # Before the lock is taken, so that other writers need not wait for it.
        with self._closing_on_error():
            connection, placing = self._begin(batch, tail)
            outcomes = tuple(placing.place(sealed) for sealed in batch)
            with connection.pipeline():
                if placing.new:
                    placing.check_chain(tail)
                    connection.execute(_INSERT, placing.parameters(tail), prepare=True)
                connection.execute("COMMIT", prepare=True)
        return Appended(outcomes, placing.tail)

    def by_place(self, writer: str, wseq: int) -> StoredReceipt | None:
        """Find a writer's receipt number `wseq`. Raises ReceiptStoreUnavailable."""
        rows = self._fetch(_BY_PLACE, (writer, wseq))
        return receipt_of(rows[0]) if rows else None

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        """Return up to `limit` receipts of a trace, in order. Raises ReceiptStoreUnavailable."""
        return [receipt_of(row) for row in self._fetch(_BY_TRACE, (trace_id, limit))]

    def permit_pruning(self, event_seq: int, up_to_seq: int) -> None:
        """Permit dropping payloads; see `PrunableStore.permit_pruning`."""
        with self._closing_on_error():
            self._open_writing().execute("INSERT INTO signet.prunings VALUES (%s, %s)", (event_seq, up_to_seq))

    def drop_payloads(self, limit: int) -> int:
        """Drop payloads, oldest first; see `PrunableStore.drop_payloads`. VACUUM gives their room back."""
        with self._closing_on_error():
            return self._open_writing().execute(_DROP, (limit,)).rowcount

    def check(self) -> None:
        """Raise unless the server takes writes and the lock can be had; see `ReceiptStore.check`."""
        # A connection of its own: waiting for the lock here holds up no reads.
        with typed_errors(), contextlib.closing(self._connect()) as connection:
            with connection.pipeline():
                connection.execute(_BEGIN)
                connection.execute(_LOCK, (APPEND_LOCK,))
                writable = connection.execute(_CAN_WRITE)
                connection.execute("ROLLBACK")
            if writable.fetchone() != (True,):
                raise ReceiptStoreUnavailable("the PostgreSQL server takes no writes from this role")

    def close_writer(self) -> None:
        """Close the writing connection; see `ReceiptStore.close_writer`."""
        connection, self._writing = self._writing, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close both connections; see `ReceiptStore.close`."""
        self.close_writer()
        with self._read_lock:
            self._close_reading()

    def _close_reading(self) -> None:
        connection, self._reading = self._reading, None
        if connection is not None:
            connection.close()

    def _connect(self) -> BoundedConnection:
        return connect(self._conninfo, self._lock_timeout_ms)

    def _open_writing(self) -> BoundedConnection:
        if self._writing is None:
            self._writing = self._connect()
        return self._writing

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """Give errors their types; close what writes, which drops its lock and an open transaction."""
        try:
            with typed_errors():
                yield
        except BaseException:
            self.close_writer()
            raise

    def _begin(self, batch: Sequence[SealedDraft], tail: WriterTail) -> tuple[BoundedConnection, _Placing]:
        """Take the lock and look; once more when the connection turned out to be dead, since nothing was written."""
        was_open = self._writing is not None
        connection = self._open_writing()
        try:
            return connection, _look(connection, batch, tail)
        except psycopg.OperationalError as error:
            if not (was_open and connection.died_of(error)):
                raise
        self.close_writer()
        connection = self._open_writing()
        return connection, _look(connection, batch, tail)

    def _fetch(self, statement: LiteralString, parameters: tuple[object, ...]) -> list[Any]:
        with self._read_lock, typed_errors():
            was_open = self._reading is not None
            connection = self._reading = self._reading or self._connect()
            try:
                return _rows(connection, statement, parameters)
            except BaseException as error:
                # Once more when the server was restarted since the last read.
                again = was_open and isinstance(error, psycopg.OperationalError) and connection.died_of(error)
                self._close_reading()
                if not again:
                    raise
            self._reading = self._connect()
            try:
                return _rows(self._reading, statement, parameters)
            except BaseException:
                self._close_reading()
                raise


def _rows(connection: BoundedConnection, statement: LiteralString, parameters: tuple[object, ...]) -> list[Any]:
    return connection.execute(statement, parameters, prepare=True, binary=True).fetchall()


def _look(connection: BoundedConnection, batch: Sequence[SealedDraft], tail: WriterTail) -> _Placing:
    """Take the lock, then read where the sequence and the chain end, and what of the batch is stored already."""
    drafts = [sealed.draft for sealed in batch if sealed.problem is None]
    keys = [draft.idempotency_key for draft in drafts if draft.idempotency_key is not None]
    with connection.pipeline():
        connection.execute(_BEGIN, prepare=True)
        connection.execute(_LOCK, (APPEND_LOCK,), prepare=True)
        end = connection.execute(_END, (tail.writer,), prepare=True, binary=True)
        known = connection.execute(_KNOWN, (keys, [draft.id for draft in drafts]), prepare=True, binary=True)
    row = end.fetchone()
    if row is None:
        raise ReceiptStoreUnavailable("PostgreSQL: no answer")
    head_seq, wseq, leaf_hash = row
    return _Placing(head_seq, tail, WriterTail(tail.writer, wseq or 0, leaf_hash), known.fetchall())


class _Placing:
    """Decides, under the lock, which drafts are stored and where."""

    def __init__(self, head_seq: int, tail: WriterTail, stored_tail: WriterTail, known: Sequence[Any]) -> None:
        self.tail = tail
        self.new: list[SealedDraft] = []
        self._head_seq = head_seq
        self._stored_tail = stored_tail
        self._by_key = {row[0]: receipt_of(row[1:]) for row in known if row[0] is not None}
        self._ids = {row[1] for row in known}

    def place(self, sealed: SealedDraft) -> StoredReceipt | StoreError | ReceiptFormatError:
        """Give one draft its place, or say why it gets none."""
        draft = sealed.draft
        if sealed.problem is not None:
            return sealed.problem
        if draft.idempotency_key is not None and (stored := self._by_key.get(draft.idempotency_key)) is not None:
            return dataclasses.replace(stored, duplicate=True)
        if draft.id in self._ids:
            return StoreError("another receipt has this id")
        sealed = sealed.moved_to(self.tail)
        if sealed.problem is not None:
            return sealed.problem
        self.new.append(sealed)
        self.tail = sealed.after
        receipt = sealed.stored(self._head_seq + len(self.new))
        self._ids.add(draft.id)
        if draft.idempotency_key is not None:
            self._by_key[draft.idempotency_key] = receipt
        return receipt

    def check_chain(self, tail: WriterTail) -> None:
        """Raise ReceiptStoreUnavailable unless the stored chain ends where the batch goes on."""
        if tail != self._stored_tail:
            raise ReceiptStoreUnavailable("the writer's chain does not end where this process left it")

    def parameters(self, tail: WriterTail) -> tuple[object, ...]:
        """Give the parameters of `_INSERT`: columns as arrays, so that one prepared statement takes any number."""
        drafts = [sealed.draft for sealed in self.new]
        return (
            self._head_seq,
            tail.writer,
            tail.wseq,
            [draft.id for draft in drafts],
            [draft.time_ms for draft in drafts],
            [draft.kind for draft in drafts],
            [draft.trace_id for draft in drafts],
            [draft.decision for draft in drafts],
            [draft.reason for draft in drafts],
            [draft.status for draft in drafts],
            [draft.idempotency_key for draft in drafts],
            [sealed.after.leaf_hash for sealed in self.new],
            [sealed.raw for sealed in self.new],
        )
