"""What a client can do to the breaker with requests that its own fault ends: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from extproc.breaker import Phase
from extproc.config import load_config
from extproc.decision import Answer
from extproc.errors import BreakerOpen
from extproc.probe_budget import lane_of
from extproc.stress_desk import StressDesk, StressTelemetry
from pch.reasons import Reason
from policy.evaluator import PolicyVerdict
from receipts.receipt import DecisionReceipt, parse_receipt
from tests.support.filter_parts import FilterParts, KeyPair, SetClock, edge_request, signed_message

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
permit_upgrade = true
"""


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    made = FilterParts(tmp_path, {"ed": KeyPair.new("alice"), "other": KeyPair.new("bob")}, CONFIG)
    await made.start()
    yield made
    await made.stop()


async def ask(parts: FilterParts, key: str = "ed", *, sent: bytes = b"as signed") -> Answer:
    message = signed_message(parts.keys[key], parts.challenge(), method="POST", target="/protected", body=b"as signed")
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
    assert [(await ask(parts, key)).reason for key in ("ed", "other")] == [Reason.ALLOWED] * 2
    assert (await ask(parts)).reason is Reason.BREAKER_OPEN


async def test_a_probe_whose_receipt_could_not_be_written_is_given_back(
    parts: FilterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_open(parts)
    with monkeypatch.context() as broken:
        broken.setattr(parts.writer, "append", None)
        for _ in range(5):
            assert (await ask(parts)).reason is Reason.INTERNAL
    assert [(await ask(parts, key)).reason for key in ("ed", "other")] == [Reason.ALLOWED] * 2


async def test_a_retried_check_is_one_probe(parts: FilterParts) -> None:
    half_open(parts)
    message = signed_message(parts.keys["ed"], parts.challenge(), target="/protected")
    answers = [await parts.answer(edge_request(message)) for _ in range(5)]
    assert len({answer.receipt_id for answer in answers}) == 1
    assert [answer.reason for answer in answers] == [Reason.ALLOWED] * 5
    assert (await ask(parts, "other")).reason is Reason.ALLOWED
    assert (await ask(parts)).reason is Reason.BREAKER_OPEN


def action_of(parts: FilterParts, answer: Answer) -> str:
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    assert receipt.policy is not None
    return str(receipt.policy.input["stress"]["action"])


async def test_a_body_that_is_still_to_come_and_an_upgrade_are_no_probes(parts: FilterParts) -> None:
    half_open(parts)
    body = b"as signed"
    for _ in range(3):
        message = signed_message(parts.keys["ed"], parts.challenge(), method="POST", target="/protected", body=body)
        later = await parts.answer(edge_request(message, body=body[:4], body_cut=True, deferrable=True))
        assert action_of(parts, later) != "probe"
        upgrade = (("connection", b"upgrade"), ("upgrade", b"websocket"))
        components = ("@method", "@authority", "@path", "@query", "upgrade", "pch-channel-binding")
        message = signed_message(
            parts.keys["ed"], parts.challenge(), target="/protected", headers=upgrade, components=components
        )
        assert action_of(parts, await parts.answer(edge_request(message))) != "probe"
    assert action_of(parts, await ask(parts)) == "probe"


async def test_one_subject_has_one_probe_out_until_its_end_is_told(parts: FilterParts) -> None:
    half_open(parts)
    assert action_of(parts, await ask(parts)) == "probe"
    assert action_of(parts, await ask(parts)) != "probe"
    epoch = parts.stress._bank.state("protected").epoch
    assert lane_of("alice", epoch) != lane_of("bob", epoch)
    assert action_of(parts, await ask(parts, "other")) == "probe"
    parts.stress.ended("protected", 200, 10, (), probe_epoch=epoch, subject="alice")
    assert action_of(parts, await ask(parts)) == "probe"


async def test_the_time_of_day_moves_no_breaker_and_refills_no_quota(tmp_path: Path) -> None:
    config = CONFIG.replace('path = "/protected"', 'path = "/protected"\nquota_per_s = 1\nquota_burst = 1')
    parts = FilterParts(tmp_path, {"ed": KeyPair.new("alice")}, config)
    steady = SetClock(5_000)
    parts.stress._now_ms = steady
    await parts.start()
    assert (await ask(parts)).reason is Reason.ALLOWED
    parts.clock.now_ms += 5_000
    assert (await ask(parts)).reason is Reason.QUOTA
    parts.clock.now_ms -= 5_000
    steady.now_ms += 1_000
    assert (await ask(parts)).reason is Reason.ALLOWED
    await parts.stop()


def test_a_route_that_is_gone_leaves_no_gauge_behind(tmp_path: Path) -> None:
    path, registry, clock = tmp_path / "filter.toml", CollectorRegistry(), SetClock()
    path.write_text(CONFIG + '[[route]]\nname = "late"\npath = "/late"\n')
    desk = StressDesk(load_config(path, {}), StressTelemetry(registry), index=0, now_ms=clock, random_below=lambda _: 0)
    for _ in range(4):
        for _ in range(10):
            desk.ended("late", 503, 10, (), probe_epoch=None)
        clock.now_ms += 100
        desk.tick()
    names = ("phase", "errors_ratio", "slowness_ratio", "relaxing")
    gauges = [*(f"signet_breaker_{name}" for name in names), "signet_crowd_limit_requests"]
    assert registry.get_sample_value(gauges[0], {"route": "late"}) == 2
    path.write_text(CONFIG)
    desk.load(load_config(path, {}))
    desk.tick()
    assert [registry.get_sample_value(name, {"route": "late"}) for name in gauges] == [None] * 5
    assert registry.get_sample_value(gauges[0], {"route": "protected"}) == 0


def test_a_configuration_that_no_desk_can_be_made_of_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "filter.toml", SetClock()
    path.write_text(CONFIG)
    desk = StressDesk(
        load_config(path, {}), StressTelemetry(CollectorRegistry()), index=0, now_ms=clock, random_below=lambda _: 0
    )
    before = (desk._plan, desk._quotas, desk._names, desk._board, desk.peers, desk._bank)
    path.write_text(CONFIG + '[[route]]\nname = "late"\npath = "/late"\n')
    monkeypatch.setattr("extproc.stress_desk.BreakerBank", None)
    with pytest.raises(TypeError):
        desk.load(load_config(path, {}))
    after = (desk._plan, desk._quotas, desk._names, desk._board, desk.peers, desk._bank)
    assert all(one is other for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(("chance", "expected_s"), [(lambda _: 0, 4), (lambda below: below - 1, 6)])
def test_who_is_refused_is_told_to_come_again_at_different_times(
    tmp_path: Path, chance: Callable[[int], int], expected_s: int
) -> None:
    path, clock = tmp_path / "filter.toml", SetClock()
    path.write_text(CONFIG.replace("floor_share = 0.01", "floor_share = 0.0\nretry_after_s = 4\nretry_jitter_s = 2"))
    config = load_config(path, {})
    desk = StressDesk(config, StressTelemetry(CollectorRegistry()), index=0, now_ms=clock, random_below=chance)
    for _ in range(4):
        for _ in range(10):
            desk.ended("protected", 503, 10, (), probe_epoch=None)
        clock.now_ms += 100
        desk.tick()
    with pytest.raises(BreakerOpen) as refused:
        desk.admit(config.routes[0], "alice", PolicyVerdict(allow=True, rule="shield.allow"), fell_back=False)
    assert refused.value.retry_after_s == expected_s
