"""Kill -9 between any two steps of a sealed store's changes: what was told is there, and nothing is there by half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from kms.errors import NotFound
from kms.primitive import Primitive
from kms.providers.provider import KeyHandle
from tests.support.provider_parts import open_quick_file_provider
from tests.support.public_operations import verify

ROOT = Path(__file__).parents[2]
PROCESS = ROOT / "tests" / "faults" / "sealed_store_process.py"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
DIGEST = bytes(32)


def test_a_kill_between_any_two_steps_loses_no_key_and_brings_none_back(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROCESS), str(tmp_path)], capture_output=True, env=ENVIRONMENT, timeout=90, check=True
    )
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    # Every step of making and destroying a key: temporary file, write, syncs, link, unlink.
    assert len(runs) > 12
    assert [run["died"] for run in runs] == [True] * (len(runs) - 1) + [False]
    assert runs[-1]["status"] == 0
    assert len(runs[-1]["told"]) == 3
    for run in runs:
        check_store(Path(run["folder"]), run["told"])


def check_store(folder: Path, told: list[dict[str, str]]) -> None:
    destroyed = {line["destroyed"] for line in told if "destroyed" in line}
    made = {line["made"]: line["public"] for line in told if "made" in line}
    provider = open_quick_file_provider(folder)
    try:
        check_keys(provider, made, destroyed)
    finally:
        provider.close()
    assert not list((folder / "sealed").glob("*.tmp"))


def check_keys(provider, made: dict[str, str], destroyed: set[str]) -> None:  # type: ignore[no-untyped-def]
    assert not provider._folder.unreadable
    for handle in list(provider._folder.keys):
        provider.attest(handle, b"")  # whole: it opens, told of or not
    for number, (handle, public) in enumerate(made.items()):
        primitive = (Primitive.ED25519, Primitive.ML_DSA_65)[number]
        try:
            signature = provider.sign(KeyHandle(handle), primitive, DIGEST)
        except NotFound:
            # Only the first key may be gone: its destruction had begun once the second key was told of.
            assert number == 0
            assert len(made) == 2
            continue
        assert handle not in destroyed
        verify(primitive, bytes.fromhex(public), DIGEST, signature)
