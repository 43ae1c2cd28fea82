"""Finding receipts by what is in them, beside the order of the log. Every store has an index for each of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from receipts.store import StoredReceipt


class ReceiptLookup(Protocol):
    """Look-ups that the order of the log cannot answer. Calls block; any thread may make them."""

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        """Find a writer's receipt number `wseq`, known to lie before `before_seq`. Raises StoreError."""

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        """Return up to `limit` receipts of a trace whose payloads are there, in the order of the log.

        Raises StoreError.
        """
