"""Finding receipts by what is in them, beside the order of the log: a small protocol, and one for every store.

A store that has an index answers at once; `ScanLookup` serves any store, within a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from receipts.errors import StoreError

if TYPE_CHECKING:
    from receipts.store import ReceiptStore, StoredReceipt

MAX_SCANNED: Final = 200_000
"""Receipts that one look-up goes back over at most."""
_PAGE: Final = 1000


class LookupTooFar(StoreError):
    """What was asked for lies further back than a look-up may go in this store."""

    code = "lookup_too_far"


class ReceiptLookup(Protocol):
    """Look-ups that the order of the log cannot answer. Calls block; any thread may make them."""

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        """Find a writer's receipt number `wseq`, known to lie before `before_seq`. Raises StoreError."""

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        """Return up to `limit` receipts of a trace, in the order of the log. Raises StoreError."""


class _Trace(msgspec.Struct):
    trace_id: str | None = None


_decoder: Final = msgspec.json.Decoder(_Trace)


class ScanLookup:
    """Look-ups in any store, by reading its newest `max_scanned` receipts. Raises LookupTooFar beyond them."""

    def __init__(self, store: ReceiptStore, max_scanned: int = MAX_SCANNED) -> None:
        self._store, self._max_scanned = store, max_scanned

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        """Find a writer's receipt; see `ReceiptLookup.by_writer`."""
        low = max(0, before_seq - 1 - self._max_scanned)
        high = before_seq - 1
        while high > low:
            start = max(low, high - _PAGE)
            for receipt in reversed(self._store.read(start, high - start)):
                if (receipt.writer, receipt.wseq) == (writer, wseq):
                    return receipt
            high = start
        if low:
            raise LookupTooFar(f"a writer's last receipt lies more than {self._max_scanned} back")
        return None

    def by_trace(self, trace_id: str, limit: int) -> list[StoredReceipt]:
        """Find a trace among the newest receipts; see `ReceiptLookup.by_trace`."""
        newest = self._store.latest(1)
        after = max(0, (newest[0].seq if newest else 0) - self._max_scanned)
        first = after
        found: list[StoredReceipt] = []
        while len(found) < limit and (page := self._store.read(after, _PAGE)):
            found += [each for each in page if each.raw and _decoder.decode(each.raw).trace_id == trace_id]
            after = page[-1].seq
        if first and not found:
            raise LookupTooFar(f"no receipt of this trace is among the newest {self._max_scanned}")
        return found[:limit]
