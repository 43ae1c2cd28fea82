"""How many requests may try whether upstream is well again (docs/reference/breaker.md §4).

All workers of a host send probes and any of them may hear how one ended, so the budget counts with the sums of all.
"""

from __future__ import annotations


class ProbeBudget:
    """Probes of one half-open phase. Owned by one event loop, one for each breaker.

    `max_probes`: how many are sent in one phase at the most; `max_in_flight`: how many may be out at once. When nothing
    is heard for `timeout_ms`, those that are out count as failed: an upstream that swallows requests is not well.
    """

    def __init__(self, max_probes: int, max_in_flight: int, timeout_ms: int) -> None:
        self._max_probes, self._max_in_flight, self._timeout_ms = max_probes, max_in_flight, timeout_ms
        self._sent_before = self._told_before = self._lost = 0
        self._seen = (0, 0)
        self._moved_ms = 0

    def begin(self, sent: int, told: int, now_ms: int) -> None:
        """Begin a phase. `sent` and `told`: the sums of all workers so far."""
        self._sent_before, self._told_before, self._lost = sent, told, 0
        self._seen, self._moved_ms = (sent, told), now_ms

    def may_send(self, sent: int, told: int) -> bool:
        """Tell whether one more may be sent."""
        sent, told = sent - self._sent_before, told - self._told_before
        return sent < self._max_probes + self._lost and sent - told - self._lost < self._max_in_flight

    def lost(self, sent: int, told: int, now_ms: int) -> int:
        """Give how many are given up now."""
        if (sent, told) != self._seen:
            self._seen, self._moved_ms = (sent, told), now_ms
        out = (sent - self._sent_before) - (told - self._told_before) - self._lost
        if out <= 0 or now_ms - self._moved_ms < self._timeout_ms:
            return 0
        self._lost += out
        return out
