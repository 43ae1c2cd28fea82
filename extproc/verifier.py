"""The verifier core: steps 1 to 8 of docs/reference/pch.md §4, synchronous and free of transport.

    1  path and route                             admit()
       size of the header, upgrades, body limit   check_limits()
    2  syntax; one signature per tag              verify()
    3  channel binding present and equal
    4  algorithm allowed; key known and of that type
    5  challenge: syntax, seal, age, connection
    6  created, expires
    7  required components
    8  signature, of a hybrid both; then revocation

Each step raises the error whose reason the client is told; the first failure decides. Nothing here waits, stores or
spends: `verify` returns a `VerifiedRequest`, which only this module can build, and the pipeline takes it from there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from extproc.challenge import OpenChallenge, open_challenge
from extproc.channel_binding import UNBOUND
from extproc.evidence_claim import EvidenceClaim, envelope_bytes, read_claim
from extproc.header_budget import check_header_budget
from extproc.signing_keys import absent_half, check_allowed, find_keys
from pch import errors
from pch.httpsig.derived import normalised_authority
from pch.httpsig.errors import HttpSigError
from pch.httpsig.verify import verify as verify_signature
from pch.path import check_target
from pch.proof import (
    Proof,
    check_binding,
    check_binding_syntax,
    check_components,
    check_times,
    required_components,
    select_proofs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.keyring import KeyEntry, Keyring
    from extproc.request import EdgeRequest
    from extproc.route import Route
    from extproc.rules import Rules
    from extproc.sealing_keys import SealingKeys
    from pch.httpsig.message import RequestMessage
    from pch.httpsig.signature_input import SignatureParams

_BUILT_HERE: Final = object()


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """A request with a route. `authority`: in the form of RFC 9421 §2.2.3. `path`: without the query."""

    request: EdgeRequest
    route: Route
    authority: str
    path: str
    envelope_bytes: int = 0

    @property
    def binding(self) -> bytes | None:
        """Give the 32 bytes that challenges are sealed with, or None when the route needs what the edge lacks."""
        return self.request.binding if self.route.bound else UNBOUND

    @property
    def content(self) -> bytes:
        """Give what arrived of the content, without the envelope before it."""
        return self.request.body[self.envelope_bytes :]

    @property
    def content_length(self) -> int | None:
        """Give how long the content is said to be, without the envelope; None when that is not said."""
        declared = self.request.content_length
        return None if declared is None else max(0, declared - self.envelope_bytes)


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """One signature that held: what it said, the key it is by, and the bytes it is over."""

    proof: Proof
    key: KeyEntry
    signature_base: bytes


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """A request whose signatures, binding and challenge held; built by `verify` alone.

    `signatures`: one, or the two of a hybrid, the classical one first. `foreign`: signatures that are not PCH's, by
    label. `spend_token`: 32 bytes that tell a retried Check from a replay (PCH §4 step 9). `fell_back`: it is the
    classical half of a hybrid alone, which only policy can accept (PCH §3).
    """

    admitted: AdmittedRequest
    signatures: tuple[VerifiedSignature, ...]
    foreign: Mapping[str, tuple[SignatureParams, bytes]]
    challenge: OpenChallenge
    evidence: EvidenceClaim
    spend_token: bytes
    built_by: object
    fell_back: bool = False

    @property
    def proof(self) -> Proof:
        """Give what the signature under `pch` says; a hybrid's other half says the same but for key and algorithm."""
        return self.signatures[0].proof

    @property
    def key(self) -> KeyEntry:
        """Give the key under `pch`; a hybrid's other key is of the same subject."""
        return self.signatures[0].key

    @property
    def signature_base(self) -> bytes:
        """Give the bytes that the signature under `pch` is over."""
        return self.signatures[0].signature_base

    @property
    def algorithm(self) -> str:
        """Give the algorithm as allow-lists name it; the halves of a hybrid are joined with `+`."""
        return "+".join([signature.proof.algorithm for signature in self.signatures])

    @property
    def key_ids(self) -> str:
        """Give the key id; those of a hybrid are joined with `+`, in the order of `algorithm`."""
        return "+".join([signature.key.key_id for signature in self.signatures])

    def __post_init__(self) -> None:
        if self.built_by is not _BUILT_HERE:
            raise TypeError("a VerifiedRequest is only built by extproc.verifier.verify")


def admit(request: EdgeRequest, rules: Rules) -> AdmittedRequest:
    """Find the route of `request`, PCH §4 step 1. Raises `AmbiguousPath`, `NoRoute`."""
    message = request.message
    check_target(message.target)
    try:
        authority = normalised_authority(message.authority, message.scheme)
    except HttpSigError as error:
        raise errors.NoRoute("the authority is not well-formed") from error
    path = message.target.partition("?")[0]
    route = rules.routes.match(authority, path, message.method)
    return AdmittedRequest(request, route, authority, path, envelope_bytes(message) if route.guarded else 0)


