"""What every receipt store promises, whatever it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from receipts.errors import (
    ReceiptFormatError,
    ReceiptStoreUnavailable,
    ReceiptTooLarge,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreOverloaded,
    StoreTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receipts.receipt import ReceiptDraft
    from receipts.receipt_id import ReceiptId, WriterId

__all__ = [
    "MAX_BATCH_RECEIPTS",
    "MAX_LATEST",
    "MAX_READ",
    "Appended",
    "PrunableStore",
    "PrunedReceipt",
    "ReceiptFormatError",
    "ReceiptStore",
    "ReceiptStoreUnavailable",
    "ReceiptTooLarge",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreOverloaded",
    "StoreTimeout",
    "StoredReceipt",
    "WriterTail",
    "receipt_of",
]

MAX_BATCH_RECEIPTS: Final = 256
"""Receipts in one transaction."""

MAX_LATEST: Final = 1000
"""Receipts that one `latest` call returns at most."""

MAX_READ: Final = 10_000
"""Receipts that one `read` call returns at most."""


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt that is durable.

    `seq` is its place in the store, from 1 without a gap; the log index is `seq - 1`. `raw` are the bytes to
    hash. `decision`, `reason` and `status` repeat what `raw` says. `duplicate`: it was there before, under
    the same idempotency key.
    """

    id: ReceiptId
    seq: int
    writer: WriterId
    wseq: int
    raw: bytes
    decision: str | None
    reason: str | None
    status: int | None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class PrunedReceipt(StoredReceipt):
    """A receipt whose payload was dropped: `raw` is empty, its leaf hash (32 bytes) is kept.

    `decision`, `reason` and `status` are what it said.
    """

    leaf_hash: bytes = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class WriterTail:
    """The end of a writer's chain: its last `wseq` (0 when none) and that receipt's leaf hash (32 bytes)."""

    writer: WriterId
    wseq: int = 0
    leaf_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """One outcome for each draft, in order, and the tail to go on from."""

    outcomes: tuple[StoredReceipt | StoreError | ReceiptFormatError, ...]
    tail: WriterTail


def receipt_of(row: Sequence[Any]) -> StoredReceipt:
    """Make a receipt of a row: id, seq, writer, wseq, raw, decision, reason, status, leaf hash."""
    *values, leaf_hash = row
    return StoredReceipt(*values) if row[4] else PrunedReceipt(*values, leaf_hash=leaf_hash)


class ReceiptStore(Protocol):
    """An append-only sequence of receipts. Calls block: make them from a thread, never from an event loop.

    Durability: when `append` returns, every receipt in it survives the death of the process and of the
    machine. When it raises, any of them may or may not have become durable: read `writer_tail` again before
    the next append. Order: `seq` is assigned in the order of commits, so a reader that saw `seq` n never
    later finds a new one below n. Concurrency: any number of processes append, each under its own writer;
    `append`, `writer_tail` and `close_writer` of one store object belong to one thread, reads may come from
    any. Pruning: whatever reads a receipt gives a `PrunedReceipt` in the place of one whose payload was dropped.
    """

    def append(self, drafts: Sequence[ReceiptDraft], tail: WriterTail) -> Appended:
        """Seal and store `drafts` (1 to `MAX_BATCH_RECEIPTS`) after `tail`, all in one durable transaction.

        A draft that cannot be sealed gets its error as outcome and takes no place in the chain. A draft whose
        idempotency key is stored already, by whichever writer, is not written: its outcome is the stored
        receipt. Raises ReceiptStoreUnavailable.
        """

    def writer_tail(self, writer: WriterId) -> WriterTail:
        """Read the end of `writer`'s chain as stored. Raises ReceiptStoreUnavailable."""

    def get(self, receipt_id: ReceiptId) -> StoredReceipt | None:
        """Find a receipt by id, whatever text that is. Raises ReceiptStoreUnavailable."""

    def latest(self, limit: int) -> list[StoredReceipt]:
        """Return the last 1 to `MAX_LATEST` receipts, newest first. Raises ReceiptStoreUnavailable."""

    def read(self, after_seq: int, limit: int) -> list[StoredReceipt]:
        """Return up to `limit` (1 to `MAX_READ`) receipts above `after_seq`, in order.

        Raises ReceiptStoreUnavailable.
        """

    def pruned_to(self) -> int:
        """Return the last `seq` whose payload is dropped, or may be at any moment; 0 when none is.

        Every payload after it is there. Raises ReceiptStoreUnavailable.
        """

    def check(self) -> None:
        """Raise StoreError unless the store could take a receipt now; writes nothing."""

    def close_writer(self) -> None:
        """Release what `append` holds open; a later append opens it again."""

    def close(self) -> None:
        """Release everything."""


class PrunableStore(ReceiptStore, Protocol):
    """A store that can drop the payloads of its oldest receipts and keep their hashes (`receipts.prune`).

    The database itself refuses to drop one that no pruning permits, and a pruning that no `log_event` receipt
    records. All methods raise ReceiptStoreUnavailable.
    """

    def first_since(self, time_ms: int, after_seq: int, limit: int) -> int | None:
        """Return the `seq` of the first receipt whose time is `time_ms` or later; None when there is none.

        Looks at the `limit` receipts above `after_seq`.
        """

    def permit_pruning(self, event_seq: int, up_to_seq: int) -> None:
        """Permit dropping payloads up to `up_to_seq`, as the `log_event` receipt at `event_seq` after it records."""

    def drop_payloads(self, limit: int) -> int:
        """Drop the payloads of the next `limit` receipts that a pruning permits; return how many it were, 0 at the end.

        Durable and irrevocable on return. Never holds up `append` for longer than that takes.
        """
