"""Attacks below and beside single requests: TLS, content that never ends, gRPC, the open route, a failing app."""

from __future__ import annotations

import hashlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from pch.reasons import ANSWERS, Reason
from tests.e2e.attack_accepted import FORGED, OVERRIDES, post
from tests.e2e.attack_stage import attack
from tests.e2e.attack_wire import Http1Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.attack_request import Request
    from tests.e2e.attack_stage import Attacker, Stage

pytestmark = pytest.mark.e2e

GRPC = (("content-type", b"application/grpc"), ("te", b"trailers"))
MESSAGE = b"\0\0\0\0\0"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


# -- TLS


def test_older_tls_gets_no_handshake(sqlite_stage: Stage) -> None:
    context = ssl.create_default_context(cafile=sqlite_stage.stack.files.tls / "ca.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(sqlite_stage.address, 10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_cleartext_gets_no_answer_and_reaches_no_one(sqlite_stage: Stage) -> None:
    with attack(sqlite_stage, "http1") as attacker:
        request = attacker.signed()
        with socket.create_connection(sqlite_stage.address, 10) as plain:
            plain.sendall(request.http1())
            received = b""
            while data := plain.recv(4096):
                received += data
        assert not received.startswith(b"HTTP/")
        assert sqlite_stage.seen_by_app() == []
        assert attacker.send(request).status == 200, "nothing was spent"


# -- content that never ends


@pytest.mark.parametrize("sent", [0, 1, 700])
@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_signed_request_whose_content_breaks_off_is_never_asked_about(
    sqlite_stage: Stage, protocol: str, sent: int
) -> None:
    """The app sees nothing before the answer, and the answer needs the whole content; nothing is spent either."""
    with attack(sqlite_stage, protocol) as attacker:
        request = attacker.signed(post(attacker))
        session = attacker.session
        if isinstance(session, Http1Session):
            head, _, body = request.http1().partition(b"\r\n\r\n")
            session.wire.send(head + b"\r\n\r\n" + body[:sent])
        else:
            session.break_off(request, sent)
            assert session.send(request).status == 200, "the request itself is still good"
            assert len(sqlite_stage.seen_by_app()) == 1
        session.close()
        with attack(sqlite_stage, protocol) as other:
            assert other.send(other.request()).reason == "missing_signature"
        assert sqlite_stage.seen_by_app() == []
        decided = [each["reason"] for each in sqlite_stage.receipts_of(attacker.marker)]
        assert decided == (["missing_signature"] if protocol == "http1" else ["allowed", "missing_signature"])


# -- gRPC


@pytest.mark.parametrize(
    ("reason", "build"),
    [
        (Reason.MISSING_SIGNATURE, lambda a, call: call),
        (Reason.BAD_SIGNATURE, lambda a, call: a.signed(call).flipped()),
        (Reason.BINDING_MISMATCH, lambda a, call: a.signed(call, binding=bytes(32))),
        (Reason.AMBIGUOUS_PATH, lambda a, call: a.signed(call.but(target=call.target + "//x"))),
        (Reason.BODY_TOO_LARGE, lambda a, call: a.signed(call.but(target=a.target("/small"), body=MESSAGE * 2))),
        (Reason.UNKNOWN_KEY, lambda a, call: a.signed(call, "stranger")),
    ],
    ids=str,
)
def test_refused_grpc_call_carries_the_reasons_status(
    sqlite_stage: Stage, reason: Reason, build: Callable[[Attacker, Request], Request]
) -> None:
    """PCH §8. The edge turns the refusal into a gRPC answer: HTTP 200 with grpc-status."""
    with attack(sqlite_stage, "http2") as attacker:
        answer = attacker.send(build(attacker, attacker.request(method="POST", headers=GRPC, body=MESSAGE)))
        assert (answer.status, answer.reason, answer.body) == (200, str(reason), b"")
        assert answer.get("grpc-status") == str(ANSWERS[reason].grpc_status)
        receipt = sqlite_stage.receipt(answer.receipt_id or "")
        assert (receipt["reason"], receipt["status"]) == (reason, ANSWERS[reason].status)
        assert sqlite_stage.seen_by_app() == []


def test_signed_grpc_call_passes_with_its_content_type(sqlite_stage: Stage) -> None:
    with attack(sqlite_stage, "http2") as attacker:
        assert attacker.send(attacker.signed(attacker.request(method="POST", headers=GRPC, body=MESSAGE))).status == 200
        (record,) = sqlite_stage.seen_by_app()
        assert ("content-type", "application/grpc") in [tuple(line) for line in record["headers"]]


# -- the open route and the app


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_open_route_passes_no_identity_that_no_one_proved(sqlite_stage: Stage, protocol: str) -> None:
    with attack(sqlite_stage, protocol) as attacker:
        headers = (*FORGED, *OVERRIDES)
        request = attacker.request(attacker.target("/public"), "POST", headers=headers, body=b"x", framing="chunked")
        assert attacker.send(request.but(trailers=FORGED)).status == 200
        assert attacker.send(request.but(body=b"x" * 300_000)).status == 200
        for record in sqlite_stage.seen_by_app():
            names = {name.lower() for name, _ in record["headers"]}
            assert not [name for name in names if name.startswith("x-signet-")]
            assert not names & {name for name, _ in OVERRIDES}
            assert record["trailers"] == []
        (first, second) = sqlite_stage.receipts_of(attacker.marker)
        assert {each["reason"] for each in (first, second)} == {"unguarded"}
        assert {each["proof"] for each in (first, second)} == {None}


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_one_proof_is_one_request_upstream_even_if_the_app_breaks_off(sqlite_stage: Stage, protocol: str) -> None:
    with attack(sqlite_stage, protocol) as attacker:
        request = attacker.signed(attacker.request(attacker.target(rest="?drop=1"), "POST", body=b"x"))
        answer = attacker.send(request)
        assert (answer.status, answer.reason) == (503, "internal")
        assert len(sqlite_stage.seen_by_app()) == 1
        assert attacker.send(request).reason == "nonce_replay"
        assert sqlite_stage.seen_by_app() == []


# -- the ledger; it comes last on purpose


@pytest.mark.parametrize("kind", ["sqlite", "redis", "unbound"])
def test_every_request_that_the_app_ever_logged_was_allowed_by_a_receipt_of_its_own(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Over all tests that shared the stack: no entry of the app's log lacks the receipt that allowed exactly it."""
    stage: Stage = request.getfixturevalue(f"{kind}_stage")
    with attack(stage, "http2") as attacker:
        asked = attacker.request(attacker.target("/unbound"))
        challenge = attacker.send(asked).challenges[0]
        assert attacker.send(attacker.signed(asked, binding=None, challenge=challenge)).status == 200
    receipts = set()
    guarded = [each for each in stage.stack.app_requests() if not each["target"].startswith("/public/")]
    for record in guarded:
        headers = {name.lower(): value for name, value in record["headers"]}
        receipt = stage.receipt(headers["x-signet-receipt"])
        receipts.add(receipt["id"])
        assert (receipt["decision"], receipt["reason"]) == ("allow", "allowed")
        assert receipt["request"]["method"] == record["method"]
        assert receipt["request"]["path"] == record["target"].partition("?")[0]
        assert receipt["proof"]["subject"] == headers["x-signet-subject"]
        assert (receipt["request"]["content_sha256"] or EMPTY_SHA256) == record["body_sha256"]
    assert len(receipts) == len(guarded) > 0, "one receipt, one request upstream"
