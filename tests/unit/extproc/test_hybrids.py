"""Hybrid proofs, PCH §3: what each mode takes, and every way to pass with less than two good halves."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from extproc.request import EdgeRequest
from extproc.response import check_response
from pch.reasons import Reason
from receipts.receipt import DecisionReceipt, parse_receipt
from tests.support.filter_parts import CONFIG, FilterParts, KeyPair, edge_request
from tests.support.hybrid_parts import Half, half_of, halves, hybrid_keys, hybrid_message, with_halves

ED, P256, PQ = "ed25519", "ecdsa-p256-sha256", "ml-dsa-65"
ROUTES = "".join(
    f'[[route]]\nname = "{name}"\npath = "/{name}"\nmode = "{mode}"\nalgorithms = {algorithms}\n'
    # Room for two ML-DSA signatures, so that it is not their size that is refused.
    "max_signature_bytes = 14000\nmax_header_bytes = 20000\nmax_field_bytes = 14000\n"
    for name, mode, algorithms in (
        ("hybrid", "and", [f"{ED}+{PQ}", f"{P256}+{PQ}"]),
        ("mixed", "and", [ED, P256, PQ, f"{ED}+{PQ}"]),
        ("either", "or", [f"{ED}+{PQ}", ED, PQ]),
        ("either-strict", "or", [f"{ED}+{PQ}"]),
        ("pq", "pq_only", [PQ, f"{ED}+{PQ}"]),
        ("single", "and", [ED, PQ]),
    )
)
Build = Callable[[FilterParts], EdgeRequest]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    keys: dict[str, KeyPair] = {
        "plain": KeyPair.new("alice"),
        "plain-pq": KeyPair.new("alice", PQ),
        "pq-44": KeyPair.new("alice", "ml-dsa-44"),
    }
    for name, subject, classical, status in (
        ("a", "alice", ED, "active"),
        ("a2", "alice", ED, "active"),
        ("b", "bob", ED, "active"),
        ("p", "alice", P256, "active"),
        ("r", "mallory", ED, "revoked"),
    ):
        keys[name], keys[f"{name}-pq"] = hybrid_keys(subject, classical, status=status)
    keys["c"], keys["c-pq"] = hybrid_keys("carol")
    keys["c-pq"].status = "revoked"
    keys["d"], keys["d-pq"] = hybrid_keys("dora")
    keys["d-pq"].not_after = "2020-01-01T00:00:00Z"
    built = FilterParts(tmp_path, keys, CONFIG.replace("[[route]]", ROUTES + "[[route]]", 1))
    await built.start()
    yield built
    await built.stop()


def both(parts: FilterParts, first: str = "a", second: str = "a-pq", route: str = "hybrid") -> EdgeRequest:
    """A request that two keys signed as the halves of a hybrid."""
    pair = halves(parts.keys[first], parts.keys[second])
    return edge_request(hybrid_message(pair, parts.challenge(), target=f"/{route}"))


def alone(parts: FilterParts, key: str, route: str, tag: str = "pch") -> EdgeRequest:
    """A request that one key signed."""
    return edge_request(hybrid_message((Half(parts.keys[key], tag),), parts.challenge(), target=f"/{route}"))


def differing(parts: FilterParts, **changes: object) -> EdgeRequest:
    """A hybrid whose ML-DSA half says something else than the classical one; each verifies by itself."""
    first, second = halves(parts.keys["a"], parts.keys["a-pq"])
    components = changes.pop("components", None)
    second = dataclasses.replace(second, components=components, params=changes)
    return edge_request(hybrid_message((first, second), parts.challenge()))


def without(request: EdgeRequest, label: str) -> EdgeRequest:
    """Strip a good hybrid of one half."""
    kept = next(each for each in ("pch", "pch-pq") if each != label)
    message = with_halves(request.message, {kept: half_of(request.message, kept)})
    return dataclasses.replace(request, message=message)


def retagged(request: EdgeRequest) -> EdgeRequest:
    """Swap the tags of the two halves, as a middleman would."""
    (first_in, first), (second_in, second) = half_of(request.message, "pch"), half_of(request.message, "pch-pq")
    first_in = first_in.replace(b'tag="pch"', b'tag="pch-pq"')
    second_in = second_in.replace(b'tag="pch-pq"', b'tag="pch"')
    message = with_halves(request.message, {"pch": (first_in, first), "pch-pq": (second_in, second)})
    return dataclasses.replace(request, message=message)


def spliced(parts: FilterParts, *, same_challenge: bool, stolen: str) -> EdgeRequest:
    """Join a half of one good request to the other half of another."""
    pair = halves(parts.keys["a"], parts.keys["a-pq"])
    challenge = parts.challenge()
    one = hybrid_message(pair, challenge, target="/hybrid?to=alice")
    other = hybrid_message(pair, challenge if same_challenge else parts.challenge(), target="/hybrid?to=mallory")
    taken = {label: half_of(other if label == stolen else one, label) for label in ("pch", "pch-pq")}
    return edge_request(with_halves(one, taken))


def broken(request: EdgeRequest, label: str) -> EdgeRequest:
    """Change one byte of one half's signature."""
    members = {each: half_of(request.message, each) for each in ("pch", "pch-pq")}
    value = bytearray(members[label][1])
    value[20] = ord("A") if value[20] != ord("A") else ord("B")
    members[label] = (members[label][0], bytes(value))
    return dataclasses.replace(request, message=with_halves(request.message, members))


