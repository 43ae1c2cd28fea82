"""The two clocks that everything gets as an argument: UTC for stamps, monotonic for sequences and waits (I-10)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall_ms`: milliseconds since the epoch, UTC. `monotonic_s`: seconds that never go back."""

    wall_ms: Callable[[], int]
    monotonic_s: Callable[[], float]


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


SYSTEM_CLOCK: Final = Clock(_wall_ms, time.monotonic)
