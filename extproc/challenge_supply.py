"""How many fresh challenges an answer carries (docs/reference/pch.md §5).

A connection that lately had n requests in flight gets up to n challenges an answer, so that in a steady state each
request costs one round trip. Bounded memory: the least recently used connections are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.plan import Plan

MAX_CONNECTIONS: Final = 8192
"""Connections remembered at once; a forgotten one gets one challenge an answer until it shows more at once."""


@dataclass(slots=True)
class _Concurrency:
    in_flight: int = 0
    peak: int = 1
    peak_ms: int = 0


class ChallengeSupply:
    """Count the requests in flight per connection. Owned by one event loop; not safe across threads."""

    def __init__(self, plan: Plan, clock_ms: Callable[[], int]) -> None:
        self._plan = plan
        self._clock_ms = clock_ms
        self._connections: OrderedDict[bytes, _Concurrency] = OrderedDict()

    def begin(self, binding: bytes) -> None:
        """Note that a request on the connection `binding` begins."""
        seen = self._connections.get(binding)
        if seen is None:
            seen = self._connections[binding] = _Concurrency()
            if len(self._connections) > MAX_CONNECTIONS:
                self._connections.popitem(last=False)
        self._connections.move_to_end(binding)
        seen.in_flight += 1
        now_ms = self._clock_ms()
        expired = now_ms - seen.peak_ms > self._plan.concurrency_window_s * 1000
        if seen.in_flight >= seen.peak or expired:
            seen.peak, seen.peak_ms = seen.in_flight, now_ms

    def end(self, binding: bytes) -> None:
        """Note that a request on the connection `binding` was answered."""
        seen = self._connections.get(binding)
        if seen is not None:
            seen.in_flight = max(0, seen.in_flight - 1)

    def wanted(self, binding: bytes) -> int:
        """Give how many challenges the next answer on `binding` carries, from 1 to the plan's maximum."""
        seen = self._connections.get(binding)
        return 1 if seen is None else min(seen.peak, self._plan.max_challenges_per_answer)
