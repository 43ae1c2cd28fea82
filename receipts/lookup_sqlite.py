"""Look-ups in a SQLite receipt store, on a connection of their own that only reads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receipts.sqlite_file import close, connect, typed_errors
from receipts.sqlite_schema import TRACE_RUN_BITS
from receipts.store import receipt_of

if TYPE_CHECKING:
    import sqlite3

    from receipts.store import StoredReceipt

_BUSY_TIMEOUT_MS: Final = 1000
_SELECT: Final = "SELECT id, seq, writer, wseq, raw, decision, reason, status, leaf_hash FROM receipts "
_BY_WRITER: Final = _SELECT + "WHERE writer = ? AND wseq = ?"
_BY_TRACE: Final = _SELECT + f"WHERE seq >> {TRACE_RUN_BITS} = ? AND trace_id = ? ORDER BY seq LIMIT ?"
_WITH_TRACES: Final = """
    SELECT (SELECT coalesce(max(up_to_seq), 0) + 1 FROM prunings), (SELECT coalesce(max(seq), 0) FROM receipts)
"""


class SqliteLookup:
    """Look-ups in the store at `path`, see `ReceiptLookup`. The connection belongs to `_lock`; any thread may call."""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        """Find a writer's receipt; see `ReceiptLookup.by_writer`."""
        rows = [row for row in self._fetch(_BY_WRITER, (writer, wseq)) if row[1] < before_seq]
        return receipt_of(rows[0]) if rows else None

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        """Find the receipts of a trace; see `ReceiptLookup.by_trace`."""
        first, last = self._fetch(_WITH_TRACES, ())[0]
        found: list[StoredReceipt] = []
        for run in range(first >> TRACE_RUN_BITS, (last >> TRACE_RUN_BITS) + 1):
            if len(found) < limit:
                found += map(receipt_of, self._fetch(_BY_TRACE, (run, trace_id, limit - len(found))))
        return found

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            connection, self._connection = self._connection, None
            close(connection)

    def _fetch(self, statement: str, parameters: tuple[object, ...]) -> list[Any]:
        with self._lock, typed_errors():
            if self._connection is None:
                self._connection = connect(self._path, _BUSY_TIMEOUT_MS)
            try:
                return self._connection.execute(statement, parameters).fetchall()
            except BaseException:
                connection, self._connection = self._connection, None
                close(connection)
                raise
