"""Giving the drafts of a batch their places in a writer's chain, before any lock is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from receipts.errors import ReceiptFormatError, ReceiptTooLarge, StoreError
from receipts.receipt import leaf_hash, seal
from receipts.store import StoredReceipt, WriterTail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receipts.receipt import ReceiptDraft


@dataclass(frozen=True, slots=True)
class SealedDraft:
    """A draft in its place in the chain; `problem` when it cannot be sealed and takes none."""

    draft: ReceiptDraft
    before: WriterTail
    after: WriterTail
    raw: bytes = b""
    problem: StoreError | ReceiptFormatError | None = None

    def moved_to(self, tail: WriterTail) -> SealedDraft:
        """Give the draft the place after `tail`: an earlier one of the batch turned out to take none."""
        return self if self.before == tail else seal_draft(self.draft, tail)

    def stored(self, seq: int) -> StoredReceipt:
        """Give the receipt as it is once stored at `seq`."""
        return StoredReceipt(
            id=self.draft.id,
            seq=seq,
            writer=self.after.writer,
            wseq=self.after.wseq,
            raw=self.raw,
            decision=self.draft.decision,
            reason=self.draft.reason,
            status=self.draft.status,
        )


def seal_draft(draft: ReceiptDraft, tail: WriterTail) -> SealedDraft:
    """Seal one draft as the next after `tail`; raises nothing, see `SealedDraft.problem`."""
    try:
        raw = seal(draft, tail.writer, tail.wseq + 1, tail.leaf_hash)
    except (ReceiptFormatError, ReceiptTooLarge) as error:
        return SealedDraft(draft, tail, tail, problem=error)
    return SealedDraft(draft, tail, WriterTail(tail.writer, tail.wseq + 1, leaf_hash(raw)), raw)


def seal_batch(drafts: Sequence[ReceiptDraft], tail: WriterTail) -> list[SealedDraft]:
    """Seal drafts one after the other, as if none of them were a duplicate."""
    sealed = []
    for draft in drafts:
        sealed.append(seal_draft(draft, tail))
        tail = sealed[-1].after
    return sealed
