"""Pages of receipts in the order of the log, filtered, with a bound on what one page may read.

A page that reached its bound has fewer receipts than asked for, or none, and a cursor to go on from.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from receipts.log_reader import LogReader
    from receipts.store import ReceiptStore, StoredReceipt

MAX_PAGE: Final = 500
"""Receipts in one page."""
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
MAX_SCANNED: Final = 20_000
"""Receipts that are looked at for one page."""
MAX_SUBJECT_CHARACTERS: Final = 256
CLOCKS_APART_S: Final = 10
"""How far a worker's clock, which `since` goes by, may be ahead of the one that heads are dated by."""
_READ: Final = 500
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z")


@dataclass(frozen=True, slots=True)
class ReceiptFilter:
    """Which receipts: those with `time_ms` from `since_ms` on, of a decision, of a subject, after a log index.

    `after`: the cursor, an index; None to begin. `limit`: 1 to `MAX_PAGE`.
    """

    since_ms: int | None
    decision: str | None
    subject: str | None
    after: int | None
    limit: int

    @classmethod
    def of_text(
        cls, *, since: str | None, decision: str | None, subject: str | None, after: str | None, limit: str
    ) -> ReceiptFilter:
        """Read the filter from a query's parameters. Raises ValueError that says what each may be."""
        if decision not in (None, "allow", "deny"):
            raise ValueError("decision is allow or deny.")
        if subject is not None and not 1 <= len(subject) <= MAX_SUBJECT_CHARACTERS:
            raise ValueError(f"subject has 1 to {MAX_SUBJECT_CHARACTERS} characters.")
        if after is not None and not _NUMBER.fullmatch(after):
            raise ValueError("after is the `next` of the page before.")
        if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= MAX_PAGE:
            raise ValueError(f"limit is a number from 1 to {MAX_PAGE}.")
        since_ms = None if since is None else _milliseconds(since)
        return cls(since_ms, decision, subject, None if after is None else int(after), int(limit))


@dataclass(frozen=True, slots=True)
class ReceiptPage:
    """What was found, and the cursor of the next page; None at the end of the store."""

    receipts: tuple[StoredReceipt, ...]
    next_after: int | None


class _Proof(msgspec.Struct):
    subject: Any = None


class _Seen(msgspec.Struct):
    time_ms: int
    proof: _Proof | None = None


_decoder: Final = msgspec.json.Decoder(_Seen)


def find_receipts(store: ReceiptStore, reader: LogReader, wanted: ReceiptFilter) -> ReceiptPage:
    """Find the next page. Raises StoreError."""
    position = _begin(reader, wanted)
    found: list[StoredReceipt] = []
    size_bytes = scanned = 0
    while True:
        page = store.read(position, _READ)
        for receipt in page:
            full = len(found) == wanted.limit or scanned == MAX_SCANNED
            if full or size_bytes + len(receipt.raw) > MAX_PAGE_BYTES:
                return ReceiptPage(tuple(found), position - 1 if position else None)
            position, scanned = receipt.seq, scanned + 1
            if _is_wanted(receipt, wanted):
                found.append(receipt)
                size_bytes += len(receipt.raw)
        if len(page) < _READ:
            return ReceiptPage(tuple(found), None)


def _begin(reader: LogReader, wanted: ReceiptFilter) -> int:
    """Return the `seq` after which to look.

    Whatever a head from well before `since` has was stored before then, so everything up to it is passed over.
    """
    if wanted.after is not None:
        return wanted.after + 1
    if wanted.since_ms is None:
        return 0
    head = reader.heads.at_or_before(wanted.since_ms // 1000 - CLOCKS_APART_S)
    return 0 if head is None else head.size


def _is_wanted(receipt: StoredReceipt, wanted: ReceiptFilter) -> bool:
    if wanted.decision is not None and receipt.decision != wanted.decision:
        return False
    if wanted.since_ms is None and wanted.subject is None:
        return True
    if not receipt.raw:
        return wanted.subject is None
    seen = _decoder.decode(receipt.raw)
    if wanted.since_ms is not None and seen.time_ms < wanted.since_ms:
        return False
    return wanted.subject is None or (seen.proof is not None and seen.proof.subject == wanted.subject)


def _milliseconds(text: str) -> int:
    """Read a time as RFC 3339 in UTC, or as milliseconds since 1970. Raises ValueError."""
    message = "since is a time such as 2026-11-21T00:00:00Z, or milliseconds since 1970."
    if _NUMBER.fullmatch(text):
        return int(text)
    if not _TIME.fullmatch(text):
        raise ValueError(message)
    try:
        return int(dt.datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError as error:
        raise ValueError(message) from error
