"""What is particular to the Redis store, on real servers: loss, eviction, hanging, failover, authentication."""

# ruff: noqa: ASYNC251  waiting for a real server

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio

from extproc.nonce_store import KEEP_BEYOND_MAX_AGE_MS, SKEW_MS, SpendResult
from extproc.nonce_store import redis as redis_module
from extproc.nonce_store.envelopes import Keep, KeepResult
from extproc.nonce_store.redis import MAX_BATCH_SPENDS, ORDER_KEY, SPENT_KEY, RedisNonceStore
from extproc.nonce_store.redis_script import SPEND_SHA1
from pch.errors import StaleChallenge, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    Server = Any
    StartServer = Callable[..., Any]

pytestmark = pytest.mark.redis

START_MS = 1_800_000_000_000
ISSUED_MS = START_MS + SKEW_MS
NOW_MS = ISSUED_MS + 100
MAX_AGE_S = 60
SYNC_AT_ONCE = ("--repl-diskless-sync-delay", "0")


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def nonce(number: int = 0) -> bytes:
    return number.to_bytes(45, "big")


def token(number: int = 0) -> bytes:
    return number.to_bytes(32, "big")


def build(url: str, clock: Callable[[], int] = lambda: START_MS, **options: Any) -> RedisNonceStore:
    defaults = {"max_age_s": MAX_AGE_S, "clock_ms": clock, "timeout_s": 10.0, "jitter": lambda: 0.0}
    return RedisNonceStore(url, **(defaults | options))


