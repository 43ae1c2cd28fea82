"""How many requests may try whether upstream is well again (docs/reference/breaker.md §4).

All workers of a host send probes and any of them may hear how one ended, so the budget counts with the sums of all.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LANES: Final = 64
"""Into so many lanes subjects fall, by chance and anew in each phase; of each at most one probe is out at once."""


def lane_of(subject: str, epoch: int) -> int:
    """Give the lane of `subject` in the half-open phase of `epoch`; the same in every worker."""
    return hashlib.blake2b(f"{epoch}\n{subject}".encode(), digest_size=1).digest()[0] % LANES


class ProbeBudget:
    """Probes of one half-open phase. Owned by one event loop, one for each breaker.

    `max_probes`: how many are told of in one phase; `max_in_flight`: how many may be out at once, so at most so many
    less one are sent beyond those. When nothing is heard for `timeout_ms`, those that are out are given up.
    """

    def __init__(self, max_probes: int, max_in_flight: int, timeout_ms: int) -> None:
        self._max_probes, self._max_in_flight, self._timeout_ms = max_probes, max_in_flight, timeout_ms
        self._sent_before = self._told_before = self._lost = 0
        self._seen = (0, 0)
        self._moved_ms = 0
        self._lanes_before: tuple[int, ...] = (0,) * LANES

    def begin(self, sent: int, told: int, now_ms: int, lanes: Sequence[int] = (0,) * LANES) -> None:
        """Begin a phase. `sent` and `told`: the sums of all workers so far; `lanes`: what is out in each lane."""
        self._sent_before, self._told_before, self._lost = sent, told, 0
        self._seen, self._moved_ms = (sent, told), now_ms
        self._lanes_before = tuple(lanes)

    def may_send(self, sent: int, told: int) -> bool:
        """Tell whether one more may be sent."""
        sent, told = sent - self._sent_before, told - self._told_before
        return told < self._max_probes and sent - told - self._lost < self._max_in_flight

    def is_free(self, lane: int, out: int) -> bool:
        """Tell whether no probe of `lane` is out. `out`: what all workers count there."""
        return out <= self._lanes_before[lane]

    def is_idle(self, now_ms: int) -> bool:
        """Tell whether nothing was sent or heard for the timeout: whoever could tell best does not come."""
        return now_ms - self._moved_ms >= self._timeout_ms

    def lost(self, sent: int, told: int, now_ms: int, lanes: Sequence[int] = (0,) * LANES) -> int:
        """Give how many are given up now; their subjects may send others."""
        if (sent, told) != self._seen or now_ms < self._moved_ms:
            self._seen, self._moved_ms = (sent, told), now_ms
        out = (sent - self._sent_before) - (told - self._told_before) - self._lost
        if out <= 0 or now_ms - self._moved_ms < self._timeout_ms:
            return 0
        self._lost += out
        self._lanes_before = tuple(lanes)
        return out
