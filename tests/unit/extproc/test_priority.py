from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from extproc.admission_floor import AdmissionFloor
from extproc.config import ConfigError, load_config
from extproc.config_sections import FilterSection
from extproc.keyring import KeyringError, parse_keyring
from extproc.priority import Priority, in_flight_bound
from pch.reasons import Reason
from tests.support.filter_parts import FilterParts, KeyPair, edge_request, signed_message

KEYS = {str(each): KeyPair.new(f"subject-{each}") for each in Priority}


@pytest.mark.parametrize(
    ("priority", "most", "bound"),
    [
        (Priority.HIGH, 1_000, 1_000),
        (Priority.NORMAL, 1_000, 800),
        (Priority.LOW, 1_000, 500),
        (Priority.NORMAL, 4, 3),
        (Priority.LOW, 4, 2),
        (Priority.LOW, 3, 1),
        (Priority.LOW, 1, 1),
        (Priority.HIGH, 1, 1),
    ],
)
def test_each_class_has_its_part_of_the_room_and_always_some(priority: Priority, most: int, bound: int) -> None:
    assert in_flight_bound(priority, FilterSection(max_inflight_requests=most)) == bound


def keyring_text(*classes: object, subjects: tuple[str, ...] = ("a", "b", "c")) -> bytes:
    entries = [
        dataclasses.replace(key, subject=subject).entry() | ({} if each is ... else {"class": each})
        for key, each, subject in zip(KEYS.values(), classes, subjects, strict=False)
    ]
    return json.dumps(entries).encode()


def test_an_entry_that_says_nothing_is_normal() -> None:
    keyring = parse_keyring(keyring_text("high", ..., "low"))
    assert [entry.priority for entry in keyring.entries.values()] == [Priority.HIGH, Priority.NORMAL, Priority.LOW]


@pytest.mark.parametrize("wrong", ["", "HIGH", "higher", None, 1, True, ["high"], {"high": 1}])
def test_a_class_that_is_none_refuses_the_file(wrong: object) -> None:
    with pytest.raises(KeyringError, match="entry 1: class must be"):
        parse_keyring(keyring_text(wrong))


@pytest.mark.parametrize("classes", [("high", "low"), ("high", ...), (..., "low")])
def test_all_keys_of_a_subject_have_one_class(classes: tuple[object, object]) -> None:
    with pytest.raises(KeyringError, match="entry 2: its class"):
        parse_keyring(keyring_text(*classes, subjects=("a", "a")))
    assert len(parse_keyring(keyring_text(*classes, subjects=("a", "b")))) == 2
    assert len(parse_keyring(keyring_text("low", "low", subjects=("a", "a")))) == 2


@pytest.mark.parametrize("text", ["low_inflight_percent = 0", "normal_inflight_percent = 101"])
def test_percentages_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "filter.toml"
    path.write_text(f'[filter]\n{text}\n[[route]]\nname = "a"\npath = "/a"\n')
    with pytest.raises(ConfigError, match="inflight_percent"):
        load_config(path, {})


def test_a_lower_class_never_has_more_room_than_a_higher_one() -> None:
    settings = FilterSection(max_inflight_requests=100, normal_inflight_percent=20, low_inflight_percent=90)
    assert [in_flight_bound(each, settings) for each in Priority] == [100, 20, 20]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    made = FilterParts(tmp_path, KEYS)
    made.keyring._current = parse_keyring(
        json.dumps([key.entry() | {"class": name} for name, key in KEYS.items()]).encode()
    )
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize(("name", "passed"), [("high", 10), ("normal", 8), ("low", 5)])
async def test_near_the_bound_in_flight_the_lower_classes_make_room(parts: FilterParts, name: str, passed: int) -> None:
    settings = dataclasses.replace(parts.config.filter, max_inflight_requests=10)
    parts.rules = dataclasses.replace(parts.rules, config=dataclasses.replace(parts.config, filter=settings))
    requests = [
        dataclasses.replace(edge_request(signed_message(KEYS[name], parts.challenge())), stream_id=str(number))
        for number in range(12)
    ]
    reasons = [answer.reason for answer in await asyncio.gather(*(parts.answer(request) for request in requests))]
    assert reasons.count(Reason.ALLOWED) == passed
    assert reasons.count(Reason.INTERNAL) == 12 - passed
    # The challenge of a refused one was not spent: the same request passes when there is room.
    refused = next(request for request, reason in zip(requests, reasons, strict=True) if reason is Reason.INTERNAL)
    again = dataclasses.replace(refused, stream_id="again")
    assert (await parts.answer(again)).reason is Reason.ALLOWED


def test_an_open_breaker_lets_the_high_class_pass_first() -> None:
    floor = AdmissionFloor(0.05, 1_000)
    # Many others ask before, each of whom has had nothing yet.
    for number in range(200):
        floor.admit(f"n{number}", 0)
    assert floor.admit("vip", 1, Priority.HIGH)
    assert not floor.admit("n1000", 1)


def test_of_the_floor_each_class_has_what_is_left_by_those_above_it() -> None:
    passed = dict.fromkeys(Priority, 0)
    floor = AdmissionFloor(0.1, 1_000)
    order = [Priority.LOW, Priority.NORMAL, Priority.HIGH]
    for number in range(30_000):
        # No fixed step, or the first credit would always fall to the same class.
        priority = order[(number * number // 7) % 3]
        passed[priority] += floor.admit(f"{priority}-{number % 50}", number, priority)
    assert passed[Priority.HIGH] > 2 * passed[Priority.NORMAL] > 0
    assert passed[Priority.HIGH] > 2 * passed[Priority.LOW] > 0
    assert sum(passed.values()) <= 2 * 30_000 * 0.1 + 4


def test_without_the_high_class_the_floor_is_what_it_was() -> None:
    floor = AdmissionFloor(0.1, 1_000)
    passed = sum(floor.admit(f"n{number}", number) for number in range(10_000))
    assert 2_000 - 1 <= passed <= 2_000 + 4


def test_a_share_of_none_admits_nobody_whatever_the_class() -> None:
    floor = AdmissionFloor(0.0, 1_000)
    assert not any(floor.admit("a", at_ms, priority) for at_ms in range(50) for priority in Priority)
