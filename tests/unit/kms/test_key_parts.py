"""Which halves a version gets and which sign, over every policy (PQ-I1, PQ-I5)."""

from __future__ import annotations

import itertools

import pytest

from kms.errors import BadRequest, PqPolicy, Unsupported
from kms.key_parts import parts_of_new_version, parts_that_sign
from kms.key_record import KeyRecord, KeyState, KeyVersion
from kms.messages import VerifyMode
from kms.policy import PolicyDecision
from kms.primitive import KEY_ALGORITHMS, TLOG_PARTS, Primitive
from kms.providers.provider import KeyHandle, ProviderKey
from tests.support.kms_core import ALL_ALGS
from tests.support.kms_records import name_of

ALLOWED = frozenset(ALL_ALGS)
ED, ML = Primitive.ED25519, Primitive.ML_DSA_65
DECISIONS = [
    PolicyDecision(produce_hybrid=produce, verify_mode=mode)
    for produce, mode in itertools.product((False, True), ("or", "and", "pq_only"))
]
KINDS = {"ed25519": (ED,), "dual": (ED, ML), "ml-dsa": (ML,), "hybrid": (ED, ML)}


def key(kind: str) -> tuple[KeyRecord, KeyVersion]:
    parts = tuple(ProviderKey(each, KeyHandle("h"), b"") for each in KINDS[kind])
    version = KeyVersion(1, parts, 0)
    alg = "ed25519" if kind == "dual" else kind
    return KeyRecord(name_of(alg=alg), (version,), KeyState.ENABLED, 1, (), "inmem"), version


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("alg", list(KEY_ALGORITHMS))
def test_a_new_signing_version_has_a_post_quantum_half_wherever_hybrid_signatures_are_made(
    alg: str, decision: PolicyDecision
) -> None:
    algorithm = KEY_ALGORITHMS[alg]
    parts = parts_of_new_version(algorithm, "audit", decision, ALLOWED)
    assert parts[: len(algorithm.parts)] == algorithm.parts
    if algorithm.signs and decision.produce_hybrid:
        assert any(part.post_quantum for part in parts)
    else:
        assert parts == algorithm.parts


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("wants", [None, False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_no_pure_classical_signature_is_made_where_the_policy_wants_more(
    kind: str, wants: bool | None, decision: PolicyDecision
) -> None:
    record, version = key(kind)
    try:
        parts = {part.primitive for part in parts_that_sign(record, version, decision, caller_wants_hybrid=wants)}
    except PqPolicy:
        parts = set()
    if not parts:
        assert kind == "ed25519"
        assert decision.requires_post_quantum or wants
        return
    assert parts <= set(KINDS[kind])
    if decision.requires_post_quantum or wants:
        assert ML in parts
    if decision.verify_mode == "and":
        # What is signed verifies under the mode that is in force.
        assert parts == set(KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "mode", "produce", "wants", "signs"),
    [
        ("ed25519", "or", False, None, (ED,)),
        ("ed25519", "or", True, None, (ED,)),
        ("dual", "or", False, None, (ED,)),
        ("dual", "or", False, True, (ED, ML)),
        ("dual", "or", True, False, (ED, ML)),
        ("dual", "and", True, False, (ED, ML)),
        ("dual", "pq_only", False, None, (ML,)),
        ("dual", "pq_only", True, None, (ED, ML)),
        ("hybrid", "or", False, False, (ED, ML)),
        ("hybrid", "pq_only", False, None, (ML,)),
        ("ml-dsa", "and", True, None, (ML,)),
    ],
)
def test_these_halves_sign(
    kind: str, mode: VerifyMode, produce: bool, wants: bool | None, signs: tuple[Primitive, ...]
) -> None:
    record, version = key(kind)
    decision = PolicyDecision(produce_hybrid=produce, verify_mode=mode)
    parts = parts_that_sign(record, version, decision, caller_wants_hybrid=wants)
    assert tuple(part.primitive for part in parts) == signs


@pytest.mark.parametrize(
    ("alg", "allowed"),
    [
        ("ed25519", {"ml-dsa"}),
        ("hybrid", {"ed25519"}),
        ("hybrid", {"ml-dsa"}),
        ("x25519", {"x25519"}),
        ("ml-kem", {"ml-kem"}),
        ("ml-dsa-44", {"ml-dsa"}),
        ("ecdsa-p256-sha256", {"ed25519", "ml-dsa"}),
        ("hkdf", {"ed25519"}),
    ],
)
def test_every_part_must_be_allowed(alg: str, allowed: set[str]) -> None:
    plain = PolicyDecision(produce_hybrid=False, verify_mode="or")
    with pytest.raises(Unsupported) as refused:
        parts_of_new_version(KEY_ALGORITHMS[alg], "audit", plain, frozenset(allowed))
    assert refused.value.reason == "alg_not_allowed"


def test_where_the_policy_wants_a_half_that_is_not_allowed_no_key_is_made_without_it() -> None:
    hybrid = PolicyDecision(produce_hybrid=True, verify_mode="or")
    with pytest.raises(Unsupported):
        parts_of_new_version(KEY_ALGORITHMS["ed25519"], "audit", hybrid, frozenset({"ed25519"}))


def test_keys_that_sign_tree_heads_have_halves_of_their_own() -> None:
    for decision in DECISIONS:
        assert parts_of_new_version(KEY_ALGORITHMS["hybrid"], "tlog", decision, frozenset({"ed25519"})) == TLOG_PARTS
    with pytest.raises(BadRequest):
        parts_of_new_version(KEY_ALGORITHMS["ed25519"], "tlog", DECISIONS[0], ALLOWED)


def test_kem_keys_do_not_sign() -> None:
    part = ProviderKey(Primitive.X25519, KeyHandle("h"), b"")
    version = KeyVersion(1, (part,), 0)
    record = KeyRecord(name_of(alg="x25519"), (version,), KeyState.ENABLED, 1, (), "inmem")
    with pytest.raises(Unsupported):
        parts_that_sign(record, version, DECISIONS[0], caller_wants_hybrid=None)