@contextlib.asynccontextmanager
async def running(url: str, *arguments: Any, **options: Any) -> AsyncIterator[RedisNonceStore]:
    store = build(url, *arguments, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def until_answered(store: RedisNonceStore, *spend: Any) -> SpendResult | StaleChallenge:
    """Spend until the store is back; every refusal before that is StoreUnavailable."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await store.spend(*spend)
            except StaleChallenge as error:
                return error
            except StoreUnavailable:
                await asyncio.sleep(0.01)


async def test_spends_are_kept_for_max_age_and_four_seconds_of_the_verifiers_time(redis_server: Server) -> None:
    clock = Clock()
    last_ms = NOW_MS + MAX_AGE_S * 1000 + KEEP_BEYOND_MAX_AGE_MS - 1
    async with running(redis_server.url, clock) as store:
        await store.spend(nonce(7), token(1), ISSUED_MS, NOW_MS)
        with redis_server.client() as client:
            assert client.hget(SPENT_KEY, nonce(7)) == token(1) + str(NOW_MS).encode()
            assert (client.ttl(SPENT_KEY), client.ttl(ORDER_KEY)) == (-1, -1)
            await store.spend(nonce(8), token(1), last_ms, last_ms)
            assert client.hexists(SPENT_KEY, nonce(7))
            await store.spend(nonce(9), token(1), last_ms, last_ms + 1)
            assert not client.hexists(SPENT_KEY, nonce(7))
            assert client.zrange(ORDER_KEY, 0, -1) == [nonce(8), nonce(9)]


@pytest.mark.parametrize("far_ms", [5300, 64_001, 3_600_000])
async def test_neither_clock_by_stepping_revives_a_spent_nonce(redis_server: Server, far_ms: int) -> None:
    # The verifiers' clock going back is the server's going forward: only their difference could count.
    clock = Clock()
    async with running(redis_server.url, clock, max_age_s=1) as store:
        assert await store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
        clock.now_ms = NOW_MS + far_ms
        assert await store.spend(nonce(2), token(1), clock.now_ms, clock.now_ms) is SpendResult.FRESH
        with redis_server.client() as client:
            assert not client.hexists(SPENT_KEY, nonce(1))
        clock.now_ms = NOW_MS + 1
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(1), token(2), ISSUED_MS, clock.now_ms)


async def test_a_forgotten_challenge_that_was_issued_by_a_clock_ahead_is_stale_too(redis_server: Server) -> None:
    issued_ms, far_ms = NOW_MS + SKEW_MS, NOW_MS + MAX_AGE_S * 1000 + KEEP_BEYOND_MAX_AGE_MS
    async with running(redis_server.url) as store:
        assert await store.spend(nonce(1), token(1), issued_ms, NOW_MS) is SpendResult.FRESH
        assert await store.spend(nonce(2), token(1), far_ms, far_ms) is SpendResult.FRESH
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(1), token(2), issued_ms, NOW_MS)
        assert await store.spend(nonce(3), token(1), issued_ms + 1, NOW_MS + 1) is SpendResult.FRESH


async def test_a_server_clock_that_ran_ahead_of_the_verifiers_forgets_nothing(redis_server: Server) -> None:
    # The verifiers' clock stands still while more than max-age + 4 s pass for the server; a max-age that
    # cannot be makes that one second.
    async with running(redis_server.url, lambda: NOW_MS, max_age_s=1 - KEEP_BEYOND_MAX_AGE_MS // 1000) as store:
        issued_ms = NOW_MS + SKEW_MS
        assert await store.spend(nonce(1), token(1), issued_ms, NOW_MS) is SpendResult.FRESH
        time.sleep(1.1)
        assert await store.spend(nonce(1), token(2), issued_ms, NOW_MS) is SpendResult.REPLAYED


async def test_verifiers_as_far_apart_as_they_may_be_find_every_young_challenge_fresh(redis_server: Server) -> None:
    ahead, behind = Clock(), Clock()
    max_age_ms = MAX_AGE_S * 1000
    async with running(redis_server.url, ahead) as fast, running(redis_server.url, behind) as slow:
        for step in range(200):
            behind.now_ms = START_MS + 3 * SKEW_MS + step * 1000
            ahead.now_ms = behind.now_ms + SKEW_MS
            fresh = (nonce(2 * step), token(), ahead.now_ms, ahead.now_ms)
            assert await fast.spend(*fresh) is SpendResult.FRESH
            # Of the slow one's challenges the fast one's purge takes the last millisecond.
            oldest_ms = max(behind.now_ms - max_age_ms + 1, START_MS + SKEW_MS)
            assert await slow.spend(nonce(2 * step + 1), token(), oldest_ms, behind.now_ms) is SpendResult.FRESH
        with redis_server.client() as client:
            assert client.zcard(ORDER_KEY) < 2 * (MAX_AGE_S + 10)


@pytest.mark.parametrize("key", [SPENT_KEY, ORDER_KEY])
async def test_one_lost_key_makes_older_challenges_stale(redis_server: Server, key: bytes) -> None:
    clock = Clock()
    async with running(redis_server.url, clock) as store:
        assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
        clock.now_ms = NOW_MS
        with redis_server.client() as client:
            client.delete(key)
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(), token(2), ISSUED_MS, NOW_MS)
        later_ms = NOW_MS + SKEW_MS
        assert await store.spend(nonce(2), token(2), later_ms, later_ms) is SpendResult.FRESH


async def test_a_server_out_of_memory_lets_expired_nonces_go_without_a_spend(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "PROBE_INTERVAL_S", 0.01)
    clock = Clock()
    async with running(redis_server.url, clock) as store:
        for number in range(200):
            await store.spend(nonce(number), token(), ISSUED_MS, NOW_MS)
        with redis_server.client() as client:
            client.config_set("maxmemory", "1")
            async with asyncio.timeout(20):
                while "OutOfMemoryError" not in str(await store.problem()):
                    await asyncio.sleep(0.01)
                clock.now_ms = NOW_MS + MAX_AGE_S * 1000 + KEEP_BEYOND_MAX_AGE_MS
                while client.zcard(ORDER_KEY):
                    await asyncio.sleep(0.01)
            client.config_set("maxmemory", "0")
            assert client.hkeys(SPENT_KEY) == [b"contents"]


def _race(url: str, identity: int, start: Any, results: Any) -> None:
    async def spend_all() -> list[bool]:
        async with running(url) as store:
            start.wait(60)
            spends = (store.spend(nonce(n), token(identity), ISSUED_MS, NOW_MS) for n in range(300))
            return [result is SpendResult.FRESH for result in await asyncio.gather(*spends)]

    results.put(asyncio.run(spend_all()))


def test_of_two_processes_that_spend_the_same_nonces_exactly_one_gets_each(redis_server: Server) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(redis_server.url, identity, start, results)) for identity in (1, 2)]
    for racer in racers:
        racer.start()
    won = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(60)
    assert all(first != second for first, second in zip(*won, strict=True))


async def test_two_clients_share_the_contents(redis_server: Server) -> None:
    clock = Clock()
    async with running(redis_server.url, clock) as one:
        clock.now_ms = NOW_MS
        async with running(redis_server.url, clock) as two:
            assert await one.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
            assert await two.spend(nonce(), token(2), ISSUED_MS, NOW_MS) is SpendResult.REPLAYED
            assert await two.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.RETRIED


@pytest.mark.parametrize("lose", ["flushall", "flushdb", "contents"])
async def test_lost_contents_make_older_challenges_stale(redis_server: Server, lose: str) -> None:
    clock = Clock()
    async with running(redis_server.url, clock) as store:
        assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
        clock.now_ms = NOW_MS
        with redis_server.client() as client:
            client.hdel(SPENT_KEY, "contents") if lose == "contents" else getattr(client, lose)()
        # The clock of the verifier that issued it may be ahead of ours by the skew.
        for issued_ms in (ISSUED_MS, NOW_MS, NOW_MS + SKEW_MS - 1):
            with pytest.raises(StaleChallenge):
                await store.spend(nonce(), token(2), issued_ms, NOW_MS)
        assert "still stale" in str(await store.problem())
        clock.now_ms = NOW_MS + SKEW_MS
        assert await store.problem() is None
        assert await store.spend(nonce(1), token(), NOW_MS + SKEW_MS, NOW_MS + SKEW_MS) is SpendResult.FRESH


async def test_a_restart_makes_older_challenges_stale_even_when_the_data_came_back(
    own_redis_server: StartServer,
) -> None:
    clock, server = Clock(), own_redis_server("--appendonly", "yes")
    async with running(server.url, clock) as store:
        assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
        server.stop()
        clock.now_ms = NOW_MS
        server.start("--appendonly", "yes")
        assert isinstance(await until_answered(store, nonce(1), token(1), ISSUED_MS, NOW_MS), StaleChallenge)
        with server.client() as client:
            assert client.hexists(SPENT_KEY, nonce())
        later_ms = NOW_MS + SKEW_MS
        assert await store.spend(nonce(2), token(1), later_ms, later_ms) is SpendResult.FRESH


async def test_a_failover_makes_older_challenges_stale(own_redis_server: StartServer) -> None:
    clock, master, replica = Clock(), own_redis_server("--port", str(free_port()), *SYNC_AT_ONCE), own_redis_server()
    with master.client() as client, replica.client() as other:
        port = client.config_get("port")["port"]
        async with running(master.url, clock) as store:
            other.replicaof("127.0.0.1", port)
            assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
            deadline = time.monotonic() + 20
            while not other.hexists(SPENT_KEY, nonce()):
                assert time.monotonic() < deadline, "the replica does not follow"
                time.sleep(0.02)
        clock.now_ms = NOW_MS
        async with running(replica.url, clock) as store:
            with pytest.raises(StoreUnavailable):
                await store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS)
            assert "ReadOnlyError" in str(await store.problem())
            other.replicaof("NO", "ONE")
            assert isinstance(await until_answered(store, nonce(), token(2), ISSUED_MS, NOW_MS), StaleChallenge)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl"])
async def test_a_server_that_may_evict_is_refused_and_what_it_held_counts_as_lost(
    redis_server: Server, policy: str
) -> None:
    clock = Clock()
    async with running(redis_server.url, clock) as store:
        assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
        clock.now_ms = NOW_MS
        with redis_server.client() as client:
            client.config_set("maxmemory-policy", policy)
            with pytest.raises(StoreUnavailable, match="noeviction"):
                await store.spend(nonce(1), token(1), ISSUED_MS, NOW_MS)
            assert "noeviction" in str(await store.problem())
            assert not client.hexists(SPENT_KEY, nonce(1))
            client.config_set("maxmemory-policy", "noeviction")
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(), token(2), ISSUED_MS, NOW_MS)


async def test_a_server_that_evicts_is_refused_at_the_start(own_redis_server: StartServer) -> None:
    server = own_redis_server("--maxmemory-policy", "allkeys-lfu")
    async with running(server.url) as store:
        assert "noeviction" in str(await store.problem())


async def test_keys_evicted_unseen_count_as_lost(
    own_redis_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No probe in between, so that the store never sees the evicting policy itself.
    monkeypatch.setattr(redis_module, "PROBE_INTERVAL_S", 1000)
    clock, server = Clock(), own_redis_server()
    async with running(server.url, clock) as store:
        assert await store.spend(nonce(), token(1), ISSUED_MS, NOW_MS) is SpendResult.FRESH
        clock.now_ms = NOW_MS
        with server.client() as client:
            client.mset({f"ballast{number}": b"x" * 1000 for number in range(2000)})
            client.config_set("maxmemory-policy", "allkeys-random")
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 500_000)
            client.set("more", "x")
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 0)
            assert client.info("stats")["evicted_keys"] > 0
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(), token(2), ISSUED_MS, NOW_MS)


async def test_a_server_out_of_memory_is_unavailable_until_there_is_room(redis_server: Server) -> None:
    async with running(redis_server.url) as store:
        await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)
        with redis_server.client() as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(StoreUnavailable, match="OutOfMemoryError"):
                await store.spend(nonce(1), token(), ISSUED_MS, NOW_MS)
            client.config_set("maxmemory", "0")
        assert await store.spend(nonce(1), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH
        assert await store.spend(nonce(0), token(9), ISSUED_MS, NOW_MS) is SpendResult.REPLAYED


async def test_a_hanging_server_is_unavailable_in_time_and_its_late_spends_are_retried(
    own_redis_server: StartServer,
) -> None:
    server = own_redis_server()
    async with running(server.url, timeout_s=0.25) as store:
        await until_answered(store, nonce(), token(), ISSUED_MS, NOW_MS)
        server.hang()
        started = time.monotonic()
        results = await asyncio.gather(
            *(store.spend(nonce(n), token(n), ISSUED_MS, NOW_MS) for n in range(1, 20)), return_exceptions=True
        )
        assert time.monotonic() - started < 5
        assert all(isinstance(result, StoreUnavailable) for result in results)
        async with asyncio.timeout(5):
            while not await store.problem():
                await asyncio.sleep(0.01)
        # While it is known to be down, nobody waits.
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.spend(nonce(99), token(), ISSUED_MS, NOW_MS)
        assert time.monotonic() - started < 0.2
        server.resume()
        # The spends that timed out lay in the server's socket and were done after all.
        assert await until_answered(store, nonce(1), token(1), ISSUED_MS, NOW_MS) is SpendResult.RETRIED
        for number in range(1, 20):
            spend = (nonce(number), token(number), ISSUED_MS, NOW_MS)
            assert await until_answered(store, *spend) is SpendResult.RETRIED
            assert await store.spend(nonce(number), token(99), ISSUED_MS, NOW_MS) is SpendResult.REPLAYED


async def test_a_server_that_is_down_is_unavailable_and_taken_up_again(own_redis_server: StartServer) -> None:
    clock, server = Clock(), own_redis_server()
    async with running(server.url, clock) as store:
        await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)
        server.stop()
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.spend(nonce(1), token(), ISSUED_MS, NOW_MS)
        assert await store.problem()
        server.start()
        later_ms = START_MS + SKEW_MS
        assert await until_answered(store, nonce(1), token(), later_ms, NOW_MS) is SpendResult.FRESH
        assert await store.problem() == "nonce store: its contents are new, and every challenge is still stale"
        clock.now_ms = later_ms
        assert await store.problem() is None


async def test_a_server_that_is_down_at_the_start_is_taken_up_later(own_redis_server: StartServer) -> None:
    server = own_redis_server()
    server.stop()
    async with running(server.url) as store:
        assert "FileNotFoundError" in str(await store.problem())
        with pytest.raises(StoreUnavailable):
            await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)
        server.start()
        assert await until_answered(store, nonce(), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH


async def test_an_idle_connection_is_probed(own_redis_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_module, "PROBE_INTERVAL_S", 0.01)
    server = own_redis_server()
    async with running(server.url) as store, asyncio.timeout(20):
        await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)
        server.stop()
        while "failed" not in str(await store.problem()):
            await asyncio.sleep(0.01)


async def test_attempts_to_connect_back_off_up_to_a_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def note(delay_s: float) -> None:
        waited.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(redis_module.asyncio, "sleep", note)
    async with running(f"unix://{tmp_path}/absent", jitter=lambda: 1.0):
        while len(waited) < 8:
            await sleep(0)
    assert waited[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


async def test_a_script_the_server_forgot_is_sent_again(redis_server: Server) -> None:
    async with running(redis_server.url) as store:
        with redis_server.client() as client:
            client.script_flush()
            assert await store.spend(nonce(), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH
            assert client.script_exists(SPEND_SHA1) == [True]
        assert await store.spend(nonce(), token(), ISSUED_MS, NOW_MS) is SpendResult.RETRIED


async def test_spends_that_gather_go_in_few_round_trips(redis_server: Server) -> None:
    async with running(redis_server.url) as store:
        with redis_server.client() as client:
            client.config_resetstat()
            spends = (store.spend(nonce(n), token(), ISSUED_MS, NOW_MS) for n in range(3 * MAX_BATCH_SPENDS))
            results = await asyncio.gather(*spends)
            assert set(results) == {SpendResult.FRESH}
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 5


async def test_more_waiting_spends_than_the_bound_are_refused_at_once(own_redis_server: StartServer) -> None:
    server = own_redis_server()
    async with running(server.url, max_pending=5) as store:
        server.hang()
        tasks = [asyncio.ensure_future(store.spend(nonce(n), token(), ISSUED_MS, NOW_MS)) for n in range(8)]
        refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert len(refused) == 3
        assert all("5 spends waiting" in str(task.exception()) for task in refused)
        server.resume()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results.count(SpendResult.FRESH) == 5


async def test_closing_refuses_those_that_wait(own_redis_server: StartServer) -> None:
    server = own_redis_server()
    async with running(server.url) as store:
        server.hang()
        tasks = [asyncio.ensure_future(store.spend(nonce(n), token(), ISSUED_MS, NOW_MS)) for n in range(3)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)


async def test_an_answer_of_another_shape_is_no_answer(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(redis_server.url) as store:
        await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)

        async def too_short(*_: object) -> bytes:
            return b"1 "

        monkeypatch.setattr(store, "_ask", too_short)
        with caplog.at_level(logging.ERROR), pytest.raises(StoreUnavailable):
            await store.spend(nonce(1), token(), ISSUED_MS, NOW_MS)
        monkeypatch.undo()
        assert await until_answered(store, nonce(1), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH


async def test_a_wrong_password_is_unavailable_and_never_shown(
    own_redis_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_redis_server("--requirepass", "right-secret")
    wrong = server.url.replace("unix://", "unix://user:wrong-secret@")
    with caplog.at_level(logging.DEBUG):
        async with running(wrong) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)
            shown = caplog.text + str(caught.value) + repr(caught.value) + str(await store.problem()) + repr(store)
    assert "AuthenticationError" in shown
    assert "wrong-secret" not in shown
    right = server.url.replace("unix://", "unix://default:right-secret@")
    async with running(right) as store:
        assert await store.spend(nonce(), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_tcp_url_with_a_database_number_is_followed(own_redis_server: StartServer) -> None:
    port = free_port()
    server = own_redis_server("--port", str(port), "--bind", "127.0.0.1")
    async with running(f"redis://127.0.0.1:{port}/3?retry_on_timeout=true&decode_responses=true") as store:
        assert await store.spend(nonce(), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH
    with server.client() as client:
        assert client.info("keyspace").keys() == {"db3"}


def test_a_connection_never_retries_and_checks_certificates() -> None:
    plain = redis_module.open_connection("redis://h/0?retry_on_timeout=true&health_check_interval=3", 0.25)
    assert plain.retry.get_retries() == 0
    assert plain.retry_on_error == []
    assert plain.health_check_interval == 0
    assert plain.socket_connect_timeout == 0.25
    secure = redis_module.open_connection("rediss://h/0", 0.25)
    assert isinstance(secure, redis.asyncio.SSLConnection)
    assert secure.cert_reqs == ssl.CERT_REQUIRED
    assert secure.check_hostname


async def test_a_token_of_another_length_is_a_mistake(redis_server: Server) -> None:
    async with running(redis_server.url) as store:
        with pytest.raises(ValueError, match="32 bytes"):
            await store.spend(nonce(), b"short", ISSUED_MS, NOW_MS)


@contextlib.asynccontextmanager
async def far(server: Server, delay_s: float) -> AsyncIterator[str]:
    """Give the URL of `server` at the end of a long line: each way takes `delay_s`, and nothing is lost."""

    ends: list[asyncio.StreamWriter] = []
    links: list[asyncio.Task[Any] | None] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(65_536):
            loop.call_later(delay_s, writer.write, data)

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(server.socket)
        ends.extend((writer, back))
        links.append(asyncio.current_task())
        await asyncio.gather(carry(reader, back), carry(there, writer))

    path = server.folder / "far.sock"
    line = await asyncio.start_unix_server(link, path)
    try:
        yield f"unix://{path}"
    finally:
        line.close()
        for end in ends:
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()
        await asyncio.gather(*filter(None, links), return_exceptions=True)
        path.unlink()


async def test_a_flood_of_searches_for_envelopes_costs_no_spend_and_no_connection(redis_server: Server) -> None:
    """Whoever sends no proof may have many envelopes looked for: late in our queue is not late at the server."""
    async with far(redis_server, 0.02) as url, running(url, timeout_s=1.0) as store:
        await store.spend(nonce(), token(), ISSUED_MS, NOW_MS)
        with redis_server.client() as client:
            before = client.info("stats")["total_connections_received"]
            searches: list[asyncio.Task[bytes | None]] = []
            results = []
            for number in range(1, 21):
                searches += [asyncio.create_task(store.find_envelope(nonce(9_999), NOW_MS)) for _ in range(30)]
                results.append(await store.spend(nonce(number), token(), ISSUED_MS, NOW_MS))
            found = await asyncio.gather(*searches, return_exceptions=True)
            assert set(results) == {SpendResult.FRESH}
            assert client.info("stats")["total_connections_received"] == before
        assert {type(each) for each in found} <= {type(None), StoreUnavailable}
        assert None in found


async def test_one_that_waits_in_vain_is_refused_in_time_while_the_others_are_answered(redis_server: Server) -> None:
    async with far(redis_server, 0.005) as url, running(url, timeout_s=1.0) as store:
        searches = [asyncio.create_task(store.find_envelope(nonce(1), NOW_MS)) for _ in range(200)]
        await asyncio.sleep(0)
        late = store._calls[-1]
        late.future.cancel()
        results = await asyncio.gather(*searches, return_exceptions=True)
        assert [type(each) for each in results].count(asyncio.CancelledError) == 1
        assert results.count(None) == 199
        assert await store.spend(nonce(), token(), ISSUED_MS, NOW_MS) is SpendResult.FRESH


async def test_waiting_envelopes_have_a_bound_of_their_own_and_leave_room_for_spends(
    own_redis_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "MAX_PENDING_CALLS", 5)
    server = own_redis_server()
    async with running(server.url, max_pending=1) as store:
        server.hang()
        searches = [asyncio.ensure_future(store.find_envelope(nonce(n), NOW_MS)) for n in range(8)]
        refused, _ = await asyncio.wait(searches, return_when=asyncio.FIRST_COMPLETED)
        assert len(refused) == 3
        assert all("5 envelopes waiting" in str(task.exception()) for task in refused)
        spending = asyncio.ensure_future(store.spend(nonce(), token(), ISSUED_MS, NOW_MS))
        await asyncio.sleep(0)
        server.resume()
        assert await spending is SpendResult.FRESH
        assert [await task for task in searches if task not in refused] == [None] * 5


async def test_scripts_of_envelopes_that_the_server_forgot_are_sent_again_in_their_order(redis_server: Server) -> None:
    async with running(redis_server.url) as store:
        for _ in range(2):
            with redis_server.client() as client:
                client.script_flush()
            keeps = [Keep(nonce(n), bytes([n]) * 32, b"envelope %d" % n, NOW_MS + 60_000, NOW_MS) for n in range(3)]
            searches = [store.find_envelope(nonce(n), NOW_MS) for n in range(3)]
            results = await asyncio.gather(*map(store.keep_envelope, keeps), *searches)
            assert results == [KeepResult.KEPT] * 3 + [b"envelope %d" % n for n in range(3)]


async def test_an_envelope_that_finds_no_room_at_the_server_fails_alone(redis_server: Server) -> None:
    async with running(redis_server.url) as store:
        first, kept = (Keep(nonce(n), bytes(32), b"envelope", NOW_MS + 60_000, NOW_MS) for n in (0, 1))
        # With one there, nothing is cleaned away first: a script that has written is let go on.
        await store.keep_envelope(first)
        with redis_server.client() as client:
            client.config_set("maxmemory", "1")
            results = await asyncio.gather(
                store.keep_envelope(kept), store.find_envelope(nonce(2), NOW_MS), return_exceptions=True
            )
            client.config_set("maxmemory", "0")
        assert isinstance(results[0], StoreUnavailable)
        assert "OutOfMemoryError" in str(results[0])
        assert results[1] is None, "the one behind it is answered"
        assert await store.keep_envelope(kept) is KeepResult.KEPT
