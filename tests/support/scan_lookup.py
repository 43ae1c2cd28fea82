"""Look-ups in any store by reading it from its beginning: what the indexed ones must agree with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from receipts.store import ReceiptStore, StoredReceipt


class ScanLookup:
    def __init__(self, store: ReceiptStore) -> None:
        self._store = store

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        found = (each for each in self._receipts() if (each.writer, each.wseq) == (writer, wseq))
        return next((each for each in found if each.seq < before_seq), None)

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        found = (each for each in self._receipts() if each.raw and json.loads(each.raw).get("trace_id") == trace_id)
        return [each for each, _ in zip(found, range(limit), strict=False)]

    def _receipts(self) -> Iterator[StoredReceipt]:
        after = 0
        while page := self._store.read(after, 1000):
            yield from page
            after = page[-1].seq
