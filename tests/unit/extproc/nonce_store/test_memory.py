"""What is particular to the memory store: its bound, its purging, and its restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.nonce_store import KEEP_BEYOND_MAX_AGE_MS, RETRY_WINDOW_MS, SpendResult
from extproc.nonce_store.memory import PURGE_PER_SPEND, MemoryNonceStore
from pch.errors import StaleChallenge, StoreUnavailable

START_MS = 1_800_000_000_000
MAX_AGE_S = 60
KEEP_MS = MAX_AGE_S * 1000 + KEEP_BEYOND_MAX_AGE_MS


def open_store(max_entries: int = 100, start_ms: int = START_MS) -> MemoryNonceStore:
    return MemoryNonceStore(max_age_s=MAX_AGE_S, clock_ms=lambda: start_ms, max_entries=max_entries)


def nonce(number: int) -> bytes:
    return number.to_bytes(45, "big")


async def fill(store: MemoryNonceStore, count: int, now_ms: int = START_MS) -> None:
    for number in range(count):
        assert await store.spend(nonce(number), bytes(32), START_MS, now_ms) is SpendResult.FRESH


async def test_a_full_store_refuses_and_drops_nothing_that_is_needed() -> None:
    clock_ms = START_MS
    store = MemoryNonceStore(max_age_s=MAX_AGE_S, clock_ms=lambda: clock_ms, max_entries=3)
    await fill(store, 3)
    with pytest.raises(StoreUnavailable):
        await store.spend(nonce(9), bytes(32), START_MS, START_MS)
    assert "holds 3 entries" in str(await store.problem())
    assert await store.spend(nonce(0), b"x" * 32, START_MS, START_MS) is SpendResult.REPLAYED
    clock_ms = START_MS + KEEP_MS
    assert await store.spend(nonce(9), bytes(32), clock_ms, clock_ms) is SpendResult.FRESH
    assert await store.problem() is None


async def test_entries_are_kept_for_max_age_and_four_seconds_and_then_dropped_a_few_at_a_time() -> None:
    store = open_store(max_entries=1000)
    await fill(store, PURGE_PER_SPEND + 2)
    last_ms = START_MS + KEEP_MS - 1
    await store.spend(nonce(1000), bytes(32), last_ms, last_ms)
    assert len(store) == PURGE_PER_SPEND + 3
    await store.spend(nonce(1001), bytes(32), last_ms + 1, last_ms + 1)
    assert len(store) == 4
    await store.spend(nonce(1002), bytes(32), last_ms + 1, last_ms + 1)
    assert len(store) == 3


async def test_a_restart_makes_older_challenges_stale_and_not_younger_ones() -> None:
    restarted = open_store(start_ms=START_MS + 1000)
    with pytest.raises(StaleChallenge):
        await restarted.spend(nonce(0), bytes(32), START_MS + 999, START_MS + 1500)
    assert await restarted.spend(nonce(1), bytes(32), START_MS + 1000, START_MS + 1500) is SpendResult.FRESH


async def test_a_clock_that_steps_back_makes_forgotten_challenges_stale() -> None:
    store = open_store()
    await fill(store, 1)
    later_ms = START_MS + KEEP_MS
    await store.spend(nonce(1), bytes(32), later_ms, later_ms)
    with pytest.raises(StaleChallenge):
        await store.spend(nonce(0), b"x" * 32, START_MS, START_MS + 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(-3000, 40_000)),
        max_size=60,
    )
)
async def test_no_order_of_spends_and_clock_steps_makes_one_nonce_fresh_twice(
    steps: list[tuple[int, int, int]],
) -> None:
    store, now_ms, fresh = open_store(), START_MS, set()
    for number, token, step_ms in steps:
        now_ms += step_ms
        issued_ms = START_MS + number * 10_000
        if not -2000 <= now_ms - issued_ms <= MAX_AGE_S * 1000:
            # open_challenge refuses it before the store is asked.
            continue
        try:
            result = await store.spend(nonce(number), bytes([token]) * 32, issued_ms, now_ms)
        except StaleChallenge:
            continue
        assert (result is SpendResult.FRESH) == (number not in fresh)
        fresh.add(number)


def test_the_windows_are_those_of_the_specification() -> None:
    assert (RETRY_WINDOW_MS, KEEP_BEYOND_MAX_AGE_MS) == (10_000, 4_000)
