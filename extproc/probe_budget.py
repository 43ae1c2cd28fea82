"""How many requests may try whether upstream is well again (docs/reference/breaker.md §4)."""

from __future__ import annotations

import collections


class ProbeBudget:
    """Probes of one half-open phase. Owned by one event loop, one for each breaker.

    `max_probes`: how many are sent in one phase at the most; `max_in_flight`: how many may be out at once. A probe of
    which nothing is heard for `timeout_ms` counts as failed: an upstream that swallows requests is not well.
    """

    def __init__(self, max_probes: int, max_in_flight: int, timeout_ms: int) -> None:
        self._max_probes, self._max_in_flight, self._timeout_ms = max_probes, max_in_flight, timeout_ms
        self._epoch = -1
        self._sent = 0
        self._out: collections.deque[int] = collections.deque()

    def take(self, epoch: int, now_ms: int) -> bool:
        """Take one probe of the phase that `epoch` names, if there is one left."""
        if epoch != self._epoch:
            self._epoch, self._sent = epoch, 0
            self._out.clear()
        if self._sent >= self._max_probes or len(self._out) >= self._max_in_flight:
            return False
        self._sent += 1
        self._out.append(now_ms)
        return True

    def told(self, epoch: int) -> None:
        """Note that a probe of this phase was heard of; one of an older phase changes nothing."""
        if epoch == self._epoch and self._out:
            self._out.popleft()

    def overdue(self, epoch: int, now_ms: int) -> int:
        """Take away the probes of this phase that nothing was heard of, and tell how many they were."""
        count = 0
        while epoch == self._epoch and self._out and now_ms - self._out[0] >= self._timeout_ms:
            self._out.popleft()
            count += 1
        return count
