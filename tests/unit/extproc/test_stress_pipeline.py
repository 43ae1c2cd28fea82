"""The pipeline under stress: what the plan does with verified requests, and what the receipt says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from extproc.breaker import Phase
from extproc.config import ConfigError, load_config
from extproc.decision import Answer
from extproc.policy_engine import read_policy_bundle
from extproc.response import check_response
from extproc.rules import rules_of
from extproc.stress_desk import StressDesk, StressTelemetry
from pch.httpsig.message import RequestMessage
from pch.reasons import Reason
from policy.evaluator import PolicyError, PolicyInput, PolicyVerdict
from receipts.receipt import DecisionReceipt, parse_receipt
from tests.support.filter_parts import AUTHORITY, FilterParts, KeyPair, SetClock, edge_request, signed_message
from tests.support.hybrid_parts import Half, halves, hybrid_keys, hybrid_message

CONFIG = """
[filter]
workers = 1
socket_dir = "run"
[nonce_store]
kind = "memory"
[plan.breaker]
min_samples = 5
max_gain = 0.5
base_dwell_ms = 1000
probes_needed = 4
max_probes_in_flight = 2
floor_share = 0.01
retry_after_s = 3
[[route]]
name = "protected"
path = "/protected"
[[route]]
name = "quota"
path = "/quota"
quota_per_s = 2
quota_burst = 3
[[route]]
name = "hybrid"
path = "/hybrid"
algorithms = ["ed25519+ml-dsa-65"]
[[route]]
name = "fallback"
path = "/fallback"
algorithms = ["ed25519+ml-dsa-65"]
fallback_classic = true
"""
FIRST, SECOND = hybrid_keys("hanna")


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    keys = {"ed": KeyPair.new("alice"), "other": KeyPair.new("bob"), "h1": FIRST, "h2": SECOND}
    made = FilterParts(tmp_path, keys, CONFIG)
    await made.start()
    yield made
    await made.stop()


async def ask(parts: FilterParts, target: str = "/protected", key: str = "ed") -> Answer:
    return await parts.answer(edge_request(signed_message(parts.keys[key], parts.challenge(), target=target)))


def trip(parts: FilterParts, route: str = "protected") -> None:
    for _ in range(4):
        for _ in range(10):
            parts.stress.ended(route, 503, 10, (), probe_epoch=None)
        parts.clock.now_ms += 100
        parts.stress.tick()
    assert parts.stress.phase(route) is Phase.OPEN


def wait_out(parts: FilterParts, route: str = "protected") -> None:
    parts.clock.now_ms += 1_000
    parts.stress.tick()
    assert parts.stress.phase(route) is Phase.HALF_OPEN


def receipt_of(parts: FilterParts, answer: Answer) -> DecisionReceipt:
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    return receipt


def stress_of(parts: FilterParts, answer: Answer) -> Any:
    policy = receipt_of(parts, answer).policy
    assert policy is not None
    return policy.input["stress"]


def denied_headers(answer: Answer) -> dict[str, str]:
    return {each.header.key: each.header.value for each in check_response(answer).denied_response.headers}


async def test_a_closed_breaker_lets_all_pass_and_the_receipt_says_so(parts: FilterParts) -> None:
    answer = await ask(parts)
    assert answer.reason is Reason.ALLOWED
    assert stress_of(parts, answer) == {
        "action": "attempt",
        "epoch": 0,
        "errors_permille": 0,
        "slowness_permille": 0,
        "dwell_ms": 0,
        "crowd_limit": 0,
    }


async def test_an_open_breaker_refuses_with_the_numbers_that_led_to_it(parts: FilterParts) -> None:
    trip(parts)
    answer = await ask(parts)
    assert answer.reason is Reason.BREAKER_OPEN
    receipt = receipt_of(parts, answer)
    assert (receipt.decision, receipt.reason, receipt.status) == ("deny", "breaker_open", 503)
    stress = stress_of(parts, answer)
    assert (stress["action"], stress["epoch"], stress["dwell_ms"]) == ("throttle", 1, 1_000)
    assert stress["errors_permille"] >= 500
    assert denied_headers(answer)["retry-after"] == "3"


async def test_what_a_client_did_wrong_is_told_whatever_the_breaker_does(parts: FilterParts) -> None:
    trip(parts)
    wrong = signed_message(parts.keys["ed"], parts.challenge(), target="/protected")
    assert (await parts.answer(edge_request(wrong, binding=bytes(32)))).reason is Reason.BINDING_MISMATCH


async def test_the_floor_passes_through_an_open_breaker(parts: FilterParts) -> None:
    trip(parts)
    reasons = [(await ask(parts)).reason for _ in range(60)]
    # The policy's floor is 5 %, above the plan's 1 %.
    assert reasons.count(Reason.ALLOWED) in {3, 4, 5, 6, 7}
    assert set(reasons) == {Reason.ALLOWED, Reason.BREAKER_OPEN}


async def test_probes_are_marked_in_their_receipts_and_bounded_at_once(parts: FilterParts) -> None:
    trip(parts)
    wait_out(parts)
    answers = [await ask(parts, key=key) for key in ("ed", "other", "ed", "other")]
    actions = [stress_of(parts, answer)["action"] for answer in answers]
    assert actions.count("probe") == 2
    assert actions[:2] == ["probe", "probe"]
    assert {stress_of(parts, answer)["epoch"] for answer in answers} == {2}


async def test_another_routes_breaker_changes_nothing(parts: FilterParts) -> None:
    trip(parts, "quota")
    assert (await ask(parts)).reason is Reason.ALLOWED
    assert (await ask(parts, "/quota")).reason is Reason.BREAKER_OPEN


async def test_a_subject_over_its_quota_is_told_when_to_come_again_and_no_other_is(parts: FilterParts) -> None:
    reasons = [(await ask(parts, "/quota")).reason for _ in range(4)]
    assert reasons == [Reason.ALLOWED] * 3 + [Reason.QUOTA]
    answer = await ask(parts, "/quota")
    assert denied_headers(answer)["retry-after"] == "1"
    assert receipt_of(parts, answer).status == 429
    assert (await ask(parts, "/quota", key="other")).reason is Reason.ALLOWED
    parts.clock.now_ms += 500
    assert (await ask(parts, "/quota")).reason is Reason.ALLOWED


def classical_half(parts: FilterParts, target: str) -> Any:
    return edge_request(hybrid_message((Half(FIRST, "pch"),), parts.challenge(), target=target))


async def test_the_classical_half_is_enough_only_while_the_breaker_is_not_closed(parts: FilterParts) -> None:
    assert (await parts.answer(classical_half(parts, "/fallback"))).reason is Reason.ALG_NOT_ALLOWED
    trip(parts, "fallback")
    wait_out(parts, "fallback")
    answer = await parts.answer(classical_half(parts, "/fallback"))
    assert answer.reason is Reason.ALLOWED
    asked = receipt_of(parts, answer).policy
    assert asked is not None
    assert (asked.input["fallback"], asked.input["phase"], asked.input["algorithms"]) == (
        True,
        "half_open",
        ["ed25519"],
    )
    assert stress_of(parts, answer)["action"] == "probe"


async def test_a_client_is_told_when_the_classical_half_is_enough(parts: FilterParts) -> None:
    unsigned = edge_request(RequestMessage("GET", "https", AUTHORITY, "/fallback", ()))
    told = denied_headers(await parts.answer(unsigned))
    assert 'algs="ed25519+ml-dsa-65"' in told["www-authenticate"]
    assert 'tag="pch-pq"' in told["accept-signature"]
    trip(parts, "fallback")
    told = denied_headers(await parts.answer(unsigned))
    assert 'algs="ed25519+ml-dsa-65 ed25519"' in told["www-authenticate"]
    assert 'tag="pch-pq"' not in told["accept-signature"]


async def test_a_route_that_permits_no_fallback_never_takes_half_of_a_hybrid(parts: FilterParts) -> None:
    trip(parts, "hybrid")
    wait_out(parts, "hybrid")
    assert (await parts.answer(classical_half(parts, "/hybrid"))).reason is Reason.ALG_NOT_ALLOWED
    whole = edge_request(hybrid_message(halves(FIRST, SECOND), parts.challenge(), target="/hybrid"))
    assert (await parts.answer(whole)).reason is Reason.ALLOWED


@pytest.mark.parametrize(
    ("signer", "tag"), [(SECOND, "pch"), (KeyPair.new("alice"), "pch")], ids=["the other half", "a key without partner"]
)
async def test_nothing_but_the_classical_half_is_a_fallback(parts: FilterParts, signer: KeyPair, tag: str) -> None:
    if signer is not SECOND:
        signer = parts.keys["ed"]
    trip(parts, "fallback")
    wait_out(parts, "fallback")
    message = hybrid_message((Half(signer, tag),), parts.challenge(), target="/fallback")
    assert (await parts.answer(edge_request(message))).reason is Reason.ALG_NOT_ALLOWED


async def test_a_fallback_needs_its_channel_binding_all_the_same(parts: FilterParts) -> None:
    trip(parts, "fallback")
    wait_out(parts, "fallback")
    message = hybrid_message((Half(FIRST, "pch"),), parts.challenge(), target="/fallback")
    assert (await parts.answer(edge_request(message, binding=bytes(32)))).reason is Reason.BINDING_MISMATCH


async def test_headers_are_trimmed_on_a_route_whose_app_is_not_well(parts: FilterParts) -> None:
    assert not (await ask(parts)).relaxing
    trip(parts)
    assert (await ask(parts)).relaxing
    assert not (await ask(parts, "/quota")).relaxing


async def test_loading_the_configuration_again_keeps_no_breaker_open_by_itself(parts: FilterParts) -> None:
    trip(parts)
    parts.stress.load(parts.config)
    assert (await ask(parts)).reason is Reason.ALLOWED


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_one_host_share_what_they_hear(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "filter.toml"
    path.write_text(CONFIG.replace("workers = 1", f"workers = {workers}").replace('kind = "memory"', 'kind = "sqlite"'))
    (tmp_path / "run").mkdir()
    config, clock = load_config(path, {}), SetClock()
    one, other = (
        StressDesk(config, StressTelemetry(CollectorRegistry()), index=index, now_ms=clock, random_below=lambda _: 0)
        for index in (0, workers - 1)
    )
    for _ in range(4):
        for _ in range(10):
            one.ended("protected", 503, 10, (), probe_epoch=None)
        clock.now_ms += 100
        one.tick()
        other.tick()
    assert one.phase("protected") is Phase.OPEN
    assert other.phase("protected") is (Phase.OPEN if workers == 2 else Phase.CLOSED)
    one.load(config)
    one.tick()
    assert one.phase("protected") is (Phase.OPEN if workers == 2 else Phase.CLOSED)


def test_a_board_that_cannot_be_had_leaves_each_worker_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "filter.toml"
    path.write_text(CONFIG.replace("workers = 1", "workers = 2").replace('kind = "memory"', 'kind = "sqlite"'))
    desk = StressDesk(
        load_config(path, {}),
        StressTelemetry(CollectorRegistry()),
        index=0,
        now_ms=SetClock(),
        random_below=lambda _: 0,
    )
    desk.tick()
    assert desk.phase("protected") is Phase.CLOSED


@pytest.mark.parametrize(
    "text",
    [
        '[policy]\nmodule = "absent.wasm"\n',
        '[policy]\nmodule = "filter.toml"\n',
        '[policy]\nmodule = "shield.wasm"\nsource = "absent.rego"\n',
        "[plan]\nversion = 3\n",
        "[plan]\nnonsense = 3\n",
        "plan = 3\n",
        "[plan.breaker]\nclear_errors = 0.9\n",
        "[plan.breaker]\ntrip_errors = 1.9\n",
        '[policy]\nengine = "none"\n',
    ],
)
def test_a_policy_or_plan_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path, text: str) -> None:
    (tmp_path / "shield.wasm").write_bytes((Path(__file__).parents[3] / "policy/compiled/shield.wasm").read_bytes())
    path = tmp_path / "filter.toml"
    path.write_text(text + '[[route]]\nname = "a"\npath = "/a"\n')
    with pytest.raises(ConfigError):
        rules_of(load_config(path, {}))


@pytest.mark.parametrize(
    "route", ["fallback_classic = true\n", 'fallback_classic = true\nmode = "or"\nalgorithms = ["ed25519+ml-dsa-65"]\n']
)
def test_a_fallback_without_a_hybrid_to_fall_back_from_is_refused(tmp_path: Path, route: str) -> None:
    path = tmp_path / "filter.toml"
    path.write_text('[[route]]\nname = "a"\npath = "/a"\n' + route)
    with pytest.raises(ConfigError, match="fallback_classic"):
        load_config(path, {})


class BrokenPolicy:
    """A policy that gives no verdict."""

    digest, bundle, commit = "0" * 64, b"broken", None

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def evaluate(self, _: PolicyInput) -> PolicyVerdict:
        raise self._error


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (PolicyError("late"), Reason.POLICY_UNAVAILABLE, 503),
        (TimeoutError(), Reason.INTERNAL, 503),
        (ValueError("bad"), Reason.INTERNAL, 503),
    ],
)
async def test_without_a_verdict_nobody_passes_and_the_receipt_says_what_was_asked(
    parts: FilterParts, error: Exception, reason: Reason, status: int
) -> None:
    parts.rules = replace(parts.rules, policy=BrokenPolicy(error))
    answer = await ask(parts)
    assert answer.reason is reason
    assert check_response(answer).denied_response.status.code == status
    policy = receipt_of(parts, answer).policy
    assert policy is not None
    assert (policy.digest, policy.input["route"], policy.input["stress"]) == ("0" * 64, "protected", None)


@pytest.mark.parametrize("commit", ["5a" * 20, None])
async def test_the_receipt_names_the_git_commit_of_the_policy(tmp_path: Path, commit: str | None) -> None:
    said = "" if commit is None else f'[policy]\ncommit = "{commit}"\n'
    made = FilterParts(tmp_path, {"ed": KeyPair.new("alice")}, said + CONFIG)
    await made.start()
    policy = receipt_of(made, await ask(made)).policy
    await made.stop()
    assert policy is not None
    assert policy.input["policy_commit"] == commit
    bundle = read_policy_bundle(load_config(tmp_path / "filter.toml", {}))
    assert json.loads(bundle)["commit"] == commit
    assert policy.digest == hashlib.sha256(bundle).hexdigest()


@pytest.mark.parametrize("commit", ["HEAD", "5A" * 20, "5a" * 21, "5a" * 20 + "\n"])
def test_what_is_no_whole_commit_is_refused(tmp_path: Path, commit: str) -> None:
    path = tmp_path / "filter.toml"
    path.write_text('[[route]]\nname = "a"\npath = "/a"\n')
    with pytest.raises(ConfigError, match="git commit"):
        load_config(path, {"SIGNET_POLICY_COMMIT": commit})


def test_a_policy_of_ones_own_is_used_and_told(tmp_path: Path) -> None:
    policy = Path(__file__).parents[3] / "policy"
    (tmp_path / "own.wasm").write_bytes((policy / "compiled/shield.wasm").read_bytes())
    (tmp_path / "own.rego").write_text("package own\n")
    path = tmp_path / "filter.toml"
    path.write_text('[policy]\nmodule = "own.wasm"\nsource = "own.rego"\n[[route]]\nname = "a"\npath = "/a"\n')
    bundle = json.loads(read_policy_bundle(load_config(path, {})))
    assert bundle["modules"] == {"own.rego": "package own\n"}
