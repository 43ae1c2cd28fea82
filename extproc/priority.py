"""Priority classes of subjects: who goes on where not everyone can (docs/reference/breaker.md §8)."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from extproc.config_sections import FilterSection


class Priority(StrEnum):
    """The class of a subject, as the keyring has it."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def in_flight_bound(priority: Priority, settings: FilterSection) -> int:
    """Give how many requests may be in flight in a worker for one of this class to go on; at least one.

    A lower class never has more room than a higher one, whatever the percentages say.
    """
    percent = 100
    if priority is not Priority.HIGH:
        percent = settings.normal_inflight_percent
    if priority is Priority.LOW:
        percent = min(percent, settings.low_inflight_percent)
    return max(1, settings.max_inflight_requests * percent // 100)
