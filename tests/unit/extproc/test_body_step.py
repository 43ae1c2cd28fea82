"""Step 11: what the Check has whole it checks, what goes on it leaves pending, and nothing in between passes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from extproc.body_order import ORDER_HEADER, ORDERED
from extproc.decision import Answer
from extproc.response import check_response
from pch.httpsig.content_digest import content_digest
from pch.reasons import Reason
from receipts.receipt import DecisionReceipt, parse_receipt
from tests.support.filter_parts import CONFIG, FilterParts, KeyPair, edge_request, signed_message

BODY = b"0123456789"
ROUTES = """
[[route]]
name = "uploads"
path = "/uploads"
body = "streamed"
max_body_bytes = 1000
[[route]]
name = "held"
path = "/held"
max_body_bytes = 1000
"""


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    made = FilterParts(tmp_path, {"alice": KeyPair.new("alice")}, CONFIG + ROUTES)
    await made.start()
    yield made
    await made.stop()


async def ask(parts: FilterParts, target: str = "/uploads", **changes: Any) -> Answer:
    key = parts.keys["alice"]
    message = signed_message(key, parts.challenge(), method="POST", target=target, body=BODY)
    values = {"body": BODY[:4], "body_cut": True, "deferrable": True}
    return await parts.answer(edge_request(message, **(values | changes)))


def receipt_of(parts: FilterParts, answer: Answer) -> DecisionReceipt:
    assert answer.receipt_id is not None
    stored = parts.store.get(answer.receipt_id)
    assert stored is not None
    found = parse_receipt(stored.raw)
    assert isinstance(found, DecisionReceipt)
    return found


@pytest.mark.parametrize(("target", "release"), [("/uploads", "streamed"), ("/held", "whole")])
async def test_body_that_goes_on_is_left_pending_with_an_order(parts: FilterParts, target: str, release: str) -> None:
    answer = await ask(parts, target)
    assert answer.reason is Reason.BODY_PENDING
    order = answer.order
    assert order is not None
    assert (order.receipt_id, order.pending, order.release) == (answer.receipt_id, True, release)
    assert (order.content_bytes, order.max_body_bytes, order.envelope_bytes) == (len(BODY), 1000, 0)
    assert order.digests == {"sha-256": hashlib.sha256(BODY).digest()}
    receipt = receipt_of(parts, answer)
    assert (receipt.decision, receipt.reason, receipt.status) == ("allow", "body_pending", None)
    assert (receipt.request.content, receipt.request.content_sha256) == ("pending", None)
    assert receipt.proof is not None
    assert receipt.proof.content_sha256 == hashlib.sha256(BODY).hexdigest()
    assert receipt.policy is not None
    assert receipt.policy.input["body_bytes"] == len(BODY)


async def test_order_goes_to_the_edge_as_a_header_and_as_metadata(parts: FilterParts) -> None:
    answer = await ask(parts)
    assert answer.order is not None
    response = check_response(answer)
    headers = {each.header.key: each.header.value for each in response.ok_response.headers}
    assert headers[ORDER_HEADER] == ORDERED
    metadata = dict(response.dynamic_metadata.items())
    assert metadata["decision"] == "allow"
    assert metadata["receipt"] == answer.receipt_id
    assert answer.order.facts().items() <= metadata.items()


async def test_body_that_is_all_there_starts_nothing(parts: FilterParts) -> None:
    answer = await ask(parts, body_cut=False, body=BODY)
    assert (answer.reason, answer.order) == (Reason.ALLOWED, None)
    response = check_response(answer)
    assert ORDER_HEADER not in {each.header.key for each in response.ok_response.headers}
    assert not [name for name in response.dynamic_metadata.fields if name.startswith("body")]
    receipt = receipt_of(parts, answer)
    assert (receipt.reason, receipt.request.content) == ("allowed", "verified")


async def test_pending_without_an_order_does_not_pass(parts: FilterParts) -> None:
    answer = dataclasses.replace(await ask(parts), order=None)
    response = check_response(answer)
    assert response.WhichOneof("http_response") == "denied_response"
    assert response.denied_response.status.code == 503


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"deferrable": False}, Reason.BODY_TOO_LARGE),
        ({"content_length": 1001}, Reason.BODY_TOO_LARGE),
        ({"body": b"x" * 1001, "content_length": None}, Reason.BODY_TOO_LARGE),
        ({"streamed": True}, Reason.INTERNAL),
    ],
)
async def test_body_that_may_not_go_on_is_refused(parts: FilterParts, changes: dict[str, Any], reason: Reason) -> None:
    answer = await ask(parts, **changes)
    assert (answer.reason, answer.order) == (reason, None)


@pytest.mark.parametrize("digest", ["", "sha-512=:AAAA:", "sha-256=nothing", "md5=:AAAA:", "sha-256=:AAAA:, sha-256"])
async def test_digest_that_could_never_hold_is_refused_before_the_body_goes_on(parts: FilterParts, digest: str) -> None:
    key = parts.keys["alice"]
    names = ("@method", "@authority", "@path", "@query", "content-digest", "pch-channel-binding")
    fields = (("content-digest", digest.encode()),) if digest else ()
    message = signed_message(
        key,
        parts.challenge(),
        method="POST",
        target="/uploads",
        headers=fields,
        components=names if digest else names[:4] + names[5:],
    )
    answer = await parts.answer(edge_request(message, body=BODY, body_cut=True, deferrable=True))
    assert answer.reason is (Reason.BAD_CONTENT_DIGEST if digest else Reason.MISSING_COMPONENT)
    assert answer.order is None


async def test_both_digests_are_ordered(parts: FilterParts) -> None:
    names = ("@method", "@authority", "@path", "@query", "content-digest", "pch-channel-binding")
    digest = content_digest(BODY, ("sha-512", "sha-256")) + ", unixsum=:AAAA:"
    message = signed_message(
        parts.keys["alice"],
        parts.challenge(),
        method="POST",
        target="/uploads",
        headers=(("content-digest", digest.encode()),),
        components=names,
    )
    answer = await parts.answer(edge_request(message, body=BODY, body_cut=True, deferrable=True))
    assert answer.order is not None
    assert answer.order.digests == {
        "sha-256": hashlib.sha256(BODY).digest(),
        "sha-512": hashlib.sha512(BODY).digest(),
    }
    assert answer.order.content_bytes is None


async def test_retried_check_gets_the_same_order(parts: FilterParts) -> None:
    message = signed_message(parts.keys["alice"], parts.challenge(), method="POST", target="/uploads", body=BODY)
    request = edge_request(message, body=BODY[:4], body_cut=True, deferrable=True)
    first, second = await parts.answer(request), await parts.answer(request)
    assert first.order == second.order
    assert first.order is not None


async def test_decision_about_a_whole_body_is_none_about_one_still_to_come(parts: FilterParts) -> None:
    message = signed_message(parts.keys["alice"], parts.challenge(), method="POST", target="/uploads", body=BODY)
    whole = edge_request(message, body=BODY)
    assert (await parts.answer(whole)).reason is Reason.ALLOWED
    later = await parts.answer(dataclasses.replace(whole, body=BODY[:4], body_cut=True, deferrable=True))
    assert (later.reason, later.order) == (Reason.INTERNAL, None)


async def test_bad_digest_consumes_the_challenge(parts: FilterParts) -> None:
    message = signed_message(parts.keys["alice"], parts.challenge(), method="POST", target="/uploads", body=BODY)
    first = await parts.answer(edge_request(message, body=b"x" + BODY[1:]))
    second = await parts.answer(edge_request(message, body=BODY, stream_id="1002"))
    assert (first.reason, second.reason) == (Reason.BAD_CONTENT_DIGEST, Reason.NONCE_REPLAY)
