"""Reason codes and the answers they stand for (docs/reference/pch.md §5).

One code per cause: the same string is in the answer, the log line, the metric and the receipt.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class Reason(enum.StrEnum):
    """A stable reason code, an RFC 9651 token."""

    ALLOWED = "allowed"
    BODY_PENDING = "body_pending"
    UNGUARDED = "unguarded"
    EVIDENCE_KEPT = "evidence_kept"
    MISSING_SIGNATURE = "missing_signature"
    MALFORMED_SIGNATURE = "malformed_signature"
    STALE_CHALLENGE = "stale_challenge"
    BAD_SIGNATURE = "bad_signature"
    UNKNOWN_KEY = "unknown_key"
    EXPIRED_SIGNATURE = "expired_signature"
    MISSING_COMPONENT = "missing_component"
    NONCE_REPLAY = "nonce_replay"
    BINDING_MISSING = "binding_missing"
    BINDING_MISMATCH = "binding_mismatch"
    ALG_NOT_ALLOWED = "alg_not_allowed"
    KEY_REVOKED = "key_revoked"
    POLICY_DENIED = "policy_denied"
    EVIDENCE_REJECTED = "evidence_rejected"
    NO_ROUTE = "no_route"
    UPGRADE_REFUSED = "upgrade_refused"
    AMBIGUOUS_PATH = "ambiguous_path"
    BAD_CONTENT_DIGEST = "bad_content_digest"
    BODY_TOO_LARGE = "body_too_large"
    HEADER_BUDGET = "header_budget"
    HEADER_TOO_LARGE = "header_too_large"
    QUOTA = "quota"
    BREAKER_OPEN = "breaker_open"
    STORE_UNAVAILABLE = "store_unavailable"
    POLICY_UNAVAILABLE = "policy_unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class AnswerRule:
    """How one reason is answered: HTTP status, its gRPC twin, and what comes with it."""

    status: int
    grpc_status: int
    challenge: bool = False
    retry_after: bool = False
    detail: str = ""


def _challenge(detail: str) -> AnswerRule:
    return AnswerRule(401, 16, challenge=True, detail=detail)


def _forbidden(detail: str) -> AnswerRule:
    return AnswerRule(403, 7, detail=detail)


def _later(detail: str) -> AnswerRule:
    return AnswerRule(503, 14, retry_after=True, detail=detail)


ANSWERS: Final = MappingProxyType(
    {
        Reason.MISSING_SIGNATURE: _challenge("This route needs a signed request."),
        Reason.MALFORMED_SIGNATURE: _challenge("The signature fields do not follow the protocol."),
        Reason.STALE_CHALLENGE: _challenge("The challenge is not valid here, or not any more."),
        Reason.BAD_SIGNATURE: _challenge("The signature does not verify."),
        Reason.UNKNOWN_KEY: _challenge("No usable key is registered under this key id."),
        Reason.EXPIRED_SIGNATURE: _challenge("The signature's created and expires times do not hold now."),
        Reason.MISSING_COMPONENT: _challenge("The signature does not cover everything it must."),
        Reason.NONCE_REPLAY: _challenge("The challenge was already used."),
        Reason.BINDING_MISSING: _forbidden("The connection has no channel binding."),
        Reason.BINDING_MISMATCH: _forbidden("The request was signed for another connection."),
        Reason.ALG_NOT_ALLOWED: _forbidden("The signature algorithm is not accepted here."),
        Reason.KEY_REVOKED: _forbidden("The key was revoked."),
        Reason.POLICY_DENIED: _forbidden("Policy does not allow this request."),
        Reason.EVIDENCE_REJECTED: _forbidden("The evidence was not accepted."),
        Reason.NO_ROUTE: _forbidden("No route is declared for this request."),
        Reason.UPGRADE_REFUSED: _forbidden("Upgrades are not accepted on this route."),
        Reason.AMBIGUOUS_PATH: AnswerRule(400, 3, detail="The path has more than one reading."),
        Reason.BAD_CONTENT_DIGEST: AnswerRule(400, 3, detail="Content-Digest does not match the content."),
        Reason.BODY_TOO_LARGE: AnswerRule(413, 8, detail="The content is larger than this route accepts."),
        Reason.HEADER_BUDGET: AnswerRule(431, 8, challenge=True, detail="The header fields are over budget."),
        Reason.HEADER_TOO_LARGE: AnswerRule(431, 8, detail="The header fields are too large."),
        Reason.QUOTA: AnswerRule(429, 8, retry_after=True, detail="The quota is used up."),
        Reason.BREAKER_OPEN: _later("The service is protecting itself."),
        Reason.STORE_UNAVAILABLE: _later("A store that decisions need is not available."),
        Reason.POLICY_UNAVAILABLE: _later("The policy could not be evaluated."),
        Reason.INTERNAL: _later("The verifier could not decide."),
    }
)
"""The answer of every refusal."""
