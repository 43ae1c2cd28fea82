"""The contract about envelopes that every nonce store keeps, run against all three; Redis is a real server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from extproc.nonce_store import RETRY_WINDOW_MS, NonceStore, SpendResult
from extproc.nonce_store import envelopes as bounds
from extproc.nonce_store.envelopes import (
    MAX_BYTES_PER_CONNECTION,
    MAX_WAITING_PER_CONNECTION,
    OVERHEAD_BYTES,
    EnvelopeShelf,
    Find,
    Keep,
    KeepResult,
)
from extproc.nonce_store.memory import MemoryNonceStore
from extproc.nonce_store.redis import RedisNonceStore
from extproc.nonce_store.sqlite import SqliteNonceStore
from pch.errors import StoreUnavailable
from pch.relaxed import MAX_ENVELOPE_BYTES

NOW_MS = 1_800_000_000_000
EXPIRES_MS = NOW_MS + 64_000


def keep(number: int, *, connection: int = 1, envelope: bytes = b"envelope", **changes: int) -> Keep:
    made = Keep(number.to_bytes(45, "big"), connection.to_bytes(32, "big"), envelope, EXPIRES_MS, NOW_MS)
    return dataclasses.replace(made, **changes)


@pytest_asyncio.fixture(params=["memory", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NonceStore]:
    opened = _open(request, tmp_path)
    await opened.start()
    yield opened
    await opened.close()


def _open(request: pytest.FixtureRequest, tmp_path: Path) -> NonceStore:
    def clock() -> int:
        return NOW_MS - 10_000

    if request.param == "memory":
        return MemoryNonceStore(max_age_s=60, clock_ms=clock)
    if request.param == "sqlite":
        return SqliteNonceStore(tmp_path / "n.sqlite3", max_age_s=60, clock_ms=clock, timeout_s=10)
    url = request.getfixturevalue("redis_server").url
    return RedisNonceStore(url, max_age_s=60, clock_ms=clock, timeout_s=10)


async def find(store: NonceStore, number: int, now_ms: int = NOW_MS) -> bytes | None:
    return await store.find_envelope(number.to_bytes(45, "big"), now_ms)


async def test_an_envelope_is_found_under_its_challenge_and_no_other(store: NonceStore) -> None:
    assert await store.keep_envelope(keep(1, envelope=b"one")) is KeepResult.KEPT
    assert await store.keep_envelope(keep(2, envelope=b"two")) is KeepResult.KEPT
    assert await find(store, 1) == b"one"
    assert await find(store, 2) == b"two"
    assert await find(store, 3) is None


async def test_any_byte_may_be_in_it(store: NonceStore) -> None:
    every = bytes(range(256)) * 500
    awkward = Keep(bytes(range(200, 245)), bytes(range(224, 256)), every, EXPIRES_MS, NOW_MS)
    assert await store.keep_envelope(awkward) is KeepResult.KEPT
    assert await store.find_envelope(awkward.nonce, NOW_MS) == every


async def test_the_same_one_again_is_kept_and_another_one_is_not(store: NonceStore) -> None:
    for _ in range(3):
        assert await store.keep_envelope(keep(1)) is KeepResult.KEPT
    assert await store.keep_envelope(keep(1, envelope=b"another")) is KeepResult.TAKEN
    assert await find(store, 1) == b"envelope"
    assert await store.keep_envelope(keep(1, envelope=b"another")) is KeepResult.TAKEN


async def test_a_spent_challenge_takes_none(store: NonceStore) -> None:
    spent = keep(7)
    assert await store.spend(spent.nonce, bytes(32), NOW_MS, NOW_MS) is SpendResult.FRESH
    assert await store.keep_envelope(spent) is KeepResult.SPENT
    assert await find(store, 7) is None


async def test_keeping_and_finding_do_not_spend(store: NonceStore) -> None:
    kept = keep(1)
    await store.keep_envelope(kept)
    assert await find(store, 1) == b"envelope"
    assert await store.spend(kept.nonce, bytes(32), NOW_MS, NOW_MS) is SpendResult.FRESH
    assert await find(store, 1) == b"envelope", "a retried Check needs it again"


async def test_a_connection_has_four_waiting_and_each_that_is_found_makes_room(store: NonceStore) -> None:
    for number in range(MAX_WAITING_PER_CONNECTION):
        assert await store.keep_envelope(keep(number)) is KeepResult.KEPT
    assert await store.keep_envelope(keep(10)) is KeepResult.CONNECTION_FULL
    assert await find(store, 10) is None
    assert await store.keep_envelope(keep(11, connection=2)) is KeepResult.KEPT, "others are not concerned"
    assert await store.keep_envelope(keep(0)) is KeepResult.KEPT, "what waits already still does"
    await find(store, 0)
    await find(store, 0)
    assert await store.keep_envelope(keep(10)) is KeepResult.KEPT
    assert await store.keep_envelope(keep(12)) is KeepResult.CONNECTION_FULL, "found twice makes room once"


async def test_a_connection_has_its_bytes_also_of_those_found(store: NonceStore) -> None:
    largest = MAX_BYTES_PER_CONNECTION // (MAX_ENVELOPE_BYTES + OVERHEAD_BYTES)
    for number in range(largest):
        assert await store.keep_envelope(keep(number, envelope=bytes(MAX_ENVELOPE_BYTES))) is KeepResult.KEPT
        await find(store, number)
    full = keep(99, envelope=bytes(MAX_ENVELOPE_BYTES))
    assert await store.keep_envelope(full) is KeepResult.CONNECTION_FULL
    assert await store.keep_envelope(keep(100, envelope=b"small")) is KeepResult.KEPT
    later = dataclasses.replace(full, now_ms=NOW_MS + RETRY_WINDOW_MS)
    assert await store.keep_envelope(later) is KeepResult.KEPT, "those that were found are gone by now"


async def test_the_store_has_its_bytes(store: NonceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("envelopes", "sqlite_envelopes", "redis_envelopes"):
        monkeypatch.setattr(f"extproc.nonce_store.{module}.MAX_BYTES_IN_STORE", 3 * (8 + OVERHEAD_BYTES))
    for number in range(3):
        assert await store.keep_envelope(keep(number, connection=number)) is KeepResult.KEPT
    with pytest.raises(StoreUnavailable):
        await store.keep_envelope(keep(3, connection=3))
    assert await store.keep_envelope(keep(0, connection=0)) is KeepResult.KEPT
    expired = keep(3, connection=3, now_ms=EXPIRES_MS, expires_ms=EXPIRES_MS + 1)
    assert await store.keep_envelope(expired) is KeepResult.KEPT


async def test_it_is_kept_until_it_expires(store: NonceStore) -> None:
    await store.keep_envelope(keep(1))
    await store.keep_envelope(keep(2))
    assert await find(store, 1, EXPIRES_MS) is None
    assert await find(store, 2, EXPIRES_MS - 1) == b"envelope"
    assert await find(store, 2, EXPIRES_MS) is None


async def test_once_found_it_is_kept_for_a_retried_check(store: NonceStore) -> None:
    await store.keep_envelope(keep(1))
    assert await find(store, 1) == b"envelope"
    assert await find(store, 1, NOW_MS + RETRY_WINDOW_MS - 1) == b"envelope"
    assert await find(store, 1, NOW_MS + RETRY_WINDOW_MS) is None


async def test_expired_ones_make_room(store: NonceStore) -> None:
    for number in range(MAX_WAITING_PER_CONNECTION):
        await store.keep_envelope(keep(number))
    assert await store.keep_envelope(keep(9, now_ms=EXPIRES_MS - 1)) is KeepResult.CONNECTION_FULL
    assert await store.keep_envelope(keep(9, now_ms=EXPIRES_MS)) is KeepResult.KEPT


async def test_of_racing_ones_a_connection_gets_four(store: NonceStore) -> None:
    results = await asyncio.gather(*(store.keep_envelope(keep(number)) for number in range(40)))
    assert results.count(KeepResult.KEPT) == MAX_WAITING_PER_CONNECTION
    assert results.count(KeepResult.CONNECTION_FULL) == 40 - MAX_WAITING_PER_CONNECTION


async def test_envelopes_and_spends_go_together(store: NonceStore) -> None:
    spends = [store.spend(number.to_bytes(45, "big"), bytes(32), NOW_MS, NOW_MS) for number in range(100, 130)]
    keeps = [store.keep_envelope(keep(number, connection=number)) for number in range(30)]
    results = await asyncio.gather(*spends, *keeps)
    assert results == [SpendResult.FRESH] * 30 + [KeepResult.KEPT] * 30
    assert await asyncio.gather(*(find(store, number) for number in range(30))) == [b"envelope"] * 30


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_another_process_finds_it(store: NonceStore, tmp_path: Path) -> None:
    await store.keep_envelope(keep(1))
    other = SqliteNonceStore(tmp_path / "n.sqlite3", max_age_s=60, clock_ms=lambda: NOW_MS, timeout_s=10)
    await other.start()
    assert await find(other, 1) == b"envelope"
    await other.close()


def _stopped_store(tmp_path: Path, kind: str) -> NonceStore:
    if kind == "redis":
        url = f"unix://{tmp_path}/none.sock"
        return RedisNonceStore(url, max_age_s=60, clock_ms=lambda: NOW_MS, timeout_s=0.2)
    folder = tmp_path / "gone"
    return SqliteNonceStore(folder / "n.sqlite3", max_age_s=60, clock_ms=lambda: NOW_MS, timeout_s=0.2)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_without_the_store_nothing_is_kept_or_found(tmp_path: Path, kind: str) -> None:
    store = _stopped_store(tmp_path, kind)
    await store.start()
    with pytest.raises(StoreUnavailable):
        await store.keep_envelope(keep(1))
    with pytest.raises(StoreUnavailable):
        await find(store, 1)
    await store.close()


async def test_a_server_that_stops_answers_nobody_for_ever(own_redis_server: Callable[..., object]) -> None:
    server = own_redis_server()
    store = RedisNonceStore(server.url, max_age_s=60, clock_ms=lambda: NOW_MS, timeout_s=0.3)  # type: ignore[attr-defined]
    await store.start()
    assert await store.keep_envelope(keep(1)) is KeepResult.KEPT
    server.stop()  # type: ignore[attr-defined]
    for call in (lambda: find(store, 1), lambda: store.keep_envelope(keep(2))):
        with pytest.raises(StoreUnavailable):
            await call()
    await store.close()


def test_the_shelf_forgets_everything_that_expired() -> None:
    shelf = EnvelopeShelf()
    for number in range(200):
        shelf.keep(keep(number, connection=number), spent=False)
        shelf.find(Find(number.to_bytes(45, "big"), NOW_MS))
    assert len(shelf) == 200
    for number in range(1000, 1000 + 200 // bounds.PURGE_PER_KEEP * 2 + 2):
        shelf.keep(keep(number, connection=number, now_ms=EXPIRES_MS, expires_ms=EXPIRES_MS + 1), spent=False)
    assert len(shelf) == 200 // bounds.PURGE_PER_KEEP * 2 + 2