def emptied(request: EdgeRequest, label: str) -> EdgeRequest:
    members = {each: half_of(request.message, each) for each in ("pch", "pch-pq")}
    members[label] = (members[label][0], b"::")
    return dataclasses.replace(request, message=with_halves(request.message, members))


ACCEPTED: list[tuple[str, str, Build]] = [
    ("ed25519 and ml-dsa-65", f"{ED}+{PQ}", lambda p: both(p)),
    ("p256 and ml-dsa-65", f"{P256}+{PQ}", lambda p: both(p, "p", "p-pq")),
    ("both where single ones pass too", f"{ED}+{PQ}", lambda p: both(p, route="mixed")),
    ("both in mode or", f"{ED}+{PQ}", lambda p: both(p, route="either")),
    ("both in mode pq_only", f"{ED}+{PQ}", lambda p: both(p, route="pq")),
    ("classical half alone in mode or", ED, lambda p: alone(p, "a", "either")),
    ("ML-DSA half alone in mode or", PQ, lambda p: alone(p, "a-pq", "either")),
    ("ML-DSA half alone in mode pq_only", PQ, lambda p: alone(p, "a-pq", "pq")),
    ("a key without partner, mode and", ED, lambda p: alone(p, "plain", "mixed")),
    ("an ML-DSA key without partner, mode and", PQ, lambda p: alone(p, "plain-pq", "mixed")),
    ("an ML-DSA key without partner, mode pq_only", PQ, lambda p: alone(p, "plain-pq", "pq")),
    ("a good half whose partner is revoked, mode or", ED, lambda p: alone(p, "c", "either")),
]


