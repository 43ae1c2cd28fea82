from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import admission_floor
from extproc.admission_floor import WINDOW_SLOTS, AdmissionFloor


@given(
    st.sampled_from([0.0, 0.01, 0.05, 0.1, 1 / 3, 0.5, 0.9, 1.0]),
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 900)), max_size=300),
)
def test_of_any_run_of_arrivals_at_least_the_floor_passes_and_no_more_than_twice_as_many(
    share: float, arrivals: list[tuple[str, int]]
) -> None:
    floor, now_ms, passed = AdmissionFloor(share, 1_000), 0, [0]
    for subject, gap_ms in arrivals:
        now_ms += gap_ms
        passed.append(passed[-1] + floor.admit(subject, now_ms))
    units = round(share * 1_000_000)
    for start in range(len(passed)):
        for end in range(start + 1, len(passed)):
            count = end - start
            assert passed[end] - passed[start] >= count * units // 1_000_000
            assert passed[end] - passed[start] <= 2 * count * share + 4


def test_the_same_arrivals_always_get_the_same_answers() -> None:
    arrivals = [(f"s{number % 7}", number * 13) for number in range(1_000)]
    one, other = AdmissionFloor(0.1, 1_000), AdmissionFloor(0.1, 1_000)
    assert [one.admit(*arrival) for arrival in arrivals] == [other.admit(*arrival) for arrival in arrivals]


def test_one_who_floods_does_not_keep_the_others_out() -> None:
    floor, passed = AdmissionFloor(0.1, 1_000), collections.Counter[str]()
    for number in range(20_000):
        subject = "honest" if number % 11 == 0 else "flood"
        passed[subject] += floor.admit(subject, number)
    # Of 1,818 honest requests 182 would be a tenth; they get most of the second credit as well.
    assert passed["honest"] >= 1_000
    assert passed["flood"] >= 1_600


def test_a_share_of_one_admits_everyone_and_of_none_nobody() -> None:
    everyone, nobody = AdmissionFloor(1.0, 1_000), AdmissionFloor(0.0, 1_000)
    assert all(everyone.admit("a", at_ms) for at_ms in range(100))
    assert not any(nobody.admit("a", at_ms) for at_ms in range(100))


def test_what_passed_before_the_window_is_forgotten() -> None:
    floor = AdmissionFloor(0.5, 1_000)
    for at_ms in range(100):
        floor.admit("old", at_ms)
    floor.admit("new", 5_000)
    assert set(floor._passed) == {"new"}
    assert floor._total == floor._passed.total()


def test_a_clock_that_steps_back_loses_no_count() -> None:
    floor = AdmissionFloor(1.0, 1_000)
    floor.admit("a", 5_000)
    floor.admit("a", 10)
    assert floor._passed["a"] == 2
    assert len(floor._slots) == 1


def test_what_passed_before_the_clock_stepped_back_is_forgotten_in_time() -> None:
    floor = AdmissionFloor(1.0, 1_000)
    for at_ms in (4_900, 5_000, 10, 100, 800):
        floor.admit("a", at_ms)
    assert floor._passed["a"] == 5
    floor.admit("b", 1_500)
    assert floor._passed["a"] == 1


def test_share_is_changed_in_place_and_never_begins_anew() -> None:
    floor, shares = AdmissionFloor(0.0, 1_000), (0.1, 0.2, 0.0)
    passed = 0
    for number in range(900):
        floor.set_share(shares[number % 3])
        passed += floor.admit("a", number)
    assert passed in {89, 90}, "one subject is never behind itself"


def test_subjects_beyond_the_bound_share_one_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_floor, "MAX_SUBJECTS_PER_SLOT", 3)
    floor = AdmissionFloor(0.5, 1_000)
    for number in range(50):
        floor.admit(f"s{number}", 0)
    assert len(floor._passed) == 4


@pytest.mark.parametrize(("share", "window_ms"), [(-0.1, 1_000), (1.1, 1_000), (0.5, WINDOW_SLOTS - 1)])
def test_what_cannot_be_is_refused(share: float, window_ms: int) -> None:
    with pytest.raises(ValueError, match="share"):
        AdmissionFloor(share, window_ms)
