from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import quota
from extproc.errors import QuotaExceeded
from extproc.quota import Quota
from pch.reasons import Reason


def passes(bucket: Quota, subject: str, now_ms: int) -> bool:
    try:
        bucket.take(subject, now_ms)
    except QuotaExceeded:
        return False
    return True


def test_a_burst_passes_and_what_follows_it_waits_for_the_rate() -> None:
    bucket = Quota(10, 3)
    assert [passes(bucket, "a", 0) for _ in range(4)] == [True, True, True, False]
    assert not passes(bucket, "a", 99)
    assert passes(bucket, "a", 200)


def test_the_refusal_tells_when_to_come_again() -> None:
    bucket = Quota(2, 1)
    bucket.take("a", 0)
    with pytest.raises(QuotaExceeded) as caught:
        bucket.take("a", 100)
    assert (caught.value.reason, caught.value.retry_after_ms) == (Reason.QUOTA, 400)
    assert passes(bucket, "a", 500)


def test_one_subject_does_not_use_up_anothers_quota() -> None:
    bucket = Quota(1, 1)
    assert passes(bucket, "a", 0)
    assert not passes(bucket, "a", 0)
    assert passes(bucket, "b", 0)


def test_no_rate_means_no_quota() -> None:
    bucket = Quota(0, 1)
    assert all(passes(bucket, "a", 0) for _ in range(1_000))


def test_a_clock_that_steps_back_refills_nothing_and_shuts_nobody_out() -> None:
    bucket = Quota(1, 1)
    assert passes(bucket, "a", 10_000)
    assert not passes(bucket, "a", 0)
    assert not passes(bucket, "a", 999)
    assert passes(bucket, "a", 1_000)


def test_the_number_of_buckets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "MAX_BUCKETS", 10)
    bucket = Quota(1, 1)
    for number in range(100):
        bucket.take(f"s{number}", 0)
    assert len(bucket._buckets) == 10


@pytest.mark.parametrize(("rate", "burst"), [(-1, 1), (1, 0)])
def test_what_cannot_be_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="rate"):
        Quota(rate, burst)


@given(st.lists(st.integers(0, 500), max_size=200), st.integers(1, 50), st.integers(1, 20))
def test_never_more_than_the_burst_and_the_rate_allow(gaps_ms: list[int], rate: int, burst: int) -> None:
    bucket, now_ms, passed = Quota(rate, burst), 0, 0
    for gap_ms in gaps_ms:
        now_ms += gap_ms
        passed += passes(bucket, "a", now_ms)
        assert passed <= burst + now_ms * rate / 1000 + 1e-6
