"""kill -9 at random of writers and of the log's integrator under load: no id told is missing, no head forked."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from receipts.open_store import open_store
from receipts.sth_store import SthStore

ROOT = Path(__file__).parents[2]
WRITER = ROOT / "tests" / "faults" / "receipt_store_process.py"
# What these processes run is covered by other tests; most of them could not tell of it anyway.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)
ORIGIN = "log.example.com/signet"
WRITERS = 2
AT_ONCE = "4"
PATIENCE_S = 30.0
STEP_TIMEOUT_S = 600.0


@dataclass
class Load:
    """Writers and an integrator that run until they are killed, and all that could be seen of their work."""

    url: str
    log: Path
    told: set[str] = field(default_factory=set)
    notes: set[bytes] = field(default_factory=set)
    ended: list[str] = field(default_factory=list)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._readers.append(threading.Thread(target=self._watch))
        self._readers[0].start()
        self._running = [self._start(number) for number in range(WRITERS + 1)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
            process.wait(PATIENCE_S)
        self._stop.set()
        for reader in self._readers:
            reader.join(PATIENCE_S)

    def command(self, *arguments: str) -> list[str]:
        places = ["--store", self.url, "--log", str(self.log), "--origin", ORIGIN]
        return [sys.executable, "-m", "receipts", *arguments, *places]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        if number == WRITERS:
            command = self.command("integrate", "--max-batch-age-ms", "10", "--poll-interval-ms", "2")
            return subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT)
        command = [sys.executable, str(WRITER), self.url, "0", AT_ONCE]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT)
        reader = threading.Thread(target=self._read, args=(process,))
        reader.start()
        self._readers.append(reader)
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.endswith(b"\n"):
                    self.told.add(json.loads(line)["id"])

    def _watch(self) -> None:
        """Read the published checkpoint again and again, as monitors do."""
        while not self._stop.is_set():
            with contextlib.suppress(FileNotFoundError):
                self.notes.add((self.log / "checkpoint").read_bytes())
            self._stop.wait(0.001)

    def wait_progress(self) -> None:
        """Wait until a writer told of more, and a new head was published."""
        told, notes, deadline_s = len(self.told), len(self.notes), time.monotonic() + PATIENCE_S
        while len(self.told) == told or len(self.notes) == notes:
            assert [each.poll() for each in self._running] == [None] * len(self._running), "a process ended by itself"
            assert time.monotonic() < deadline_s, "nothing goes on"
            time.sleep(0.002)

    def kill(self, number: int) -> None:
        process = self._running[number]
        process.kill()
        process.wait(PATIENCE_S)
        assert process.returncode == -9, "a process ended by itself"
        self._running[number] = self._start(number)


def kill_at_random(url: str, log: Path, kills: int, seed: int) -> Load:
    choose = random.Random(seed)
    with Load(url, log) as load:
        for _ in range(kills):
            load.wait_progress()
            time.sleep(choose.uniform(0.0, 0.05))
            load.kill(choose.randrange(WRITERS + 1))
        load.wait_progress()
    return load


def check(load: Load) -> None:
    """Hold what was seen against what is stored, once the log has taken in everything."""
    for arguments in (("integrate", "--once"), ("fsck", "--json")):
        done = subprocess.run(
            load.command(*arguments), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=STEP_TIMEOUT_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["integrated"] == report["receipts"] >= len(load.told)
    store, seq = open_store(load.url), 0
    missing = set(load.told)
    while page := store.read(seq, 5000):
        missing -= {each.id for each in page}
        seq = page[-1].seq
    store.close()
    assert not missing, f"{len(missing)} receipts that were told of are not in the store"
    heads, number, forked = SthStore(load.log / "log.sqlite3"), 0, set(load.notes)
    while page_of_heads := heads.read(number, 1000):
        forked -= {each.note for each in page_of_heads}
        number = page_of_heads[-1].number
    heads.close()
    assert not forked, f"{len(forked)} heads that were published are not in the log"
    print(f"\n{len(load.told)} receipts told of, {report['receipts']} stored by {report['writers']} writers;")
    print(f"{len(load.notes)} checkpoints seen, {report['heads']} heads; nothing missing, no fork, fsck clean")


def test_twenty_random_kills_lose_no_receipt_and_fork_no_head(store_url: str, tmp_path: Path) -> None:
    check(kill_at_random(store_url, tmp_path / "log", 20, seed=1))


def test_a_second_integrator_started_by_mistake_gives_up_and_the_first_goes_on(store_url: str, tmp_path: Path) -> None:
    with Load(store_url, tmp_path / "log") as load:
        load.wait_progress()
        for _ in range(2):
            done = subprocess.run(
                load.command("integrate"), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=60
            )
            assert (done.returncode, done.stderr) == (1, "log_busy: another process writes this log\n")
            load.wait_progress()
    check(load)


@pytest.mark.slow
def test_two_hundred_random_kills_lose_no_receipt_and_fork_no_head(store_url: str, tmp_path: Path) -> None:
    check(kill_at_random(store_url, tmp_path / "log", 200, seed=2))
