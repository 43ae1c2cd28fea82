"""The contract that every nonce store keeps, run against all three; Redis is a real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from extproc.nonce_store import (
    EVERY_CHALLENGE_STALE,
    KEEP_BEYOND_MAX_AGE_MS,
    RETRY_WINDOW_MS,
    SKEW_MS,
    NonceStore,
    SpendResult,
)
from extproc.nonce_store.memory import MemoryNonceStore
from extproc.nonce_store.redis import RedisNonceStore
from extproc.nonce_store.sqlite import SqliteNonceStore
from pch.errors import StaleChallenge, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

START_MS = 1_800_000_000_000
MAX_AGE_S = 60
ISSUED_MS = START_MS + SKEW_MS + 10
NOW_MS = ISSUED_MS + 5


def nonce(number: int = 0) -> bytes:
    return number.to_bytes(45, "big")


def token(number: int = 0) -> bytes:
    return number.to_bytes(32, "big")


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


class Stores:
    """Opens stores over one file or one server, with one clock."""

    def __init__(self, build: Callable[[Clock], NonceStore]) -> None:
        self._build = build
        self.clock = Clock()
        self.opened: list[NonceStore] = []

    async def open(self) -> NonceStore:
        store = self._build(self.clock)
        self.opened.append(store)
        await store.start()
        return store


@pytest_asyncio.fixture(params=["memory", "sqlite", "redis"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    def build(clock: Clock) -> NonceStore:
        if request.param == "memory":
            return MemoryNonceStore(max_age_s=MAX_AGE_S, clock_ms=clock)
        if request.param == "sqlite":
            return SqliteNonceStore(tmp_path / "n.sqlite3", max_age_s=MAX_AGE_S, clock_ms=clock, timeout_s=10)
        url = request.getfixturevalue("redis_server").url
        return RedisNonceStore(url, max_age_s=MAX_AGE_S, clock_ms=clock, timeout_s=10)

    opener = Stores(build)
    yield opener
    for store in opener.opened:
        await store.close()


@pytest_asyncio.fixture
async def store(stores: Stores) -> NonceStore:
    return await stores.open()


async def test_a_new_nonce_is_fresh_once(store: NonceStore) -> None:
    assert await store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
    assert await store.spend(nonce(1), token(2), ISSUED_MS, NOW_MS) is SpendResult.REPLAYED
    assert await store.spend(nonce(2), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH


@pytest.mark.parametrize(
    ("later_ms", "again", "expected"),
    [
        (0, token(1), SpendResult.RETRIED),
        (RETRY_WINDOW_MS, token(1), SpendResult.RETRIED),
        (RETRY_WINDOW_MS + 1, token(1), SpendResult.REPLAYED),
        (-SKEW_MS, token(1), SpendResult.RETRIED),
        (0, token(1)[:-1] + b"\x00", SpendResult.REPLAYED),
        (MAX_AGE_S * 1000 + KEEP_BEYOND_MAX_AGE_MS - 1, token(2), SpendResult.REPLAYED),
    ],
)
async def test_the_same_nonce_again(store: NonceStore, later_ms: int, again: bytes, expected: SpendResult) -> None:
    assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
    assert await store.spend(nonce(), again, ISSUED_MS, NOW_MS + later_ms) is expected


async def test_the_window_of_retries_begins_with_the_first_spend(store: NonceStore) -> None:
    for later_ms in (0, 6000, 9999):
        await store.spend(nonce(), token(), ISSUED_MS, NOW_MS + later_ms)
    assert await store.spend(nonce(), token(), ISSUED_MS, NOW_MS + 10_001) is SpendResult.REPLAYED


async def test_a_replay_does_not_take_the_nonce_over(store: NonceStore) -> None:
    await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS)
    assert await store.spend(nonce(), token(2), ISSUED_MS, NOW_MS) is SpendResult.REPLAYED
    assert await store.spend(nonce(), token(2), ISSUED_MS, NOW_MS) is SpendResult.REPLAYED
    assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.RETRIED


async def test_nonces_and_tokens_may_hold_any_byte(store: NonceStore) -> None:
    awkward = [bytes([byte]) * 45 for byte in (0, 10, 13, 32, 34, 36, 0x7F, 0x80, 0xFF)]
    for number, each in enumerate(awkward):
        own = each[:32]
        assert await store.spend(each, own, ISSUED_MS, NOW_MS) is SpendResult.FRESH, number
        assert await store.spend(each, own, ISSUED_MS, NOW_MS) is SpendResult.RETRIED
        assert await store.spend(each, token(), ISSUED_MS, NOW_MS) is (
            SpendResult.RETRIED if own == token() else SpendResult.REPLAYED
        )


async def test_of_racing_copies_exactly_one_is_fresh(store: NonceStore) -> None:
    results = await asyncio.gather(*(store.spend(nonce(n % 8), token(n), ISSUED_MS, NOW_MS) for n in range(200)))
    assert results.count(SpendResult.FRESH) == 8
    assert results.count(SpendResult.REPLAYED) == 192


async def test_racing_retries_are_one_fresh_and_the_rest_retried(store: NonceStore) -> None:
    results = await asyncio.gather(*(store.spend(nonce(), token(), ISSUED_MS, NOW_MS) for _ in range(50)))
    assert results.count(SpendResult.FRESH) == 1
    assert results.count(SpendResult.RETRIED) == 49


async def test_a_challenge_from_before_the_contents_began_is_stale_and_not_spent(store: NonceStore) -> None:
    with pytest.raises(StaleChallenge):
        await store.spend(nonce(), token(), START_MS - 1, NOW_MS)
    with pytest.raises(StaleChallenge):
        await store.spend(nonce(), token(), 0, NOW_MS)
    assert await store.spend(nonce(), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH


async def test_one_stale_challenge_does_not_spoil_its_batch(store: NonceStore) -> None:
    results = await asyncio.gather(
        *(store.spend(nonce(n), token(n), ISSUED_MS if n % 2 else 0, NOW_MS) for n in range(20)),
        return_exceptions=True,
    )
    assert [result is SpendResult.FRESH for result in results] == [bool(n % 2) for n in range(20)]
    assert all(isinstance(result, StaleChallenge) for result in results[::2])


async def test_a_store_opened_again_lets_no_spent_nonce_pass(stores: Stores) -> None:
    first = await stores.open()
    assert await first.spend(nonce(1), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
    await first.close()
    stores.clock.now_ms = NOW_MS + 1
    second = await stores.open()
    for again in (token(1), token(2)):
        result = (await asyncio.gather(second.spend(nonce(1), again, ISSUED_MS, NOW_MS), return_exceptions=True))[0]
        if isinstance(second, MemoryNonceStore):
            assert isinstance(result, StaleChallenge)
        else:
            assert result is (SpendResult.RETRIED if again == token(1) else SpendResult.REPLAYED)
    later_ms = NOW_MS + 2 + SKEW_MS
    assert await second.spend(nonce(2), token(2), later_ms, later_ms) is SpendResult.FRESH


async def test_a_closed_store_refuses(store: NonceStore) -> None:
    await store.close()
    await store.close()
    if not isinstance(store, MemoryNonceStore):
        with pytest.raises(StoreUnavailable):
            await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)


async def test_a_cancelled_spend_leaves_the_store_usable(store: NonceStore) -> None:
    task = asyncio.ensure_future(store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await store.spend(nonce(2), token(2), ISSUED_MS, NOW_MS) is SpendResult.FRESH
    # Whether the first was done is not known; its own token is never told that it is a replay.
    assert await store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS) in {SpendResult.FRESH, SpendResult.RETRIED}


async def test_a_clock_that_steps_back_revives_no_spent_nonce(stores: Stores) -> None:
    store = await stores.open()
    assert await store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
    far_ms = stores.clock.now_ms = NOW_MS + MAX_AGE_S * 1000 + KEEP_BEYOND_MAX_AGE_MS
    for number in range(2, 40):
        assert await store.spend(nonce(number), token(number), far_ms, far_ms) is SpendResult.FRESH
    stores.clock.now_ms = NOW_MS
    # Stale, and not replayed: by then the nonce itself is forgotten.
    with pytest.raises(StaleChallenge):
        await store.spend(nonce(1), token(2), ISSUED_MS, NOW_MS)


async def test_a_store_has_no_problem_once_its_contents_are_older_than_the_skew(stores: Stores) -> None:
    store = await stores.open()
    stores.clock.now_ms = START_MS + SKEW_MS
    await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)
    assert await store.problem() is None


async def test_contents_that_a_fast_clock_purged_are_told_while_every_challenge_is_stale(stores: Stores) -> None:
    store = await stores.open()
    assert await store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
    fast_ms = NOW_MS + 3_600_000
    assert await store.spend(nonce(2), token(2), fast_ms, fast_ms) is SpendResult.FRESH
    stores.clock.now_ms = NOW_MS + 1000
    with pytest.raises(StaleChallenge):
        await store.spend(nonce(3), token(3), NOW_MS + 1000, NOW_MS + 1000)
    assert await store.problem() == EVERY_CHALLENGE_STALE
    stores.clock.now_ms = fast_ms
    assert await store.spend(nonce(4), token(4), fast_ms, fast_ms) is SpendResult.FRESH
    assert await store.problem() is None
