"""Relaxed evidence: evidence and large signatures outside the header (docs/reference/pch.md §6). Pure.

An envelope is JSON, `{"evidence": "<base64>"|null, "signatures": {"<label>": "<base64>"}}`. It comes before the
content, or, for a request without, ahead of it to `EVIDENCE_PATH`.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pch.errors import MalformedSignature
from pch.evidence import decode_base64, unique_members
from pch.httpsig.errors import HttpSigError
from pch.httpsig.structured_field import check_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RELAXED_FIELD: Final = "pch-relaxed"
RELAX_FIELD: Final = "pch-relax"
RELAX_EVIDENCE_IN_BODY: Final = "evidence=body"
"""What a 431 says in `PCH-Relax`."""
RELAX_HINT: Final = "relax-header-budget"
"""What a challenge says in `hints` while relaxing is asked for at once."""
EVIDENCE_PATH: Final = "/.well-known/pch/evidence"
"""Where the envelope of a request without content is sent ahead."""
ENVELOPE_TYPE: Final = "application/json"
MAX_ENVELOPE_BYTES: Final = 131_072
MAX_ENVELOPE_SIGNATURES: Final = 8
"""As many as a header may hold signatures."""

_RELAXED: Final = re.compile(rb"\?1(?:;length=([1-9][0-9]{0,5}))?")
_RELAX: Final = re.compile(rb"evidence=body")
_MEMBERS: Final = frozenset({"evidence", "signatures"})
_MOST_OF: Final = ((b"{", 2), (b"[", 0), (b":", 2 + MAX_ENVELOPE_SIGNATURES), (b",", MAX_ENVELOPE_SIGNATURES))
"""How often these occur at most in what is an envelope, for neither labels nor base64 hold them."""


@dataclass(frozen=True, slots=True)
class Relaxed:
    """That a request is relaxed. `length_bytes`: of the envelope before its content; None when it was sent ahead."""

    length_bytes: int | None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What was moved out of the header. `evidence`: its bytes, not yet checked. `signatures`: by label."""

    evidence: bytes | None
    signatures: Mapping[str, bytes]


def relaxed_field(length_bytes: int | None) -> bytes:
    """Write the value of `PCH-Relaxed`, PCH §6. `length_bytes`: see `Relaxed`."""
    return b"?1" if length_bytes is None else b"?1;length=%d" % length_bytes


def parse_relaxed_field(lines: Sequence[bytes]) -> Relaxed | None:
    """Read `PCH-Relaxed`, PCH §6; None when absent.

    `lines`: the field's raw lines. Raises `MalformedSignature` when repeated, out of grammar, or of a length that is
    not from 1 to 131072.
    """
    if not lines:
        return None
    match = _RELAXED.fullmatch(lines[0].strip(b" \t")) if len(lines) == 1 else None
    if match is None:
        raise MalformedSignature("PCH-Relaxed is malformed")
    if match[1] is None:
        return Relaxed(None)
    length_bytes = int(match[1])
    if length_bytes > MAX_ENVELOPE_BYTES:
        raise MalformedSignature("the envelope is too long")
    return Relaxed(length_bytes)


def is_relax_offer(lines: Sequence[bytes]) -> bool:
    """Tell whether the `PCH-Relax` of a 431 offers relaxed evidence (PCH §5, §6). `lines`: the field's raw lines."""
    return len(lines) == 1 and _RELAX.fullmatch(lines[0].strip(b" \t")) is not None


def compose_envelope(evidence: bytes | None, signatures: Mapping[str, bytes]) -> bytes:
    """Write an envelope, PCH §6. Its length depends on the lengths of what it holds alone."""
    document = {
        "evidence": None if evidence is None else base64.b64encode(evidence).decode("ascii"),
        "signatures": {label: base64.b64encode(each).decode("ascii") for label, each in signatures.items()},
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def parse_envelope(raw: bytes) -> Envelope:
    """Read an envelope, PCH §6: strict JSON, both members, none twice and no other. Raises `MalformedSignature`."""
    if not 0 < len(raw) <= MAX_ENVELOPE_BYTES:
        raise MalformedSignature("the envelope is empty or too long")
    # Anyone may send this, unsigned: JSON of many small values would take a hundred times as long to build.
    if any(raw.count(each) > most for each, most in _MOST_OF):
        raise MalformedSignature("the envelope holds more than one may")
    try:
        document = json.loads(raw.decode(), object_pairs_hook=unique_members)
    except (ValueError, RecursionError) as error:
        raise MalformedSignature("the envelope is not strict JSON") from error
    if not isinstance(document, dict) or document.keys() != _MEMBERS:
        raise MalformedSignature("the envelope has not exactly its two members")
    evidence, signatures = document["evidence"], document["signatures"]
    if not isinstance(signatures, dict) or len(signatures) > MAX_ENVELOPE_SIGNATURES:
        raise MalformedSignature("the envelope's signatures are not an object, or too many")
    return Envelope(
        None if evidence is None else _decoded(evidence),
        MappingProxyType({_label(label): _decoded(each) for label, each in signatures.items()}),
    )


def _label(label: str) -> str:
    try:
        check_key(label)
    except HttpSigError as error:
        raise MalformedSignature("a label of the envelope is none") from error
    return label


def _decoded(value: Any) -> bytes:
    if not isinstance(value, str) or not value:
        raise MalformedSignature("a value of the envelope is not base64")
    try:
        return decode_base64(value.encode("ascii"))
    except ValueError as error:
        raise MalformedSignature("a value of the envelope is not canonical base64") from error
