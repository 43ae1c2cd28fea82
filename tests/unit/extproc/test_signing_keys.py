"""The classical half of a hybrid alone: what else has to hold while the breaker is not closed (PCH §3 "Hybrids")."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from extproc.breaker import Phase
from extproc.decision import Answer
from pch.reasons import Reason
from policy.evaluator import PolicyInput, PolicyVerdict
from receipts.receipt import DecisionReceipt, parse_receipt
from tests.support.filter_parts import FilterParts, KeyPair, edge_request
from tests.support.hybrid_parts import Half, halves, hybrid_keys, hybrid_message

CONFIG = """
[filter]
workers = 1
[nonce_store]
kind = "memory"
[plan.breaker]
min_samples = 5
max_gain = 0.5
floor_share = 1.0
[[route]]
name = "fallback"
path = "/fallback"
algorithms = ["ed25519+ml-dsa-65"]
fallback_classic = true
[[route]]
name = "both"
path = "/both"
algorithms = ["ed25519", "ed25519+ml-dsa-65"]
fallback_classic = true
[[route]]
name = "strict"
path = "/strict"
algorithms = ["ed25519", "ed25519+ml-dsa-65"]
"""
PLAIN = KeyPair.new("petra")
GOOD = hybrid_keys("hanna")
HALF_REVOKED = hybrid_keys("rita")
HALF_OVER = hybrid_keys("otto")
HALF_TO_COME = hybrid_keys("lena")
OWN_REVOKED = hybrid_keys("mia")


class OwnPolicy:
    """A policy that allows everything, and says what it is told to say of fallbacks."""

    digest, bundle, commit = "0" * 64, b"own", None

    def __init__(self, *, fallback_classic: bool) -> None:
        self._fallback_classic = fallback_classic

    async def evaluate(self, policy_input: PolicyInput) -> PolicyVerdict:
        return PolicyVerdict(allow=True, rule="own.allow", floor_share=1.0, fallback_classic=self._fallback_classic)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    HALF_REVOKED[1].status = OWN_REVOKED[0].status = "revoked"
    HALF_OVER[1].not_after, HALF_TO_COME[1].not_before = "2001-01-01T00:00:00Z", "2899-01-01T00:00:00Z"
    pairs = (GOOD, HALF_REVOKED, HALF_OVER, HALF_TO_COME, OWN_REVOKED)
    keys = {each.subject + str(number): each for pair in pairs for number, each in enumerate(pair)} | {"petra": PLAIN}
    made = FilterParts(tmp_path, keys, CONFIG)
    await made.start()
    yield made
    await made.stop()


def trip(parts: FilterParts, route: str = "fallback") -> None:
    for _ in range(4):
        for _ in range(10):
            parts.stress.ended(route, 503, 10, (), probe_epoch=None)
        parts.clock.now_ms += 100
        parts.stress.tick()
    assert parts.stress.phase(route) is Phase.OPEN


async def alone(parts: FilterParts, pair: tuple[KeyPair, ...], route: str = "fallback") -> Answer:
    message = hybrid_message((Half(pair[0], "pch"),), parts.challenge(), target=f"/{route}")
    return await parts.answer(edge_request(message))


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (GOOD, Reason.ALLOWED),
        (HALF_REVOKED, Reason.KEY_REVOKED),
        (HALF_OVER, Reason.UNKNOWN_KEY),
        (HALF_TO_COME, Reason.UNKNOWN_KEY),
        (OWN_REVOKED, Reason.KEY_REVOKED),
    ],
    ids=["both good", "absent half revoked", "absent half over", "absent half not yet valid", "present half revoked"],
)
async def test_a_hybrid_that_is_out_of_use_is_no_good_by_halves(
    parts: FilterParts, pair: tuple[KeyPair, KeyPair], reason: Reason
) -> None:
    trip(parts)
    assert (await alone(parts, pair)).reason is reason


@pytest.mark.parametrize(("says", "reason"), [(True, Reason.ALLOWED), (False, Reason.POLICY_DENIED)])
async def test_a_policy_of_ones_own_has_the_last_word_on_fallbacks(
    parts: FilterParts, says: bool, reason: Reason
) -> None:
    parts.rules = replace(parts.rules, policy=OwnPolicy(fallback_classic=says))
    trip(parts)
    answer = await alone(parts, GOOD)
    assert answer.reason is reason
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    assert receipt.policy is not None
    assert receipt.policy.input["fallback"] is True
    whole = edge_request(hybrid_message(halves(*GOOD), parts.challenge(), target="/fallback"))
    assert (await parts.answer(whole)).reason is Reason.ALLOWED


def asked_of_policy(parts: FilterParts, answer: Answer) -> dict[str, object]:
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    assert receipt.policy is not None
    return receipt.policy.input


async def test_a_half_falls_back_also_where_the_list_names_its_algorithm_by_itself(parts: FilterParts) -> None:
    """Whose half it is the key says: one without a partner is no fallback, before and after."""
    assert (await alone(parts, GOOD, "both")).reason is Reason.ALG_NOT_ALLOWED
    plain = await alone(parts, (PLAIN,), "both")
    assert plain.reason is Reason.ALLOWED
    assert asked_of_policy(parts, plain)["fallback"] is False
    trip(parts, "both")
    half = await alone(parts, GOOD, "both")
    assert half.reason is Reason.ALLOWED
    assert asked_of_policy(parts, half)["fallback"] is True
    plain = await alone(parts, (PLAIN,), "both")
    assert plain.reason is Reason.ALLOWED
    assert asked_of_policy(parts, plain)["fallback"] is False


@pytest.mark.parametrize(
    ("pair", "route", "reason"),
    [
        (HALF_REVOKED, "both", Reason.KEY_REVOKED),
        (HALF_OVER, "both", Reason.UNKNOWN_KEY),
        (HALF_TO_COME, "both", Reason.UNKNOWN_KEY),
        (OWN_REVOKED, "both", Reason.KEY_REVOKED),
        (GOOD[1:], "both", Reason.ALG_NOT_ALLOWED),
        (GOOD, "strict", Reason.ALG_NOT_ALLOWED),
        ((PLAIN,), "fallback", Reason.ALG_NOT_ALLOWED),
    ],
)
async def test_listing_the_algorithm_by_itself_lets_no_other_half_through(
    parts: FilterParts, pair: tuple[KeyPair, ...], route: str, reason: Reason
) -> None:
    trip(parts, route)
    assert (await alone(parts, pair, route)).reason is reason
