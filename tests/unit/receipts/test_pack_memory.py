"""Large days: packing and verifying take memory that does not grow with the day."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
MAX_MIB = 200
STEP_TIMEOUT_S = 1800


def step(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.support.large_pack", name, str(folder), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=STEP_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def measured(folder: Path, receipts: int) -> tuple[float, float]:
    step("build", folder, str(receipts))
    packed, verified = step("pack", folder), step("verify", folder)
    assert verified["receipts"] == receipts
    assert max(packed["max_rss_mib"], verified["max_rss_mib"]) < MAX_MIB
    return packed["max_rss_mib"], verified["max_rss_mib"]


def test_memory_does_not_grow_with_the_day(tmp_path: Path) -> None:
    small = measured(tmp_path / "small", 2_000)
    large = measured(tmp_path / "large", 20_000)
    # Ten times the receipts, some 30 MB more of them: no more than caches and buffers may come on top.
    assert large[0] - small[0] < 20
    assert large[1] - small[1] < 10


@pytest.mark.slow
def test_a_million_receipts_stream_in_bounded_memory(tmp_path: Path) -> None:
    measured(tmp_path / "million", 1_000_000)
