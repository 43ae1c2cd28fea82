"""One request from top to bottom, on real parts: what passes, what is refused and why, and what is recorded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from extproc.nonce_store.memory import MemoryNonceStore
from extproc.pipeline import Pipeline
from extproc.request import EdgeRequest
from extproc.verifier import VerifiedRequest
from pch.httpsig.component import ComponentId
from pch.httpsig.content_digest import content_digest
from pch.httpsig.message import RequestMessage
from pch.reasons import ANSWERS, Reason
from receipts.facts import MAX_BRIEF_CHARS
from receipts.receipt import DecisionReceipt, parse_receipt
from receipts.store import StoredReceipt
from tests.support.filter_parts import (
    BINDING,
    NOW_MS,
    OTHER_BINDING,
    FilterParts,
    KeyPair,
    edge_request,
    signed_message,
)

Build = Callable[[FilterParts], EdgeRequest]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    keys = {
        "alice": KeyPair.new("alice"),
        "bob": KeyPair.new("bob"),
        "p256": KeyPair.new("alice", "ecdsa-p256-sha256"),
        "revoked": KeyPair.new("mallory", status="revoked"),
        "future": KeyPair.new("alice", not_before="2099-01-01T00:00:00Z"),
        "past": KeyPair.new("alice", not_after="2020-01-01T00:00:00Z"),
    }
    built = FilterParts(tmp_path, keys)
    await built.start()
    yield built
    await built.stop()


def signed(parts: FilterParts, key: str = "alice", **options: object) -> EdgeRequest:
    body = options.get("body", b"")
    assert isinstance(body, bytes)
    return edge_request(signed_message(parts.keys[key], parts.challenge(), **options), body=body)  # type: ignore[arg-type]


def with_message(request: EdgeRequest, **changes: object) -> EdgeRequest:
    return dataclasses.replace(request, message=dataclasses.replace(request.message, **changes))  # type: ignore[arg-type]


def with_headers(request: EdgeRequest, **changes: bytes | None) -> EdgeRequest:
    """Replace or drop fields; names are given with underscores."""
    headers = list(request.message.headers)
    for name, value in changes.items():
        field = name.replace("_", "-")
        headers = [line for line in headers if line[0] != field]
        if value is not None:
            headers.append((field, value))
    return with_message(request, headers=tuple(headers))


def add_header(request: EdgeRequest, name: str, value: bytes) -> EdgeRequest:
    return with_message(request, headers=(*request.message.headers, (name, value)))


def header(request: EdgeRequest, name: str) -> bytes:
    return request.message.lines(name)[0]


def unsigned(target: str = "/protected", method: str = "GET", **changes: object) -> EdgeRequest:
    return edge_request(RequestMessage(method, "https", "app.example", target, ()), **changes)


BOUND_COMPONENTS = ("@method", "@authority", "@path", "@query", "pch-channel-binding")
ACCEPTED: list[tuple[str, Build]] = [
    ("plain GET", lambda p: signed(p)),
    ("query", lambda p: signed(p, target="/protected/x?a=1&b=%2F")),
    ("P-256", lambda p: signed(p, "p256")),
    ("content", lambda p: signed(p, method="POST", body=b"hello")),
    (
        "further component",
        lambda p: signed(
            p,
            headers=(("x-note", b"n"),),
            components=(*BOUND_COMPONENTS, "x-note"),
        ),
    ),
    ("foreign signature beside", lambda p: with_foreign(signed(p))),
    ("created two seconds ahead", lambda p: signed(p, created_s=NOW_MS // 1000 + 2)),
    ("just expired within the skew", lambda p: signed(p, created_s=NOW_MS // 1000 - 61)),
    ("subject listed", lambda p: signed(p, target="/alice")),
    (
        "route without binding",
        lambda p: edge_request(
            signed_message(p.keys["alice"], p.challenge(binding=bytes(32)), target="/unbound/a", binding=None),
            binding=None,
        ),
    ),
    (
        "upgrade on a route that permits it",
        lambda p: signed(
            p,
            target="/socket",
            headers=(("upgrade", b"websocket"), ("connection", b"Upgrade")),
            components=(*BOUND_COMPONENTS, "upgrade"),
        ),
    ),
    (
        "component just short enough for a receipt",
        lambda p: signed(
            p,
            target="/protected?" + "a" * 490 + "=1",
            components=(*BOUND_COMPONENTS, ComponentId("@query-param", (("name", "a" * 490),))),
        ),
    ),
    ("digest of no content", lambda p: add_header(signed(p), "content-digest", content_digest(b"").encode())),
]


def with_foreign(request: EdgeRequest) -> EdgeRequest:
    return with_headers(
        request,
        signature_input=header(request, "signature-input") + b', other=("@method");tag="other"',
        signature=header(request, "signature") + b", other=:AAAA:",
    )


@pytest.mark.parametrize(("build"), [case[1] for case in ACCEPTED], ids=[case[0] for case in ACCEPTED])
async def test_valid_request_is_allowed_and_its_receipt_tells_what_was_proved(parts: FilterParts, build: Build) -> None:
    request = build(parts)
    answer = await parts.answer(request)
    assert answer.reason is Reason.ALLOWED
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    assert (receipt.decision, receipt.reason, receipt.status) == ("allow", "allowed", None)
    assert receipt.proof is not None
    assert receipt.policy is not None
    assert answer.verified is not None
    assert receipt.proof.subject == answer.verified.key.subject == receipt.policy.input["subject"]
    assert receipt.proof.signatures[0].base_sha256 == hashlib.sha256(answer.verified.signature_base).hexdigest()
    assert receipt.plan == parts.rules.plan_digest
    query = request.message.target.partition("?")[2]
    assert not query or query.encode() not in stored.raw


def param(request: EdgeRequest, old: str, new: str) -> EdgeRequest:
    value = header(request, "signature-input").decode()
    assert old in value
    return with_headers(request, signature_input=value.replace(old, new).encode())


def flip_signature(request: EdgeRequest) -> EdgeRequest:
    value = bytearray(header(request, "signature"))
    value[10] = ord("A") if value[10] != ord("A") else ord("B")
    return with_headers(request, signature=bytes(value))


REFUSED: list[tuple[str, Reason, Build]] = [
    ("no signature", Reason.MISSING_SIGNATURE, lambda p: unsigned()),
    (
        "only a foreign signature",
        Reason.MISSING_SIGNATURE,
        lambda p: with_headers(unsigned(), signature_input=b'a=("@method");tag="other"', signature=b"a=:AA==:"),
    ),
    ("tag without quotes", Reason.MALFORMED_SIGNATURE, lambda p: param(signed(p), 'tag="pch"', "tag=pch")),
    ("other tag", Reason.MISSING_SIGNATURE, lambda p: signed(p, tag="pch2")),
    ("no binding at the edge", Reason.BINDING_MISSING, lambda p: dataclasses.replace(signed(p), binding=None)),
    ("no binding and no signature", Reason.BINDING_MISSING, lambda p: unsigned(binding=None)),
    (
        "binding of another connection",
        Reason.BINDING_MISMATCH,
        lambda p: dataclasses.replace(signed(p), binding=OTHER_BINDING),
    ),
    ("signed for another connection", Reason.BINDING_MISMATCH, lambda p: signed(p, binding=OTHER_BINDING)),
    ("binding header absent", Reason.MISSING_COMPONENT, lambda p: with_headers(signed(p), pch_channel_binding=None)),
    ("binding header empty", Reason.MALFORMED_SIGNATURE, lambda p: with_headers(signed(p), pch_channel_binding=b"")),
    (
        "binding header twice",
        Reason.MALFORMED_SIGNATURE,
        lambda p: add_header(signed(p), "pch-channel-binding", header(signed(p), "pch-channel-binding")),
    ),
    ("binding of 31 bytes", Reason.MALFORMED_SIGNATURE, lambda p: signed(p, binding=BINDING[:31])),
    ("binding of 33 bytes", Reason.MALFORMED_SIGNATURE, lambda p: signed(p, binding=BINDING + b"\x00")),
    (
        "other binding kind",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(
            signed(p), pch_channel_binding=header(signed(p), "pch-channel-binding").replace(b"exporter", b"exportes")
        ),
    ),
    (
        "binding on a route without one",
        Reason.MALFORMED_SIGNATURE,
        lambda p: edge_request(signed_message(p.keys["alice"], p.challenge(binding=bytes(32)), target="/unbound/a")),
    ),
    ("method", Reason.BAD_SIGNATURE, lambda p: with_message(signed(p), method="POST")),
    ("authority", Reason.STALE_CHALLENGE, lambda p: with_message(signed(p), authority="evil.example")),
    ("path", Reason.BAD_SIGNATURE, lambda p: with_message(signed(p), target="/protected/x")),
    ("query", Reason.BAD_SIGNATURE, lambda p: with_message(signed(p), target="/protected?x=1")),
    ("empty query", Reason.ALLOWED, lambda p: with_message(signed(p), target="/protected?")),
    ("covered field altered", Reason.BAD_SIGNATURE, lambda p: with_headers(ACCEPTED[4][1](p), x_note=b"m")),
    ("covered field absent", Reason.MISSING_COMPONENT, lambda p: with_headers(ACCEPTED[4][1](p), x_note=None)),
    ("covered field doubled", Reason.BAD_SIGNATURE, lambda p: add_header(ACCEPTED[4][1](p), "x-note", b"n")),
    ("covered field not ASCII", Reason.MISSING_COMPONENT, lambda p: with_headers(ACCEPTED[4][1](p), x_note=b"\xff")),
    ("signature bit", Reason.BAD_SIGNATURE, lambda p: flip_signature(signed(p))),
    (
        "content altered",
        Reason.BAD_CONTENT_DIGEST,
        lambda p: dataclasses.replace(signed(p, method="POST", body=b"hello"), body=b"hellO"),
    ),
    (
        "content digest altered",
        Reason.BAD_SIGNATURE,
        lambda p: with_headers(
            signed(p, method="POST", body=b"hello"), content_digest=b"sha-256=:" + b"A" * 43 + b"=:"
        ),
    ),
    ("content without digest", Reason.MISSING_COMPONENT, lambda p: dataclasses.replace(signed(p), body=b"x")),
    (
        "digest not covered",
        Reason.MISSING_COMPONENT,
        lambda p: signed(
            p, method="POST", body=b"x", components=("@method", "@authority", "@path", "@query", "pch-channel-binding")
        ),
    ),
    (
        "content length without content",
        Reason.MISSING_COMPONENT,
        lambda p: dataclasses.replace(signed(p), content_length=5),
    ),
    (
        "content cut by the edge",
        Reason.BODY_TOO_LARGE,
        lambda p: dataclasses.replace(signed(p, method="POST", body=b"x"), body_cut=True),
    ),
    (
        "content over the route's limit",
        Reason.BODY_TOO_LARGE,
        lambda p: signed(p, method="POST", target="/small", body=b"123456789"),
    ),
    *[
        (
            f"without {name}",
            Reason.MISSING_COMPONENT,
            lambda p, name=name: signed(
                p,
                components=tuple(
                    c for c in ("@method", "@authority", "@path", "@query", "pch-channel-binding") if c != name
                ),
            ),
        )
        for name in ("@method", "@authority", "@path", "@query", "pch-channel-binding")
    ],
    (
        "required component with a parameter",
        Reason.MISSING_COMPONENT,
        lambda p: param(signed(p), '"pch-channel-binding")', '"pch-channel-binding";sf)'),
    ),
    (
        "@request-target",
        Reason.MALFORMED_SIGNATURE,
        lambda p: param(signed(p), '"@query"', '"@query" "@request-target"'),
    ),
    (";req", Reason.MALFORMED_SIGNATURE, lambda p: param(signed(p), '"@query"', '"@query" "@method";req')),
    (";tr", Reason.MALFORMED_SIGNATURE, lambda p: param(signed(p), '"@query"', '"@query" "x";tr')),
    ("component twice", Reason.MALFORMED_SIGNATURE, lambda p: param(signed(p), '"@query"', '"@query" "@query"')),
    ("created in the future", Reason.EXPIRED_SIGNATURE, lambda p: signed(p, created_s=NOW_MS // 1000 + 3)),
    ("expired", Reason.EXPIRED_SIGNATURE, lambda p: signed(p, created_s=NOW_MS // 1000 - 63)),
    ("over-long", Reason.EXPIRED_SIGNATURE, lambda p: signed(p, lifetime_s=61)),
    (
        "expires before created",
        Reason.EXPIRED_SIGNATURE,
        lambda p: signed(p, created_s=NOW_MS // 1000 + 2, lifetime_s=-1),
    ),
    *[
        (f"without parameter {name}", Reason.MALFORMED_SIGNATURE, lambda p, name=name: signed(p, **{name: None}))
        for name in ("created", "expires", "keyid", "alg", "nonce")
    ],
    ("unknown parameter", Reason.MALFORMED_SIGNATURE, lambda p: param(signed(p), ';tag="pch"', ';tag="pch";x=1')),
    ("parameter twice", Reason.MALFORMED_SIGNATURE, lambda p: param(signed(p), ';tag="pch"', ';tag="pch";tag="pch"')),
    ("unknown key", Reason.UNKNOWN_KEY, lambda p: signed(p, keyid="A" * 43)),
    ("key not valid yet", Reason.UNKNOWN_KEY, lambda p: signed(p, "future")),
    ("key not valid any more", Reason.UNKNOWN_KEY, lambda p: signed(p, "past")),
    ("revoked key, valid signature", Reason.KEY_REVOKED, lambda p: signed(p, "revoked")),
    ("revoked key, bad signature", Reason.BAD_SIGNATURE, lambda p: flip_signature(signed(p, "revoked"))),
    ("another key's id", Reason.BAD_SIGNATURE, lambda p: signed(p, "bob", keyid=p.keys["alice"].signer.key_id)),
    (
        "algorithm contradicts the key",
        Reason.ALG_NOT_ALLOWED,
        lambda p: param(signed(p), "ed25519", "ecdsa-p256-sha256"),
    ),
    ("algorithm outside the route's list", Reason.ALG_NOT_ALLOWED, lambda p: signed(p, target="/p256")),
    ("algorithm nobody knows", Reason.ALG_NOT_ALLOWED, lambda p: param(signed(p), "ed25519", "none")),
    (
        "second half by the same key",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(
            signed(p),
            signature_input=header(s := signed(p), "signature-input")
            + b", b="
            + header(s, "signature-input")[4:]
            .replace(b'tag="pch"', b'tag="pch-pq"')
            .replace(b'alg="ed25519"', b'alg="ml-dsa-65"'),
            signature=header(s, "signature") + b", b=:AAAA:",
        ),
    ),
    (
        "two of one tag",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(
            s := signed(p),
            signature_input=header(s, "signature-input") + b", b=" + header(s, "signature-input")[4:],
            signature=header(s, "signature") + b", b=" + header(s, "signature")[4:],
        ),
    ),
    (
        "label twice",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(
            s := signed(p), signature_input=header(s, "signature-input") + b", " + header(s, "signature-input")
        ),
    ),
    (
        "label twice in Signature",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(s := signed(p), signature=header(s, "signature") + b", " + header(s, "signature")),
    ),
    (
        "unsigned extra label",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(s := signed(p), signature=header(s, "signature") + b", extra=:AAAA:"),
    ),
    ("Signature alone", Reason.MALFORMED_SIGNATURE, lambda p: with_headers(signed(p), signature_input=None)),
    ("Signature-Input alone", Reason.MALFORMED_SIGNATURE, lambda p: with_headers(signed(p), signature=None)),
    ("empty Signature-Input", Reason.MALFORMED_SIGNATURE, lambda p: with_headers(signed(p), signature_input=b"")),
    (
        "giant Signature-Input",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(signed(p), signature_input=b"pch=(" + b'"a" ' * 8000 + b")"),
    ),
    (
        "non-ASCII Signature-Input",
        Reason.MALFORMED_SIGNATURE,
        lambda p: with_headers(s := signed(p), signature_input=header(s, "signature-input") + b"\xc3\xa9"),
    ),
    ("not canonical", Reason.MALFORMED_SIGNATURE, lambda p: param(signed(p), '"@method" "', '"@method"  "')),
    ("signature as string", Reason.MALFORMED_SIGNATURE, lambda p: with_headers(signed(p), signature=b'pch="abc"')),
    (
        "nonce of another authority",
        Reason.STALE_CHALLENGE,
        lambda p: edge_request(signed_message(p.keys["alice"], p.challenge(authority="b.example"))),
    ),
    (
        "nonce of another realm",
        Reason.STALE_CHALLENGE,
        lambda p: edge_request(signed_message(p.keys["alice"], p.challenge(realm="other"))),
    ),
    (
        "nonce of another connection",
        Reason.STALE_CHALLENGE,
        lambda p: edge_request(signed_message(p.keys["alice"], p.challenge(binding=OTHER_BINDING))),
    ),
    ("forged nonce", Reason.STALE_CHALLENGE, lambda p: edge_request(signed_message(p.keys["alice"], "A" * 60))),
    (
        "padded nonce",
        Reason.STALE_CHALLENGE,
        lambda p: edge_request(signed_message(p.keys["alice"], p.challenge() + "==")),
    ),
    (
        "short nonce",
        Reason.STALE_CHALLENGE,
        lambda p: edge_request(signed_message(p.keys["alice"], p.challenge()[:-1])),
    ),
    ("empty nonce", Reason.STALE_CHALLENGE, lambda p: edge_request(signed_message(p.keys["alice"], ""))),
    ("subject not listed", Reason.POLICY_DENIED, lambda p: signed(p, "bob", target="/alice")),
    ("no route", Reason.NO_ROUTE, lambda p: signed(p, target="/elsewhere")),
    ("malformed authority", Reason.NO_ROUTE, lambda p: with_message(signed(p), authority="a@b")),
    ("dot segment", Reason.AMBIGUOUS_PATH, lambda p: unsigned("/public/../protected")),
    ("encoded slash", Reason.AMBIGUOUS_PATH, lambda p: signed(p, target="/protected/%2f")),
    (
        "header over the hard cap",
        Reason.HEADER_TOO_LARGE,
        lambda p: dataclasses.replace(signed(p), header_bytes=49_153),
    ),
    ("CONNECT", Reason.UPGRADE_REFUSED, lambda p: unsigned(method="CONNECT")),
    ("upgrade", Reason.UPGRADE_REFUSED, lambda p: add_header(signed(p), "upgrade", b"websocket")),
    (
        "connection: upgrade alone",
        Reason.UPGRADE_REFUSED,
        lambda p: add_header(signed(p), "connection", b"keep-alive, Upgrade"),
    ),
    (
        "upgrade with more in Connection",
        Reason.UPGRADE_REFUSED,
        lambda p: with_headers(ACCEPTED[10][1](p), connection=b"upgrade, x-signet-subject"),
    ),
    (
        "upgrade not covered",
        Reason.MISSING_COMPONENT,
        lambda p: with_headers(signed(p, target="/socket"), upgrade=b"websocket", connection=b"upgrade"),
    ),
    (
        "component too long for a receipt",
        Reason.MALFORMED_SIGNATURE,
        lambda p: signed(
            p,
            target="/protected?" + "a" * 500,
            components=(*BOUND_COMPONENTS, ComponentId("@query-param", (("name", "a" * 500),))),
        ),
    ),
    (
        "content taken away",
        Reason.BAD_CONTENT_DIGEST,
        lambda p: dataclasses.replace(signed(p, method="POST", body=b"hello"), body=b"", content_length=None),
    ),
    (
        "digest of content on a request without any",
        Reason.BAD_CONTENT_DIGEST,
        lambda p: add_header(signed(p), "content-digest", content_digest(b"hello").encode()),
    ),
    ("evidence not covered", Reason.MISSING_COMPONENT, lambda p: add_header(signed(p), "pch-evidence", b":e30=:")),
]


@pytest.mark.parametrize(("reason", "build"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
async def test_attack_is_refused_with_its_reason_and_recorded(parts: FilterParts, reason: Reason, build: Build) -> None:
    answer = await parts.answer(build(parts))
    assert answer.reason is reason
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    assert stored.reason == reason
    if reason is not Reason.ALLOWED:
        assert (stored.decision, stored.status) == ("deny", ANSWERS[reason].status)


async def test_failed_signature_never_burns_a_nonce(parts: FilterParts) -> None:
    good = signed(parts)
    assert (await parts.answer(flip_signature(good))).reason is Reason.BAD_SIGNATURE
    assert (await parts.answer(good)).reason is Reason.ALLOWED


async def test_same_bytes_on_another_stream_are_a_replay(parts: FilterParts) -> None:
    request = signed(parts)
    first = await parts.answer(request)
    again = await parts.answer(dataclasses.replace(request, stream_id="1002"))
    assert first.reason is Reason.ALLOWED
    assert again.reason is Reason.NONCE_REPLAY
    assert again.receipt_id != first.receipt_id
    assert (await parts.answer(dataclasses.replace(request, edge_instance="edge-2"))).reason is Reason.NONCE_REPLAY


async def test_retried_check_gets_the_first_decision_and_receipt(parts: FilterParts) -> None:
    request = signed(parts)
    first = await parts.answer(request)
    retried = await parts.answer(request)
    assert (retried.reason, retried.receipt_id) == (first.reason, first.receipt_id)
    parts.clock.now_ms += 10_001
    assert (await parts.answer(request)).reason is Reason.NONCE_REPLAY


async def test_retried_check_of_a_refusal_stays_refused(parts: FilterParts) -> None:
    """The stored decision stands even if what arrives the second time would pass."""
    good = signed(parts, method="POST", body=b"hello")
    bad = dataclasses.replace(good, body=b"hellO")
    first = await parts.answer(bad)
    retried = await parts.answer(good)
    assert first.reason is retried.reason is Reason.BAD_CONTENT_DIGEST
    assert retried.receipt_id == first.receipt_id


async def test_bad_digest_burns_the_nonce(parts: FilterParts) -> None:
    good = signed(parts, method="POST", body=b"hello")
    await parts.answer(dataclasses.replace(good, body=b"hellO"))
    assert (await parts.answer(dataclasses.replace(good, stream_id="2"))).reason is Reason.NONCE_REPLAY


async def test_open_route_passes_without_a_proof_and_is_recorded(parts: FilterParts) -> None:
    answer = await parts.answer(unsigned("/public/x", binding=None, body=b"any", body_cut=True))
    assert answer.reason is Reason.UNGUARDED
    assert answer.challenges == ()
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    assert json.loads(stored.raw)["request"]["content"] == "unchecked"


async def test_content_that_the_edge_streams_is_never_let_into_a_guarded_route(parts: FilterParts) -> None:
    good = signed(parts, method="POST", body=b"x")
    answer = await parts.answer(dataclasses.replace(good, streamed=True))
    assert answer.reason is Reason.INTERNAL
    assert (await parts.answer(good)).reason is Reason.ALLOWED
    assert (await parts.answer(unsigned("/public/x", streamed=True))).reason is Reason.UNGUARDED


async def test_receipt_of_an_upgrade_says_that_its_content_is_unbound(parts: FilterParts) -> None:
    answer = await parts.answer(ACCEPTED[10][1](parts))
    assert answer.reason is Reason.ALLOWED
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    assert json.loads(stored.raw)["request"]["content"] == "unbound"


async def test_every_answer_on_a_bound_route_brings_challenges_that_work(parts: FilterParts) -> None:
    refused = await parts.answer(unsigned())
    assert len(refused.challenges) == 1
    request = edge_request(signed_message(parts.keys["alice"], refused.challenges[0]))
    allowed = await parts.answer(request)
    assert allowed.reason is Reason.ALLOWED
    following = edge_request(signed_message(parts.keys["alice"], allowed.challenges[0]), stream_id="2")
    assert (await parts.answer(following)).reason is Reason.ALLOWED


async def test_no_challenge_leaves_without_a_binding(parts: FilterParts) -> None:
    assert (await parts.answer(unsigned(binding=None))).challenges == ()


async def test_challenge_of_a_former_epoch_lasts_for_max_age(parts: FilterParts) -> None:
    request = signed(parts)
    parts.clock.now_ms += 62_001
    late = dataclasses.replace(request)
    assert (await parts.answer(late)).reason is Reason.STALE_CHALLENGE


async def test_verified_request_cannot_be_made_by_hand(parts: FilterParts) -> None:
    answer = await parts.answer(signed(parts))
    assert answer.verified is not None
    with pytest.raises(TypeError):
        VerifiedRequest(
            answer.verified.admitted,
            answer.verified.signatures,
            {},
            answer.verified.challenge,
            b"",
            object(),
        )


async def test_refusals_that_flood_are_counted_in_one_summary(parts: FilterParts) -> None:
    limit = parts.config.receipts.max_refusal_receipts_per_s
    answers = [await parts.answer(unsigned()) for _ in range(limit + 25)]
    assert all(answer.reason is Reason.MISSING_SIGNATURE for answer in answers)
    assert sum(answer.receipt_id is not None for answer in answers) == limit
    (summary,) = parts.refusals.due(parts.clock.now_ms + 1000)
    assert summary.counts == {"missing_signature": 25}
    assert (await parts.answer(signed(parts))).receipt_id is not None


async def test_what_anyone_can_send_is_recorded_briefly_and_what_was_proved_whole(parts: FilterParts) -> None:
    target = "/protected/" + "x" * 8000
    stranger = await parts.answer(unsigned(target))
    proved = await parts.answer(signed(parts, target=target))
    assert stranger.receipt_id is not None
    assert proved.receipt_id is not None
    brief, whole = parts.store.get(stranger.receipt_id), parts.store.get(proved.receipt_id)
    assert isinstance(brief, StoredReceipt)
    assert isinstance(whole, StoredReceipt)
    assert len(brief.raw) < 1200
    assert json.loads(brief.raw)["request"]["truncated"] == ["path"]
    assert json.loads(brief.raw)["request"]["path"] == target[:MAX_BRIEF_CHARS]
    assert json.loads(whole.raw)["request"]["path"] == target


async def test_receipt_that_cannot_be_written_refuses_the_request(parts: FilterParts) -> None:
    await parts.writer.aclose(1.0)
    answer = await parts.answer(signed(parts))
    assert answer.reason is Reason.STORE_UNAVAILABLE
    assert answer.receipt_id is None


async def test_nonce_store_that_fails_refuses_the_request(parts: FilterParts) -> None:
    full = MemoryNonceStore(max_age_s=60, clock_ms=lambda: NOW_MS - 60_000, max_entries=1)
    parts.pipeline = Pipeline(dataclasses.replace(parts.parts, nonce_store=full))
    assert (await parts.answer(signed(parts))).reason is Reason.ALLOWED
    refused = await parts.answer(signed(parts))
    assert refused.reason is Reason.STORE_UNAVAILABLE
    assert refused.receipt_id is not None


async def test_more_than_admitted_in_flight_is_refused(parts: FilterParts, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    settings = dataclasses.replace(parts.config.filter, max_inflight_requests=5)
    parts.rules = dataclasses.replace(parts.rules, config=dataclasses.replace(parts.config, filter=settings))
    requests = [dataclasses.replace(signed(parts), stream_id=str(number)) for number in range(12)]
    answers = await asyncio.gather(*(parts.answer(request) for request in requests))
    reasons = [answer.reason for answer in answers]
    assert reasons.count(Reason.ALLOWED) == 4
    assert reasons.count(Reason.INTERNAL) == 8
    assert (await parts.answer(signed(parts))).reason is Reason.ALLOWED
