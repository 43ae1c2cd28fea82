"""The plan: the thresholds that steer the filter under stress, as one versioned, frozen object.

Every receipt carries the digest of the plan in force. The breaker and the header budget read their numbers here; the
TOML may override them in `[plan]` and `[plan.breaker]`, each within its range.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Gain = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=86_400_000)]
SlottedMilliseconds = Annotated[int, msgspec.Meta(ge=10, le=86_400_000)]
"""A window that is counted in ten slots (`extproc.admission_floor`)."""


class PlanError(ValueError):
    """The plan contradicts itself. The message names the members."""


class BreakerPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The breaker's thresholds (docs/reference/breaker.md §2 to §6).

    `time_constant_ms`: after which a sample counts a third. `max_gain`: how far one tick may move a mean.
    `trip_*` and `clear_*`: shares of failed and of slow outcomes. `slow_ms`: from when an answer is slow.
    `crowd_ms`: the app's time that is steered for while more comes than it finishes (§6).
    `min_samples`: evidence without which nothing trips. `probes_may_fail` of `probes_needed`.
    `floor_share`: of the arrivals while it is open. `relax_*`: slowness at which headers are trimmed, and no longer.
    """

    time_constant_ms: Milliseconds = 2_000
    max_gain: Gain = 0.25
    min_samples: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 20
    trip_errors: Share = 0.5
    clear_errors: Share = 0.1
    trip_slowness: Share = 0.6
    clear_slowness: Share = 0.2
    slow_ms: Milliseconds = 1_000
    crowd_ms: Milliseconds = 300
    base_dwell_ms: Milliseconds = 1_000
    max_dwell_ms: Milliseconds = 10_000
    forgive_after_ms: Milliseconds = 60_000
    probes_needed: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 20
    probes_may_fail: Annotated[int, msgspec.Meta(ge=0, le=999)] = 1
    max_probes_in_flight: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 5
    probe_timeout_ms: Milliseconds = 5_000
    floor_share: Share = 0.05
    floor_window_ms: SlottedMilliseconds = 10_000
    relax_slowness: Share = 0.3
    unrelax_slowness: Share = 0.1
    retry_after_s: Annotated[int, msgspec.Meta(ge=1, le=300)] = 2
    retry_jitter_s: Annotated[int, msgspec.Meta(ge=0, le=60)] = 3

    def __post_init__(self) -> None:
        ordered = (
            ("clear_errors", "trip_errors"),
            ("clear_slowness", "trip_slowness"),
            ("unrelax_slowness", "relax_slowness"),
            ("relax_slowness", "trip_slowness"),
            ("probes_may_fail", "probes_needed"),
        )
        for lower, upper in ordered:
            if not getattr(self, lower) < getattr(self, upper):
                raise PlanError(f"{lower} must be below {upper}")
        if self.base_dwell_ms > self.max_dwell_ms:
            raise PlanError("base_dwell_ms must not be above max_dwell_ms")


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Thresholds in force. `version` rises with every change of meaning.

    `max_challenges_per_answer`: fresh challenges on one answer at the most (PCH §5: 1 to 8).
    `concurrency_window_s`: how long a connection's peak of requests at once is remembered.
    """

    version: int = 4
    max_challenges_per_answer: Annotated[int, msgspec.Meta(ge=1, le=8)] = 8
    concurrency_window_s: Annotated[int, msgspec.Meta(ge=1, le=3_600)] = 10
    breaker: BreakerPlan = BreakerPlan()


def plan_digest(plan: Plan) -> str:
    """Compute the SHA-256 of `plan`, lower-case hex, over its sorted JSON."""
    return hashlib.sha256(msgspec.json.encode(plan, order="sorted")).hexdigest()
