"""What Envoy is told: never an answer that Envoy would read as a pass by accident."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from envoy.config.core.v3.base_pb2 import HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from extproc.decision import Answer
from extproc.response import check_response, refusal_without_request
from pch.httpsig.message import RequestMessage
from pch.reasons import ANSWERS, Reason
from tests.support.filter_parts import FilterParts, KeyPair, edge_request, signed_message


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FilterParts]:
    built = FilterParts(tmp_path, {"alice": KeyPair.new("alice")})
    await built.start()
    yield built
    await built.stop()


def denied_headers(response: CheckResponse) -> dict[str, str]:
    return {option.header.key: option.header.value for option in response.denied_response.headers}


def unsigned(method: str = "GET", target: str = "/protected", **changes: object) -> object:
    return edge_request(RequestMessage(method, "https", "app.example", target, ()), **changes)


async def refused(parts: FilterParts, **changes: object) -> Answer:
    return await parts.answer(unsigned(**changes))  # type: ignore[arg-type]


async def test_refusal_carries_challenge_reason_and_problem_document(parts: FilterParts) -> None:
    answer = await refused(parts)
    response = check_response(answer)
    assert response.denied_response.status.code == 401
    assert response.status.code != 0
    headers = denied_headers(response)
    assert headers["cache-control"] == "no-store"
    assert headers["pch-reason"] == "missing_signature"
    assert headers["pch-challenge"] == f'"{answer.challenges[0]}"'
    assert headers["pch-receipt"] == f'"{answer.receipt_id}"'
    assert headers["www-authenticate"] == (
        f'PCH realm="signet", challenge="{answer.challenges[0]}", algs="ed25519 ecdsa-p256-sha256", mode="and", '
        'binding="tls-exporter", max-age=60, evidence="none"'
    )
    assert headers["accept-signature"] == (
        'pch=("@method" "@authority" "@path" "@query" "pch-channel-binding");created;expires;'
        f'nonce="{answer.challenges[0]}";tag="pch"'
    )
    problem = json.loads(response.denied_response.body)
    assert set(problem) == {"type", "title", "status", "detail", "reason"}
    assert (problem["status"], problem["reason"]) == (401, "missing_signature")


async def test_accept_signature_asks_for_the_digest_of_content(parts: FilterParts) -> None:
    headers = denied_headers(check_response(await refused(parts, method="POST", body=b"x")))
    assert '"content-digest" "pch-channel-binding"' in headers["accept-signature"]


async def test_head_has_no_body(parts: FilterParts) -> None:
    assert check_response(await refused(parts, method="HEAD")).denied_response.body == ""


async def test_grpc_is_told_its_status(parts: FilterParts) -> None:
    response = check_response(await refused(parts, method="POST", is_grpc=True))
    headers = denied_headers(response)
    assert (headers["grpc-status"], headers["grpc-message"]) == ("16", "missing_signature")
    assert response.denied_response.body == ""


@pytest.mark.parametrize("reason", list(Reason))
async def test_no_reason_but_the_two_allowing_ones_lets_a_request_through(parts: FilterParts, reason: Reason) -> None:
    """Neither of the two either, where the answer does not hold what they need."""
    response = check_response(dataclasses.replace(await refused(parts), reason=reason))
    assert response.WhichOneof("http_response") == "denied_response"
    assert response.denied_response.status.code >= 400
    assert response.status.code != 0
    if reason in ANSWERS:
        assert response.denied_response.status.code == ANSWERS[reason].status


@pytest.mark.parametrize("reason", [Reason.STORE_UNAVAILABLE, Reason.POLICY_UNAVAILABLE, Reason.INTERNAL])
async def test_what_passes_with_time_says_when_to_come_again(parts: FilterParts, reason: Reason) -> None:
    headers = denied_headers(check_response(dataclasses.replace(await refused(parts), reason=reason)))
    assert headers["retry-after"] == "1"
    assert "www-authenticate" not in headers


def test_undecodable_check_is_refused() -> None:
    response = refusal_without_request()
    assert response.denied_response.status.code == 503
    assert response.status.code != 0


async def test_allowed_request_gets_identity_and_loses_what_ends_here(parts: FilterParts) -> None:
    message = signed_message(parts.keys["alice"], parts.challenge(), headers=(("pch-anything", b"x"),))
    answer = await parts.answer(edge_request(message))
    response = check_response(answer)
    assert response.status.code == 0
    added = {option.header.key: option for option in response.ok_response.headers}
    assert {name: option.header.value for name, option in added.items()} == {
        "x-signet-subject": "alice",
        "x-signet-key-id": parts.keys["alice"].signer.key_id,
        "x-signet-alg": "ed25519",
        "x-signet-binding": "tls-exporter",
        "x-signet-receipt": answer.receipt_id,
    }
    overwrite = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    assert {option.append_action for option in added.values()} == {overwrite}
    assert sorted(response.ok_response.headers_to_remove) == [
        "pch-anything",
        "pch-channel-binding",
        "signature",
        "signature-input",
    ]
    assert not any(name.startswith("x-signet") for name in response.ok_response.headers_to_remove)
    back = {option.header.key: option for option in response.ok_response.response_headers_to_add}
    assert back["pch-challenge"].header.value == f'"{answer.challenges[0]}"'
    assert back["pch-receipt"].header.value == f'"{answer.receipt_id}"'
    assert back["cache-control"].header.value == "private"
    assert back["cache-control"].append_action == HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
    assert response.dynamic_metadata["receipt"] == answer.receipt_id


async def test_foreign_signatures_are_passed_on_without_pch_ones(parts: FilterParts) -> None:
    message = signed_message(parts.keys["alice"], parts.challenge())
    lines = dict(message.headers)
    lines["signature-input"] += b', other=("@method");tag="other"'
    lines["signature"] += b", other=:AAAA:"
    answer = await parts.answer(edge_request(dataclasses.replace(message, headers=tuple(lines.items()))))
    response = check_response(answer)
    added = {option.header.key: option.header.value for option in response.ok_response.headers}
    assert added["signature-input"] == 'other=("@method");tag="other"'
    assert added["signature"] == "other=:AAAA:"
    assert list(response.ok_response.headers_to_remove) == ["pch-channel-binding"]


async def test_open_route_adds_nothing_but_what_the_access_log_needs(parts: FilterParts) -> None:
    answer = await refused(parts, target="/public/x")
    response = check_response(answer)
    assert response.WhichOneof("http_response") == "ok_response"
    assert not response.ok_response.headers
    assert not response.ok_response.response_headers_to_add
    assert response.dynamic_metadata["receipt"] == answer.receipt_id is not None
    without = check_response(dataclasses.replace(answer, receipt_id=None))
    assert "receipt" not in without.dynamic_metadata


WRITTEN = ("x-signet-subject", "x-signet-key-id", "x-signet-alg", "x-signet-binding", "x-signet-receipt")
CLAIMED = tuple((name, b"root") for name in (*WRITTEN, "x-signet-role", "x-signet-role", "x-signet-", "x-signets"))


async def test_pass_takes_away_claimed_identity_but_never_what_the_verifier_writes(parts: FilterParts) -> None:
    message = signed_message(parts.keys["alice"], parts.challenge(), headers=CLAIMED)
    response = check_response(await parts.answer(edge_request(message)))
    assert response.status.code == 0
    removed = [name for name in response.ok_response.headers_to_remove if name.startswith("x-")]
    assert removed == ["x-signet-", "x-signet-role"]
    assert {option.header.key for option in response.ok_response.headers} == set(WRITTEN)


async def test_open_route_takes_away_every_claimed_identity(parts: FilterParts) -> None:
    """Nothing is written here, so what a client says of itself would be all that the app sees."""
    message = RequestMessage("GET", "https", "app.example", "/public/x", CLAIMED)
    response = check_response(await parts.answer(edge_request(message)))
    assert response.WhichOneof("http_response") == "ok_response"
    assert list(response.ok_response.headers_to_remove) == sorted([*WRITTEN, "x-signet-", "x-signet-role"])
    assert not response.ok_response.headers