@pytest.mark.parametrize(("name", "algorithm", "build"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
async def test_accepted(parts: FilterParts, name: str, algorithm: str, build: Build) -> None:
    request = build(parts)
    answer = await parts.answer(request)
    assert answer.reason is Reason.ALLOWED, name
    assert answer.verified is not None
    assert answer.verified.algorithm == algorithm
    (stored,) = list(parts.store.read(0, 10))
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    assert receipt.proof is not None
    recorded = receipt.proof.signatures
    assert "+".join(each.alg for each in recorded) == algorithm
    assert [each.tag for each in recorded] == ["pch", "pch-pq"][: len(recorded)]
    assert len({each.base_sha256 for each in recorded}) == len({each.key_id for each in recorded}) == len(recorded)
    headers = {each.header.key: each.header.value for each in check_response(answer).ok_response.headers}
    assert headers["x-signet-alg"] == algorithm
    assert headers["x-signet-key-id"] == "+".join(each.key_id for each in recorded)
    replay = await parts.answer(dataclasses.replace(request, stream_id="another"))
    assert replay.reason is Reason.NONCE_REPLAY


ATTACKS: list[tuple[str, Reason, Build]] = [
    # Stripping.
    ("the ML-DSA half is stripped", Reason.ALG_NOT_ALLOWED, lambda p: without(both(p), "pch-pq")),
    ("the classical half is stripped", Reason.MISSING_SIGNATURE, lambda p: without(both(p), "pch")),
    ("stripped where single ones pass", Reason.ALG_NOT_ALLOWED, lambda p: without(both(p, route="mixed"), "pch-pq")),
    ("stripped to ML-DSA where it passes", Reason.MISSING_SIGNATURE, lambda p: without(both(p, route="pq"), "pch")),
    ("stripped to classical in pq_only", Reason.ALG_NOT_ALLOWED, lambda p: without(both(p, route="pq"), "pch-pq")),
    ("a half alone, mode and", Reason.ALG_NOT_ALLOWED, lambda p: alone(p, "a", "mixed")),
    ("the ML-DSA half alone, mode and", Reason.ALG_NOT_ALLOWED, lambda p: alone(p, "a-pq", "mixed")),
    ("the ML-DSA half alone under its own tag", Reason.MISSING_SIGNATURE, lambda p: alone(p, "a-pq", "pq", "pch-pq")),
    ("classical alone in pq_only", Reason.ALG_NOT_ALLOWED, lambda p: alone(p, "plain", "pq")),
    ("a half alone that the list does not name", Reason.ALG_NOT_ALLOWED, lambda p: alone(p, "a", "either-strict")),
    ("a key without partner on a hybrid route", Reason.ALG_NOT_ALLOWED, lambda p: alone(p, "plain", "hybrid")),
    # Swapping and mixing.
    ("halves signed under each other's tag", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "a-pq", "a")),
    ("tags swapped on the way", Reason.ALG_NOT_ALLOWED, lambda p: retagged(both(p))),
    (
        "the ML-DSA half of another request",
        Reason.MALFORMED_SIGNATURE,
        lambda p: spliced(p, same_challenge=False, stolen="pch-pq"),
    ),
    (
        "the classical half of another request",
        Reason.MALFORMED_SIGNATURE,
        lambda p: spliced(p, same_challenge=False, stolen="pch"),
    ),
    (
        "the ML-DSA half of a twin with one challenge",
        Reason.BAD_SIGNATURE,
        lambda p: spliced(p, same_challenge=True, stolen="pch-pq"),
    ),
    (
        "the classical half of a twin with one challenge",
        Reason.BAD_SIGNATURE,
        lambda p: spliced(p, same_challenge=True, stolen="pch"),
    ),
    # Parameters that differ.
    ("created differs", Reason.MALFORMED_SIGNATURE, lambda p: differing(p, created=1_789_999_999)),
    ("expires differs", Reason.MALFORMED_SIGNATURE, lambda p: differing(p, expires=1_790_000_001)),
    ("nonce differs", Reason.MALFORMED_SIGNATURE, lambda p: differing(p, nonce=p.challenge())),
    (
        "the ML-DSA half covers less",
        Reason.MALFORMED_SIGNATURE,
        lambda p: differing(p, components=("@method", "@authority", "@path", "pch-channel-binding")),
    ),
    (
        "the ML-DSA half covers in another order",
        Reason.MALFORMED_SIGNATURE,
        lambda p: differing(p, components=("@authority", "@method", "@path", "@query", "pch-channel-binding")),
    ),
    # Keys.
    ("another subject's ML-DSA key", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "a", "b-pq")),
    ("another subject's classical key", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "b", "a-pq")),
    ("two hybrids of one subject, mixed", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "a", "a2-pq")),
    ("halves of different hybrids of one subject", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "p", "a-pq")),
    ("two keys of one subject that are no partners", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "plain", "plain-pq")),
    ("a half beside a key without partner", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "a", "plain-pq")),
    ("a key without partner beside a half", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "plain", "a-pq")),
    ("one key for both halves", Reason.MALFORMED_SIGNATURE, lambda p: both(p, "a", "a")),
    ("one ML-DSA key for both halves", Reason.MALFORMED_SIGNATURE, lambda p: both(p, "a-pq", "a-pq")),
    ("two classical halves", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "a", "p")),
    ("two ML-DSA halves", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "a-pq", "plain-pq")),
    ("a hybrid that PCH does not have", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "a", "pq-44")),
    ("a hybrid where only its halves are listed", Reason.ALG_NOT_ALLOWED, lambda p: both(p, route="single")),
    ("a hybrid the route does not list", Reason.ALG_NOT_ALLOWED, lambda p: both(p, "p", "p-pq", route="mixed")),
    ("the ML-DSA key's dates are over", Reason.UNKNOWN_KEY, lambda p: both(p, "d", "d-pq")),
    ("both keys are revoked", Reason.KEY_REVOKED, lambda p: both(p, "r", "r-pq")),
    ("the ML-DSA key is revoked", Reason.KEY_REVOKED, lambda p: both(p, "c", "c-pq")),
    ("a revoked half, and a bad signature", Reason.BAD_SIGNATURE, lambda p: broken(both(p, "c", "c-pq"), "pch")),
    # A present half that fails always refuses.
    ("the classical half is broken", Reason.BAD_SIGNATURE, lambda p: broken(both(p), "pch")),
    ("the ML-DSA half is broken", Reason.BAD_SIGNATURE, lambda p: broken(both(p), "pch-pq")),
    ("the ML-DSA half is broken, mode or", Reason.BAD_SIGNATURE, lambda p: broken(both(p, route="either"), "pch-pq")),
    ("the classical half is broken, mode pq_only", Reason.BAD_SIGNATURE, lambda p: broken(both(p, route="pq"), "pch")),
    ("the ML-DSA half is empty", Reason.BAD_SIGNATURE, lambda p: emptied(both(p, route="either"), "pch-pq")),
    ("alone, and broken", Reason.BAD_SIGNATURE, lambda p: edge_request(with_broken(p))),
]


