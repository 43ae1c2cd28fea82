"""Sign a request with its evidence: in the header or, relaxed, in an envelope (docs/reference/pch.md §3, §6). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pch.client.errors import InvalidRequest
from pch.client.signing import TAGS, sign_request
from pch.evidence import EVIDENCE_DIGEST_FIELD, EVIDENCE_FIELD, evidence_digest_field, evidence_field
from pch.relaxed import RELAXED_FIELD, compose_envelope, relaxed_field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pch.algorithms import Signer
    from pch.client.challenge import ChallengeText
    from pch.client.upload import Upload
    from pch.httpsig.message import HeaderLines, RequestMessage


@dataclass(frozen=True, slots=True)
class SignedWithEvidence:
    """A signed request's field lines and signature bases. `envelope`: empty unless it is relaxed."""

    headers: HeaderLines
    bases: tuple[bytes, ...]
    envelope: bytes


def is_relaxable(evidence: bytes | None, signers: Sequence[Signer]) -> bool:
    """Tell whether relaxing takes anything out of the header: evidence, or an ML-DSA signature."""
    return evidence is not None or any(signer.algorithm.post_quantum for signer in signers)


def sign_with_evidence(
    message: RequestMessage,
    body: bytes | Upload,
    *,
    evidence: bytes | None,
    relax: bool,
    signers: Sequence[Signer],
    challenge: ChallengeText,
    binding: bytes | None,
    created_s: int,
    max_age_s: int,
) -> SignedWithEvidence:
    """Sign `message`, PCH §3, §6. Arguments as for `sign_request`.

    `evidence`: canonical bytes, or None. Raises `InvalidRequest`.
    """
    envelope_bytes = 0
    own: list[tuple[str, bytes]] = []
    if relax:
        # An envelope's length depends on lengths alone, and those of ML-DSA signatures are fixed.
        blank = {
            tag: bytes(signer.algorithm.signature_bytes)
            for tag, signer in zip(TAGS, signers, strict=False)
            if signer.algorithm.post_quantum
        }
        envelope_bytes = len(compose_envelope(evidence, blank))
        own.append((RELAXED_FIELD, relaxed_field(envelope_bytes if body else None)))
        own.append((EVIDENCE_DIGEST_FIELD, evidence_digest_field(evidence)))
    elif evidence is not None:
        own.append((EVIDENCE_FIELD, evidence_field(evidence)))
    signed = sign_request(
        message,
        body,
        signers=signers,
        challenge=challenge,
        binding=binding,
        created_s=created_s,
        max_age_s=max_age_s,
        own_fields=tuple(own),
        detach_post_quantum=relax,
    )
    envelope = compose_envelope(evidence, signed.detached) if relax else b""
    if len(envelope) != envelope_bytes:
        raise InvalidRequest("a signature is not as long as its algorithm says")
    return SignedWithEvidence(signed.message.headers, signed.bases, envelope)
