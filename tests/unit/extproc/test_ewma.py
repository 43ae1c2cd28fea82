from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.ewma import Ewma

PARAMS = {"time_constant_ms": 2_000, "max_gain": 0.25}


def fed(samples: list[tuple[int, int, int]]) -> Ewma:
    value = Ewma()
    for count, bad, at_ms in samples:
        value = value.after(count, bad, at_ms, **PARAMS)
    return value


def test_no_samples_change_nothing() -> None:
    value = fed([(10, 5, 100), (10, 5, 200)])
    assert value.after(0, 0, 10_000, **PARAMS) is value


def test_the_first_samples_speak_no_louder_than_the_largest_gain() -> None:
    assert fed([(1_000, 1_000, 0)]).mean == 0.25


def test_the_gain_is_that_of_the_time_gone_by() -> None:
    value = fed([(1, 0, 0), (1, 1, 100)])
    assert value.mean == pytest.approx(1 - math.exp(-100 / 2_000))


def test_a_long_silence_does_not_let_one_tick_decide() -> None:
    assert fed([(1, 0, 0), (1, 1, 10_000_000)]).mean == 0.25


def test_samples_at_one_instant_move_nothing_after_the_first() -> None:
    once = fed([(1, 0, 50)])
    again = once.after(1_000, 1_000, 50, **PARAMS)
    assert (again.mean, again.weight) == (0.0, 1_001.0)


def test_a_clock_that_steps_back_counts_as_no_time() -> None:
    value = fed([(1, 0, 1_000)]).after(1, 1, 10, **PARAMS)
    assert (value.mean, value.at_ms) == (0.0, 10)
    # And the next one counts from there.
    assert value.after(1, 1, 110, **PARAMS).mean == pytest.approx(1 - math.exp(-100 / 2_000))


def test_the_pooled_share_is_that_of_samples_and_not_of_ticks() -> None:
    assert Ewma().pooled == 0.0
    value = fed([(1_000, 0, 0), (1, 1, 100), (1, 1, 200)])
    assert value.mean > 0.09
    assert value.pooled == pytest.approx(2 / 1_000, rel=0.2)
    assert fed([(10, 4, 0), (10, 4, 5_000)]).pooled == pytest.approx(0.4)


def test_evidence_fades_with_time() -> None:
    value = fed([(100, 0, 0)])
    assert value.weight_at(2_000, time_constant_ms=2_000) == pytest.approx(100 / math.e)
    assert value.weight_at(0, time_constant_ms=2_000) == 100


@pytest.mark.parametrize(("samples", "bad"), [(1, 2), (-1, 0), (0, 1), (5, -1), (1_000_001, 0)])
def test_counts_that_cannot_be_are_refused(samples: int, bad: int) -> None:
    with pytest.raises(ValueError, match="bad must lie"):
        Ewma().after(samples, bad, 0, **PARAMS)


ticks = st.lists(
    st.tuples(st.integers(1, 500), st.floats(0, 1), st.integers(-500, 5_000)).map(
        lambda t: (t[0], int(t[0] * t[1]), t[2])
    ),
    max_size=60,
)


@given(ticks)
def test_the_mean_stays_in_range_and_never_jumps(steps: list[tuple[int, int, int]]) -> None:
    value, now_ms = Ewma(), 0
    for samples, bad, step_ms in steps:
        now_ms += step_ms
        before, value = value, value.after(samples, bad, now_ms, **PARAMS)
        assert 0.0 <= value.mean <= 1.0
        assert abs(value.mean - before.mean) <= PARAMS["max_gain"] + 1e-12


@given(st.floats(0.3, 0.9), st.floats(0.01, 0.25), st.lists(st.integers(1, 400), min_size=1, max_size=400))
def test_from_trip_to_clear_takes_the_time_and_the_samples_that_the_bound_says(
    high: float, low: float, gaps_ms: list[int]
) -> None:
    """DESIGN: at least ln(high/low) / −ln(1 − gain) updates, and at least τ · ln(high/low) while no gain is capped."""
    value, now_ms, updates = Ewma(high, 100.0, 0), 0, 0
    for gap_ms in gaps_ms:
        now_ms, updates = now_ms + gap_ms, updates + 1
        value = value.after(1, 0, now_ms, **PARAMS)
        if value.mean <= low:
            assert updates >= math.log(high / low) / -math.log(1 - PARAMS["max_gain"]) - 1e-9
            assert now_ms >= 2_000 * math.log(high / low) - 1e-6
            break
