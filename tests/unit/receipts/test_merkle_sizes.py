"""Proofs of every size up to 300, and random ones up to 10^6: each is the definition's, and verifies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import merkle_reference as reference
from tests.support.merkle_proofs import LEAVES, check_consistency, check_inclusion, mth, path, subproof

ROOT = Path(__file__).parents[3]


def test_the_definition_with_a_memory_is_the_one_without() -> None:
    for size in (1, 2, 3, 255, 256, 300):
        assert mth(0, size) == reference.mth(LEAVES[:size])
        assert path(size // 2, 0, size) == reference.path(size // 2, LEAVES[:size])
        assert subproof(size // 2 or 1, 0, size) == reference.subproof(size // 2 or 1, LEAVES[:size])
    assert mth(0, 2 * len(LEAVES)) == reference.mth([*LEAVES, *LEAVES])


def test_every_proof_of_every_size_up_to_300() -> None:
    # In a process of its own: measuring coverage of ninety thousand proofs would take four times as long.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-m", "tests.support.merkle_proofs", "300"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 300 * 301 + 300


@settings(deadline=None)
@given(st.data())
def test_random_proofs_of_any_size_up_to_a_million(data: st.DataObject) -> None:
    size = data.draw(st.integers(301, 10**6))
    check_inclusion(data.draw(st.integers(0, size - 1)), size)
    check_consistency(data.draw(st.integers(0, size)), size)
