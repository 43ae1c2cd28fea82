"""Whose probe may go, and when one is given up; how many may is in test_stress_action.py."""

from __future__ import annotations

from extproc.probe_budget import LANES, ProbeBudget, lane_of


def lanes(**out: int) -> list[int]:
    found = [0] * LANES
    for name, count in out.items():
        found[int(name[1:])] = count
    return found


def test_a_subject_has_one_lane_in_a_phase_and_others_in_others() -> None:
    assert {lane_of("alice", 3) for _ in range(10)} == {lane_of("alice", 3)}
    assert len({lane_of("alice", epoch) for epoch in range(200)}) > LANES / 2
    counts = [sum(lane_of(f"s{number}", 3) == lane for number in range(6_400)) for lane in range(LANES)]
    assert 50 <= min(counts) <= max(counts) <= 160


def test_of_one_lane_one_probe_is_out_and_what_older_phases_left_is_not_counted() -> None:
    budget = ProbeBudget(20, 5, 1_000)
    budget.begin(0, 0, 0, lanes(_3=2, _4=-1))
    assert budget.is_free(3, 2)
    assert not budget.is_free(3, 3)
    assert budget.is_free(3, 1)
    assert budget.is_free(4, -1)
    assert not budget.is_free(4, 0)


def test_a_probe_that_is_given_up_frees_its_lane() -> None:
    budget = ProbeBudget(20, 5, 1_000)
    budget.begin(0, 0, 0, lanes())
    assert budget.lost(1, 0, 100, lanes(_3=1)) == 0
    assert not budget.is_free(3, 1)
    assert budget.lost(1, 0, 1_100, lanes(_3=1)) == 1
    assert budget.is_free(3, 1)
    assert not budget.is_free(3, 2)


def test_probes_that_are_out_use_up_none_that_are_needed() -> None:
    budget = ProbeBudget(4, 3, 1_000)
    budget.begin(0, 0, 0)
    assert budget.may_send(5, 3), "two are held open, and one more has still to tell something"
    assert not budget.may_send(6, 3)
    assert not budget.may_send(6, 4)


def test_it_is_idle_when_nothing_moved_for_the_timeout() -> None:
    budget = ProbeBudget(4, 3, 1_000)
    budget.begin(0, 0, 5_000)
    assert not budget.is_idle(5_999)
    assert budget.is_idle(6_000)
    budget.lost(1, 0, 6_000)
    assert not budget.is_idle(6_999)


def test_a_clock_that_steps_back_makes_it_wait_for_one_timeout() -> None:
    budget = ProbeBudget(4, 3, 1_000)
    budget.begin(0, 0, 9_000_000)
    assert budget.lost(2, 0, 9_000_100) == 0
    assert budget.lost(2, 0, 100) == 0
    assert budget.lost(2, 0, 1_100) == 2