def check_limits(admitted: AdmittedRequest, rules: Rules) -> None:
    """Refuse what no route may carry, and what this one may not, PCH §4 step 1.

    Raises `HeaderTooLarge`, `HeaderBudget`, `UpgradeRefused`, `BodyTooLarge`, and `OurFault` when the edge and the
    configuration disagree about what is guarded.
    """
    request, route = admitted.request, admitted.route
    if request.header_bytes > rules.config.filter.max_header_bytes:
        raise errors.HeaderTooLarge("the header is over the hard cap")
    if route.guarded:
        check_header_budget(request, route)
    _check_upgrade(request, route)
    if route.guarded and request.streamed:
        raise errors.OurFault("the edge streams the content of a guarded route")
    body_bytes = max(len(request.body), request.content_length or 0) - admitted.envelope_bytes
    if route.guarded and (body_bytes > route.max_body_bytes or (request.body_cut and not request.deferrable)):
        raise errors.BodyTooLarge("the content is over the route's limit")


def _check_upgrade(request: EdgeRequest, route: Route) -> None:
    """Refuse CONNECT and upgrades, PCH §1.2; a route may permit plain HTTP/1.1 upgrades."""
    message = request.message
    upgrade = message.lines("upgrade")
    connection = [part.strip().lower() for line in message.lines("connection") for part in line.split(b",")]
    if message.method == "CONNECT":
        raise errors.UpgradeRefused("CONNECT is not accepted")
    if not upgrade and b"upgrade" not in connection:
        return
    if not route.permit_upgrade:
        raise errors.UpgradeRefused("the route does not permit upgrades")
    if len(upgrade) != 1 or connection != [b"upgrade"]:
        raise errors.UpgradeRefused("Connection must be exactly upgrade")


def verify(
    admitted: AdmittedRequest,
    rules: Rules,
    keyring: Keyring,
    sealing_keys: SealingKeys,
    now_ms: int,
    sent_ahead: bytes | None = None,
    *,
    may_fall_back: bool = False,
) -> VerifiedRequest:
    """Verify the proof of a guarded request, PCH §4 steps 2 to 8.

    `now_ms`: milliseconds since the epoch. `sent_ahead`: the envelope that waits for it (`EvidenceDesk.sent_ahead`).
    `may_fall_back`: the breaker is not closed, and the route takes the classical half of a hybrid then.
    Raises the `pch.errors` class of the first step that fails.
    """
    request, route, settings = admitted.request, admitted.route, rules.config.filter
    message = request.message
    # 3 (first half): without a binding no challenge can be issued, so this decides before anything is asked for.
    binding = admitted.binding
    if binding is None:
        raise errors.BindingMissing("the edge vouches for no channel binding")
    # 2
    evidence = read_claim(request, sent_ahead)
    enveloped = None if evidence.envelope is None else evidence.envelope.signatures
    proofs = select_proofs(message, enveloped, envelope_is_lost=evidence.is_lost)
    sent_binding = check_binding_syntax(message)
    # 3
    _check_connection(route, sent_binding, binding)
    # 4
    may_be_half = check_allowed(proofs, route, may_fall_back=may_fall_back)
    keys = find_keys(proofs, route, keyring, now_ms, may_be_half=may_be_half)
    # A key without a partner is nobody's half: its algorithm stands in the route's list by itself.
    fell_back = may_be_half and keys[0].partner is not None
    answerable = (*keys, absent_half(keys[0], keyring, now_ms)) if fell_back else keys
    # What follows looks at one half of a hybrid: step 2 saw that the other says the same.
    proof = proofs.first
    # 5
    challenge = open_challenge(
        proof.nonce,
        sealing_keys,
        realm=settings.realm,
        authority=admitted.authority,
        binding32=binding,
        now_ms=now_ms,
        max_age_ms=settings.max_age_s * 1000,
        skew_ms=settings.clock_skew_s * 1000,
    )
    evidence.check_grant(route, challenge)
    # 6
    check_times(proof, now_ms=now_ms, max_age_s=settings.max_age_s, skew_s=settings.clock_skew_s)
    # 7
    _check_coverage(admitted, proof, evidence)
    # 8
    signatures = tuple([_verified(message, each, key) for each, key in zip(proofs.both, keys, strict=True)])
    if any(key.revoked for key in answerable):
        raise errors.KeyRevoked("the key was revoked")
    token = spend_token(request.edge_instance, request.stream_id, signatures[0].signature_base)
    return VerifiedRequest(admitted, signatures, proofs.foreign, challenge, evidence, token, _BUILT_HERE, fell_back)


def _check_connection(route: Route, sent: bytes | None, binding: bytes) -> None:
    if route.bound:
        check_binding(sent, binding)
    elif sent is not None:
        raise errors.MalformedSignature("the route has no channel binding, so its field is to be omitted")


def _verified(message: RequestMessage, proof: Proof, key: KeyEntry) -> VerifiedSignature:
    try:
        base = verify_signature(message, proof.params, proof.signature, key.public_key)
    except HttpSigError as error:
        raise errors.MissingComponent("a covered component is absent or cannot be read") from error
    return VerifiedSignature(proof, key, base)


def _check_coverage(admitted: AdmittedRequest, proof: Proof, evidence: EvidenceClaim) -> None:
    request, route = admitted.request, admitted.route
    if route.evidence == "required" and evidence.raw is None:
        raise errors.MissingComponent("the route requires evidence")
    required = required_components(request.message, bound=route.bound, has_content=request.has_content)
    if request.message.lines("upgrade"):
        required = (*required, "upgrade")
    check_components(proof, required)


def spend_token(edge_instance: str, stream_id: str, signature_base: bytes) -> bytes:
    """Compute the token under which a nonce is spent, PCH §4 step 9. Returns 32 bytes."""
    return hashlib.sha256(b"\x00".join((edge_instance.encode(), stream_id.encode(), signature_base))).digest()
