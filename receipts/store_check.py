"""Checking every receipt of a store: no gap, every chain whole, every column as the bytes say.

`receipts.fsck` also verifies the log that was made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receipts.chain import ChainBroken, ChainVerifier
from receipts.errors import ReceiptFormatError, StoreCorrupt
from receipts.receipt import BodyVerdictReceipt, DecisionReceipt
from receipts.store import PrunedReceipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from receipts.store import ReceiptStore, StoredReceipt

READ_RECEIPTS: Final = 1000


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What was found to be whole. `pruned`: receipts of which only the hash is kept."""

    receipts: int
    pruned: int
    writers: int


def check_store(store: ReceiptStore, progress: Callable[[int], None] = lambda _: None) -> StoreReport:
    """Check every receipt, in memory that does not grow with their number; tell `progress` how many are done.

    Raises StoreCorrupt that names the first fault, ReceiptStoreUnavailable.
    """
    chains, count, pruned = ChainVerifier(), 0, 0
    while page := store.read(count, READ_RECEIPTS):
        for receipt in page:
            count += 1
            if receipt.seq != count:
                raise StoreCorrupt(f"receipt {count} is missing")
            try:
                _check(receipt, chains)
            except (ReceiptFormatError, ChainBroken) as error:
                raise StoreCorrupt(f"receipt {count}: {error}") from error
            pruned += isinstance(receipt, PrunedReceipt)
        progress(count)
    return StoreReport(count, pruned, len(chains.writers))


def _check(receipt: StoredReceipt, chains: ChainVerifier) -> None:
    if isinstance(receipt, PrunedReceipt):
        chains.add_pruned(receipt.writer, receipt.wseq, receipt.leaf_hash)
        return
    parsed = chains.add(receipt.raw)
    said: tuple[str | None, str | None, int | None] = (None, None, None)
    if isinstance(parsed, DecisionReceipt | BodyVerdictReceipt):
        said = (parsed.decision, parsed.reason, parsed.status)
    stored = (receipt.decision, receipt.reason, receipt.status)
    if (parsed.id, parsed.writer, parsed.wseq, said) != (receipt.id, receipt.writer, receipt.wseq, stored):
        raise StoreCorrupt(f"receipt {receipt.seq} is stored under what it does not say")
