from __future__ import annotations

import msgspec
import pytest

from extproc.admission_floor import AdmissionFloor
from extproc.plan import BreakerPlan, Plan, PlanError, plan_digest

PLAN = Plan()


def test_every_threshold_is_part_of_the_digest() -> None:
    digests = {plan_digest(PLAN)}
    for name in BreakerPlan.__struct_fields__:
        value = getattr(PLAN.breaker, name)
        values = {field: getattr(PLAN.breaker, field) for field in BreakerPlan.__struct_fields__}
        changed = BreakerPlan(**values | {name: value + (1 if isinstance(value, int) else 0.01)})
        digests.add(plan_digest(Plan(breaker=changed)))
    assert len(digests) == 1 + len(BreakerPlan.__struct_fields__)


@pytest.mark.parametrize(
    "changes",
    [
        {"clear_errors": 0.5},
        {"trip_errors": 0.1},
        {"clear_slowness": 0.6},
        {"relax_slowness": 0.1},
        {"relax_slowness": 0.6},
        {"base_dwell_ms": 20_000},
        {"probes_may_fail": 20},
    ],
)
def test_thresholds_that_contradict_each_other_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="must"):
        BreakerPlan(**changes)


def test_least_window_of_the_floor_is_one_that_the_floor_takes() -> None:
    plan = msgspec.convert({"breaker": {"floor_window_ms": 10}}, Plan)
    AdmissionFloor(plan.breaker.floor_share, plan.breaker.floor_window_ms)


@pytest.mark.parametrize(
    "changes",
    [
        {"trip_errors": 1.5},
        {"max_gain": 0.0},
        {"base_dwell_ms": 0},
        {"probes_needed": 0},
        {"floor_window_ms": 9},
        {"nonsense": 1},
    ],
)
def test_values_out_of_their_range_are_refused_when_read(changes: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"breaker": changes}, Plan)
