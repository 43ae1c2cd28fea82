"""One request from top to bottom: docs/reference/pch.md §4, steps 1 to 13.

     1  path and route; header, upgrade, body   verifier.admit, check_limits; then admission
   2-8  the proof                               verifier.verify
     9  nonce spent                             nonce store
    10  evidence, policy                        evidence desk, policy evaluator
    11  content digest                          body_step; bodies that go on: ext_proc
    12  receipt durable                         receipt writer
    13  the answer                              response (built by the caller)

A step that raises denies, whatever it raised. The order never goes back. One `Rules` value serves a request whole.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from extproc.body_step import check_body, order_body
from extproc.challenge import RANDOM_BYTES, issue_several
from extproc.decision import ALLOWING, Answer, Passage, decision_draft, policy_input
from extproc.errors import BreakerOpen, Overloaded, QuotaExceeded
from extproc.evidence import sends_ahead
from extproc.header_budget import grants_relax, statically_engaged
from extproc.nonce_store import SpendResult
from extproc.priority import in_flight_bound
from extproc.stress_action import Action
from extproc.verifier import VerifiedRequest, admit, check_limits, verify
from pch import errors
from pch.reasons import Reason
from policy.evaluator import PolicyError
from receipts.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.challenge_supply import ChallengeSupply
    from extproc.evidence import EvidenceDesk
    from extproc.keyring import Keyring
    from extproc.nonce_store import NonceStore
    from extproc.request import EdgeRequest
    from extproc.route import Route
    from extproc.rules import Rules
    from extproc.sealing_keys import SealingKeys
    from extproc.stress_desk import StressDesk
    from extproc.telemetry import Telemetry
    from policy.evaluator import PolicyVerdict, StressFacts
    from receipts.refusals import RefusalLimiter
    from receipts.store import StoredReceipt
    from receipts.writer import ReceiptWriter

LOG: Final = logging.getLogger("signet.pipeline")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the pipeline works with. `rules` and `keyring` give the value in force at the call."""

    rules: Callable[[], Rules]
    keyring: Callable[[], Keyring]
    sealing_keys: SealingKeys
    nonce_store: NonceStore
    writer: ReceiptWriter
    refusals: RefusalLimiter
    supply: ChallengeSupply
    telemetry: Telemetry
    evidence: EvidenceDesk
    clock_ms: Callable[[], int]
    random_bytes: Callable[[int], bytes]
    stress: StressDesk


