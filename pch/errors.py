"""Typed refusals, by whose fault they are (docs/reference/pch.md §4, §5).

A verifier raises one of these; it never returns a bool. Every class has one stable reason. The message is for
operators' debug output and must never hold a secret, a signature or a header value.
"""

from __future__ import annotations

from typing import ClassVar

from pch.reasons import Reason


class PchError(Exception):
    """Anything that ends a request's verification."""

    reason: ClassVar[Reason] = Reason.INTERNAL


class PeerFault(PchError):
    """The client sent something that the protocol refuses."""


class OurFault(PchError):
    """The verifier itself failed."""

    reason = Reason.INTERNAL


class DependencyFault(PchError):
    """Something the verifier depends on failed."""

    reason = Reason.STORE_UNAVAILABLE


class MissingSignature(PeerFault):
    """No signature carries the tag `pch`."""

    reason = Reason.MISSING_SIGNATURE


class MalformedSignature(PeerFault):
    """A PCH field does not follow its grammar, or the signature's parameters are not as §3 wants them."""

    reason = Reason.MALFORMED_SIGNATURE


class StaleChallenge(PeerFault):
    """The challenge is forged, expired, foreign, or older than the nonce store's contents."""

    reason = Reason.STALE_CHALLENGE


class BadSignature(PeerFault):
    """The signature does not verify."""

    reason = Reason.BAD_SIGNATURE


class UnknownKey(PeerFault):
    """The key id is not registered, or not within its dates."""

    reason = Reason.UNKNOWN_KEY


class ExpiredSignature(PeerFault):
    """`created` or `expires` does not hold now."""

    reason = Reason.EXPIRED_SIGNATURE


class MissingComponent(PeerFault):
    """A required component is not covered, or a covered one is absent."""

    reason = Reason.MISSING_COMPONENT


class NonceReplay(PeerFault):
    """The challenge was spent before, by another request."""

    reason = Reason.NONCE_REPLAY


class BindingMissing(PeerFault):
    """The edge gave no channel binding on a route that needs one."""

    reason = Reason.BINDING_MISSING


class BindingMismatch(PeerFault):
    """The signed channel binding is not that of the connection."""

    reason = Reason.BINDING_MISMATCH


class AlgNotAllowed(PeerFault):
    """The algorithm is outside the route's list, contradicts the key, or lacks the other half of its hybrid."""

    reason = Reason.ALG_NOT_ALLOWED


class KeyRevoked(PeerFault):
    """A valid signature by a revoked key."""

    reason = Reason.KEY_REVOKED


class PolicyDenied(PeerFault):
    """Policy says no."""

    reason = Reason.POLICY_DENIED


class EvidenceRejected(PeerFault):
    """The evidence is not what §7 says, not that of its digest, or its checkpoint is not true."""

    reason = Reason.EVIDENCE_REJECTED


class NoRoute(PeerFault):
    """No declared route matches."""

    reason = Reason.NO_ROUTE


class UpgradeRefused(PeerFault):
    """CONNECT, extended CONNECT or Upgrade on a route that does not permit it."""

    reason = Reason.UPGRADE_REFUSED


class AmbiguousPath(PeerFault):
    """The path has more than one reading (§1.2)."""

    reason = Reason.AMBIGUOUS_PATH


class BadContentDigest(PeerFault):
    """Content-Digest is not that of the bytes that arrived."""

    reason = Reason.BAD_CONTENT_DIGEST


class BodyTooLarge(PeerFault):
    """The content is over the route's limit."""

    reason = Reason.BODY_TOO_LARGE


class HeaderBudget(PeerFault):
    """The header fields are over the route's budget, and relaxing may help (§6)."""

    reason = Reason.HEADER_BUDGET


class HeaderTooLarge(PeerFault):
    """The header fields are over the hard cap, or over budget where nothing can be relaxed (§6)."""

    reason = Reason.HEADER_TOO_LARGE


class Quota(PeerFault):
    """More is waiting already than one peer may have."""

    reason = Reason.QUOTA


class StoreUnavailable(DependencyFault):
    """The nonce store or the receipt store did not answer in time."""

    reason = Reason.STORE_UNAVAILABLE


class PolicyUnavailable(DependencyFault):
    """The policy engine did not give a usable answer."""

    reason = Reason.POLICY_UNAVAILABLE
