"""The plan: the thresholds that steer the filter under stress, as one versioned, frozen object.

Every receipt carries the digest of the plan in force. The breaker and the header budget read their numbers here.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds in force. `version` rises with every change of meaning.

    `max_challenges_per_answer`: fresh challenges on one answer at the most (PCH §5: 1 to 8).
    `concurrency_window_s`: how long a connection's peak of requests at once is remembered.
    """

    version: int = 1
    max_challenges_per_answer: int = 8
    concurrency_window_s: int = 10


PLAN: Final = Plan()


def plan_digest(plan: Plan) -> str:
    """Compute the SHA-256 of `plan`, lower-case hex, over its sorted JSON."""
    return hashlib.sha256(msgspec.json.encode(plan, order="sorted")).hexdigest()
