"""Breakers of tenants: what one's requests do to the app is held against that tenant alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from extproc.breaker import Phase
from extproc.config import ConfigError, FilterConfig, load_config
from extproc.decision import Answer
from extproc.route import MAX_ROUTES
from extproc.stress_desk import StressDesk, StressTelemetry
from extproc.tenants import TenantBreakers
from pch.reasons import Reason
from receipts.receipt import DecisionReceipt, parse_receipt
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
probes_needed = 2
probes_may_fail = 0
max_probes_in_flight = 2
floor_share = 0.01
slow_ms = 500
[[route]]
name = "protected"
path = "/protected"
algorithms = ["ed25519", "ed25519+ml-dsa-65"]
fallback_classic = true
tenants = ["acme", "beta"]
[[route]]
name = "other"
path = "/other"
"""
ACME, ACME_TOO, BETA, NOBODYS = "acme/robot", "acme", "beta/robot", "acmes/robot"


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    keys = {subject: KeyPair.new(subject) for subject in (ACME, ACME_TOO, BETA, NOBODYS)}
    made = FilterParts(tmp_path, keys, CONFIG)
    await made.start()
    yield made
    await made.stop()


async def ask(parts: FilterParts, subject: str, target: str = "/protected") -> Answer:
    return await parts.answer(edge_request(signed_message(parts.keys[subject], parts.challenge(), target=target)))


def hear(parts: FilterParts, subject: str, status: int, app_us: int = 10) -> None:
    for _ in range(4):
        for _ in range(10):
            parts.stress.ended("protected", status, app_us, (), probe_epoch=None, subject=subject)
        parts.clock.now_ms += 100
        parts.stress.tick()


def phases(parts: FilterParts) -> list[Phase]:
    return [parts.stress.phase("protected", subject) for subject in (ACME, ACME_TOO, BETA, NOBODYS, "")]


async def reasons(parts: FilterParts, target: str = "/protected") -> list[Reason]:
    return [(await ask(parts, subject, target)).reason for subject in (ACME, ACME_TOO, BETA, NOBODYS)]


async def test_a_tenant_that_makes_the_app_fail_is_held_back_alone(parts: FilterParts) -> None:
    hear(parts, ACME, 503)
    assert phases(parts) == [Phase.OPEN, Phase.OPEN, Phase.CLOSED, Phase.CLOSED, Phase.CLOSED]
    held, well = Reason.BREAKER_OPEN, Reason.ALLOWED
    assert await reasons(parts) == [held, held, well, well]
    assert await reasons(parts, "/other") == [well] * 4


async def test_what_tenants_do_not_name_shares_the_routes_breaker(parts: FilterParts) -> None:
    hear(parts, NOBODYS, 503)
    assert phases(parts) == [Phase.CLOSED] * 3 + [Phase.OPEN] * 2
    assert await reasons(parts) == [Reason.ALLOWED] * 3 + [Reason.BREAKER_OPEN]


async def test_a_tenants_own_probes_close_its_breaker(parts: FilterParts) -> None:
    hear(parts, ACME, 503)
    hear(parts, BETA, 503)
    parts.clock.now_ms += 1_000
    parts.stress.tick()
    for subject in (ACME, ACME_TOO):
        answer = await ask(parts, subject)
        stored = parts.store.get(answer.receipt_id)  # type: ignore[arg-type]
        assert stored is not None
        receipt = parse_receipt(stored.raw)
        assert isinstance(receipt, DecisionReceipt)
        assert receipt.policy is not None
        assert (receipt.policy.input["phase"], receipt.policy.input["stress"]["action"]) == ("half_open", "probe")
        epoch = receipt.policy.input["stress"]["epoch"]
        parts.stress.ended("protected", 200, 10, (), probe_epoch=epoch, subject=subject)
    parts.stress.tick()
    assert phases(parts)[:3] == [Phase.CLOSED, Phase.CLOSED, Phase.HALF_OPEN]


