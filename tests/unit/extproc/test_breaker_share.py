"""Two instances' breakers on a real Redis that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis

from extproc.breaker import Phase
from extproc.breaker_bank import BreakerBank, OwnSignals
from extproc.breaker_peers import MAX_PEERS, MAX_WORD_BYTES, BreakerPeers
from extproc.breaker_share import BreakerShare
from extproc.plan import BreakerPlan
from extproc.stress_desk import StressTelemetry
from tests.support.redis_server import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.redis

PLAN = BreakerPlan(max_gain=0.5, min_samples=5, base_dwell_ms=600, max_dwell_ms=800, probes_needed=2)
INTERVAL_MS = 100


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Instance:
    def __init__(self, url: str) -> None:
        self.registry = CollectorRegistry()
        self.peers = BreakerPeers(PLAN, "r", ["a"], secrets.token_hex)
        self.bank = BreakerBank(PLAN, ["a"], OwnSignals(1), now_ms=now_ms(), peers=self.peers)
        self.share = BreakerShare(
            url,
            lambda: self.peers,
            StressTelemetry(self.registry),
            interval_ms=INTERVAL_MS,
            now_ms=now_ms,
            random_below=secrets.randbelow,
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.share.run())
            group.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            self.bank.tick(now_ms())
            if self.phase is Phase.HALF_OPEN:
                epoch = self.bank.state("a").epoch
                self.bank.ended("a", 200, 10, (), probe_epoch=epoch)
            await asyncio.sleep(0.02)

    def fails(self) -> None:
        for _ in range(20):
            self.bank.ended("a", 503, 10, (), probe_epoch=None)

    @property
    def phase(self) -> Phase:
        return self.bank.state("a").phase

    def metric(self, name: str) -> float | None:
        return self.registry.get_sample_value(name)


@contextlib.asynccontextmanager
async def running(*instances: Instance) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in instances]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(probe: Callable[[], bool], within_s: float, what: str) -> None:
    begun_s = time.monotonic()
    while not probe():
        assert time.monotonic() - begun_s < within_s, what
        await asyncio.sleep(0.005)


async def opens(one: Instance) -> None:
    end_s = time.monotonic() + 5
    while one.phase is not Phase.OPEN:
        assert time.monotonic() < end_s, "it does not open"
        one.fails()
        await asyncio.sleep(0.02)


async def test_instances_share_while_redis_is_there_and_go_on_alone_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.sock"
    with redis_server(path) as url:
        one, other = Instance(url), Instance(url)
        both = running(one, other)
        await both.__aenter__()
        await until(lambda: (one.peers.peers, other.peers.peers) == (1, 1), 5, "they meet")
        await opens(one)
        # How soon is the machine's matter; that it follows is ours.
        await until(lambda: other.phase is Phase.OPEN, 2, "the other follows")
        assert one.metric("signet_breaker_share_up") == 1
        await until(lambda: {one.phase, other.phase} == {Phase.CLOSED}, 3, "both close by themselves")
        assert [each.bank.state("a").relapses for each in (one, other)] == [1, 1]
    try:
        caplog.set_level(logging.WARNING, "signet.breaker")
        await until(lambda: one.metric("signet_breaker_share_up") == 0, 3, "it says that it is alone")
        await until(lambda: other.metric("signet_breaker_share_up") == 0, 3, "it says that it is alone")
        await opens(one)
        await until(lambda: one.phase is Phase.CLOSED, 3, "it closes by itself")
        assert other.bank.state("a").relapses == 1, "nobody told the other"
        with redis_server(path):
            await until(lambda: (one.peers.peers, other.peers.peers) == (1, 1), 8, "they meet again")
            await opens(other)
            await until(lambda: one.phase is Phase.OPEN, 2, "the other follows")
        said = [each.message for each in caplog.records if "not shared" in each.message]
        assert 2 <= len(said) <= 4, "one line for each absence and instance"
    finally:
        await both.__aexit__(None, None, None)


async def test_what_a_stranger_wrote_is_refused_and_stops_nobody(tmp_path: Path) -> None:
    with redis_server(tmp_path / "r.sock") as url:
        one, other = Instance(url), Instance(url)
        with contextlib.closing(Redis.from_url(url)) as stranger:
            for number, value in enumerate((b"x", b"x" * (4 * MAX_WORD_BYTES), b"\x94" * 99)):
                stranger.set(f"signet:breaker:{one.peers.group}:{number}", value)
        async with running(one, other):
            await until(lambda: (one.peers.peers, other.peers.peers) == (1, 1), 5, "they meet")
        refused = one.metric("signet_breaker_share_refused_total")
        assert refused is not None
        assert refused >= 3


async def test_key_of_another_type_leaves_the_instance_alone(tmp_path: Path) -> None:
    with redis_server(tmp_path / "r.sock") as url:
        one = Instance(url)
        with contextlib.closing(Redis.from_url(url)) as stranger:
            stranger.lpush(f"signet:breaker:{one.peers.group}:0", b"x")
        async with running(one):
            await until(lambda: one.share._failures > 0, 5, "the round fails")
            await opens(one)


async def test_who_finds_every_place_taken_hears_and_is_not_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path / "r.sock") as url:
        one = Instance(url)
        with contextlib.closing(Redis.from_url(url)) as others:
            for number in range(MAX_PEERS):
                word = BreakerPeers(PLAN, "r", ["a"], secrets.token_hex).told(now_ms())
                others.set(f"signet:breaker:{one.peers.group}:{number}", word, px=1_500)
            async with running(one):
                await until(lambda: one.peers.peers == MAX_PEERS, 5, "it hears them")
                assert "are not heard" in caplog.text
                await until(lambda: one.share._slot is not None, 5, "the dead leave their places")
                await until(lambda: one.peers.peers == 0, 5, "nothing is left of them")
            keys = others.keys(f"signet:breaker:{one.peers.group}:*")
            assert len(keys) == 1
            assert 0 < others.pttl(keys[0]) <= 2_000


async def test_nothing_is_asked_where_nothing_is_shared() -> None:
    registry = CollectorRegistry()
    share = BreakerShare(
        "redis://127.0.0.1:1/0",
        lambda: None,
        StressTelemetry(registry),
        interval_ms=INTERVAL_MS,
        now_ms=now_ms,
        random_below=secrets.randbelow,
    )
    assert await share._round_or_pause_ms() == INTERVAL_MS
    assert share._connection is None


class Broken(BreakerPeers):
    """Peers that fail in a way that nobody thought of, for some rounds."""

    rounds = 3

    def told(self, now_ms: int) -> bytes:
        self.rounds -= 1
        if self.rounds >= 0:
            raise IndexError("secret")
        return super().told(now_ms)


async def test_what_nobody_thought_of_stops_the_sharing_for_a_while_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path / "r.sock") as url:
        one, other = Instance(url), Instance(url)
        one.peers = Broken(PLAN, "r", ["a"], secrets.token_hex)
        async with running(one, other):
            await until(lambda: one.metric("signet_breaker_share_up") == 0, 5, "it says that it is alone")
            await until(lambda: one.metric("signet_breaker_share_up") == 1, 8, "it shares again")
            await until(lambda: other.peers.peers == 1, 5, "and is heard")
    assert "IndexError" in caplog.text
    assert "secret" not in caplog.text
