"""Look-ups in a PostgreSQL receipt store: writers through the index of their chains, traces among the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from receipts.lookup import MAX_SCANNED, ScanLookup

if TYPE_CHECKING:
    from receipts.store import StoredReceipt
    from receipts.store_postgres import PostgresReceiptStore


class PostgresLookup(ScanLookup):
    """Look-ups in `store`, see `ReceiptLookup`. Any thread may call."""

    def __init__(self, store: PostgresReceiptStore, max_scanned: int = MAX_SCANNED) -> None:
        super().__init__(store, max_scanned)
        self._postgres = store

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        """Find a writer's receipt; see `ReceiptLookup.by_writer`."""
        receipt = self._postgres.by_place(writer, wseq)
        return receipt if receipt is not None and receipt.seq < before_seq else None
