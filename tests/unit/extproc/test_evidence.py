"""Evidence from the header to the receipt: what passes inline and relaxed, and what an attacker may try instead."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from extproc.decision import Answer
from extproc.evidence_claim import EvidenceClaim
from extproc.nonce_store.envelopes import MAX_WAITING_PER_CONNECTION
from extproc.request import EdgeRequest
from extproc.response import check_response
from pch.errors import EvidenceRejected, StoreUnavailable
from pch.evidence import Evidence, canonical_evidence, evidence_digest_field, evidence_field
from pch.reasons import Reason
from pch.relaxed import MAX_ENVELOPE_BYTES, compose_envelope
from receipts.receipt import DecisionReceipt, parse_receipt
from tests.support.filter_parts import (
    BINDING,
    CONFIG,
    DEFAULT_COMPONENTS,
    NOW_MS,
    OTHER_BINDING,
    FilterParts,
    KeyPair,
    edge_request,
    signed_message,
)
from tests.support.hybrid_parts import hybrid_keys
from tests.support.relaxed_parts import EVIDENCE, Relaxed, ahead, granted

ALGORITHMS = 'algorithms = ["ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"]\nmode = "or"\n'
ROUTES = f"""
[[route]]
name = "required"
path = "/required"
evidence = "required"
{ALGORITHMS}
[[route]]
name = "off"
path = "/off"
relax = "off"
{ALGORITHMS}
[[route]]
name = "unbound-relaxed"
path = "/unbound"
binding = "none"
[[route]]
name = "tight"
path = "/tight"
max_header_bytes = 2000
max_field_bytes = 1500
max_signature_bytes = 1200
max_body_bytes = 20
{ALGORITHMS}
[[route]]
name = "streamed"
path = "/streamed"
body = "streamed"
max_body_bytes = 1000000
[[route]]
name = "relaxable"
path = "/protected/x"
max_body_bytes = 70000
{ALGORITHMS}
[[route]]
"""
Build = Callable[[FilterParts], EdgeRequest]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    first, second = hybrid_keys("alice")
    keys = {"ed": KeyPair.new("alice"), "first": first, "pq": second, "alone": KeyPair.new("alice", "ml-dsa-65")}
    built = FilterParts(tmp_path, keys, CONFIG.replace("[[route]]", ROUTES, 1))
    await built.start()
    yield built
    await built.stop()


def single(parts: FilterParts, **changes: Any) -> Relaxed:
    return Relaxed(**({"keys": {"pch": parts.keys["ed"]}, "challenge": granted(parts)} | changes))


def hybrid(parts: FilterParts, **changes: Any) -> Relaxed:
    keys = {"pch": parts.keys["first"], "pch-pq": parts.keys["pq"]}
    return single(parts, **({"keys": keys} | changes))


def alone(parts: FilterParts, **changes: Any) -> Relaxed:
    return single(parts, **({"keys": {"pch": parts.keys["alone"]}} | changes))


def inline(parts: FilterParts, evidence: bytes = EVIDENCE, *, covered: bool = True, **options: Any) -> EdgeRequest:
    components = (*DEFAULT_COMPONENTS, "pch-channel-binding", *(("pch-evidence",) if covered else ()))
    headers = (("pch-evidence", evidence_field(evidence)),)
    return edge_request(
        signed_message(parts.keys["ed"], parts.challenge(), headers=headers, components=components, **options)
    )


def receipt_of(parts: FilterParts, answer: Answer) -> DecisionReceipt:
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    return receipt


SHAPES: dict[str, Callable[..., Relaxed]] = {"Ed25519": single, "hybrid": hybrid, "ML-DSA": alone}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("evidence", [EVIDENCE, None], ids=["evidence", "none"])
async def test_a_relaxed_request_with_content_passes_and_orders_its_envelope_away(
    parts: FilterParts, shape: Callable[..., Relaxed], evidence: bytes | None
) -> None:
    request, envelope = shape(parts, evidence=evidence).build()
    answer = await parts.answer(request)
    assert answer.reason is Reason.ALLOWED
    assert answer.order is not None
    assert (answer.order.envelope_bytes, answer.order.content_bytes) == (len(envelope), len(b"the content"))
    assert (answer.order.pending, answer.order.release) == (False, "whole")
    receipt = receipt_of(parts, answer)
    assert receipt.request is not None
    assert receipt.request.content_sha256 == hashlib.sha256(b"the content").hexdigest()
    assert receipt.proof is not None
    expected = None if evidence is None else hashlib.sha256(evidence).hexdigest()
    assert receipt.proof.evidence_sha256 == expected
    assert receipt.policy is not None
    assert receipt.policy.input["evidence"] is (evidence is not None)
    assert receipt.policy.input["body_bytes"] == len(b"the content")
    assert check_response(answer).WhichOneof("http_response") == "ok_response"


async def test_an_allowed_relaxed_request_without_an_order_does_not_pass(parts: FilterParts) -> None:
    answer = await parts.answer(single(parts).request())
    response = check_response(dataclasses.replace(answer, order=None))
    assert response.denied_response.status.code == 503


async def test_a_body_that_goes_on_is_pending_and_ordered_without_its_envelope(parts: FilterParts) -> None:
    body = bytes(60_000)
    request, envelope = single(parts, body=body, target="/streamed").build()
    cut = dataclasses.replace(request, body=request.body[: len(envelope) + 100], body_cut=True)
    answer = await parts.answer(cut)
    assert answer.reason is Reason.BODY_PENDING
    assert answer.order is not None
    assert (answer.order.envelope_bytes, answer.order.content_bytes) == (len(envelope), 60_000)
    assert (answer.order.pending, answer.order.release) == (True, "streamed")


async def test_a_chunked_body_has_no_length_to_order(parts: FilterParts) -> None:
    request, envelope = single(parts, target="/streamed").build()
    headers = tuple(line for line in request.message.headers if line[0] != "content-length")
    message = dataclasses.replace(request.message, headers=headers)
    answer = await parts.answer(dataclasses.replace(request, message=message, content_length=None, body_cut=True))
    assert answer.order is not None
    assert (answer.order.envelope_bytes, answer.order.content_bytes) == (len(envelope), None)


async def test_the_content_may_be_as_large_as_the_route_says_beside_its_envelope(parts: FilterParts) -> None:
    fits = single(parts, target="/tight", body=bytes(20), evidence=None, method="POST").request()
    assert (await parts.answer(fits)).reason is Reason.ALLOWED
    more = single(parts, target="/tight", body=bytes(21), evidence=None, method="POST").request()
    assert (await parts.answer(more)).reason is Reason.BODY_TOO_LARGE


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
async def test_a_relaxed_request_without_content_finds_its_envelope_and_so_does_its_retried_check(
    parts: FilterParts, shape: Callable[..., Relaxed]
) -> None:
    relaxed = shape(parts, method="GET", body=b"")
    request, envelope = relaxed.build()
    kept = await parts.answer(ahead(relaxed.challenge, envelope))
    assert (kept.reason, kept.receipt_id, kept.challenges) == (Reason.EVIDENCE_KEPT, None, ())
    assert check_response(kept).denied_response.status.code == 204
    answer = await parts.answer(request)
    assert (answer.reason, answer.order) == (Reason.ALLOWED, None)
    retried = await parts.answer(request)
    assert (retried.reason, retried.receipt_id) == (Reason.ALLOWED, answer.receipt_id)
    replayed = await parts.answer(dataclasses.replace(request, stream_id="1002"))
    assert replayed.reason is Reason.NONCE_REPLAY


async def test_inline_evidence_passes_and_its_digest_is_in_the_receipt(parts: FilterParts) -> None:
    answer = await parts.answer(inline(parts))
    assert answer.reason is Reason.ALLOWED
    receipt = receipt_of(parts, answer)
    assert receipt.proof is not None
    assert receipt.proof.evidence_sha256 == hashlib.sha256(EVIDENCE).hexdigest()


async def test_a_route_that_requires_evidence_takes_it_inline_or_relaxed(parts: FilterParts) -> None:
    assert (await parts.answer(inline(parts, target="/required"))).reason is Reason.ALLOWED
    assert (await parts.answer(single(parts, target="/required").request())).reason is Reason.ALLOWED


def _without_content(parts: FilterParts, **changes: Any) -> EdgeRequest:
    return single(parts, **({"method": "GET", "body": b""} | changes)).request()


def _tampered(request: EdgeRequest, body: bytes) -> EdgeRequest:
    return dataclasses.replace(request, body=body)


def _envelope_with(parts: FilterParts, **changes: Any) -> EdgeRequest:
    """Swap the envelope of a signed request for another one of the same length."""
    relaxed = single(parts)
    request, envelope = relaxed.build()
    other = compose_envelope(changes.get("evidence", bytes(len(EVIDENCE))), changes.get("signatures", {}))
    assert len(other) == len(envelope)
    return _tampered(request, other + request.body[len(envelope) :])


def _changed_content(parts: FilterParts) -> EdgeRequest:
    request = single(parts).request()
    return _tampered(request, request.body[:-1] + b"X")


def _swapped_halves(parts: FilterParts) -> EdgeRequest:
    one, _ = hybrid(parts).build()
    _, envelope = hybrid(parts).build()
    return _tampered(one, envelope + one.body[len(envelope) :])


BIG = b"x" * 60
UNKNOWN_MEMBER = b'{"evidence":null,"signatures":{},"x":1}'
ENVELOPE_BYTES = len(compose_envelope(EVIDENCE, {}))
REFUSED: list[tuple[str, Reason, Build]] = [
    ("no grant", Reason.STALE_CHALLENGE, lambda p: single(p, challenge=granted(p, grant=False)).request()),
    ("a route that never relaxes", Reason.STALE_CHALLENGE, lambda p: single(p, target="/off").request()),
    (
        "no grant, without content",
        Reason.STALE_CHALLENGE,
        lambda p: _without_content(p, challenge=granted(p, grant=False)),
    ),
    ("nothing was sent ahead", Reason.STALE_CHALLENGE, lambda p: _without_content(p)),
    (
        "nothing was sent ahead of an ML-DSA signature",
        Reason.STALE_CHALLENGE,
        lambda p: alone(p, method="GET", body=b"").request(),
    ),
    (
        "of another connection",
        Reason.BINDING_MISMATCH,
        lambda p: dataclasses.replace(single(p).request(), binding=OTHER_BINDING),
    ),
    (
        "of another connection, without content",
        Reason.BINDING_MISMATCH,
        lambda p: dataclasses.replace(_without_content(p), binding=OTHER_BINDING),
    ),
    (
        "nothing sent ahead, key unknown",
        Reason.UNKNOWN_KEY,
        lambda p: _without_content(p, keys={"pch": KeyPair.new("x")}),
    ),
    ("PCH-Relaxed not covered", Reason.MISSING_COMPONENT, lambda p: single(p, uncovered=("pch-relaxed",)).request()),
    ("digest not covered", Reason.MISSING_COMPONENT, lambda p: single(p, uncovered=("pch-evidence-digest",)).request()),
    (
        "content digest not covered",
        Reason.MISSING_COMPONENT,
        lambda p: single(p, uncovered=("content-digest",)).request(),
    ),
    ("no evidence digest", Reason.MALFORMED_SIGNATURE, lambda p: single(p, omitted=("pch-evidence-digest",)).request()),
    ("digest alone", Reason.MALFORMED_SIGNATURE, lambda p: single(p, omitted=("pch-relaxed",)).request()),
    (
        "evidence inline too",
        Reason.MALFORMED_SIGNATURE,
        lambda p: single(p, extra=(("pch-evidence", evidence_field(EVIDENCE)),)).request(),
    ),
    ("PCH-Relaxed twice", Reason.MALFORMED_SIGNATURE, lambda p: single(p, extra=(("pch-relaxed", b"?1"),)).request()),
    ("digest of other evidence", Reason.EVIDENCE_REJECTED, lambda p: single(p, digest_of=b"{}").request()),
    ("digest of nothing", Reason.EVIDENCE_REJECTED, lambda p: single(p, digest_of=None).request()),
    ("other evidence under the digest", Reason.EVIDENCE_REJECTED, lambda p: _envelope_with(p)),
    ("evidence of another type", Reason.EVIDENCE_REJECTED, lambda p: single(p, evidence=b'{"type":"x"}').request()),
    ("inline evidence of another type", Reason.EVIDENCE_REJECTED, lambda p: inline(p, b'{"type":"x"}')),
    ("inline evidence not canonical", Reason.EVIDENCE_REJECTED, lambda p: inline(p, b'{"type": "pch.evidence.v1"}')),
    ("inline evidence not covered", Reason.MISSING_COMPONENT, lambda p: inline(p, covered=False)),
    ("required and absent", Reason.MISSING_COMPONENT, lambda p: single(p, target="/required", evidence=None).request()),
    (
        "required and not sent",
        Reason.MISSING_COMPONENT,
        lambda p: edge_request(signed_message(p.keys["ed"], p.challenge(), target="/required")),
    ),
    ("length one short", Reason.MALFORMED_SIGNATURE, lambda p: single(p, length=ENVELOPE_BYTES - 1).request()),
    ("length one long", Reason.MALFORMED_SIGNATURE, lambda p: single(p, length=ENVELOPE_BYTES + 1).request()),
    ("length past the body", Reason.MALFORMED_SIGNATURE, lambda p: single(p, length=5000).request()),
    (
        "length past every envelope",
        Reason.MALFORMED_SIGNATURE,
        lambda p: single(p, length=MAX_ENVELOPE_BYTES + 1).request(),
    ),
    (
        "length of the whole body",
        Reason.MALFORMED_SIGNATURE,
        lambda p: single(p, length=ENVELOPE_BYTES + len(b"the content")).request(),
    ),
    (
        "no length, with content",
        Reason.MALFORMED_SIGNATURE,
        lambda p: dataclasses.replace(_without_content(p), body=b"x", content_length=1),
    ),
    (
        "length, and no content at all",
        Reason.MALFORMED_SIGNATURE,
        lambda p: dataclasses.replace(single(p, omitted=("content-digest",)).request(), body=b"", content_length=None),
    ),
    (
        "the edge hands over too little",
        Reason.INTERNAL,
        lambda p: dataclasses.replace(single(p).request(), body=b"{", body_cut=True),
    ),
    (
        "the edge cannot take envelopes away",
        Reason.INTERNAL,
        lambda p: single(p, edge={"deferrable": False}).request(),
    ),
    (
        "envelope with an unknown member",
        Reason.MALFORMED_SIGNATURE,
        lambda p: single(p, envelope=UNKNOWN_MEMBER).request(),
    ),
    ("envelope is no JSON", Reason.MALFORMED_SIGNATURE, lambda p: single(p, envelope=b"evidence").request()),
    ("ML-DSA in the header", Reason.MALFORMED_SIGNATURE, lambda p: alone(p, in_header=("pch",)).request()),
    (
        "ML-DSA in both places",
        Reason.MALFORMED_SIGNATURE,
        lambda p: alone(p, in_header=("pch",), both=("pch",)).request(),
    ),
    ("Ed25519 in the envelope", Reason.MALFORMED_SIGNATURE, lambda p: single(p, moved=("pch",)).request()),
    ("Ed25519 in both places", Reason.MALFORMED_SIGNATURE, lambda p: single(p, both=("pch",)).request()),
    (
        "an envelope without its ML-DSA signature",
        Reason.MALFORMED_SIGNATURE,
        lambda p: alone(p, envelope=compose_envelope(EVIDENCE, {})).request(),
    ),
    (
        "a signature more than Signature-Input knows",
        Reason.MALFORMED_SIGNATURE,
        lambda p: single(p, envelope=compose_envelope(EVIDENCE, {"more": b"x"})).request(),
    ),
    ("the ML-DSA half of another request", Reason.BAD_SIGNATURE, _swapped_halves),
    (
        "content changed behind the envelope",
        Reason.BAD_CONTENT_DIGEST,
        _changed_content,
    ),
    (
        "content past the limit of the route",
        Reason.BODY_TOO_LARGE,
        lambda p: single(p, target="/tight", body=BIG).request(),
    ),
    (
        "a relaxed request that is over budget all the same",
        Reason.HEADER_TOO_LARGE,
        lambda p: dataclasses.replace(single(p).request(), header_bytes=12_001),
    ),
]


@pytest.mark.parametrize(("reason", "build"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_attack_is_refused(parts: FilterParts, reason: Reason, build: Build) -> None:
    answer = await parts.answer(build(parts))
    assert answer.reason is reason
    assert check_response(answer).WhichOneof("http_response") == "denied_response"


async def test_evidence_that_is_rejected_has_spent_its_challenge(parts: FilterParts) -> None:
    request = inline(parts, b"{}")
    answer = await parts.answer(request)
    assert answer.reason is Reason.EVIDENCE_REJECTED
    receipt = receipt_of(parts, answer)
    assert receipt.proof is not None
    assert receipt.proof.spend_key is not None
    again = await parts.answer(dataclasses.replace(request, stream_id="1002"))
    assert again.reason is Reason.NONCE_REPLAY


async def test_an_unbound_route_relaxes_with_content_and_never_without(parts: FilterParts) -> None:
    unbound: dict[str, Any] = {"target": "/unbound", "binding": None}
    with_content = single(parts, challenge=granted(parts, binding=bytes(32)), **unbound).request()
    assert (await parts.answer(with_content)).reason is Reason.ALLOWED
    relaxed = single(parts, challenge=granted(parts, binding=bytes(32)), method="GET", body=b"", **unbound)
    request, envelope = relaxed.build()
    for binding in (bytes(32), BINDING, None):
        await parts.answer(ahead(relaxed.challenge, envelope, binding=binding))
    assert (await parts.answer(request)).reason is Reason.STALE_CHALLENGE


# -- the verifier's own path


async def test_envelopes_are_taken_in_one_under_each_challenge(parts: FilterParts) -> None:
    challenge = granted(parts)
    first, second = compose_envelope(EVIDENCE, {}), compose_envelope(None, {})
    assert (await parts.answer(ahead(challenge, first))).reason is Reason.EVIDENCE_KEPT
    assert (await parts.answer(ahead(challenge, first))).reason is Reason.EVIDENCE_KEPT
    assert (await parts.answer(ahead(challenge, second))).reason is Reason.EVIDENCE_REJECTED


async def test_a_connection_has_four_waiting(parts: FilterParts) -> None:
    envelope = compose_envelope(EVIDENCE, {})
    for _ in range(MAX_WAITING_PER_CONNECTION):
        assert (await parts.answer(ahead(granted(parts), envelope))).reason is Reason.EVIDENCE_KEPT
    full = await parts.answer(ahead(granted(parts), envelope))
    assert full.reason is Reason.QUOTA
    assert check_response(full).denied_response.status.code == 429
    other = granted(parts, binding=OTHER_BINDING)
    assert (await parts.answer(ahead(other, envelope, binding=OTHER_BINDING))).reason is Reason.EVIDENCE_KEPT


async def test_a_spent_challenge_takes_no_envelope(parts: FilterParts) -> None:
    relaxed = single(parts)
    request, envelope = relaxed.build()
    assert (await parts.answer(request)).reason is Reason.ALLOWED
    assert (await parts.answer(ahead(relaxed.challenge, envelope))).reason is Reason.EVIDENCE_REJECTED


OK = compose_envelope(EVIDENCE, {})
NOT_TAKEN: list[tuple[str, Reason, Build]] = [
    ("no challenge", Reason.EVIDENCE_REJECTED, lambda p: ahead(granted(p), OK, headers=())),
    (
        "two challenges",
        Reason.EVIDENCE_REJECTED,
        lambda p: ahead("", OK, headers=(("pch-challenge", f'"{granted(p)}", "{granted(p)}"'.encode()),)),
    ),
    (
        "challenge lines",
        Reason.EVIDENCE_REJECTED,
        lambda p: ahead("", OK, headers=(("pch-challenge", f'"{granted(p)}"'.encode()),) * 2),
    ),
    ("challenge is none", Reason.EVIDENCE_REJECTED, lambda p: ahead("A" * 60, OK)),
    (
        "challenge without quotes",
        Reason.EVIDENCE_REJECTED,
        lambda p: ahead("", OK, headers=(("pch-challenge", granted(p).encode()),)),
    ),
    ("challenge grants nothing", Reason.EVIDENCE_REJECTED, lambda p: ahead(granted(p, grant=False), OK)),
    ("challenge too old", Reason.EVIDENCE_REJECTED, lambda p: ahead(granted(p, now_ms=NOW_MS - 61_000), OK)),
    (
        "challenge of another connection",
        Reason.EVIDENCE_REJECTED,
        lambda p: ahead(granted(p, binding=OTHER_BINDING), OK),
    ),
    ("challenge of another host", Reason.EVIDENCE_REJECTED, lambda p: ahead(granted(p, authority="other.example"), OK)),
    ("challenge of an unbound route", Reason.EVIDENCE_REJECTED, lambda p: ahead(granted(p, binding=bytes(32)), OK)),
    ("no binding at the edge", Reason.BINDING_MISSING, lambda p: ahead(granted(p), OK, binding=None)),
    ("envelope is none", Reason.EVIDENCE_REJECTED, lambda p: ahead(granted(p), b"{}")),
    ("nothing", Reason.EVIDENCE_REJECTED, lambda p: ahead(granted(p), b"")),
    ("envelope too long", Reason.BODY_TOO_LARGE, lambda p: ahead(granted(p), OK + b" " * MAX_ENVELOPE_BYTES)),
    ("envelope cut", Reason.BODY_TOO_LARGE, lambda p: ahead(granted(p), OK, body_cut=True)),
    ("header past the cap", Reason.HEADER_TOO_LARGE, lambda p: ahead(granted(p), OK, header_bytes=49_153)),
]


@pytest.mark.parametrize(("reason", "build"), [row[1:] for row in NOT_TAKEN], ids=[row[0] for row in NOT_TAKEN])
async def test_what_is_not_taken_in(parts: FilterParts, reason: Reason, build: Build) -> None:
    answer = await parts.answer(build(parts))
    assert (answer.reason, answer.receipt_id) == (reason, None)
    response = check_response(answer)
    assert response.denied_response.status.code >= 400
    assert not any(option.header.key == "www-authenticate" for option in response.denied_response.headers)


@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("PUT", ""), ("POST", "?a"), ("POST", "/"), ("post", "")])
async def test_only_that_method_and_path_are_the_verifiers_own(parts: FilterParts, method: str, suffix: str) -> None:
    request = ahead(granted(parts), OK)
    message = dataclasses.replace(request.message, method=method, target=request.message.target + suffix)
    assert (await parts.answer(dataclasses.replace(request, message=message))).reason is Reason.NO_ROUTE


async def test_without_the_store_nothing_is_taken_in_or_found(
    parts: FilterParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(parts.nonce_store, "keep_envelope", fail)
    monkeypatch.setattr(parts.nonce_store, "find_envelope", fail)
    assert (await parts.answer(ahead(granted(parts), OK))).reason is Reason.STORE_UNAVAILABLE
    assert (await parts.answer(_without_content(parts))).reason is Reason.STORE_UNAVAILABLE


@pytest.mark.parametrize(("doubles", "elsewhere"), [(10, False), (15_000, True)])
async def test_large_evidence_is_read_beside_the_event_loop(parts: FilterParts, doubles: int, elsewhere: bool) -> None:
    threads: list[int] = []

    class Watched(EvidenceClaim):
        def settle(self) -> Evidence | None:
            threads.append(threading.get_ident())
            return EvidenceClaim.settle(self)

    raw = canonical_evidence({"type": "pch.evidence.v1", "claims": {"a": [0.1] * doubles}})
    desk = parts.parts.evidence
    await desk.judge(Watched(None, None, raw, None), parts.rules, parts.clock.now_ms)
    assert [thread != threading.get_ident() for thread in threads] == [elsewhere]
    with pytest.raises(EvidenceRejected):
        await desk.judge(Watched(None, None, raw + b" ", None), parts.rules, parts.clock.now_ms)


def test_the_digest_of_no_evidence_is_that_of_zero_bytes() -> None:
    assert evidence_digest_field(None) == evidence_digest_field(b"")
