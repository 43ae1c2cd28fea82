"""How much one subject may ask for: a token bucket each, answered with 429 `quota` (docs/reference/breaker.md §7)."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass
from typing import Final

from extproc.errors import QuotaExceeded

MAX_BUCKETS: Final = 100_000
"""Subjects with a bucket of their own, as many as a keyring may hold."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_ms: int


class Quota:
    """Token buckets by subject. Owned by one event loop.

    `rate_per_s`: requests per second and subject in the long run, 0 for no quota; `burst`: how many at once. The rate
    is that of one worker: the caller divides what the configuration grants among the workers.
    """

    def __init__(self, rate_per_s: float, burst: int) -> None:
        if rate_per_s < 0 or burst < 1:
            raise ValueError("the rate may not be negative and the burst holds at least one request")
        self._rate_per_ms = rate_per_s / 1000
        self._burst = float(burst)
        self._buckets: collections.OrderedDict[str, _Bucket] = collections.OrderedDict()

    def take(self, subject: str, now_ms: int) -> None:
        """Take one request from the subject's bucket. Raises QuotaExceeded when it is empty."""
        if self._rate_per_ms == 0:
            return
        bucket = self._buckets.get(subject)
        if bucket is None:
            bucket = self._buckets[subject] = _Bucket(self._burst, now_ms)
            if len(self._buckets) > MAX_BUCKETS:
                # The one that asked longest ago: full again by now, or nearly.
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(subject)
        # A clock that steps back refills nothing and takes nothing away, and what follows counts from there.
        refill = max(0, now_ms - bucket.at_ms) * self._rate_per_ms
        bucket.tokens = min(self._burst, bucket.tokens + refill)
        bucket.at_ms = now_ms
        if bucket.tokens < 1:
            raise QuotaExceeded("the subject's quota is used up", math.ceil((1 - bucket.tokens) / self._rate_per_ms))
        bucket.tokens -= 1
