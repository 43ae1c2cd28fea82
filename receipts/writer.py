"""The receipt writer of one process: returns a receipt only when it is durable."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from receipts.group_commit import DEFAULT_MAX_PENDING_ITEMS, GroupCommit
from receipts.store import MAX_BATCH_RECEIPTS, StoredReceipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receipts.receipt import ReceiptDraft
    from receipts.receipt_id import WriterId
    from receipts.store import ReceiptStore, WriterTail


class ReceiptWriter:
    """Append drafts from any task to one store, in one chain, many to a commit.

    `writer_id`: a UUID made fresh by this process at its start; two processes never share one. `store` is
    used for writing by this writer's thread alone until `aclose` returns. `failing_timeout_s`: how long an append
    waits at the most while the last commit is one that failed.

    Ownership: `_tail` belongs to the writer's thread, which alone sets `_failing`.
    """

    def __init__(
        self,
        store: ReceiptStore,
        *,
        writer_id: WriterId,
        max_batch_receipts: int = MAX_BATCH_RECEIPTS,
        max_pending_receipts: int = DEFAULT_MAX_PENDING_ITEMS,
        failing_timeout_s: float = math.inf,
    ) -> None:
        if max_batch_receipts > MAX_BATCH_RECEIPTS:
            raise ValueError(f"max_batch_receipts is over {MAX_BATCH_RECEIPTS}")
        self._store = store
        self._writer_id = writer_id
        self._tail: WriterTail | None = None
        self._failing = False
        self._failing_timeout_s = failing_timeout_s
        self._commits: GroupCommit[ReceiptDraft, StoredReceipt] = GroupCommit(
            self._commit,
            name="receipts",
            max_batch_items=max_batch_receipts,
            max_pending_items=max_pending_receipts,
            on_close=store.close_writer,
        )

    def start(self) -> None:
        """Start the writer's thread; once, and after any fork."""
        self._commits.start()

    async def append(self, draft: ReceiptDraft, timeout_s: float) -> StoredReceipt:
        """Store `draft` and return it once durable, or the receipt that has its idempotency key already.

        Raises StoreError (StoreOverloaded, StoreTimeout, StoreClosed, ReceiptStoreUnavailable,
        ReceiptTooLarge) or ReceiptFormatError; after those nothing may be answered on its strength, though it
        may have become durable.
        """
        return await self._commits.submit(
            draft, min(timeout_s, self._failing_timeout_s) if self._failing else timeout_s
        )

    async def aclose(self, drain_s: float) -> int:
        """Store what is queued, then stop; returns how many were given up after `drain_s` seconds."""
        return await self._commits.aclose(drain_s)

    def _commit(self, drafts: Sequence[ReceiptDraft]) -> Sequence[StoredReceipt | Exception]:
        # Forgotten first: when this append fails its receipts may be stored all the same: the store knows.
        tail, self._tail = self._tail, None
        try:
            if tail is None:
                tail = self._store.writer_tail(self._writer_id)
            appended = self._store.append(drafts, tail)
        except Exception:
            self._failing = True
            raise
        self._failing = False
        self._tail = appended.tail
        return appended.outcomes
