"""Kill -9 of writers at any moment: every id that was ever told is stored, and the chains have no gap."""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from receipts.chain import ChainVerifier
from receipts.open_store import open_store

ROOT = Path(__file__).parents[2]
PROCESS = ROOT / "tests" / "faults" / "receipt_store_process.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
START_TIMEOUT_S = 20.0


def run_and_kill(url: str, at_once: int, alive_s: float) -> set[str]:
    """Start a writer, kill it `alive_s` after its first receipt, and return the ids it told of."""
    process = subprocess.Popen(
        [sys.executable, str(PROCESS), url, "0", str(at_once)], stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        assert ready, "the writer never told of a receipt"
        deadline_s = time.monotonic() + alive_s
        output = b""
        # Keep reading, or the writer stops at a full pipe and the kill always finds it there.
        while (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([process.stdout], [], [], left_s)[0]:
                output += process.stdout.read1(65536)  # type: ignore[attr-defined]
    finally:
        process.kill()
    rest, _ = process.communicate(timeout=10)
    return {json.loads(line)["id"] for line in (output + rest).splitlines()}


def check_all_stored(url: str, told: set[str]) -> None:
    store, chains, stored = open_store(url), ChainVerifier(), set()
    seq = 0
    while rows := store.read(seq, 5000):
        for row in rows:
            seq += 1
            assert row.seq == seq
            assert chains.add(row.raw).id == row.id
            stored.add(row.id)
    store.check()
    store.close()
    assert told - stored == set()
    assert len(stored) == seq


def kill_repeatedly(url: str, kills: int, seed: int) -> int:
    choose = random.Random(seed)
    told: set[str] = set()
    for _ in range(kills):
        told |= run_and_kill(url, choose.choice([1, 16, 100]), choose.uniform(0.0, 0.06))
    check_all_stored(url, told)
    return len(told)


def test_every_id_told_before_a_kill_is_stored(store_url: str) -> None:
    assert kill_repeatedly(store_url, kills=20, seed=1) >= 20


@pytest.mark.slow
def test_every_id_told_before_hundreds_of_kills_is_stored(store_url: str) -> None:
    assert kill_repeatedly(store_url, kills=300, seed=2) >= 300


def test_a_kill_of_one_writer_holds_up_no_other(store_url: str) -> None:
    """One process writes on while others die in front of and behind the same locks."""
    survivor = subprocess.Popen(
        [sys.executable, str(PROCESS), store_url, "1500", "8"], stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    choose = random.Random(3)
    told: set[str] = set()
    try:
        for _ in range(4):
            told |= run_and_kill(store_url, 16, choose.uniform(0.0, 0.05))
        output, _ = survivor.communicate(timeout=30)
    finally:
        survivor.kill()
        survivor.wait(timeout=10)
    assert survivor.returncode == 0
    lines = output.splitlines()
    assert len(lines) == 1500
    check_all_stored(store_url, told | {json.loads(line)["id"] for line in lines})
