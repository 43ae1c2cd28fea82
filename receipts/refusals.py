"""How many refusals get a receipt of their own, so that a flood cannot fill the disk.

Up to `max_per_s` refusals of one route in one second of the clock are admitted; the rest are only counted, by
reason, and leave as one summary per route and second. Pure: the clock is the caller's, and so is the ticking.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from receipts.facts import MAX_COUNTS, WindowFacts
from receipts.receipt import ReceiptDraft

if TYPE_CHECKING:
    from receipts.receipt_id import ReceiptId

DEFAULT_MAX_REFUSAL_RECEIPTS_PER_S: Final = 200
MAX_UNWRITTEN_SUMMARIES: Final = 64
"""Summaries kept per route while the store takes none; older ones are then merged."""

ROUTES_SHARE: Final = 2
"""How many routes' worth of refusal receipts all routes together get: many routes do not make a larger flood."""

OTHER_REASON: Final = "other"
"""Where reasons are counted once a summary names `MAX_COUNTS` − 1 different ones."""

_WINDOW_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class RefusalSummary:
    """Refusals of one route without a receipt, by reason, from `start_ms` to just before `end_ms`."""

    route: str | None
    start_ms: int
    end_ms: int
    counts: dict[str, int]

    def draft(self, receipt_id: ReceiptId, time_ms: int) -> ReceiptDraft:
        """Make the summary's receipt draft, written at `time_ms`."""
        return ReceiptDraft(
            kind="summary",
            id=receipt_id,
            time_ms=time_ms,
            route=self.route,
            window=WindowFacts(self.start_ms, self.end_ms),
            counts=self.counts,
        )


@dataclass(slots=True)
class _Window:
    second: int
    admitted: int = 0
    counts: dict[str, int] = field(default_factory=dict)


class RefusalLimiter:
    """Decide for each refusal whether it gets a receipt; owned by one event loop or thread.

    `max_per_s`: receipts per second and route, 0 to count all; all routes together get `ROUTES_SHARE` times as
    many. Memory is bounded by the number of routes, which the caller's configuration bounds.
    """

    def __init__(self, max_per_s: int = DEFAULT_MAX_REFUSAL_RECEIPTS_PER_S) -> None:
        if max_per_s < 0:
            raise ValueError("max_per_s is negative")
        self._max_per_s = max_per_s
        self._total_second = 0
        self._total_admitted = 0
        self._windows: dict[str | None, _Window] = {}
        self._ended: dict[str | None, list[RefusalSummary]] = {}

    def admit(self, route: str | None, reason: str, now_ms: int) -> bool:
        """Return whether this refusal gets its own receipt; it is counted when not."""
        second = now_ms // _WINDOW_MS
        window = self._window(route, second)
        if second != self._total_second:
            self._total_second, self._total_admitted = second, 0
        if window.admitted < self._max_per_s and self._total_admitted < self._max_per_s * ROUTES_SHARE:
            window.admitted += 1
            self._total_admitted += 1
            return True
        _add(window.counts, reason, 1)
        return False

    def due(self, now_ms: int) -> list[RefusalSummary]:
        """Take the summaries of every second that is over. Those that cannot be written go to `put_back`."""
        second = now_ms // _WINDOW_MS
        for route, window in list(self._windows.items()):
            if window.second != second:
                self._end(route, window)
                del self._windows[route]
        return self._take()

    def flush(self) -> list[RefusalSummary]:
        """Take all summaries, that of the running second too; for the end of the process."""
        for route, window in self._windows.items():
            self._end(route, window)
        self._windows.clear()
        return self._take()

    def put_back(self, summary: RefusalSummary) -> None:
        """Keep a summary whose receipt could not be written, for the next `due` or `flush`."""
        kept = self._ended.setdefault(summary.route, [])
        kept.append(summary)
        if len(kept) > MAX_UNWRITTEN_SUMMARIES:
            kept[:2] = [_merged(kept[0], kept[1])]

    def _window(self, route: str | None, second: int) -> _Window:
        window = self._windows.get(route)
        if window is not None and window.second == second:
            return window
        # Also when the clock went back: waiting for it to catch up would hold the counts back.
        if window is not None:
            self._end(route, window)
        window = self._windows[route] = _Window(second)
        return window

    def _end(self, route: str | None, window: _Window) -> None:
        if window.counts:
            start_ms = window.second * _WINDOW_MS
            self.put_back(RefusalSummary(route, start_ms, start_ms + _WINDOW_MS, window.counts))

    def _take(self) -> list[RefusalSummary]:
        taken = [summary for kept in self._ended.values() for summary in kept]
        self._ended.clear()
        return taken


def _add(counts: dict[str, int], reason: str, number: int) -> None:
    if reason not in counts and len(counts) >= MAX_COUNTS - 1:
        reason = OTHER_REASON
    counts[reason] = counts.get(reason, 0) + number


def _merged(first: RefusalSummary, second: RefusalSummary) -> RefusalSummary:
    counts = dict(first.counts)
    for reason, number in second.counts.items():
        _add(counts, reason, number)
    return RefusalSummary(first.route, min(first.start_ms, second.start_ms), max(first.end_ms, second.end_ms), counts)