async def test_a_probe_that_goes_nowhere_is_given_back_to_its_tenant(parts: FilterParts) -> None:
    hear(parts, ACME, 503)
    parts.clock.now_ms += 1_000
    parts.stress.tick()
    for _ in range(5):
        signed = signed_message(parts.keys[ACME], parts.challenge(), method="POST", target="/protected", body=b"signed")
        assert (await parts.answer(edge_request(signed, body=b"altered"))).reason is Reason.BAD_CONTENT_DIGEST
    assert (await ask(parts, ACME)).reason is Reason.ALLOWED


async def test_before_anyone_is_known_any_tenants_breaker_counts(parts: FilterParts) -> None:
    protected, other = parts.config.routes
    assert not parts.stress.may_fall_back(protected)
    assert not parts.stress.is_relaxing(protected)
    for _ in range(2):
        hear(parts, BETA, 200, app_us=600_000)
    assert parts.stress.may_fall_back(protected)
    assert parts.stress.is_relaxing(protected)
    assert not parts.stress.may_fall_back(other)
    assert not parts.stress.is_relaxing(other)


def load(folder: Path, tenants: str, *, more: str = "", guard: str = "pch") -> FilterConfig:
    path = folder / "f.toml"
    path.write_text(f'[[route]]\nname = "a"\npath = "/a"\nguard = "{guard}"\ntenants = {tenants}\n{more}')
    return load_config(path, {})


def test_breakers_are_named_for_route_and_tenant(tmp_path: Path) -> None:
    more = '[[route]]\nname = "b"\npath = "/b"\n'
    breakers = TenantBreakers(load(tmp_path, '["x", "y@z"]', more=more).routes)
    assert breakers.names == ["a", "a@x", "a@y@z", "b"]
    found = [breakers.of("a", subject) for subject in ("x", "x/1", "xy/1", "y@z/1/2", "")]
    assert found == ["a@x", "a@x", "a", "a@y@z", "a"]
    assert (breakers.of("b", "x/1"), breakers.of("gone", "x/1")) == ("b", "gone")


@pytest.mark.parametrize(
    "tenants", ['["a/b"]', '[""]', '["/"]', '["a b"]', '["a", "a"]', '"a"', str([f"t{n}" for n in range(65)])]
)
def test_what_is_no_tenant_is_refused(tmp_path: Path, tenants: str) -> None:
    with pytest.raises(ConfigError, match=r"tenants"):
        load(tmp_path, tenants)


def test_a_route_that_is_open_has_none_and_all_breakers_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no effect"):
        load(tmp_path, '["x"]', guard="open")
    full = str([f"t{number}" for number in range(64)]).replace("'", '"')
    routes = [f'[[route]]\nname = "r{number}"\npath = "/r{number}"\ntenants = {full}\n' for number in range(3)]
    assert len(TenantBreakers(load(tmp_path, "[]", more="".join(routes[:2])).routes).names) < MAX_ROUTES
    load(tmp_path, '["x"]', more="".join(routes))
    with pytest.raises(ConfigError, match="at most 256 together"):
        load(tmp_path, full, more="".join(routes))


def test_a_tenant_that_is_gone_leaves_no_gauge_up(tmp_path: Path) -> None:
    registry, now_ms = CollectorRegistry(), [0]
    config = load(tmp_path, '["x"]', more='[filter]\nworkers = 1\nsocket_dir = "run"\n')
    telemetry = StressTelemetry(registry)
    desk = StressDesk(config, telemetry, index=0, now_ms=lambda: now_ms[0], random_below=lambda _: 0)
    for _ in range(10):
        for _ in range(10):
            desk.ended("a", 503, 10, (), probe_epoch=None, subject="x/1")
        now_ms[0] += 100
        desk.tick()
    assert registry.get_sample_value("signet_breaker_phase", {"route": "a@x"}) == 2
    assert registry.get_sample_value("signet_breaker_phase", {"route": "a"}) == 0
    desk.load(load(tmp_path, "[]", more='[filter]\nworkers = 1\nsocket_dir = "run"\n'))
    assert not registry.get_sample_value("signet_breaker_phase", {"route": "a@x"})
    assert desk.phase("a", "x/1") is Phase.CLOSED