def with_broken(parts: FilterParts):  # type: ignore[no-untyped-def]
    message = alone(parts, "a-pq", "pq").message
    member, value = half_of(message, "pch")
    return with_halves(message, {"pch": (member, value[:20] + (b"A" if value[20:21] != b"A" else b"B") + value[21:])})


@pytest.mark.parametrize(("name", "reason", "build"), ATTACKS, ids=[row[0] for row in ATTACKS])
async def test_attack_is_refused_and_spends_nothing(
    parts: FilterParts, name: str, reason: Reason, build: Build
) -> None:
    answer = await parts.answer(build(parts))
    assert (name, answer.reason) == (name, reason)
    (stored,) = list(parts.store.read(0, 10))
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    assert (receipt.decision, receipt.reason) == ("deny", str(reason))
    assert receipt.proof is None, "nothing is claimed that was not proved, and no nonce was spent"


async def test_a_retried_check_of_a_hybrid_gets_the_first_receipt(parts: FilterParts) -> None:
    request = both(parts)
    first, again = await parts.answer(request), await parts.answer(request)
    assert (first.reason, again.reason) == (Reason.ALLOWED, Reason.ALLOWED)
    assert first.receipt_id == again.receipt_id


async def test_the_challenge_lists_what_the_route_takes(parts: FilterParts) -> None:
    for route, algorithms, mode, tags in (
        ("hybrid", f"{ED}+{PQ} {P256}+{PQ}", "and", ["pch", "pch-pq"]),
        ("either-strict", f"{ED}+{PQ}", "or", ["pch", "pch-pq"]),
        ("mixed", f"{ED} {P256} {PQ} {ED}+{PQ}", "and", ["pch"]),
        ("pq", f"{PQ} {ED}+{PQ}", "pq_only", ["pch"]),
    ):
        message = dataclasses.replace(alone(parts, "plain", route).message, headers=())
        denied = check_response(await parts.answer(edge_request(message))).denied_response
        headers = {each.header.key: each.header.value for each in denied.headers}
        assert f'algs="{algorithms}", mode="{mode}"' in headers["www-authenticate"]
        asked = headers["accept-signature"].split(", ")
        assert [each.partition("=")[0] for each in asked] == tags
        assert [each.rpartition(";tag=")[2].strip('"') for each in asked] == tags