class Pipeline:
    """Decide requests. Owned by one event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._in_flight = 0

    async def answer(self, request: EdgeRequest) -> Answer:
        """Decide `request` and record the decision; never raises for what a request or a store did."""
        parts = self._parts
        rules, now_ms = parts.rules(), parts.clock_ms()
        self._in_flight += 1
        parts.telemetry.in_flight.inc()
        if request.binding is not None:
            parts.supply.begin(request.binding)
        passage = Passage(request, rules, now_ms)
        try:
            reason = await self._decide(passage)
            if sends_ahead(request):
                # Nothing was decided: the receipt of the request that finds the envelope names what was in it.
                return self._answer(passage, reason, None)
            return await self._record(passage, reason)
        finally:
            self._withdraw(passage)
            self._in_flight -= 1
            parts.telemetry.in_flight.dec()
            if request.binding is not None:
                parts.supply.end(request.binding)

    def _withdraw(self, passage: Passage) -> None:
        """Tell the breaker of a request that it let on and that was refused later, or told of before: none will end."""
        stress = None if passage.asked is None else passage.asked.stress
        if stress is not None and stress.action != Action.THROTTLE and passage.admitted and not passage.goes_on:
            subject = "" if passage.verified is None else passage.verified.key.subject
            self._parts.stress.withdrawn(passage.admitted.route.name, stress, subject)

    async def _decide(self, passage: Passage) -> Reason:
        try:
            return await self._steps(passage)
        except errors.PchError as error:
            LOG.debug("refused: %s (%s)", error.reason, error)
            return error.reason
        except Exception:
            LOG.exception("unhandled failure; the request is refused")
            return Reason.INTERNAL

    async def _steps(self, passage: Passage) -> Reason:
        parts, request, rules = self._parts, passage.request, passage.rules
        if sends_ahead(request):
            self._check_in_flight(rules)
            await parts.evidence.take_in(request, rules, passage.now_ms)
            return Reason.EVIDENCE_KEPT
        # 1
        admitted = passage.admitted = admit(request, rules)
        check_limits(admitted, rules)
        self._check_in_flight(rules)
        if not admitted.route.guarded:
            return Reason.UNGUARDED
        # 2 to 8
        ahead = await parts.evidence.sent_ahead(admitted, rules, passage.now_ms)
        verified = verify(
            admitted,
            rules,
            parts.keyring(),
            parts.sealing_keys,
            passage.now_ms,
            ahead,
            may_fall_back=parts.stress.may_fall_back(admitted.route),
        )
        passage.verified = verified
        self._check_class(verified, rules)
        parts.telemetry.proved([each.proof.algorithm for each in verified.signatures], fell_back=verified.fell_back)
        # 9
        await self._spend(verified, passage.now_ms)
        passage.spent = True
        # 10
        await parts.evidence.judge(verified.evidence, rules, passage.now_ms)
        verdict = await self._ask_policy(verified, passage)
        self._admit(verified, verdict, passage)
        # 11
        return check_body(admitted)

    def _check_in_flight(self, rules: Rules) -> None:
        if self._in_flight > rules.config.filter.max_inflight_requests:
            raise Overloaded("too many requests in flight")

    def _check_class(self, verified: VerifiedRequest, rules: Rules) -> None:
        """Keep room for the higher classes; the challenge is not spent yet, so the same proof may be sent again."""
        if self._in_flight > in_flight_bound(verified.key.priority, rules.config.filter):
            raise Overloaded("too many requests in flight for the subject's class")

    async def _spend(self, verified: VerifiedRequest, now_ms: int) -> None:
        """Spend the challenge, once across all workers. A retried Check passes: it gets the stored receipt at 12."""
        challenge = verified.challenge
        result = await self._parts.nonce_store.spend(challenge.token, verified.spend_token, challenge.issued_ms, now_ms)
        if result is SpendResult.REPLAYED:
            raise errors.NonceReplay("the challenge was spent by another request")

    async def _ask_policy(self, verified: VerifiedRequest, passage: Passage) -> PolicyVerdict:
        phase = self._parts.stress.phase(verified.admitted.route.name, verified.key.subject)
        passage.asked = policy_input(verified, passage.now_ms, phase, passage.rules.policy.commit)
        try:
            verdict = await passage.rules.policy.evaluate(passage.asked)
        except PolicyError as error:
            raise errors.PolicyUnavailable("the policy gave no usable answer") from error
        if verdict.allow is not True:
            raise errors.PolicyDenied(verdict.rule)
        if verified.fell_back and verdict.fallback_classic is not True:
            raise errors.PolicyDenied("the policy permits no fallback on this route")
        return verdict

    def _admit(self, verified: VerifiedRequest, verdict: PolicyVerdict, passage: Passage) -> None:
        """Admit by subject and by the route's breaker; what was done is kept with what policy was asked."""
        route, subject, request = verified.admitted.route, verified.key.subject, verified.admitted.request
        facts: StressFacts | None = None
        try:
            facts = self._parts.stress.admit(
                route,
                subject,
                verdict,
                fell_back=verified.fell_back,
                ends_soon=not request.body_cut and not request.message.lines("upgrade"),
                priority=verified.key.priority,
            )
        except BreakerOpen as refusal:
            facts, passage.retry_after_s = refusal.facts, refusal.retry_after_s
            raise
        except QuotaExceeded as refusal:
            passage.retry_after_s = -(-refusal.retry_after_ms // 1000)
            raise
        finally:
            if passage.asked is not None:
                passage.asked = msgspec.structs.replace(passage.asked, stress=facts)

    async def _record(self, passage: Passage, reason: Reason) -> Answer:
        """Make the decision durable (step 12); without that, the answer is a refusal."""
        try:
            stored = await self._write(passage, reason)
        except StoreError as error:
            LOG.error("no receipt could be written: %s", error.code)
            return self._answer(passage, Reason.STORE_UNAVAILABLE, None)
        except Exception:
            LOG.exception("unhandled failure while writing a receipt; the request is refused")
            return self._answer(passage, Reason.INTERNAL, None)
        if stored is not None and stored.duplicate and stored.reason is not None:
            # A retried Check: the first one's decision stands, whatever was decided just now.
            reason = _standing(Reason(stored.reason), reason)
        return self._answer(passage, reason, stored)

    async def _write(self, passage: Passage, reason: Reason) -> StoredReceipt | None:
        parts, receipts = self._parts, passage.rules.config.receipts
        if passage.verified is None and not parts.refusals.admit(passage.route_name, reason, passage.now_ms):
            return None
        draft = decision_draft(passage, reason, parts.random_bytes)
        with parts.telemetry.receipt_seconds.time():
            return await parts.writer.append(draft, receipts.timeout_ms / 1000)

    def _answer(self, passage: Passage, reason: Reason, stored: StoredReceipt | None) -> Answer:
        """Put the answer together (step 13), with fresh challenges for the connection."""
        order = None
        passage.goes_on = reason in ALLOWING and stored is not None and not stored.duplicate
        if passage.verified is not None and stored is not None and _needs_order(passage.verified, reason):
            order = order_body(passage.verified, stored.id)
        self._parts.telemetry.decided(passage.route_name, reason)
        return Answer(
            reason=reason,
            receipt_id=None if stored is None else stored.id,
            admitted=passage.admitted,
            verified=passage.verified,
            challenges=self._fresh_challenges(passage, reason),
            request=passage.request,
            rules=passage.rules,
            order=order,
            relaxing=passage.admitted is not None and self._is_relaxing(passage.admitted.route),
            retry_after_s=passage.retry_after_s,
            may_fall_back=passage.admitted is not None and self._parts.stress.may_fall_back(passage.admitted.route),
        )

    def _is_relaxing(self, route: Route) -> bool:
        return route.relax != "off" and self._relax_engaged(route)

    def _relax_engaged(self, route: Route) -> bool:
        """Tell whether the actuator asks clients of `route` to relax at once (PCH §6)."""
        return statically_engaged(route) or self._parts.stress.is_relaxing(route)

    def _fresh_challenges(self, passage: Passage, reason: Reason) -> tuple[str, ...]:
        parts, admitted = self._parts, passage.admitted
        if admitted is None or not admitted.route.guarded or admitted.binding is None:
            return ()
        try:
            fresh = issue_several(
                parts.sealing_keys,
                realm=passage.rules.config.filter.realm,
                authority=admitted.authority,
                binding32=admitted.binding,
                now_ms=passage.now_ms,
                random_bytes=parts.random_bytes(RANDOM_BYTES * parts.supply.wanted(admitted.binding)),
                relax_grant=grants_relax(admitted.route, reason, self._relax_engaged),
            )
        except Exception:
            LOG.exception("no challenge could be issued")
            return ()
        parts.telemetry.challenges.inc(len(fresh))
        return fresh


def _needs_order(verified: VerifiedRequest, reason: Reason) -> bool:
    """Tell whether the request goes on through ext_proc: to have its body checked, or its envelope taken away."""
    if reason is Reason.ALLOWED:
        return verified.admitted.envelope_bytes > 0
    return reason is Reason.BODY_PENDING


def _standing(first: Reason, now: Reason) -> Reason:
    """Give the first decision on a retried Check. One that saw the whole body is none about a body still to come."""
    return Reason.INTERNAL if first is Reason.ALLOWED and now is Reason.BODY_PENDING else first
