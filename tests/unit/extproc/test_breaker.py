from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.breaker import BreakerState, Phase, Seen, advance, newer
from extproc.plan import BreakerPlan

PLAN = BreakerPlan(
    time_constant_ms=1_000,
    max_gain=0.5,
    min_samples=5,
    base_dwell_ms=1_000,
    max_dwell_ms=86_400_000,
    forgive_after_ms=86_400_000,
    probes_needed=4,
    probes_may_fail=1,
)
TICK_MS = 100
GOOD = Seen(samples=10)
BAD = Seen(samples=10, failed=10)
SLOW = Seen(samples=10, slow=10)


def run(state: BreakerState, seen: list[Seen], *, start_ms: int = 0, plan: BreakerPlan = PLAN) -> BreakerState:
    for number, one in enumerate(seen):
        state = advance(state, one, start_ms + number * TICK_MS, plan)
    return state


def tripped(at_ms: int = 0) -> BreakerState:
    return replace(run(BreakerState(), [BAD] * 10), since_ms=at_ms)


@pytest.mark.parametrize("seen", [BAD, SLOW])
def test_failures_or_slowness_open_it(seen: Seen) -> None:
    state = run(BreakerState(), [seen] * 8)
    assert (state.phase, state.epoch, state.dwell_ms, state.relapses) == (Phase.OPEN, 1, 1_000, 1)


def test_failures_without_enough_evidence_do_not_open_it() -> None:
    state, now_ms = BreakerState(), 0
    for _ in range(200):
        now_ms += 5_000
        state = advance(state, Seen(samples=1, failed=1), now_ms, PLAN)
    assert state.phase is Phase.CLOSED
    assert state.errors.mean > 0.9


def test_a_share_of_failures_below_the_trip_level_does_not_open_it() -> None:
    state = run(BreakerState(), [Seen(samples=10, failed=4)] * 1_000)
    assert (state.phase, state.epoch) == (Phase.CLOSED, 0)


@pytest.mark.parametrize("bad", [Seen(samples=1, failed=1), Seen(samples=1, slow=1)])
def test_a_few_bad_outcomes_apart_do_not_outweigh_a_thousand_good_ones_at_once(bad: Seen) -> None:
    """Outcomes may come in bursts, as they do from an edge that flushes once a second."""
    state = BreakerState()
    for tick in range(10, 1_200):
        state = advance(state, replace(bad, samples=1_001) if tick % 10 == 0 else bad, tick * TICK_MS, PLAN)
    assert state.phase is Phase.CLOSED
    assert max(state.errors.mean, state.slowness.mean) > 0.5


def test_it_stays_open_for_its_dwell_whatever_comes() -> None:
    state = tripped()
    for now_ms in range(0, 1_000, TICK_MS):
        assert advance(state, GOOD, now_ms, PLAN).phase is Phase.OPEN
    assert advance(state, GOOD, 1_000, PLAN).phase is Phase.HALF_OPEN


def test_a_clock_that_steps_back_only_makes_it_wait() -> None:
    state = tripped(at_ms=1_000_000)
    assert advance(state, GOOD, 0, PLAN).phase is Phase.OPEN


def test_a_clock_that_was_set_back_makes_it_wait_for_one_dwell_and_blinds_nothing() -> None:
    state = advance(tripped(at_ms=10_000_000), Seen(), 1_000, PLAN)
    assert advance(state, Seen(), 1_999, PLAN).phase is Phase.OPEN
    assert advance(state, Seen(), 2_000, PLAN).phase is Phase.HALF_OPEN
    blind = run(BreakerState(), [GOOD] * 5, start_ms=10_000_000)
    assert run(blind, [BAD] * 40, start_ms=0).relapses == 1
    healthy = replace(BreakerState(), relapses=1, healthy_since_ms=10_000_000)
    assert advance(healthy, GOOD, 0, PLAN).healthy_since_ms == 0


def half_open(at_ms: int = 2_000) -> BreakerState:
    state = advance(tripped(), Seen(), at_ms, PLAN)
    assert state.phase is Phase.HALF_OPEN
    return state


