"""Sealing keys in a file: creation, rotation, reload, and what is refused."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from extproc.errors import ServerFault
from extproc.sealing_keys import (
    MAX_EPOCH,
    MAX_EPOCHS,
    MAX_FILE_BYTES,
    RELOAD_INTERVAL_MS,
    FileSealingKeys,
    SealingKey,
    SealingKeyError,
    rotate,
)
from pch.errors import StaleChallenge

if TYPE_CHECKING:
    from pathlib import Path

NOW_MS = 1_800_000_000_000
MAX_AGE_S = 60


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sealing.json"


def epoch(number: int = 1, **changes: Any) -> dict[str, Any]:
    key = base64.b64encode(bytes([number % 256]) * 32).decode()
    return {"epoch": number, "key_b64": key, "created_ms": 1, "retired_ms": None} | changes


def write(path: Path, *epochs: dict[str, Any], mode: int = 0o600) -> None:
    write_text(path, json.dumps({"epochs": epochs}), mode)


def write_text(path: Path, text: str, mode: int = 0o600) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)


def test_an_absent_file_is_created_with_mode_0600_and_a_random_key(path: Path, clock: Clock) -> None:
    previous = os.umask(0)
    try:
        keys = FileSealingKeys(path, clock, MAX_AGE_S)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.current().epoch == 1
    assert len(keys.current().key) == 32
    assert FileSealingKeys(path, clock, MAX_AGE_S).current() == keys.current()
    other = FileSealingKeys(path.with_name("other.json"), clock, MAX_AGE_S)
    assert other.current().key != keys.current().key
    assert [each.name for each in path.parent.iterdir() if "tmp" in each.name] == []


def _current_key(path: Path, start: Any, keys: Any) -> None:
    start.wait(30)
    keys.put(FileSealingKeys(path, lambda: NOW_MS, MAX_AGE_S).current().key)


def test_workers_that_start_at_once_agree_on_one_key(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, keys = context.Event(), context.Queue()
    workers = [context.Process(target=_current_key, args=(path, start, keys)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    found = {keys.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(60)
    assert len(found) == 1


def test_losing_the_race_to_create_loads_the_winners_key(path: Path, clock: Clock) -> None:
    def random_bytes_while_another_creates(count: int) -> bytes:
        write(path, epoch(9))
        return b"r" * count

    keys = FileSealingKeys(path, clock, MAX_AGE_S, random_bytes=random_bytes_while_another_creates)
    assert keys.current() == SealingKey(9, bytes([9]) * 32)


def test_the_highest_epoch_seals_and_the_others_open(path: Path, clock: Clock) -> None:
    write(path, epoch(3), epoch(2, retired_ms=NOW_MS))
    keys = FileSealingKeys(path, clock, MAX_AGE_S)
    assert keys.current().epoch == 3
    assert keys.by_epoch(2).key == bytes([2]) * 32
    with pytest.raises(StaleChallenge):
        keys.by_epoch(4)


def test_a_retired_epoch_opens_for_max_age(path: Path, clock: Clock) -> None:
    write(path, epoch(1, retired_ms=NOW_MS), epoch(2))
    keys = FileSealingKeys(path, clock, MAX_AGE_S)
    clock.now_ms = NOW_MS + MAX_AGE_S * 1000
    keys.by_epoch(1)
    clock.now_ms += 1
    with pytest.raises(StaleChallenge):
        keys.by_epoch(1)
    keys.by_epoch(2)


def test_rotation_is_taken_up_by_every_worker(path: Path, clock: Clock) -> None:
    issuing, other = (FileSealingKeys(path, clock, MAX_AGE_S) for _ in range(2))
    old = issuing.current()
    assert rotate(path, clock, MAX_AGE_S) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert issuing.current() == old
    clock.now_ms += RELOAD_INTERVAL_MS
    assert issuing.current().epoch == 2
    # The other has not looked for long, and still knows the epoch it is asked for.
    assert other.by_epoch(2) == issuing.current()
    assert other.by_epoch(1) == old


def test_rotation_forgets_epochs_that_open_nothing_any_more(path: Path, clock: Clock) -> None:
    FileSealingKeys(path, clock, MAX_AGE_S)
    for _ in range(MAX_EPOCHS + 5):
        clock.now_ms += MAX_AGE_S * 1000 + 1
        rotate(path, clock, MAX_AGE_S)
    assert [each["epoch"] for each in json.loads(path.read_text())["epochs"]] == [MAX_EPOCHS + 5, MAX_EPOCHS + 6]


def test_rotation_is_refused_when_no_epoch_is_free(path: Path, clock: Clock) -> None:
    write(path, epoch(MAX_EPOCH))
    with pytest.raises(SealingKeyError, match="no epoch is free"):
        rotate(path, clock, MAX_AGE_S)
    FileSealingKeys(path.with_name("b"), clock, MAX_AGE_S)
    for _ in range(MAX_EPOCHS - 1):
        rotate(path.with_name("b"), clock, MAX_AGE_S)
    with pytest.raises(SealingKeyError, match="no epoch is free"):
        rotate(path.with_name("b"), clock, MAX_AGE_S)
    with pytest.raises(SealingKeyError, match="cannot be read"):
        rotate(path.with_name("c"), clock, MAX_AGE_S)
    with pytest.raises(SealingKeyError, match="cannot be replaced"):
        rotate(path.with_name("no-folder") / "d", clock, MAX_AGE_S)


BROKEN = {
    "is not a file of sealing keys": [
        "",
        "{",
        "[]",
        '{"epochs": 3}',
        '{"epochs": [], "more": 1}',
        json.dumps({"epochs": [epoch() | {"more": 1}]}),
        json.dumps({"epochs": [epoch(epoch="1")]}),
        json.dumps({"epochs": [epoch(epoch=1.5)]}),
        json.dumps({"epochs": [epoch(key_b64=None)]}),
        json.dumps({"epochs": [{"epoch": 1}]}),
    ],
    "must have 1 to": [
        '{"epochs": []}',
        json.dumps({"epochs": [epoch(n, retired_ms=2) for n in range(1, MAX_EPOCHS + 1)] + [epoch(MAX_EPOCHS + 1)]}),
    ],
    "has an epoch twice": [json.dumps({"epochs": [epoch(), epoch()]})],
    "an epoch must be from 0": [
        json.dumps({"epochs": [epoch(epoch=-1)]}),
        json.dumps({"epochs": [epoch(epoch=MAX_EPOCH + 1)]}),
    ],
    "must have retired_ms null": [
        json.dumps({"epochs": [epoch(1), epoch(2)]}),
        json.dumps({"epochs": [epoch(1, retired_ms=5)]}),
        json.dumps({"epochs": [epoch(1), epoch(2, retired_ms=5)]}),
    ],
    "must not be retired before": [
        json.dumps({"epochs": [epoch(1, created_ms=6, retired_ms=5), epoch(2)]}),
        json.dumps({"epochs": [epoch(1, created_ms=-1)]}),
    ],
    "a key must be 32 bytes": [
        json.dumps({"epochs": [epoch(key_b64=base64.b64encode(bytes(31)).decode())]}),
        json.dumps({"epochs": [epoch(key_b64=base64.b64encode(bytes(33)).decode())]}),
        json.dumps({"epochs": [epoch(key_b64="")]}),
        json.dumps({"epochs": [epoch(key_b64="!" * 44)]}),
        json.dumps({"epochs": [epoch(key_b64="é" * 44)]}),
    ],
    "is larger than": [" " * (MAX_FILE_BYTES + 1)],
}
CASES = [(text, message) for message, texts in BROKEN.items() for text in texts]


@pytest.mark.parametrize(("text", "message"), CASES)
def test_a_broken_file_stops_the_start_and_is_not_replaced(path: Path, clock: Clock, text: str, message: str) -> None:
    write_text(path, text)
    with pytest.raises(SealingKeyError, match=message) as caught:
        FileSealingKeys(path, clock, MAX_AGE_S)
    assert isinstance(caught.value, ServerFault)
    assert path.read_text() == text
    assert base64.b64encode(bytes([1]) * 32).decode() not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), CASES)
def test_a_file_that_breaks_later_keeps_the_keys_of_before(path: Path, clock: Clock, text: str, message: str) -> None:
    keys = FileSealingKeys(path, clock, MAX_AGE_S)
    good, content = keys.current(), path.read_text()
    write_text(path, text)
    clock.now_ms += RELOAD_INTERVAL_MS
    assert keys.current() == good
    assert message in str(keys.problem)
    write_text(path, content)
    clock.now_ms += RELOAD_INTERVAL_MS
    assert keys.current() == good
    assert keys.problem is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o620, 0o660, 0o610, 0o700 | 0o001])
def test_a_file_that_others_may_touch_is_refused(path: Path, clock: Clock, mode: int) -> None:
    write(path, epoch(), mode=mode)
    with pytest.raises(SealingKeyError, match=f"has mode {mode:04o}"):
        FileSealingKeys(path, clock, MAX_AGE_S)


def test_a_file_that_others_may_touch_later_is_a_problem(path: Path, clock: Clock) -> None:
    keys = FileSealingKeys(path, clock, MAX_AGE_S)
    path.chmod(0o644)
    clock.now_ms += RELOAD_INTERVAL_MS
    keys.current()
    assert "has mode 0644" in str(keys.problem)


def test_a_removed_file_is_a_problem_and_does_not_stop_the_worker(path: Path, clock: Clock) -> None:
    keys = FileSealingKeys(path, clock, MAX_AGE_S)
    good = keys.current()
    path.unlink()
    clock.now_ms += RELOAD_INTERVAL_MS
    assert keys.current() == good
    assert "cannot be read" in str(keys.problem)
    assert not path.exists()


def test_a_folder_in_place_of_the_file_or_none_to_create_it_in_is_refused(path: Path, clock: Clock) -> None:
    path.mkdir()
    with pytest.raises(SealingKeyError, match=r"cannot be read|not a regular file"):
        FileSealingKeys(path, clock, MAX_AGE_S)
    with pytest.raises(SealingKeyError, match="cannot be created"):
        FileSealingKeys(path / "none" / "f", clock, MAX_AGE_S)


def test_keys_are_never_shown(path: Path, clock: Clock) -> None:
    keys = FileSealingKeys(path, clock, MAX_AGE_S)
    shown = repr(keys.current()) + repr(keys) + repr(vars(keys))
    assert str(keys.current().key) not in shown
    assert base64.b64encode(keys.current().key).decode() not in shown
