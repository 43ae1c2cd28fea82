"""What was decided about one request, and how that is told to the receipt log (docs/reference/receipt.md)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

import msgspec

from pch.errors import BadContentDigest
from pch.httpsig.content_digest import REQUIRED_ALGORITHM, expected_digests
from pch.proof import TAG, TAG_SECOND_HALF
from pch.reasons import ANSWERS, Reason
from policy.evaluator import PolicyInput
from receipts.facts import (
    BindingKind,
    ContentState,
    PolicyFacts,
    ProofFacts,
    RequestFacts,
    SignatureFacts,
    request_facts,
)
from receipts.receipt import ReceiptDraft, idempotency_key
from receipts.receipt_id import ID_RANDOM_BYTES, ReceiptId, new_receipt_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.body_order import BodyOrder
    from extproc.request import EdgeRequest
    from extproc.rules import Rules
    from extproc.verifier import AdmittedRequest, VerifiedRequest

_TAGS: Final[tuple[Literal["pch", "pch-pq"], ...]] = (TAG, TAG_SECOND_HALF)

ALLOWING = frozenset({Reason.ALLOWED, Reason.BODY_PENDING, Reason.UNGUARDED})
"""The only reasons that let a request through; one whose body is pending only as far as ext_proc."""


@dataclass(slots=True)
class Passage:
    """How far one request has come; lives as long as its call.

    `spent`: its challenge is spent, by it alone. `goes_on`: to the app, by its own decision and no earlier one's.
    """

    request: EdgeRequest
    rules: Rules
    now_ms: int
    admitted: AdmittedRequest | None = None
    verified: VerifiedRequest | None = None
    spent: bool = False
    asked: PolicyInput | None = None
    retry_after_s: int | None = None
    goes_on: bool = False

    @property
    def route_name(self) -> str | None:
        """Give the name of the route, None while none matched."""
        return None if self.admitted is None else self.admitted.route.name


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a passage: what Envoy is to be told.

    `challenges`: fresh ones for the connection. `relaxing`: whether clients are asked to relax at once. `order`: what
    ext_proc is to do with the body, None for nothing. `retry_after_s`: when to come again, None for the usual.
    `may_fall_back`: the classical half of a hybrid is enough on the route for now.
    """

    reason: Reason
    receipt_id: ReceiptId | None
    admitted: AdmittedRequest | None
    verified: VerifiedRequest | None
    challenges: tuple[str, ...]
    request: EdgeRequest
    rules: Rules
    order: BodyOrder | None = None
    relaxing: bool = False
    retry_after_s: int | None = None
    may_fall_back: bool = False


def policy_input(verified: VerifiedRequest, now_ms: int, phase: str, commit: str | None) -> PolicyInput:
    """Gather everything that policy may know of a verified request; `commit`: what the policy is said to be of."""
    admitted = verified.admitted
    route = admitted.route
    return PolicyInput(
        time_ms=now_ms,
        route=route.name,
        method=admitted.request.message.method,
        authority=admitted.authority,
        path=admitted.path,
        subject=verified.key.subject,
        key_ids=tuple([each.key.key_id for each in verified.signatures]),
        algorithms=tuple([each.proof.algorithm for each in verified.signatures]),
        binding=route.binding,
        mode=route.mode,
        evidence=verified.evidence.raw is not None,
        body_bytes=max(len(admitted.content), admitted.content_length or 0),
        fallback=verified.fell_back,
        phase=phase,
        policy_commit=commit,
    )


def decision_draft(passage: Passage, reason: Reason, random_bytes: Callable[[int], bytes]) -> ReceiptDraft:
    """Describe a decision for its receipt; the only place where a request's facts enter the log."""
    verified, allowed = passage.verified, reason in ALLOWING
    return ReceiptDraft(
        kind="decision",
        id=new_receipt_id(passage.now_ms, random_bytes(ID_RANDOM_BYTES)),
        time_ms=passage.now_ms,
        trace_id=passage.request.trace_id,
        request=_request_facts(passage, reason),
        decision="allow" if allowed else "deny",
        reason=str(reason),
        status=None if allowed else ANSWERS[reason].status,
        route=passage.route_name,
        proof=None if verified is None else _proof_facts(verified, spent=passage.spent),
        plan_digest=passage.rules.plan_digest,
        policy=_policy_facts(passage),
        idempotency_key=_spend_key(verified) if verified is not None and passage.spent else None,
    )


def _request_facts(passage: Passage, reason: Reason) -> RequestFacts:
    request = passage.request
    content: ContentState = "unchecked" if request.has_content else "none"
    digest = None
    if reason in ALLOWING and request.message.lines("upgrade"):
        content = "unbound"
    elif request.has_content and reason is Reason.ALLOWED and passage.admitted is not None:
        content, digest = "verified", hashlib.sha256(passage.admitted.content).hexdigest()
    elif reason is Reason.BODY_PENDING:
        content = "pending"
    return request_facts(
        method=request.message.method,
        authority=request.message.authority if passage.admitted is None else passage.admitted.authority,
        target=request.message.target,
        content=content,
        content_sha256=digest,
        edge_request_id=request.stream_id,
        brief=passage.verified is None,
    )


def _proof_facts(verified: VerifiedRequest, *, spent: bool) -> ProofFacts:
    proof, admitted = verified.proof, verified.admitted
    evidence = verified.evidence.raw
    return ProofFacts(
        subject=verified.key.subject,
        signatures=_signature_facts(verified),
        binding=cast("BindingKind", admitted.route.binding),
        binding_sha256=hashlib.sha256(admitted.request.binding).hexdigest()
        if admitted.route.bound and admitted.request.binding is not None
        else None,
        challenge_sha256=hashlib.sha256(verified.challenge.token).hexdigest(),
        created_s=proof.created_s,
        expires_s=proof.expires_s,
        covered=tuple(component.serialised for component in proof.params.components),
        content_sha256=_signed_sha256(admitted.request),
        evidence_sha256=None if evidence is None else hashlib.sha256(evidence).hexdigest(),
        spend_key=_spend_key(verified).hex() if spent else None,
    )


def _signed_sha256(request: EdgeRequest) -> str | None:
    """Give the SHA-256 that is signed for a body still to come: ext_proc compares its order with it."""
    if not request.body_cut:
        return None
    try:
        return expected_digests(request.message.lines("content-digest"))[REQUIRED_ALGORITHM].hex()
    except BadContentDigest:
        return None


def _signature_facts(verified: VerifiedRequest) -> tuple[SignatureFacts, ...]:
    return tuple(
        [
            SignatureFacts(
                tag=tag,
                key_id=signature.key.key_id,
                alg=signature.proof.algorithm,
                base_sha256=hashlib.sha256(signature.signature_base).hexdigest(),
                signature_sha256=hashlib.sha256(signature.proof.signature).hexdigest(),
            )
            for tag, signature in zip(_TAGS, verified.signatures, strict=False)
        ]
    )


def _spend_key(verified: VerifiedRequest) -> bytes:
    return idempotency_key(verified.challenge.issued_ms, verified.spend_token)


def _policy_facts(passage: Passage) -> PolicyFacts | None:
    if passage.asked is None:
        return None
    return PolicyFacts(passage.rules.policy.digest, msgspec.to_builtins(passage.asked))