@pytest.mark.parametrize(
    ("told", "phase"),
    [
        (Seen(probes=3), Phase.HALF_OPEN),
        (Seen(probes=4), Phase.CLOSED),
        (Seen(probes=4, probes_failed=1), Phase.CLOSED),
        (Seen(probes=4, probes_failed=2), Phase.OPEN),
        (Seen(probes=2, probes_failed=2), Phase.OPEN),
        (Seen(samples=1_000), Phase.HALF_OPEN),
        (Seen(samples=1_000, failed=1_000), Phase.HALF_OPEN),
    ],
)
def test_only_probes_end_the_half_open_phase(told: Seen, phase: Phase) -> None:
    assert advance(half_open(), told, 2_100, PLAN).phase is phase


def test_probes_told_late_to_a_closed_breaker_are_forgotten() -> None:
    closed = advance(half_open(), Seen(probes=4), 2_100, PLAN)
    assert advance(closed, Seen(probes=4, probes_failed=4), 2_200, PLAN).probes == 0


def test_closing_forgets_what_was_seen_while_it_was_open() -> None:
    closed = advance(half_open(), Seen(probes=4), 2_100, PLAN)
    assert (closed.errors.mean, closed.errors.weight, closed.relapses) == (0.0, 0.0, 1)


def test_the_dwell_doubles_with_each_relapse_up_to_the_cap() -> None:
    plan = replace_plan(max_dwell_ms=10_000)
    state, now_ms, dwells = BreakerState(), 0, []
    for _ in range(6):
        while state.phase is not Phase.OPEN:
            now_ms += TICK_MS
            state = advance(state, replace(BAD, probes=1, probes_failed=1), now_ms, plan)
        dwells.append(state.dwell_ms)
        now_ms += state.dwell_ms
        state = advance(state, Seen(), now_ms, plan)
    assert dwells == [1_000, 2_000, 4_000, 8_000, 10_000, 10_000]


def replace_plan(**changes: object) -> BreakerPlan:
    names = BreakerPlan.__struct_fields__
    return BreakerPlan(**{name: getattr(PLAN, name) for name in names} | changes)


def test_a_relapse_is_forgiven_only_after_a_healthy_stretch() -> None:
    plan = replace_plan(forgive_after_ms=60_000)
    state = advance(half_open(), Seen(probes=4), 2_100, plan)
    assert advance(state, GOOD, 62_099, plan).relapses == 1
    assert advance(state, GOOD, 62_100, plan).relapses == 0


def test_ill_health_starts_the_healthy_stretch_anew() -> None:
    plan = replace_plan(forgive_after_ms=60_000)
    state = advance(half_open(), Seen(probes=4), 2_100, plan)
    for now_ms in (30_000, 30_100):
        state = advance(state, Seen(samples=10, failed=4), now_ms, plan)
    assert state.healthy_since_ms is None
    for now_ms in range(30_200, 62_200, TICK_MS):
        state = advance(state, GOOD, now_ms, plan)
    assert state.relapses == 1


@pytest.mark.parametrize("seen", [Seen(probes=1, probes_failed=2), Seen(samples=1, failed=2), Seen(samples=1, slow=2)])
def test_counts_that_contradict_each_other_are_refused(seen: Seen) -> None:
    with pytest.raises(ValueError, match=r"probes|bad"):
        advance(BreakerState(), seen, 0, PLAN)


def test_of_two_copies_the_one_with_more_transitions_wins_and_of_equals_the_more_careful_one() -> None:
    closed, opened, half = BreakerState(), tripped(), half_open()
    assert newer(closed, opened) is opened
    assert newer(opened, closed) is opened
    assert newer(half, opened) is half
    assert newer(replace(closed, epoch=1), opened) is opened
    assert newer(opened, replace(closed, epoch=1)) is opened


def openings_bound(elapsed_ms: int, plan: BreakerPlan) -> float:
    """docs/reference/breaker.md §3: the dwells of m openings add up to at least base · (2^(m−1) − 1) between them."""
    return 2 + math.log2(1 + elapsed_ms / plan.base_dwell_ms)


