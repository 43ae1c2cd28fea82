"""The attack table on the real stack: Envoy with edge A, two filter processes, the example app.

Every accepted request is spoilt in each place that its signature protects. The tables of attack_proof_cases.py and
attack_http_cases.py do what an attacker can do without a valid request, or beside one. Each row has to get its status
and reason, to leave a receipt that says the same (or, where Envoy refuses by itself, none), and never to reach the app.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from pch.reasons import Reason
from tests.e2e.attack_accepted import ACCEPTED, IN_THE_SKEW, NOT_FOR_THE_APP, OTHER_CONTENT, SPOILED, Accepted, Spoiling
from tests.e2e.attack_case import HTTP2, Case, check_filter_answer, check_refusal, refused
from tests.e2e.attack_http_cases import HTTP_CASES
from tests.e2e.attack_proof_cases import PROOF_CASES
from tests.e2e.attack_stage import Attacker, attack, body_of

if TYPE_CHECKING:
    from tests.e2e.attack_request import Request
    from tests.e2e.attack_stage import Stage

pytestmark = pytest.mark.e2e


def _rows(*tables: tuple[Any, ...]) -> list[Any]:
    rows = [(row, protocol) for table in tables for row in table for protocol in row.protocols]
    return [pytest.param(row, protocol, id=f"{row.name}-{protocol}") for row, protocol in rows]


def _pass(stage: Stage, attacker: Attacker, request: Request, row: Accepted) -> None:
    """Send `request`; it passes, and the app gets what was signed, the verifier's words, and nothing of the proof."""
    answer = attacker.send(request)
    assert (answer.status, answer.reason) == (200, None)
    assert answer.receipt_id is not None
    (record,) = stage.seen_by_app()
    assert (record["method"], record["target"]) == (request.method, request.target)
    assert record["authority"] == request.authority
    assert body_of(record) == request.body
    fields = [(name.lower(), value) for name, value in record["headers"]]
    identity = {name: value for name, value in fields if name.startswith("x-signet-")}
    assert identity.pop("x-signet-key-id")
    assert identity == {
        "x-signet-subject": row.subject,
        "x-signet-alg": row.alg,
        "x-signet-binding": row.binding,
        "x-signet-receipt": answer.receipt_id,
    }
    assert record["trailers"] == []
    assert not [name for name, _ in fields if name.startswith("pch-") or name in NOT_FOR_THE_APP]
    for name, value in request.headers:
        if name in {"x-note", "x-big", "content-digest"}:
            assert (name, value.decode()) in fields
    receipt = stage.receipt(answer.receipt_id)
    assert (receipt["decision"], receipt["reason"]) == ("allow", "allowed")
    assert receipt["request"]["path"] == request.target.partition("?")[0]
    assert receipt["proof"]["subject"] == row.subject


@pytest.mark.parametrize(("row", "protocol"), _rows(ACCEPTED, IN_THE_SKEW))
def test_valid_request_reaches_the_app_as_it_was_signed_and_only_once(
    sqlite_stage: Stage, row: Accepted, protocol: str
) -> None:
    with attack(sqlite_stage, protocol) as attacker:
        request = row.build(attacker)
        _pass(sqlite_stage, attacker, request, row)
        replayed = attacker.send(request)
        check_filter_answer(sqlite_stage, attacker, Reason.NONCE_REPLAY, replayed, method=request.method)
        assert sqlite_stage.seen_by_app() == []


@pytest.mark.parametrize(("row", "protocol"), _rows(ACCEPTED))
def test_valid_request_changed_in_any_one_place_is_refused_and_stays_good_itself(
    sqlite_stage: Stage, row: Accepted, protocol: str
) -> None:
    """A failed signature never burns the challenge: after all of them the request itself still passes."""
    with attack(sqlite_stage, protocol) as attacker:
        request = row.build(attacker)
        for spoiling in SPOILED:
            if spoiling.applies(row):
                _refused(attacker, spoiling, request)
        _pass(sqlite_stage, attacker, request, row)


def _refused(attacker: Attacker, spoiling: Spoiling, request: Request) -> None:
    changed = spoiling.change(request)
    assert changed != request
    case = refused(spoiling.name, spoiling.reason, lambda a: a.send(changed))
    check_refusal(attacker.stage, attacker, case, case.send(attacker), method=changed.method)


CONTENT_ROWS = tuple(row for row in ACCEPTED if row.content)


@pytest.mark.parametrize(("row", "protocol"), _rows(CONTENT_ROWS))
def test_valid_request_with_other_content_is_refused_and_spends_its_challenge(
    sqlite_stage: Stage, row: Accepted, protocol: str
) -> None:
    with attack(sqlite_stage, protocol) as attacker:
        request = row.build(attacker)
        _refused(attacker, OTHER_CONTENT, request)
        # HTTP/1.1: Envoy closes after a 400, so that this connection's challenges are worth nothing any more.
        expected = Reason.NONCE_REPLAY if protocol == "http2" else None
        assert attacker.send(request).reason == expected
        assert sqlite_stage.seen_by_app() == []


BOUND_ROWS = tuple(row for row in ACCEPTED if row.binding != "none")


@pytest.mark.parametrize(("row", "protocol"), _rows(BOUND_ROWS))
def test_valid_request_is_refused_on_any_other_connection(sqlite_stage: Stage, row: Accepted, protocol: str) -> None:
    with attack(sqlite_stage, protocol) as attacker:
        request = row.build(attacker)
        answer = attacker.connect().send(request)
        check_filter_answer(sqlite_stage, attacker, Reason.BINDING_MISMATCH, answer, method=request.method)
        assert sqlite_stage.seen_by_app() == []
        _pass(sqlite_stage, attacker, request, row)


ANSWERED = tuple(case for case in (*PROOF_CASES, *HTTP_CASES) if case.status)
RESET = tuple(case for case in (*PROOF_CASES, *HTTP_CASES) if not case.status)


@pytest.mark.parametrize(("case", "protocol"), _rows(ANSWERED))
def test_attack_is_refused_recorded_and_never_reaches_the_app(sqlite_stage: Stage, case: Case, protocol: str) -> None:
    with attack(sqlite_stage, protocol) as attacker:
        check_refusal(sqlite_stage, attacker, case, case.send(attacker))


def test_every_malformed_http2_request_is_reset_and_never_reaches_the_app(sqlite_stage: Stage) -> None:
    """All at once: Envoy takes a second to close such a connection. They are the rows without an answer."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(RESET)) as pool:
        attackers = [stack.enter_context(attack(sqlite_stage, "http2")) for _ in RESET]
        sent = [pool.submit(case.send, attacker) for case, attacker in zip(RESET, attackers, strict=True)]
        statuses = {case.name: each.result().status for case, each in zip(RESET, sent, strict=True)}
        assert statuses == {case.name: 0 for case in RESET}
        for attacker in attackers:
            assert {each["reason"] for each in sqlite_stage.receipts_of(attacker.marker)} <= {"missing_signature"}
        assert sqlite_stage.seen_by_app() == []
    assert all(case.protocols == HTTP2 for case in RESET)
    assert len(RESET) >= 20
