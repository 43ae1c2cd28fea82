"""What the stores read, in SQLite and in PostgreSQL alike: each asks in its own SQL, and the rows are the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

from receipts.receipt_id import is_receipt_id
from receipts.store import MAX_LATEST, MAX_READ, StoredReceipt, WriterTail, receipt_of

if TYPE_CHECKING:
    from typing import LiteralString

    from receipts.receipt_id import ReceiptId, WriterId


@dataclass(frozen=True, slots=True)
class ReadStatements:
    """One statement for each question.

    Rows of `by_id`, `latest` and `read` are as `receipt_of` takes them, those of `tail` are `wseq` and `leaf_hash`.
    """

    by_id: LiteralString
    latest: LiteralString
    read: LiteralString
    tail: LiteralString
    pruned_to: LiteralString
    first_since: LiteralString


class StoreReads(ABC):
    """The reading half of a PrunableStore; see `receipts.store` for what each method promises."""

    _statements: ClassVar[ReadStatements]

    @abstractmethod
    def _fetch(self, statement: LiteralString, parameters: tuple[object, ...]) -> list[Any]:
        """Run one statement on a connection that only reads. Raises ReceiptStoreUnavailable."""

    def writer_tail(self, writer: WriterId) -> WriterTail:
        """Read the end of `writer`'s chain; see `ReceiptStore.writer_tail`."""
        rows = self._fetch(self._statements.tail, (writer,))
        return WriterTail(writer, *rows[0]) if rows else WriterTail(writer)

    def get(self, receipt_id: ReceiptId) -> StoredReceipt | None:
        """Find a receipt by id; see `ReceiptStore.get`."""
        rows = self._fetch(self._statements.by_id, (receipt_id,)) if is_receipt_id(receipt_id) else []
        return receipt_of(rows[0]) if rows else None

    def latest(self, limit: int) -> list[StoredReceipt]:
        """Return the newest receipts; see `ReceiptStore.latest`."""
        if not 1 <= limit <= MAX_LATEST:
            raise ValueError(f"limit is 1 to {MAX_LATEST}")
        return [receipt_of(row) for row in self._fetch(self._statements.latest, (limit,))]

    def read(self, after_seq: int, limit: int) -> list[StoredReceipt]:
        """Return receipts in order; see `ReceiptStore.read`."""
        if not 1 <= limit <= MAX_READ:
            raise ValueError(f"limit is 1 to {MAX_READ}")
        return [receipt_of(row) for row in self._fetch(self._statements.read, (after_seq, limit))]

    def pruned_to(self) -> int:
        """Return the last place without a payload; see `ReceiptStore.pruned_to`."""
        return cast("int", self._fetch(self._statements.pruned_to, ())[0][0])

    def first_since(self, time_ms: int, after_seq: int, limit: int) -> int | None:
        """Find the first receipt of `time_ms` or later; see `PrunableStore.first_since`."""
        rows = self._fetch(self._statements.first_since, (after_seq, after_seq + limit, time_ms))
        return cast("int | None", rows[0][0])