def test_every_short_history_of_a_small_breaker_keeps_the_bound() -> None:
    """Exhaustive: every sequence of 9 inputs of an alphabet of 6, with states that were reached before left out."""
    plan = replace_plan(base_dwell_ms=200, min_samples=1, probes_needed=1, probes_may_fail=0, max_gain=1.0)
    inputs = (
        Seen(),
        GOOD,
        BAD,
        Seen(probes=1),
        Seen(probes=1, probes_failed=1),
        replace(BAD, probes=1),
    )
    states = {(BreakerState(), 0)}
    for tick in range(9):
        now_ms = tick * TICK_MS
        following = set()
        for (state, openings), seen in itertools.product(states, inputs):
            after = advance(state, seen, now_ms, plan)
            opened = openings + (after.phase is Phase.OPEN and state.phase is not Phase.OPEN)
            assert opened <= openings_bound(now_ms, plan)
            assert after.epoch - state.epoch in {0, 1}
            assert after.epoch <= 3 * opened
            assert (state.phase, after.phase) not in {(Phase.OPEN, Phase.CLOSED), (Phase.CLOSED, Phase.HALF_OPEN)}
            following.add((after, opened))
        states = following
    assert max(opened for _, opened in states) >= 2


seen_any = st.builds(
    lambda samples, failed, slow, probes, bad: Seen(
        samples, int(samples * failed), int(samples * slow), probes, int(probes * bad)
    ),
    st.integers(0, 50),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 5),
    st.floats(0, 1),
)


@settings(max_examples=150)
@given(st.lists(st.tuples(seen_any, st.integers(0, 3_000)), max_size=250))
def test_any_history_keeps_transitions_to_the_order_of_the_logarithm_of_time(
    history: list[tuple[Seen, int]],
) -> None:
    state, now_ms, openings = BreakerState(), 0, 0
    for seen, gap_ms in history:
        now_ms += gap_ms
        before, state = state, advance(state, seen, now_ms, PLAN)
        openings += state.phase is Phase.OPEN and before.phase is not Phase.OPEN
        assert openings <= openings_bound(now_ms, PLAN)
        assert state.epoch <= 3 * openings


CAPPED = replace_plan(base_dwell_ms=300, max_dwell_ms=2_000, forgive_after_ms=1_500, min_samples=1)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.one_of(seen_any, st.sampled_from((GOOD, BAD))), st.integers(0, 1_000)), max_size=250))
def test_any_history_keeps_the_bound_with_the_cap_and_with_forgiveness(history: list[tuple[Seen, int]]) -> None:
    """docs/reference/breaker.md §3: with the cap C `2 + log2(C/base) + T/C`, and one more for each forgiven relapse."""
    state, now_ms, openings, forgiven = BreakerState(), 0, 0, 0
    base, cap = CAPPED.base_dwell_ms, CAPPED.max_dwell_ms
    for seen, gap_ms in history:
        now_ms += gap_ms
        # Probes that are told well close it at once: only closed can it be forgiven, and open again.
        told = replace(seen, probes=4, probes_failed=0) if state.phase is Phase.HALF_OPEN else seen
        before, state = state, advance(state, told, now_ms, CAPPED)
        openings += state.phase is Phase.OPEN and before.phase is not Phase.OPEN
        forgiven += state.relapses < before.relapses
        assert state.dwell_ms <= cap
        assert forgiven <= now_ms / CAPPED.forgive_after_ms
        assert openings <= 2 + math.log2(cap / base) + now_ms / cap + forgiven


def test_the_capped_bound_is_nearly_reached() -> None:
    state, now_ms, openings = BreakerState(), 0, 0
    plan = replace_plan(base_dwell_ms=300, max_dwell_ms=2_400, min_samples=1, max_gain=1.0)
    while now_ms < 100_000:
        now_ms += TICK_MS if state.phase is not Phase.OPEN else state.dwell_ms
        seen = Seen(probes=4, probes_failed=4) if state.phase is Phase.HALF_OPEN else BAD
        before, state = state, advance(state, seen, now_ms, plan)
        openings += state.phase is Phase.OPEN and before.phase is not Phase.OPEN
    assert 0.9 < openings / (2 + math.log2(8) + now_ms / 2_400) <= 1


def test_an_app_that_fails_whenever_it_is_let_alone_switches_a_few_times_a_day() -> None:
    """The adversary of a fixed dwell: well under probes, failing as soon as it is closed."""
    state, now_ms, openings = BreakerState(), 0, 0
    while now_ms < 86_400_000:
        now_ms += TICK_MS if state.phase is not Phase.OPEN else state.dwell_ms
        before = state
        state = advance(state, Seen(probes=4) if state.phase is Phase.HALF_OPEN else BAD, now_ms, PLAN)
        openings += state.phase is Phase.OPEN and before.phase is not Phase.OPEN
    assert openings <= openings_bound(now_ms, PLAN) < 20
