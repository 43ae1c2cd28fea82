"""Relaxed requests, part by part as a test wants them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from extproc.challenge import issue
from extproc.request import EdgeRequest
from pch.evidence import canonical_evidence, evidence_digest_field
from pch.httpsig.content_digest import content_digest
from pch.httpsig.message import RequestMessage
from pch.httpsig.sign import sign
from pch.httpsig.signature_field import serialise_signature
from pch.httpsig.signature_input import make_signature_params, serialise_signature_input
from pch.proof import binding_header
from pch.relaxed import EVIDENCE_PATH, compose_envelope, relaxed_field
from tests.support.filter_parts import (
    AUTHORITY,
    BINDING,
    DEFAULT_COMPONENTS,
    NOW_MS,
    FilterParts,
    KeyPair,
    edge_request,
)

EVIDENCE = canonical_evidence({"type": "pch.evidence.v1", "claims": {"build": "4711"}})


@dataclass
class Relaxed:
    """One relaxed request.

    `keys`: by label, which is the tag too. `length`: as stated, by default that of the envelope. `in_header`: labels
    whose ML-DSA signature stays in the header. `extra`: further fields, not covered.
    """

    keys: dict[str, KeyPair]
    challenge: str
    method: str = "PUT"
    target: str = "/protected/x"
    body: bytes = b"the content"
    evidence: bytes | None = EVIDENCE
    digest_of: bytes | None = b"the evidence"
    binding: bytes | None = BINDING
    authority: str = AUTHORITY
    created_s: int = NOW_MS // 1000
    length: int | None = None
    uncovered: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()
    in_header: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    envelope: bytes | None = None
    extra: tuple[tuple[str, bytes], ...] = ()
    edge: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    def build(self) -> tuple[EdgeRequest, bytes]:
        """Give the request as the edge hands it over, and the envelope."""
        enveloped = [
            label
            for label, key in self.keys.items()
            if (key.signer.algorithm.post_quantum and label not in self.in_header) or label in self.moved
        ]
        blank = {label: bytes(self.keys[label].signer.algorithm.signature_bytes) for label in (*enveloped, *self.both)}
        length = len(self.envelope or compose_envelope(self.evidence, blank))
        stated = self.length if self.length is not None else length if self.body else None
        digest_of = self.evidence if self.digest_of == b"the evidence" else self.digest_of
        fields: dict[str, bytes] = {
            "pch-relaxed": relaxed_field(stated),
            "pch-evidence-digest": evidence_digest_field(digest_of),
        }
        if self.body:
            fields["content-digest"] = content_digest(self.body).encode()
        if self.binding is not None:
            fields["pch-channel-binding"] = binding_header(self.binding)
        for name in self.omitted:
            del fields[name]
        covered = (*DEFAULT_COMPONENTS, *(name for name in fields if name not in self.uncovered))
        message = RequestMessage(self.method, "https", self.authority, self.target, (*fields.items(), *self.extra))
        inputs, signatures = {}, {}
        for label, key in self.keys.items():
            inputs[label] = make_signature_params(
                covered,
                **{
                    "created": self.created_s,
                    "expires": self.created_s + 60,
                    "keyid": key.signer.key_id,
                    "alg": key.signer.algorithm.name,
                    "nonce": self.challenge,
                    "tag": label,
                }
                | self.params,
            )
            signatures[label] = sign(message, inputs[label], key.signer)
        in_envelope = {label: signatures[label] for label in (*enveloped, *self.both)}
        envelope = compose_envelope(self.evidence, in_envelope) if self.envelope is None else self.envelope
        in_header = {label: each for label, each in signatures.items() if label not in enveloped}
        lines = [*message.headers, ("signature-input", serialise_signature_input(inputs).encode())]
        if in_header:
            lines.append(("signature", serialise_signature(in_header).encode()))
        sent = envelope + self.body if self.body else b""
        if sent:
            lines.append(("content-length", str(len(sent)).encode()))
        message = RequestMessage(self.method, "https", self.authority, self.target, tuple(lines))
        return edge_request(message, **({"body": sent, "deferrable": True} | self.edge)), envelope

    def request(self) -> EdgeRequest:
        return self.build()[0]


def granted(parts: FilterParts, *, binding: bytes = BINDING, grant: bool = True, **changes: Any) -> str:
    """Issue a challenge with the grant."""
    values = {"realm": "signet", "authority": AUTHORITY, "now_ms": parts.clock.now_ms} | changes
    return issue(parts.sealing_keys, binding32=binding, random16=parts.random(16), relax_grant=grant, **values)


def ahead(challenge: str, envelope: bytes, **changes: Any) -> EdgeRequest:
    """Give the request that brings an envelope for a later one."""
    fields = (("pch-challenge", f'"{challenge}"'.encode()), ("content-length", str(len(envelope)).encode()))
    message = RequestMessage("POST", "https", AUTHORITY, EVIDENCE_PATH, changes.pop("headers", fields))
    return edge_request(message, **({"body": envelope, "deferrable": True} | changes))
