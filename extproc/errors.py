"""Faults of the filter itself; what a client can cause is in `pch.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pch.errors import DependencyFault, OurFault, Quota
from pch.reasons import Reason

if TYPE_CHECKING:
    from policy.evaluator import StressFacts


class Overloaded(OurFault):
    """More requests are in flight than the worker admits."""


class QuotaExceeded(Quota):
    """One subject asked for more than its quota. `retry_after_ms`: when its next request fits."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class BreakerOpen(DependencyFault):
    """The app is not well, or has all that it can finish; this request was not chosen. `facts`: for the receipt."""

    reason = Reason.BREAKER_OPEN

    def __init__(self, message: str, facts: StressFacts, retry_after_s: int) -> None:
        super().__init__(message)
        self.facts, self.retry_after_s = facts, retry_after_s


class ServerFault(Exception):
    """The worker cannot start or go on; the message names the setting or the file."""
