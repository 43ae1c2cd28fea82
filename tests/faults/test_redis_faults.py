"""Faults of the Redis nonce store on the real Envoy: no store, no entry; and what it forgot passes no second time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from extproc.nonce_store import SKEW_MS
from tests.e2e.attack_stage import attack, open_stage
from tests.faults.fault_stage import FaultStage, stopped

pytestmark = [pytest.mark.e2e, pytest.mark.redis]

TIMEOUT_S = 0.25
"""nonce_store.timeout_ms of the stack."""


class RedisStage(FaultStage):
    """A stack whose workers share one Redis server."""

    def redis(self) -> contextlib.closing[Any]:
        return contextlib.closing(redis.Redis(port=self.stage.stack.settings.ports.redis, socket_timeout=5))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisStage]:
    with open_stage(tmp_path_factory.mktemp("r"), nonce_store="redis") as stage:
        yield RedisStage(stage)


@pytest.fixture
def faulty(running: RedisStage) -> Iterator[RedisStage]:
    running.passes()
    running.wait_ready()
    yield running
    running.passes()
    running.wait_ready()
    running.nothing_seen_is_missing()


def refused(faulty: RedisStage) -> None:
    faulty.nothing_passes("store_unavailable", times=4, open_route_too=False)


def test_redis_that_is_down_lets_nothing_through_and_its_restart_no_replay(faulty: RedisStage) -> None:
    with faulty.replay_is_refused():
        faulty.stage.stack.stop_part("redis")
        refused(faulty)
        faulty.wait_told("nonce_store", "nonce store")
        faulty.stage.stack.start_part("redis")
        began_s = time.monotonic()
        faulty.passes()
        took_s = time.monotonic() - began_s
    print(f"redis back after a restart: passing again after {took_s:.2f} s (older challenges are stale for 2 s)")


def test_redis_that_hangs_lets_nothing_through_in_bounded_time(faulty: RedisStage) -> None:
    with faulty.replay_is_refused():
        with stopped(faulty.stage.stack.state["pids"]["redis"]), attack(faulty.stage, "http1") as attacker:
            took_s = []
            for _ in range(5):
                began_s = time.monotonic()
                answer = faulty.try_signed(attacker)
                took_s.append(time.monotonic() - began_s)
                assert (answer.status, answer.reason) == (503, "store_unavailable")
            assert faulty.stage.seen_by_app() == []
            faulty.wait_told("nonce_store", "nonce store")
        faulty.passes()
    assert max(took_s) < TIMEOUT_S + 2
    print(f"redis hung: refused after {max(took_s):.2f} s at most")


def test_redis_that_is_slow_costs_time_and_too_slow_costs_entry(faulty: RedisStage) -> None:
    with faulty.redis() as server, attack(faulty.stage, "http1") as attacker:
        server.client_pause(int(TIMEOUT_S * 1000 * 0.4))
        assert faulty.try_signed(attacker).status == 200
        faulty.stage.seen_by_app()
        with faulty.replay_is_refused():
            request = attacker.signed(challenge=faulty.stage.mint(attacker.session.binding))
            server.client_pause(int(TIMEOUT_S * 1000 * 4))
            answer = faulty.attempt(attacker, request)
            assert (answer.status, answer.reason) == (503, "store_unavailable")
            assert faulty.stage.seen_by_app() == []
            faulty.passes()
            # Redis may have spent it after all, or not: it passes once at most.
            answers = [faulty.attempt(attacker, request) for _ in range(4)]
            assert [answer.status for answer in answers].count(200) <= 1, answers
            assert len(faulty.stage.seen_by_app()) <= 1


def test_redis_that_may_evict_is_refused_and_told(faulty: RedisStage) -> None:
    with faulty.redis() as server, faulty.replay_is_refused():
        try:
            server.config_set("maxmemory-policy", "allkeys-lru")
            refused(faulty)
            faulty.wait_told("nonce_store", "noeviction")
        finally:
            server.config_set("maxmemory-policy", "noeviction")
        faulty.passes()


def test_redis_that_is_out_of_memory_lets_nothing_through(faulty: RedisStage) -> None:
    with faulty.redis() as server, faulty.replay_is_refused():
        try:
            server.config_set("maxmemory", "1")
            refused(faulty)
            faulty.wait_told("nonce_store", "nonce store")
        finally:
            server.config_set("maxmemory", "0")
        faulty.passes()


def test_redis_that_was_emptied_makes_older_challenges_stale(faulty: RedisStage) -> None:
    with faulty.redis() as server, faulty.replay_is_refused(), attack(faulty.stage, "http1") as attacker:
        before = attacker.challenge()
        server.flushall()
        emptied_s = time.monotonic()
        assert faulty.attempt(attacker, attacker.signed(challenge=before)).reason == "stale_challenge"
        assert faulty.stage.seen_by_app() == []
        faulty.passes()
        assert time.monotonic() - emptied_s >= SKEW_MS / 1000 - 0.2, "no challenge of before may count as newer"


def test_redis_that_becomes_a_replica_lets_nothing_through(faulty: RedisStage) -> None:
    with faulty.redis() as server, faulty.replay_is_refused():
        try:
            server.replicaof("127.0.0.1", "1")
            refused(faulty)
        finally:
            server.replicaof("NO", "ONE")
        faulty.passes()
