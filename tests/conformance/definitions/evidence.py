"""§6 and §7: inline evidence, the header budget, and what of the relaxed form one request without an envelope shows."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

import base64
import hashlib

from tests.conformance.definitions.step import Case, Step, case, signed
from tests.conformance.definitions.world import challenge

OK, REJECTED, MALFORMED, MISSING = "allowed", "evidence_rejected", "malformed_signature", "missing_component"
EVIDENCE, BUDGET, RELAXED = "§7", "§6", "§6 Relaxed"
LEAST = b'{"type":"pch.evidence.v1"}'
EMPTY_DIGEST = "sha-256=:" + base64.b64encode(hashlib.sha256(b"").digest()).decode() + ":"


def field(raw: bytes) -> tuple[tuple[str, bytes], ...]:
    return (("pch-evidence", b":" + base64.b64encode(raw) + b":"),)


def carrying(raw: bytes, key: str | tuple[str, str] = "alice", target: str = "/protected") -> Step:
    """A request with inline evidence, covered."""
    return signed(key, target=target, headers=field(raw), cover=("pch-evidence",))


def relaxed(*, grant: bool, target: str = "/protected") -> Step:
    """The form of a request whose envelope was sent ahead; none was."""
    headers = (("pch-relaxed", b"?1"), ("pch-evidence-digest", EMPTY_DIGEST.encode()))
    nonce = challenge(relax_grant=grant)
    return signed(target=target, headers=headers, cover=("pch-relaxed", "pch-evidence-digest"), nonce=nonce)


CASES: tuple[Case, ...] = (
    case(EVIDENCE, "the least evidence", OK, carrying(LEAST)),
    case(EVIDENCE, "evidence with claims", OK, carrying(b'{"claims":{"a":[1,true,null,"\xc3\xa9"]},"type":"pch.evidence.v1"}')),
    case(EVIDENCE, "evidence with a digest of the CBOM", OK, carrying(b'{"cbom_sha256":"' + b"0f" * 32 + b'","type":"pch.evidence.v1"}')),
    case(EVIDENCE, "evidence of a hybrid", OK, carrying(LEAST, ("hybrid", "hybrid-pq"))),
    case(EVIDENCE, "evidence where it is required", OK, carrying(LEAST, target="/evidence")),
    case(EVIDENCE, "no evidence where it is required", MISSING, signed(target="/evidence")),
    case(EVIDENCE, "evidence that is not covered", MISSING, signed().adding(*field(LEAST)[0])),
    case(EVIDENCE, "evidence added on the way where it is required", MISSING, signed(target="/evidence").adding(*field(LEAST)[0])),
    case(EVIDENCE, "evidence changed on the way", "bad_signature", carrying(LEAST).having("pch-evidence", field(b'{"claims":{},"type":"pch.evidence.v1"}')[0][1])),
    case(EVIDENCE, "evidence taken away", MISSING, carrying(LEAST).having("pch-evidence", None)),
    case(EVIDENCE, "an unknown member", REJECTED, carrying(b'{"type":"pch.evidence.v1","x":1}')),
    case(EVIDENCE, "a member twice", REJECTED, carrying(b'{"type":"pch.evidence.v1","type":"pch.evidence.v1"}')),
    case(EVIDENCE, "no type", REJECTED, carrying(b"{}")),
    case(EVIDENCE, "another type", REJECTED, carrying(b'{"type":"pch.evidence.v2"}')),
    case(EVIDENCE, "members out of order", REJECTED, carrying(b'{"type":"pch.evidence.v1","claims":{}}')),
    case(EVIDENCE, "blanks", REJECTED, carrying(b'{"type": "pch.evidence.v1"}')),
    case(EVIDENCE, "an escape that RFC 8785 does not write", REJECTED, carrying(b'{"claims":{"a":"\\u0041"},"type":"pch.evidence.v1"}')),
    case(EVIDENCE, "a number that RFC 8785 writes otherwise", REJECTED, carrying(b'{"claims":{"a":1.0},"type":"pch.evidence.v1"}')),
    case(EVIDENCE, "a list", REJECTED, carrying(b"[]")),
    case(EVIDENCE, "no JSON", REJECTED, carrying(b"evidence")),
    case(EVIDENCE, "zero bytes", REJECTED, carrying(b"")),
    case(EVIDENCE, "bytes that are not UTF-8", REJECTED, carrying(b'{"type":"pch.evidence.v1","\xff":1}')),
    case(EVIDENCE, "claims that are no object", REJECTED, carrying(b'{"claims":[],"type":"pch.evidence.v1"}')),
    case(EVIDENCE, "a CBOM digest in capitals", REJECTED, carrying(b'{"cbom_sha256":"' + b"0F" * 32 + b'","type":"pch.evidence.v1"}')),
    case(EVIDENCE, "rejected evidence comes after the signature", "bad_signature", carrying(b"[]").flipped()),
    case(BUDGET, "one field over 8000 bytes", "header_budget", signed().adding("x-big", "a" * 8_001)),
    case(BUDGET, "a field of two lines over 8000 bytes", "header_budget", signed().adding("x-big", "a" * 4_100).adding("x-big", "a" * 4_100)),
    case(BUDGET, "all fields over 12000 bytes", "header_budget", signed().adding("x-a", "a" * 6_000).adding("x-b", "b" * 6_000)),
    case(BUDGET, "over the budget on a route without binding", "header_too_large", signed(target="/unbound/a", sent_binding=None).adding("x-big", "a" * 8_001)),
    case(BUDGET, "just below the budget", OK, signed().adding("x-big", "a" * 7_900)),
    case(RELAXED, "PCH-Relaxed alone", MALFORMED, signed().adding("pch-relaxed", "?1")),
    case(RELAXED, "PCH-Evidence-Digest alone", MALFORMED, signed().adding("pch-evidence-digest", EMPTY_DIGEST)),
    case(RELAXED, "inline and relaxed at once", MALFORMED, relaxed(grant=True).adding("pch-evidence", field(LEAST)[0][1])),
    case(RELAXED, "PCH-Relaxed twice", MALFORMED, relaxed(grant=True).adding("pch-relaxed", "?1")),
    case(RELAXED, "PCH-Relaxed of false", MALFORMED, relaxed(grant=True).having("pch-relaxed", "?0")),
    case(RELAXED, "a digest of another algorithm", MALFORMED, relaxed(grant=True).having("pch-evidence-digest", "sha-512=:AAAA:")),
    case(RELAXED, "a challenge that does not grant it", "stale_challenge", relaxed(grant=False)),
    case(RELAXED, "a grant, and no envelope was sent ahead", "stale_challenge", relaxed(grant=True)),
    case(RELAXED, "relaxed and over the hard cap", "header_too_large", relaxed(grant=True).adding("x-big", "a" * 50_000)),
    case(RELAXED, "relaxed and still over the budget", "header_too_large", relaxed(grant=True).adding("x-big", "a" * 8_001)),
)  # fmt: skip
