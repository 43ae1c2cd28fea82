"""What one row of the attack table says, and what has to hold after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pch.reasons import ANSWERS, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.attack_stage import Attacker, Stage
    from tests.e2e.attack_wire import Answer

BOTH: Final = ("http1", "http2")
HTTP1: Final = ("http1",)
HTTP2: Final = ("http2",)


@dataclass(frozen=True, slots=True)
class Case:
    """An attack and its answer.

    `answered_by`: `filter`, which leaves a receipt, or `edge`: Envoy refuses by itself, before any filter is asked, so
    there is no Check and no receipt. An edge answer lacks a reason where no reason of the protocol fits. `status` 0:
    the stream or the connection is reset.
    """

    name: str
    status: int
    reason: Reason | None
    send: Callable[[Attacker], Answer]
    protocols: tuple[str, ...] = BOTH
    answered_by: str = "filter"


def refused(name: str, reason: Reason, send: Callable[[Attacker], Answer], protocols: tuple[str, ...] = BOTH) -> Case:
    """A row that the filter answers, with the status that PCH §5 gives the reason."""
    return Case(name, ANSWERS[reason].status, reason, send, protocols)


def by_edge(
    name: str,
    status: int,
    send: Callable[[Attacker], Answer],
    protocols: tuple[str, ...] = BOTH,
    reason: Reason | None = None,
) -> Case:
    """A row that Envoy answers without a question to the filter."""
    return Case(name, status, reason, send, protocols, "edge")


def check_refusal(stage: Stage, attacker: Attacker, case: Case, answer: Answer, *, method: str = "GET") -> None:
    """Check everything that PCH §5 promises of this refusal, and that the app heard nothing."""
    reason = None if case.reason is None else str(case.reason)
    assert (case.name, answer.status, answer.reason) == (case.name, case.status, reason)
    if case.answered_by == "edge":
        check_edge_answer(stage, attacker, answer)
    else:
        assert case.reason is not None
        check_filter_answer(stage, attacker, case.reason, answer, method=method)
    assert stage.seen_by_app() == []


def check_edge_answer(stage: Stage, attacker: Attacker, answer: Answer) -> None:
    """No Check happened: nothing was decided, so there is nothing to record and no challenge to give."""
    assert answer.receipt_id is None
    assert answer.challenges == []
    known = {each["reason"] for each in stage.receipts_of(attacker.marker)}
    assert known <= {"missing_signature"}, "only the question for a challenge was decided"
    if answer.body and answer.status:
        assert answer.get("content-type") == "application/problem+json"
        assert answer.json()["status"] == answer.status


def check_filter_answer(
    stage: Stage, attacker: Attacker, reason: Reason, answer: Answer, *, method: str = "GET"
) -> None:
    """The filter refused: a receipt says so, and the answer tells the client what PCH §5 gives it."""
    rule = ANSWERS[reason]
    assert answer.status == rule.status
    assert answer.get("cache-control") == "no-store"
    assert answer.receipt_id is not None
    receipt = stage.receipt(answer.receipt_id)
    told = {name: receipt[name] for name in ("id", "kind", "decision", "reason", "status")}
    assert told == {
        "id": answer.receipt_id,
        "kind": "decision",
        "decision": "deny",
        "reason": str(reason),
        "status": rule.status,
    }
    assert attacker.marker in receipt["request"]["path"]
    if method != "HEAD":
        assert answer.get("content-type") == "application/problem+json"
        document: dict[str, Any] = answer.json()
        assert (document["reason"], document["status"]) == (str(reason), rule.status)
    if rule.challenge:
        offered = answer.get("www-authenticate")
        assert offered is not None
        assert answer.challenges
        assert f'challenge="{answer.challenges[0]}"' in offered
        assert f'nonce="{answer.challenges[0]}"' in (answer.get("accept-signature") or "")
    else:
        assert answer.get("www-authenticate") is None
