"""kill -9, or a full disk, at the system calls of a store's writer and of a log's, and a start from what is left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import kill_steps

ROOT = Path(__file__).parents[2]
WAYS = {"b": "before", "t": "in the middle of", "a": "after", "f": "disk full from"}
STRIDE = 9
"""In the gate every ninth call is the one, and not the same ones for every way."""
TIMEOUT_S = 900


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not a skip: without a compiler there is no TLS module either.
    assert shutil.which("gcc"), "gcc is not installed (tools/parts.sh gcc installs it)"
    return kill_steps.build(tmp_path_factory.mktemp("kill"))


def survivals(library: Path, folder: Path, what: str, how: str, first: int, stride: int, *url: str) -> int:
    """Let it die at every `stride`-th call; give how many were survived."""
    command = [sys.executable, "-m", "tests.support.kill_steps", what, how, str(first), str(stride), str(folder), *url]
    # What it runs is covered by other tests, and most of its children could not tell of it anyway.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environ["LD_PRELOAD"] = str(library)
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-5000:]
    return int(done.stdout)


@pytest.mark.parametrize("how", WAYS, ids=WAYS.values())
@pytest.mark.parametrize("what", ["store", "log"])
def test_a_writer_goes_on_from_what_a_fault_left(library: Path, tmp_path: Path, what: str, how: str) -> None:
    first = 1 + 2 * list(WAYS).index(how)
    assert survivals(library, tmp_path, what, how, first, STRIDE) >= 100 // STRIDE


@pytest.mark.parametrize("how", ["b", "a"], ids=["before", "after"])
def test_a_writer_to_postgresql_goes_on_from_what_a_kill_left(
    library: Path, tmp_path: Path, how: str, postgres_url: str
) -> None:
    assert survivals(library, tmp_path, "store", how, 1, 2 * STRIDE, postgres_url) >= 30 // STRIDE


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS, ids=WAYS.values())
@pytest.mark.parametrize("what", ["store", "log"])
def test_a_writer_goes_on_from_a_fault_at_every_step(library: Path, tmp_path: Path, what: str, how: str) -> None:
    assert survivals(library, tmp_path, what, how, 1, 1) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("how", ["b", "a"], ids=["before", "after"])
def test_a_writer_to_postgresql_goes_on_from_a_kill_at_every_step(
    library: Path, tmp_path: Path, how: str, postgres_url: str
) -> None:
    assert survivals(library, tmp_path, "store", how, 1, 1, postgres_url) >= 30
