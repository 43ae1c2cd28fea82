"""`python -m receipts`: what operators and auditors type."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from receipts import cli_places
from receipts.__main__ import main
from receipts.checkpoint_jwks import verifier_jwks
from receipts.cli_places import POLICY_NAME, open_signer
from receipts.log import LogWriter
from receipts.receipt import ReceiptDraft
from receipts.store import WriterTail
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.log_parts import NOW_S
from tests.support.pack_parts import DAY_S, POLICY, WRITERS, day, decision

Command = Callable[..., tuple[int, str, str]]


class Place:
    """A folder with a store, worked on by commands alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "filter.toml"
        self.config.write_text('[receipts]\nurl = "sqlite:r.sqlite3"\n[log]\ndir = "the-log"\norigin = "my.log"\n')
        self.log = folder / "the-log"
        self.out = folder / "out.zip"

    def add(self, count: int) -> None:
        store = SqliteReceiptStore(self.folder / "r.sqlite3")
        tail = store.writer_tail(WRITERS[0])
        drafts: list[ReceiptDraft] = [decision(tail.wseq + number) for number in range(count)]
        store.append(drafts, WriterTail(WRITERS[0], tail.wseq, tail.leaf_hash))
        store.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("SIGNET_RECEIPTS_URL", "SIGNET_LOG_DIR", "SIGNET_LOG_ORIGIN"):
        monkeypatch.delenv(name, raising=False)
    return Place(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time that commands go by."""
    now = [NOW_S]
    monkeypatch.setattr("receipts.cli_places.now_s", lambda: now[0])
    monkeypatch.setattr("receipts.cli_pack.now_s", lambda: now[0])
    monkeypatch.setattr("receipts.log._wall_clock_s", lambda: now[0])
    return now


@pytest.fixture
def run(place: Place, capsys: pytest.CaptureFixture[str]) -> Command:
    def run_command(name: str, *arguments: str) -> tuple[int, str, str]:
        places = [] if name == "verify" else ["--config", str(place.config)]
        status = main([name, *places, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


def test_from_receipts_to_a_verdict(place: Place, run: Command, clock: list[int]) -> None:
    place.add(5)
    assert run("integrate", "--once")[:2] == (0, "the log has 5 entries\n")
    place.add(3)
    (place.log / POLICY_NAME).write_bytes(POLICY)
    status, text, _ = run("pack", "--date", day(), "--out", str(place.out), "--json")
    facts = json.loads(text)
    assert (status, facts["receipts"], facts["complete"], facts["origin"]) == (0, 8, False, "my.log")
    assert facts["bytes"] == place.out.stat().st_size
    trust = place.folder / "jwks.json"
    keys = open_signer(place.log, "my.log", create=False).verifier_keys()
    trust.write_text(json.dumps(verifier_jwks(keys)))
    status, text, _ = run("verify", str(place.out), "--trust", str(trust))
    assert status == 0
    assert text.endswith("VALID\n")
    assert "8 of 8 policy decisions under the bundle" in text
    first = place.out.rename(place.folder / "first.zip")
    clock[0] += DAY_S
    place.add(4)
    assert run("pack", "--date", day(1), "--out", str(place.out))[0] == 0
    assert run("verify", str(place.out), "--since", str(first))[0] == 0
    assert run("verify", str(first), "--since", str(place.out))[0] == 2
    assert run("fsck")[:2] == (0, "12 receipts, 12 integrated, 0 pruned, 1 writers, 3 heads: whole\n")


def test_tampered_copy_is_refused(place: Place, run: Command, clock: list[int]) -> None:
    place.add(5)
    run("integrate", "--once")
    run("pack", "--date", day(), "--out", str(place.out))
    data = bytearray(place.out.read_bytes())
    data[len(data) // 2] ^= 1
    place.out.write_bytes(data)
    assert run("verify", str(place.out))[0] in (1, 2)


def test_rotation_is_followed_by_whoever_pinned_the_old_keys(place: Place, run: Command, clock: list[int]) -> None:
    place.add(5)
    run("integrate", "--once")
    trust = place.folder / "jwks.json"
    keys = open_signer(place.log, "my.log", create=False).verifier_keys()
    trust.write_text(json.dumps(verifier_jwks(keys)))
    assert run("rotate")[0] == 0
    assert "earlier rotation" in run("rotate")[2]
    run("integrate", "--once")
    place.add(5)
    run("pack", "--date", day(), "--out", str(place.out))
    assert run("verify", str(place.out), "--trust", str(trust))[0] == 0
    assert run("fsck", "--json")[0] == 0


@pytest.mark.parametrize("date", ["yesterday", "2099-01-01", "2001-01-01"])
def test_wrong_date_is_unusable_input(place: Place, run: Command, date: str) -> None:
    place.add(1)
    run("integrate", "--once")
    status, _, message = run("pack", "--date", date, "--out", str(place.out))
    assert status == 2
    assert message
    assert not place.out.exists()


def test_where_nothing_can_be_written_is_unusable(place: Place, run: Command, clock: list[int]) -> None:
    place.add(1)
    run("integrate", "--once")
    assert run("pack", "--date", day(), "--out", str(place.folder / "absent" / "p.zip"))[0] == 2


@pytest.mark.parametrize(
    "content",
    [b"[", b"\xff", b"receipts = 1", b"[receipts]\nurl = 7", b'[receipts]\nurl = "mysql:x"', b"#" * 2_000_000],
)
def test_configuration_that_says_nothing_is_unusable(place: Place, run: Command, content: bytes) -> None:
    place.config.write_bytes(content)
    assert run("integrate", "--once")[0] == 2
    place.config.unlink()
    assert run("integrate", "--once")[0] == 2


COMMANDS = [("fsck",), ("rotate",), ("pack", "--date", "2026-11-21", "--out", "pack.zip")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_store_or_log_that_is_not_there_is_unusable_and_not_begun(
    place: Place, run: Command, command: tuple[str, ...]
) -> None:
    status, _, message = run(*command)
    assert (status, "no receipt store" in message) == (2, True)
    assert [path.name for path in place.folder.iterdir()] == [place.config.name]
    place.add(1)
    before = sorted(place.folder.iterdir())
    status, _, message = run(*command)
    assert status != 0
    assert message
    assert sorted(place.folder.iterdir()) == before


def test_a_person_sees_how_far_it_is(place: Place, run: Command) -> None:
    place.add(5)
    run("integrate", "--once")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "receipts", "pack", "--config", str(place.config)]
    command += ["--date", dt.datetime.now(dt.UTC).date().isoformat(), "--out", str(place.out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert re.search(r"\rpacking \[#{30}\] ([0-9]+)/\1\r\n", shown)


@pytest.mark.parametrize("option", ["--max-batch-receipts", "--max-batch-age-ms", "--poll-interval-ms"])
def test_settings_out_of_range_are_unusable(place: Place, run: Command, option: str) -> None:
    assert run("integrate", "--once", option, "-1")[0] == 2


def test_policy_must_be_there_when_it_is_named(place: Place, run: Command, clock: list[int]) -> None:
    place.add(1)
    run("integrate", "--once")
    arguments = ("--date", day(), "--out", str(place.out))
    assert run("pack", *arguments, "--policy", str(place.folder / "absent"))[0] == 2
    assert "no policy bundle" in run("pack", *arguments)[2]


def test_keys_of_another_log_are_unusable(place: Place, run: Command) -> None:
    assert run("integrate", "--once")[0] == 0
    assert run("integrate", "--once", "--origin", "other.log")[0] == 2


def test_damaged_log_fails(place: Place, run: Command) -> None:
    place.add(3)
    run("integrate", "--once")
    tile = place.log / "tile/0/000.p/3"
    tile.write_bytes(bytes(96))
    for command in ("fsck", "integrate"):
        status, _, message = run(command, *(["--once"] if command == "integrate" else []))
        assert status == 1
        assert message


def test_lost_tiles_are_written_again(place: Place, run: Command) -> None:
    place.add(200)
    place.add(100)
    run("integrate", "--once")
    shutil.rmtree(place.log / "tile")
    place.add(1)
    assert run("fsck")[0] == 1
    assert run("integrate", "--once")[0] == 1
    assert run("integrate", "--once", "--rebuild")[:2] == (0, "the log has 301 entries\n")
    assert run("fsck")[0] == 0
    assert "0 tiles" in run("integrate", "--once", "--rebuild")[2]


def test_pack_leaves_integration_to_whoever_does_it(place: Place, run: Command, clock: list[int]) -> None:
    place.add(2)
    run("integrate", "--once")
    store = SqliteReceiptStore(place.folder / "r.sqlite3")
    signer = open_signer(place.log, "my.log", create=False)
    other = LogWriter(store, place.log, signer, origin="my.log")
    place.add(2)
    status, text, _ = run("pack", "--date", day(), "--out", str(place.out), "--json")
    assert (status, json.loads(text)["receipts"]) == (0, 2)
    other.close()
    store.close()


def test_environment_and_options_say_where_things_are(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    cli_places.add_options(parser)
    environ = {"SIGNET_RECEIPTS_URL": "sqlite:/e", "SIGNET_LOG_DIR": "/l", "SIGNET_LOG_ORIGIN": "o"}
    from_environment = cli_places.read_places(parser.parse_args(["--config", str(place.config)]), environ)
    assert from_environment == cli_places.Places("sqlite:/e", Path("/l"), "o")
    options = ["--store", "sqlite:/s", "--log", "/x", "--origin", "p"]
    assert cli_places.read_places(parser.parse_args(options), environ) == cli_places.Places(
        "sqlite:/s", Path("/x"), "p"
    )
    assert cli_places.read_places(parser.parse_args([]), {}).store_url == "sqlite:receipts.sqlite3"


def test_integrator_runs_until_it_is_told_to_stop(place: Place) -> None:
    place.add(2)
    command = [sys.executable, "-m", "receipts", "integrate", "--config", str(place.config), "--json"]
    environ: dict[str, Any] = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    deadline_s = time.monotonic() + 30
    while not (place.log / "checkpoint").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(out)["size"] == 2
