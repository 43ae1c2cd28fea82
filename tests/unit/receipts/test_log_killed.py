"""The log writer as a process of its own, killed with SIGKILL at every step of its work, and started again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from receipts.signed_note import parse_note
from tests.support.log_parts import LogParts, check, heads_of

ROOT = Path(__file__).resolve().parents[3]
FIRST, MORE = 250, 30


def run(folder: Path, calls: int, receipts: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.log_process", str(folder), str(calls), str(receipts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_killed_at(folder: Path, calls: int) -> None:
    killed = run(folder, calls, FIRST)
    assert killed.returncode == -9, killed.stderr
    published = folder / "log" / "checkpoint"
    seen = published.read_bytes() if published.exists() else None
    # Half the time the next process dies as well, a little further on.
    if calls % 2:
        run(folder, calls // 2 + 3, 1)
    resumed = run(folder, 0, MORE)
    assert resumed.returncode == 0, resumed.stderr
    parts = LogParts(folder)
    try:
        notes = [head.note for head in heads_of(parts)]
        assert seen is None or seen in notes
        assert parse_note(notes[-1]).text.split(b"\n")[1] == b"%d" % len(parts.raws())
        assert len(parts.raws()) >= FIRST + MORE
        check(parts)
    finally:
        parts.close()


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    whole = run(tmp_path_factory.mktemp("whole"), 0, FIRST)
    assert whole.returncode == 0, whole.stderr
    return int(whole.stdout)


def test_a_killed_log_goes_on_without_a_fork(tmp_path: Path, steps: int) -> None:
    assert steps > 60
    for calls in range(1, steps, steps // 9):
        check_killed_at(tmp_path / str(calls), calls)


@pytest.mark.slow
def test_a_log_killed_at_every_step_goes_on_without_a_fork(tmp_path: Path, steps: int) -> None:
    for calls in range(1, steps + 1):
        check_killed_at(tmp_path / str(calls), calls)
