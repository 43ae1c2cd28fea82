"""What a request says about evidence, before anyone believes it (docs/reference/pch.md §3, §6). Pure.

Inline, `PCH-Evidence` holds it. Relaxed, `PCH-Relaxed` says where the envelope is, and `PCH-Evidence-Digest` what is
in it.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pch.errors import EvidenceRejected, MalformedSignature, OurFault, StaleChallenge
from pch.evidence import (
    EVIDENCE_DIGEST_FIELD,
    EVIDENCE_FIELD,
    Evidence,
    parse_evidence,
    parse_evidence_digest_field,
    parse_evidence_field,
)
from pch.relaxed import RELAXED_FIELD, Envelope, Relaxed, parse_envelope, parse_relaxed_field

if TYPE_CHECKING:
    from extproc.challenge import OpenChallenge
    from extproc.request import EdgeRequest
    from extproc.route import Route
    from pch.httpsig.message import RequestMessage


@dataclass(frozen=True, slots=True)
class EvidenceClaim:
    """Evidence as claimed.

    `relaxed`: None if it is inline or absent. `envelope`: None if that is so, or if it was said to wait and does not.
    `raw`: the claimed bytes, None without any. `digest`: what was signed about them, 32 bytes, None if not relaxed.
    """

    relaxed: Relaxed | None
    envelope: Envelope | None
    raw: bytes | None
    digest: bytes | None

    @property
    def is_lost(self) -> bool:
        """Tell whether an envelope was said to be sent ahead, and none waits."""
        return self.relaxed is not None and self.envelope is None

    def check_grant(self, route: Route, challenge: OpenChallenge) -> None:
        """Check that a relaxed form was granted, here and now, and that its envelope is there (PCH §6, §4 step 5).

        The route's own setting counts as well: a challenge is not sealed to the route that granted it. Raises
        `StaleChallenge`.
        """
        if self.relaxed is None:
            return
        if route.relax == "off" or not challenge.relax_grant:
            raise StaleChallenge("the challenge does not grant a relaxed form here")
        if self.is_lost:
            raise StaleChallenge("no envelope was sent ahead under this challenge")

    def settle(self) -> Evidence | None:
        """Check the claim against its digest and its form, PCH §6, §7; None without evidence. Raises
        `EvidenceRejected`.

        Whether a checkpoint in it is true is another question (`extproc.evidence_log`).
        """
        if self.digest is not None:
            actual = hashlib.sha256(self.raw or b"").digest()
            if not hmac.compare_digest(actual, self.digest):
                raise EvidenceRejected("the evidence is not that of its digest")
        return None if self.raw is None else parse_evidence(self.raw)


NO_EVIDENCE = EvidenceClaim(None, None, None, None)


def read_claim(request: EdgeRequest, sent_ahead: bytes | None) -> EvidenceClaim:
    """Read what `request` says about evidence, PCH §6 (§4 step 2).

    `sent_ahead`: the envelope that waits under the request's challenge, if one does. Raises `MalformedSignature`, also
    when two places claim to hold evidence, and `OurFault` when the edge does not do its part.
    """
    message = request.message
    relaxed = parse_relaxed_field(message.lines(RELAXED_FIELD))
    inline = parse_evidence_field(message.lines(EVIDENCE_FIELD))
    digest = parse_evidence_digest_field(message.lines(EVIDENCE_DIGEST_FIELD))
    if (relaxed is None) != (digest is None):
        raise MalformedSignature("PCH-Evidence-Digest and PCH-Relaxed go together")
    if relaxed is None:
        return NO_EVIDENCE if inline is None else EvidenceClaim(None, None, inline, None)
    if inline is not None:
        raise MalformedSignature("the evidence is inline and relaxed")
    envelope = _sent_ahead(request, sent_ahead) if relaxed.length_bytes is None else _before(request, relaxed)
    return EvidenceClaim(relaxed, envelope, None if envelope is None else envelope.evidence, digest)


def envelope_bytes(message: RequestMessage) -> int:
    """Give how many bytes of the body are an envelope, PCH §6: 0 also where the field is malformed (step 2 says so)."""
    lines = message.lines(RELAXED_FIELD)
    if not lines:
        return 0
    try:
        relaxed = parse_relaxed_field(lines)
    except MalformedSignature:
        return 0
    return 0 if relaxed is None or relaxed.length_bytes is None else relaxed.length_bytes


def _before(request: EdgeRequest, relaxed: Relaxed) -> Envelope:
    """Take the envelope off the front of the body; content has to follow, for the form is that of a request with it."""
    length_bytes = relaxed.length_bytes or 0
    ends_there = not request.body_cut and len(request.body) <= length_bytes
    declared = request.content_length is not None and request.content_length <= length_bytes
    if ends_there or declared:
        raise MalformedSignature("the body ends inside its envelope, or with it")
    if not request.deferrable or len(request.body) < length_bytes:
        raise OurFault("the edge hands over less of a body than an envelope may be long, or cannot take one away")
    return parse_envelope(request.body[:length_bytes])


def _sent_ahead(request: EdgeRequest, raw: bytes | None) -> Envelope | None:
    if request.has_content:
        raise MalformedSignature("a request with content has its envelope before it")
    return None if raw is None else parse_envelope(raw)
