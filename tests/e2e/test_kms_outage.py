"""The whole stack with its keys at the key service: what an outage of that service does, and what it does not."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from extproc.custody import LOG_KEYS_NAME
from receipts.verify import verify_file
from tests.e2e.attack_stage import Stage, attack, open_stage, wait_until
from tools.stack_config import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("k"), kms=True) as stage:
        yield stage


def readyz(stage: Stage) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{stage.stack.state['admin']}/readyz", timeout=5) as response:
            document: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        document = json.load(error)
    return document


def head_size(stage: Stage) -> int:
    published = stage.stack.files.receipt_log / "checkpoint"
    return int(published.read_bytes().split(b"\n")[1]) if published.exists() else -1


def pass_once(stage: Stage) -> None:
    """Have one request refused with a challenge and passed with a proof over it: two decisions on record."""
    with attack(stage, "http1") as attacker:
        answer = attacker.send(attacker.signed(challenge=attacker.challenge()))
        assert answer.status == 200, answer


def test_the_filter_serves_through_an_outage_says_so_and_recovers_alone(stage: Stage) -> None:
    pass_once(stage)
    assert readyz(stage) == {"ready": True, "reasons": {}}
    assert (stage.stack.files.receipt_log / LOG_KEYS_NAME).exists()
    assert not (stage.stack.files.var / "sealing.json").exists()
    wait_until(lambda: head_size(stage) >= 1, "the first head")
    before = head_size(stage)
    stage.stack.stop_part("kms")
    for _ in range(3):
        pass_once(stage)
    wait_until(lambda: len(readyz(stage).get("degraded", {})) == 3, "workers and log tell of the outage")
    told = readyz(stage)
    assert told["ready"]
    assert set(told["degraded"]) == {"worker.0.sealing", "worker.1.sealing", "admin.log"}
    assert head_size(stage) == before
    stage.stack.start_part("kms")
    wait_until(lambda: readyz(stage) == {"ready": True, "reasons": {}}, "all is well again", 15.0)
    wait_until(lambda: head_size(stage) >= before + 6, "heads have what was recorded meanwhile", 15.0)


def test_a_killed_service_is_started_again_by_its_supervisor(stage: Stage) -> None:
    before = head_size(stage)
    supervisor = stage.stack.state["pids"]["kms"]
    wait_until(lambda: children_of(supervisor), "the serving process")
    (serving,) = children_of(supervisor)
    os.kill(serving, signal.SIGKILL)
    pass_once(stage)
    wait_until(lambda: head_size(stage) > before, "a head signed by its successor", 15.0)
    assert children_of(supervisor) != [serving]


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_pack_of_a_day_signed_by_the_service_verifies_offline(stage: Stage, tmp_path: Path) -> None:
    pass_once(stage)
    ask = urllib.request.Request(
        f"{stage.stack.state['admin']}/compliance/pack",
        json.dumps({"date": dt.datetime.now(dt.UTC).date().isoformat()}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(ask, timeout=30) as response:
        (tmp_path / "pack.zip").write_bytes(response.read())
    assert verify_file(tmp_path / "pack.zip").receipts >= 1


def test_packs_and_checks_on_the_command_line_need_no_private_key(stage: Stage, tmp_path: Path) -> None:
    pass_once(stage)
    today = dt.datetime.now(dt.UTC).date().isoformat()
    config = ("--config", stage.stack.state["config"])
    for words in (("pack", "--date", today, *config, "--out", str(tmp_path / "cli.zip")), ("fsck", *config)):
        command = [sys.executable, "-m", "receipts", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)
        assert done.returncode == 0, done.stderr
    assert verify_file(tmp_path / "cli.zip").receipts >= 1
