"""Look-ups in a SQLite receipt store, on a connection of their own that only reads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receipts.lookup import LookupTooFar
from receipts.sqlite_file import close, connect, typed_errors
from receipts.store import receipt_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from receipts.store import StoredReceipt

MAX_QUERY_S: Final = 2.0
"""A look-up without an index reads the whole file: after so long it gives up."""
_BUSY_TIMEOUT_MS: Final = 1000
OPCODES_BETWEEN_LOOKS: Final = 10_000
"""Steps of SQLite's machine between two looks at the clock."""
_SELECT: Final = "SELECT id, seq, writer, wseq, raw, decision, reason, status, leaf_hash FROM receipts "
_BY_WRITER: Final = _SELECT + "WHERE writer = ? AND wseq = ?"
_BY_TRACE: Final = _SELECT + "WHERE trace_id = ? ORDER BY seq LIMIT ?"


class SqliteLookup:
    """Look-ups in the store at `path`, see `ReceiptLookup`. The connection belongs to `_lock`; any thread may call."""

    def __init__(
        self,
        path: Path | str,
        *,
        max_query_s: float = MAX_QUERY_S,
        opcodes_between_looks: int = OPCODES_BETWEEN_LOOKS,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._max_query_s, self._monotonic_s = max_query_s, monotonic_s
        self._opcodes_between_looks = opcodes_between_looks
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        """Find a writer's receipt; see `ReceiptLookup.by_writer`."""
        rows = [row for row in self._fetch(_BY_WRITER, (writer, wseq)) if row[1] < before_seq]
        return receipt_of(rows[0]) if rows else None

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        """Find the receipts of a trace; see `ReceiptLookup.by_trace`. Raises LookupTooFar when it takes too long."""
        return [receipt_of(row) for row in self._fetch(_BY_TRACE, (trace_id, limit))]

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            connection, self._connection = self._connection, None
            close(connection)

    def _fetch(self, statement: str, parameters: tuple[object, ...]) -> list[Any]:
        with self._lock, typed_errors():
            if self._connection is None:
                self._connection = connect(self._path, _BUSY_TIMEOUT_MS)
            deadline_s = self._monotonic_s() + self._max_query_s
            late = False

            def look() -> bool:
                nonlocal late
                late = self._monotonic_s() > deadline_s
                return late

            self._connection.set_progress_handler(look, self._opcodes_between_looks)
            try:
                return self._connection.execute(statement, parameters).fetchall()
            except BaseException as error:
                connection, self._connection = self._connection, None
                close(connection)
                if late:
                    raise LookupTooFar(f"the look-up took more than {self._max_query_s} s") from error
                raise
