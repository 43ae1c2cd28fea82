from __future__ import annotations

from typing import TYPE_CHECKING

from receipts.chain import ChainVerifier
from receipts.store import PrunedReceipt, ReceiptStore, StoredReceipt

if TYPE_CHECKING:
    from collections.abc import Iterator


def receipts_of(store: ReceiptStore) -> Iterator[StoredReceipt]:
    """Every receipt of the store, in order; `seq` has no gap."""
    count = 0
    while rows := store.read(count, 1000):
        for row in rows:
            count += 1
            assert row.seq == count
            yield row


def verify(store: ReceiptStore) -> int:
    """Check every chain in the store and that `seq` has no gap; return the number of receipts."""
    chains, count = ChainVerifier(), 0
    for row in receipts_of(store):
        count += 1
        if isinstance(row, PrunedReceipt):
            chains.add_pruned(row.writer, row.wseq, row.leaf_hash)
        else:
            receipt = chains.add(row.raw)
            assert (row.id, row.wseq, row.writer) == (receipt.id, receipt.wseq, receipt.writer)
    return count


def stored(outcome: object) -> StoredReceipt:
    assert isinstance(outcome, StoredReceipt), outcome
    return outcome
