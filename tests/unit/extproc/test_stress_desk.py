"""What a client can do to the breaker with requests that its own fault ends: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from extproc.breaker import Phase
from extproc.decision import Answer
from pch.reasons import Reason
from tests.support.filter_parts import FilterParts, KeyPair, edge_request, signed_message

CONFIG = """
[filter]
workers = 1
[nonce_store]
kind = "memory"
[plan.breaker]
min_samples = 5
max_gain = 0.5
base_dwell_ms = 1000
probes_needed = 4
max_probes_in_flight = 2
floor_share = 0.01
[[route]]
name = "protected"
path = "/protected"
"""


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    made = FilterParts(tmp_path, {"ed": KeyPair.new("alice")}, CONFIG)
    await made.start()
    yield made
    await made.stop()


async def ask(parts: FilterParts, *, sent: bytes = b"as signed") -> Answer:
    message = signed_message(parts.keys["ed"], parts.challenge(), method="POST", target="/protected", body=b"as signed")
    return await parts.answer(edge_request(message, body=sent))


def half_open(parts: FilterParts) -> None:
    for _ in range(4):
        for _ in range(10):
            parts.stress.ended("protected", 503, 10, (), probe_epoch=None)
        parts.clock.now_ms += 100
        parts.stress.tick()
    parts.clock.now_ms += 1_000
    parts.stress.tick()
    assert parts.stress.phase("protected") is Phase.HALF_OPEN


async def test_altered_bodies_use_no_probes_up_and_open_no_breaker(parts: FilterParts) -> None:
    half_open(parts)
    for _ in range(10):
        assert (await ask(parts, sent=b"altered")).reason is Reason.BAD_CONTENT_DIGEST
    for _ in range(4):
        parts.clock.now_ms += 3_000
        parts.stress.tick()
    assert parts.stress.phase("protected") is Phase.HALF_OPEN
    assert [(await ask(parts)).reason for _ in range(2)] == [Reason.ALLOWED] * 2
    assert (await ask(parts)).reason is Reason.BREAKER_OPEN


async def test_a_probe_whose_receipt_could_not_be_written_is_given_back(
    parts: FilterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_open(parts)
    with monkeypatch.context() as broken:
        broken.setattr(parts.writer, "append", None)
        for _ in range(5):
            assert (await ask(parts)).reason is Reason.INTERNAL
    assert [(await ask(parts)).reason for _ in range(2)] == [Reason.ALLOWED] * 2


async def test_a_retried_check_is_one_probe(parts: FilterParts) -> None:
    half_open(parts)
    message = signed_message(parts.keys["ed"], parts.challenge(), target="/protected")
    answers = [await parts.answer(edge_request(message)) for _ in range(5)]
    assert len({answer.receipt_id for answer in answers}) == 1
    assert [answer.reason for answer in answers] == [Reason.ALLOWED] * 5
    assert (await ask(parts)).reason is Reason.ALLOWED
    assert (await ask(parts)).reason is Reason.BREAKER_OPEN
