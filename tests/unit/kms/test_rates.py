"""Rates: one tenant's flood leaves every other its share (I-17, G-10)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import Backpressure
from kms.rates import MAX_LIMITS, MAX_TENANTS, MIN_BURST, Rates
from tests.support.kms_core import HandClock


def rates(rate_per_s: int = 1000, share_min: float = 0.05) -> tuple[Rates, HandClock]:
    hand = HandClock()
    return Rates(hand.clock, rate_per_s=rate_per_s, share_min=share_min), hand


def taken(limits: Rates, tenant: str, asked: int) -> int:
    count = 0
    for _ in range(asked):
        try:
            limits.take(tenant)
        except Backpressure:
            continue
        count += 1
    return count


def test_one_tenant_alone_has_the_whole_rate() -> None:
    limits, hand = rates()
    taken(limits, "core", 5000)
    hand.now_s += 1
    assert 900 <= taken(limits, "core", 5000) <= 1050


def test_a_refusal_says_when_to_come_again() -> None:
    limits, _ = rates()
    taken(limits, "core", 5000)
    with pytest.raises(Backpressure) as refused:
        limits.take("core")
    assert (refused.value.retry_after_s, refused.value.http_status, refused.value.retryable) == (1, 429, True)


def test_a_flood_leaves_every_other_tenant_its_share() -> None:
    limits, hand = rates()
    small = dict.fromkeys(("a", "b", "c"), 0)
    for _ in range(100):
        hand.now_s += 0.01
        taken(limits, "flood", 100)
        for name in small:
            # Half a share: 25 a second, asked for after the flood has had its turn.
            if round(hand.now_s * 100) % 4 == 0:
                small[name] += taken(limits, name, 1)
    assert small == {"a": 25, "b": 25, "c": 25}


@settings(deadline=None, max_examples=25)
@given(tenants=st.integers(1, 40), seconds=st.integers(1, 4))
def test_in_all_no_more_passes_than_the_rate_and_one_burst(tenants: int, seconds: int) -> None:
    limits, hand = rates(rate_per_s=200)
    total = 0
    for _ in range(seconds * 10):
        hand.now_s += 0.1
        for number in range(tenants):
            total += taken(limits, str(number), 30)
    # The common burst, each newcomer's share at once (harmonic past twenty of them), then the rate.
    newcomers = sum(max(1.0, 200 * min(0.05, 1 / number)) for number in range(1, tenants + 1))
    assert total <= 200 * seconds + 200 + newcomers


@pytest.mark.parametrize("tenants", [30, 500, MAX_TENANTS])
def test_however_many_tenants_come_no_more_passes_than_the_rate_and_two_bursts(tenants: int) -> None:
    limits, hand = rates(rate_per_s=200)
    seconds, total, asked = 6, 0, 0
    for _ in range(seconds * 50):
        hand.now_s += 0.02
        for _ in range(60):
            asked += 1
            total += taken(limits, f"t{asked % tenants}", 1)
    assert 200 * (seconds - 1) <= total <= 200 * seconds + 2 * 200


def test_a_batch_of_the_greatest_size_can_pass_a_small_rate() -> None:
    limits, hand = rates(rate_per_s=10)
    limits.take("core", MIN_BURST)
    with pytest.raises(Backpressure):
        limits.take("core", MIN_BURST)
    hand.now_s += 2 * MIN_BURST / 10
    limits.take("core", MIN_BURST)


def test_an_idle_tenant_no_longer_counts_and_memory_is_bounded() -> None:
    limits, hand = rates()
    for number in range(MAX_TENANTS + 10):
        limits.take(str(number)) if number < 1000 else taken(limits, str(number), 1)
    assert len(limits._own) <= MAX_TENANTS
    hand.now_s += 1.5
    limits.take("1")
    assert list(limits._own) == ["1"]


def test_a_reload_changes_the_rate() -> None:
    limits, _ = rates(rate_per_s=1000)
    limits.configure(rate_per_s=200, share_min=0.05)
    assert taken(limits, "core", 5000) == 200


def test_a_limit_counts_the_last_second() -> None:
    limits, hand = rates()
    for _ in range(5):
        limits.take_limited("capability", "t1", 5)
    with pytest.raises(Backpressure):
        limits.take_limited("capability", "t1", 5)
    limits.take_limited("capability", "t2", 5)
    limits.take_limited("tenant", "t1", 5)
    hand.now_s += 1.0
    with pytest.raises(Backpressure):
        limits.take_limited("capability", "t1", 5)
    hand.now_s += 0.5
    limits.take_limited("capability", "t1", 5, 2)
    hand.now_s += 5
    limits.take_limited("capability", "t1", 5, 5)


def test_attenuating_a_capability_gives_no_further_operations() -> None:
    limits, _ = rates()
    count = 0
    for _ in range(100):
        for rate_per_s in (10, 9, 8):
            try:
                limits.take_limited("capability", "t1", rate_per_s)
            except Backpressure:
                continue
            count += 1
    assert count == 10


def test_limits_are_bounded_in_number() -> None:
    limits, _ = rates()
    for number in range(MAX_LIMITS + 5):
        limits.take_limited("capability", str(number), 1)
    assert len(limits._limits) == MAX_LIMITS


def test_clocks_that_stand_still_or_step_back_give_nothing() -> None:
    limits, hand = rates(rate_per_s=200)
    taken(limits, "core", 1000)
    hand.now_s -= 100
    assert taken(limits, "core", 100) == 0
