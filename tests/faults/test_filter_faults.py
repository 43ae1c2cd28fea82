"""Faults of the filter and its files on the real Envoy: nothing passes unverified, and /readyz says why."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator

import pytest

from receipts.chain import ChainVerifier
from receipts.store_sqlite import SqliteReceiptStore
from tests.e2e.attack_stage import attack, open_stage
from tests.faults.fault_stage import FaultStage, moved_aside, stopped
from tools.stack_certs import write_private

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStage]:
    with open_stage(tmp_path_factory.mktemp("f")) as stage:
        yield FaultStage(stage)


@pytest.fixture
def faulty(running: FaultStage) -> Iterator[FaultStage]:
    """A stack that is well before the test, and well again after it, with every receipt that was told."""
    running.wait_ready()
    yield running
    running.wait_ready()
    running.passes()
    running.nothing_seen_is_missing()


# -- the filter itself


def test_dead_filter_lets_nothing_through_and_comes_back(faulty: FaultStage) -> None:
    supervisor = faulty.stage.stack.state["pids"]["filter"]
    with stopped(supervisor):  # so that it starts no worker again
        for pid in faulty.worker_pids():
            os.kill(pid, signal.SIGKILL)
        faulty.nothing_passes("internal", times=5)
        faulty.wait_told("", "does not accept connections")
    took_s, _ = faulty.passes()
    print(f"both workers dead: passing again {took_s:.2f} s after the supervisor went on")


def test_hung_filter_lets_nothing_through_in_bounded_time_and_comes_back(faulty: FaultStage) -> None:
    with stopped(*faulty.worker_pids()), attack(faulty.stage, "http1") as attacker:
        began_s = time.monotonic()
        answer = faulty.try_signed(attacker)
        took_s = time.monotonic() - began_s
        assert (answer.status, answer.reason) == (503, "internal")
        assert took_s < 5
        assert faulty.stage.seen_by_app() == []
        faulty.wait_told("status", "ms old")
    again_s, _ = faulty.passes()
    assert faulty.stage.seen_by_app() == [], "what was refused does not pass later"
    print(f"both workers hung: refused after {took_s:.2f} s, passing again {again_s:.2f} s after they went on")


def test_one_hung_worker_costs_time_and_no_request(faulty: FaultStage) -> None:
    took_s = []
    with stopped(faulty.worker_pid(0)):
        for _ in range(12):
            with attack(faulty.stage, "http1") as attacker:
                began_s = time.monotonic()
                assert faulty.try_signed(attacker).status == 200
                took_s.append(time.monotonic() - began_s)
                assert len(faulty.stage.seen_by_app()) == 1
    print(f"one worker hung: slowest of {len(took_s)} requests {max(took_s):.2f} s, median {sorted(took_s)[6]:.3f} s")


# -- its files


@pytest.mark.parametrize("fault", ["torn", "empty", "gone", "too_open"])
def test_broken_keyring_and_sealing_file_are_told_and_the_old_ones_stay(faulty: FaultStage, fault: str) -> None:
    paths = [faulty.var / "keyring.json", faulty.var / "sealing.json"]
    good = {path: (path.read_bytes(), path.stat().st_mode & 0o777) for path in paths}
    with attack(faulty.stage, "http1") as attacker:
        challenge = attacker.challenge()
        try:
            for path, (content, _) in good.items():
                if fault == "gone":
                    path.unlink()
                elif fault == "too_open":
                    path.chmod(0o666)
                else:
                    path.write_bytes(content[: len(content) // 2] if fault == "torn" else b"")
            faulty.wait_told("keyring", "keyring.json")
            faulty.wait_told("sealing", "sealing.json")
            assert faulty.attempt(attacker, attacker.signed(challenge=challenge)).status == 200
            assert faulty.attempt(attacker, attacker.signed()).status == 200
            assert faulty.attempt(attacker, attacker.signed(key="stranger")).reason == "unknown_key"
            assert len(faulty.stage.seen_by_app()) == 2
        finally:
            for path, (content, mode) in good.items():
                path.write_bytes(content)
                path.chmod(mode)


def test_deleted_nonce_database_makes_older_challenges_stale_and_no_replay_passes(faulty: FaultStage) -> None:
    with attack(faulty.stage, "http1") as attacker, faulty.replay_is_refused():
        before = attacker.challenge()
        for path in faulty.var.glob("nonces.sqlite3*"):
            path.unlink()
        assert faulty.attempt(attacker, attacker.signed(challenge=before)).reason == "stale_challenge"
        took_s, _ = faulty.passes()
    print(f"nonce database deleted: passing again after {took_s:.2f} s")


def test_nonce_database_that_is_garbage_lets_no_signed_request_through_until_it_is_mended(faulty: FaultStage) -> None:
    path = faulty.var / "nonces.sqlite3"
    with faulty.replay_is_refused():
        with moved_aside(path):
            write_private(path, b"this is no database" * 1000)
            faulty.nothing_passes("store_unavailable", times=4, open_route_too=False)
            faulty.wait_told("nonce_store", "nonces.sqlite3")
        faulty.wait_ready()
        faulty.passes()


@pytest.mark.parametrize("instead", ["garbage", "nothing"])
def test_receipt_database_that_is_gone_lets_nothing_through_until_it_is_back(faulty: FaultStage, instead: str) -> None:
    path = faulty.var / "receipts.sqlite3"
    with faulty.replay_is_refused():
        with moved_aside(path):
            if instead == "garbage":
                write_private(path, b"this is no database" * 1000)
            faulty.nothing_passes("store_unavailable", times=4)
            faulty.wait_told("receipts", "store_unavailable")
        faulty.passes()


def test_locked_receipt_database_lets_nothing_through_and_breaks_no_chain(faulty: FaultStage) -> None:
    path = faulty.var / "receipts.sqlite3"
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        # At first the edge may give up before the filter: its patience is shorter than receipts.timeout_ms.
        faulty.nothing_passes("store_unavailable", "internal", times=1)
        faulty.wait_told("receipts", "store_unavailable")
        # Then the workers know that the store fails, and say so in time.
        faulty.nothing_passes("store_unavailable", times=2)
        other.execute("ROLLBACK")
    other.close()
    faulty.passes()
    chain = ChainVerifier()
    store = SqliteReceiptStore(path)
    after = 0
    while page := store.read(after, 1000):
        for stored in page:
            chain.add(stored.raw)
        after = page[-1].seq
    store.close()
    assert sum(chain.writers.values()) >= len(set(faulty.seen))
