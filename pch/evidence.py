"""Evidence and the fields that carry or name it (docs/reference/pch.md §3, §6, §7). Pure.

Whether a checkpoint in it is true is for whoever has the log (`extproc.evidence_log`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import rfc8785

from pch.errors import EvidenceRejected, MalformedSignature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EVIDENCE_TYPE: Final = "pch.evidence.v1"
MAX_EVIDENCE_BYTES: Final = 65_536
EVIDENCE_FIELD: Final = "pch-evidence"
EVIDENCE_DIGEST_FIELD: Final = "pch-evidence-digest"

_MEMBERS: Final = frozenset({"type", "checkpoint", "cbom_sha256", "claims"})
_MAX_SAFE_INTEGER: Final = 2**53 - 1
_MAX_INTEGER_CHARS: Final = 17
"""Of a safe integer with its sign; Python's own integers would take time quadratic in their length."""
_PAST_BMP: Final = re.compile(rb"[\xf0-\xf4]|\\u[dD][89a-fA-F]")
"""Characters past the basic plane, as UTF-8 and as escapes."""
_SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")
_BYTE_SEQUENCE: Final = re.compile(rb":([A-Za-z0-9+/]*={0,2}):")
_DIGEST: Final = re.compile(rb"sha-256=:([A-Za-z0-9+/]{43}=):")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One evidence object, PCH §7; built by `parse_evidence`.

    `raw`: its canonical bytes. `checkpoint`: a signed note as sent, not verified. `cbom_sha256`: lower-case hex.
    """

    raw: bytes
    checkpoint: str | None
    cbom_sha256: str | None
    claims: Mapping[str, Any]

    @property
    def sha256(self) -> bytes:
        """Give the SHA-256 of the canonical bytes, as `PCH-Evidence-Digest` and receipts state it."""
        return hashlib.sha256(self.raw).digest()


def canonical_evidence(document: Mapping[str, Any]) -> bytes:
    """Write an evidence object in its one form, RFC 8785 (PCH §7). Raises `EvidenceRejected` for what is none."""
    try:
        raw = rfc8785.dumps(dict(document))
    except (rfc8785.CanonicalizationError, RecursionError, ValueError) as error:
        raise EvidenceRejected("the evidence has no canonical form") from error
    parse_evidence(raw)
    return raw


def parse_evidence(raw: bytes) -> Evidence:
    """Read an evidence object, PCH §7: at most 64 KiB, canonical, no unknown member. Raises `EvidenceRejected`."""
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise EvidenceRejected(f"the evidence is over {MAX_EVIDENCE_BYTES} bytes")
    document = _canonical_object(raw)
    if not _MEMBERS.issuperset(document) or document.get("type") != EVIDENCE_TYPE:
        raise EvidenceRejected("the evidence has another type, or unknown members")
    checkpoint = document.get("checkpoint", "")
    cbom_sha256 = document.get("cbom_sha256")
    claims = document.get("claims", {})
    if not isinstance(checkpoint, str) or ("checkpoint" in document and not checkpoint):
        raise EvidenceRejected("the checkpoint is not a signed note")
    if "cbom_sha256" in document and not (isinstance(cbom_sha256, str) and _SHA256_HEX.fullmatch(cbom_sha256)):
        raise EvidenceRejected("cbom_sha256 is not a SHA-256 in lower-case hex")
    if not isinstance(claims, dict):
        raise EvidenceRejected("the claims are not an object")
    return Evidence(raw, checkpoint or None, cbom_sha256, MappingProxyType(claims))


def _canonical_object(raw: bytes) -> dict[str, Any]:
    """Parse JSON that is its own RFC 8785 form, which leaves no room for duplicates, blanks or other spellings."""
    doubles: list[float] = []

    def double(text: str) -> float:
        doubles.append(float(text))
        return doubles[-1]

    def integer(text: str) -> int | float:
        """Read digits as RFC 8785 means them: past 2^53 they are a double."""
        value = int(text) if len(text) <= _MAX_INTEGER_CHARS else double(text)
        return value if abs(value) <= _MAX_SAFE_INTEGER else double(text)

    try:
        document = json.loads(
            raw.decode(),
            object_pairs_hook=unique_members,
            parse_constant=_refuse_constant,
            parse_float=double,
            parse_int=integer,
        )
        same = _canonical(document, plain=not doubles and not _PAST_BMP.search(raw)) == raw
    except (rfc8785.CanonicalizationError, RecursionError, ValueError) as error:
        raise EvidenceRejected("the evidence is not canonical JSON") from error
    if not same or not isinstance(document, dict):
        raise EvidenceRejected("the evidence is not one canonical JSON object")
    return document


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members (a hook of `json`). Raises ValueError when one occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member occurs twice")
    return found


def _canonical(document: Any, *, plain: bool) -> bytes:
    """Write a document as RFC 8785 has it.

    `plain`: it has no doubles, and no characters whose order differs between UTF-16 and code points. Then the standard
    encoder writes the same bytes, a tenth of the time.
    """
    if not plain:
        return rfc8785.dumps(document)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _refuse_constant(_text: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def evidence_field(raw: bytes) -> bytes:
    """Write the value of `PCH-Evidence` for the canonical bytes `raw`, PCH §3."""
    return b":" + base64.b64encode(raw) + b":"


def parse_evidence_field(lines: Sequence[bytes]) -> bytes | None:
    """Read `PCH-Evidence`, one Byte Sequence (PCH §3, RFC 9651 §3.3.5); None when absent.

    `lines`: the field's raw lines. Raises `MalformedSignature` when it is repeated or not canonical base64.
    """
    if not lines:
        return None
    match = _BYTE_SEQUENCE.fullmatch(lines[0].strip(b" \t")) if len(lines) == 1 else None
    if match is None:
        raise MalformedSignature("PCH-Evidence is not one byte sequence")
    try:
        return decode_base64(match[1])
    except ValueError as error:
        raise MalformedSignature("PCH-Evidence is not canonical base64") from error


def evidence_digest_field(raw: bytes | None) -> bytes:
    """Write the value of `PCH-Evidence-Digest` over the evidence `raw`, or over zero bytes (PCH §6)."""
    return b"sha-256=:" + base64.b64encode(hashlib.sha256(raw or b"").digest()) + b":"


def parse_evidence_digest_field(lines: Sequence[bytes]) -> bytes | None:
    """Read `PCH-Evidence-Digest`, one sha-256 and nothing else (PCH §6); None when absent.

    `lines`: the field's raw lines. Returns 32 bytes. Raises `MalformedSignature`.
    """
    if not lines:
        return None
    match = _DIGEST.fullmatch(lines[0].strip(b" \t")) if len(lines) == 1 else None
    if match is None:
        raise MalformedSignature("PCH-Evidence-Digest is not one sha-256")
    try:
        return decode_base64(match[1])
    except ValueError as error:
        raise MalformedSignature("PCH-Evidence-Digest is not canonical base64") from error


def decode_base64(encoded: bytes) -> bytes:
    """Decode base64 with padding, RFC 4648 §4. Raises ValueError for any spelling but the one that encoding gives."""
    try:
        decoded = binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if base64.b64encode(decoded) != encoded:
        raise ValueError("not canonical base64")
    return decoded
