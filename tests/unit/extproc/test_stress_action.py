from __future__ import annotations

from dataclasses import replace

import pytest

from extproc.admission_floor import AdmissionFloor
from extproc.breaker import BreakerState, Phase
from extproc.ewma import Ewma
from extproc.plan import BreakerPlan
from extproc.probe_budget import ProbeBudget
from extproc.stress_action import Action, StressAction, choose, is_relaxing

PLAN = BreakerPlan()


def chosen(
    phase: Phase, *, share: float = 0.0, probes: bool = False, fall_back: bool = False, relaxing: bool = False
) -> StressAction:
    return choose(
        BreakerState(phase=phase, epoch=4, errors=Ewma(0.5, 1, 0), slowness=Ewma(0.25, 1, 0), dwell_ms=7),
        subject="a",
        now_ms=0,
        floor=AdmissionFloor(share, 1_000),
        may_probe=probes,
        may_fall_back=fall_back,
        relaxing=relaxing,
    )


@pytest.mark.parametrize(
    ("phase", "options", "action"),
    [
        (Phase.CLOSED, {}, Action.ATTEMPT),
        (Phase.CLOSED, {"relaxing": True}, Action.RELAX_HEADER_BUDGET),
        (Phase.CLOSED, {"fall_back": True}, Action.ATTEMPT),
        (Phase.OPEN, {}, Action.THROTTLE),
        (Phase.OPEN, {"probes": True}, Action.THROTTLE),
        (Phase.OPEN, {"share": 1.0}, Action.ATTEMPT),
        (Phase.OPEN, {"share": 1.0, "fall_back": True}, Action.FALLBACK_CLASSIC),
        (Phase.HALF_OPEN, {"probes": True}, Action.PROBE),
        (Phase.HALF_OPEN, {"share": 1.0}, Action.ATTEMPT),
        (Phase.HALF_OPEN, {}, Action.THROTTLE),
    ],
)
def test_what_is_done_follows_from_the_phase(phase: Phase, options: dict[str, float], action: Action) -> None:
    result = chosen(phase, **options)  # type: ignore[arg-type]
    assert result == StressAction(action, phase, 4, 500, 250, 7)
    assert result.passes is (action is not Action.THROTTLE)


@pytest.mark.parametrize(
    ("phase", "slowness", "was", "expected"),
    [
        (Phase.CLOSED, 0.3, False, True),
        (Phase.CLOSED, 0.29, False, False),
        (Phase.CLOSED, 0.29, True, True),
        (Phase.CLOSED, 0.1, True, False),
        (Phase.OPEN, 0.0, False, True),
        (Phase.HALF_OPEN, 0.0, False, True),
    ],
)
def test_trimming_goes_on_and_off_at_levels_apart(phase: Phase, slowness: float, was: bool, expected: bool) -> None:
    state = replace(BreakerState(phase=phase), slowness=Ewma(slowness, 1, 0))
    assert is_relaxing(state, PLAN, was=was) is expected


def test_probes_are_bounded_in_number_and_at_once() -> None:
    budget = ProbeBudget(4, 2, 1_000)
    budget.begin(100, 90, 0)
    assert budget.may_send(100, 90)
    assert budget.may_send(101, 90)
    assert not budget.may_send(102, 90)
    assert budget.may_send(102, 91)
    assert budget.may_send(103, 92)
    assert not budget.may_send(104, 94)


def test_a_new_phase_has_probes_of_its_own() -> None:
    budget = ProbeBudget(1, 1, 1_000)
    budget.begin(0, 0, 0)
    assert not budget.may_send(1, 1)
    budget.begin(1, 1, 0)
    assert budget.may_send(1, 1)


def test_probes_of_which_nothing_is_heard_are_given_up_once_and_replaced() -> None:
    budget = ProbeBudget(5, 2, 1_000)
    budget.begin(0, 0, 0)
    assert budget.lost(0, 0, 50_000) == 0
    assert budget.lost(2, 0, 50_100) == 0
    assert budget.lost(2, 0, 51_099) == 0
    assert budget.lost(2, 0, 51_100) == 2
    assert budget.lost(2, 0, 60_000) == 0
    assert budget.may_send(2, 0)


def test_as_long_as_some_are_heard_of_none_is_given_up() -> None:
    budget = ProbeBudget(50, 5, 1_000)
    budget.begin(0, 0, 0)
    for step in range(1, 20):
        assert budget.lost(step + 3, step, step * 900) == 0
