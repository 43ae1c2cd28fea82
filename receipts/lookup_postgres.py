"""Look-ups in a PostgreSQL receipt store, through its indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from receipts.store import StoredReceipt
    from receipts.store_postgres import PostgresReceiptStore


class PostgresLookup:
    """Look-ups in `store`, see `ReceiptLookup`. Any thread may call."""

    def __init__(self, store: PostgresReceiptStore) -> None:
        self._store = store

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        """Find a writer's receipt; see `ReceiptLookup.by_writer`."""
        receipt = self._store.by_place(writer, wseq)
        return receipt if receipt is not None and receipt.seq < before_seq else None

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        """Find the receipts of a trace; see `ReceiptLookup.by_trace`."""
        return self._store.by_trace(trace_id, limit)
