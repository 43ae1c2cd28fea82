"""The parts a receipt is made of, with their types and bounds (docs/reference/receipt.md §3).

These structs are the wire form: a field's name is the member's name. Bounds are enforced whenever bytes are
sealed or parsed, not when a struct is built.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from receipts.canonical_json import MAX_SAFE_INTEGER

MAX_METHOD_CHARS: Final = 64
MAX_AUTHORITY_CHARS: Final = 512
MAX_PATH_CHARS: Final = 8192
MAX_BRIEF_CHARS: Final = 256
"""What is kept of path and authority when no signature was verified: a flood must not fill the disk."""
MAX_EDGE_REQUEST_ID_CHARS: Final = 128
MAX_NAME_CHARS: Final = 256
MAX_COVERED: Final = 32
MAX_COMPONENT_CHARS: Final = 512
MAX_COUNTS: Final = 64
MAX_FLAGS: Final = 32

Sha256Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Millis = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)]
Seconds = Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)]
Count = Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER)]
Status = Annotated[int, Meta(ge=100, le=599)]
Token = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Decision = Literal["allow", "deny"]
ContentState = Literal["none", "verified", "pending", "unbound", "unchecked"]
Truncatable = Literal["authority", "edge_request_id", "method", "path"]
BindingKind = Literal["tls-exporter", "none"]


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No member is optional and none is unknown, so that v1 means one thing for ever."""


class RequestFacts(_Facts, frozen=True):
    """What was asked for; never the query, a header value or the content. Build it with `request_facts`."""

    method: Annotated[str, Meta(max_length=MAX_METHOD_CHARS)]
    authority: Annotated[str, Meta(max_length=MAX_AUTHORITY_CHARS)]
    path: Annotated[str, Meta(max_length=MAX_PATH_CHARS)]
    query_sha256: Sha256Hex | None
    content: ContentState
    content_sha256: Sha256Hex | None
    edge_request_id: Annotated[str, Meta(min_length=1, max_length=MAX_EDGE_REQUEST_ID_CHARS)] | None
    truncated: Annotated[tuple[Truncatable, ...], Meta(max_length=4)]

    def __post_init__(self) -> None:
        if tuple(sorted(set(self.truncated))) != self.truncated:
            raise ValueError("truncated is not sorted and unique")
        if self.content in ("verified", "none") and (self.content_sha256 is None) != (self.content == "none"):
            raise ValueError("content and content_sha256 contradict each other")


def request_facts(
    *,
    method: str,
    authority: str,
    target: str,
    content: ContentState,
    content_sha256: str | None = None,
    edge_request_id: str | None = None,
    brief: bool = False,
) -> RequestFacts:
    """Describe any request, however hostile, so that its refusal can be recorded.

    `target`: path and query as received; the query is only hashed (UTF-8, without its "?"; null when there is
    no "?"). `content_sha256`: lower hex, of the bytes that arrived. What is longer than its bound, or not
    Unicode, is cut or escaped and named in `truncated`. Raises ValueError when `content` and `content_sha256`
    contradict each other. `brief`: keep at most `MAX_BRIEF_CHARS` of path and authority, for requests that
    anyone can send.
    """
    max_authority_chars = MAX_BRIEF_CHARS if brief else MAX_AUTHORITY_CHARS
    max_path_chars = MAX_BRIEF_CHARS if brief else MAX_PATH_CHARS
    path, mark, query = target.partition("?")
    truncated: list[Truncatable] = []
    kept_authority = _bounded(authority, max_authority_chars)
    kept_id = _bounded(edge_request_id, MAX_EDGE_REQUEST_ID_CHARS) if edge_request_id else None
    kept_method = _bounded(method, MAX_METHOD_CHARS)
    kept_path = _bounded(path, max_path_chars)
    if kept_authority != authority:
        truncated.append("authority")
    if edge_request_id and kept_id != edge_request_id:
        truncated.append("edge_request_id")
    if kept_method != method:
        truncated.append("method")
    if kept_path != path:
        truncated.append("path")
    return RequestFacts(
        method=kept_method,
        authority=kept_authority,
        path=kept_path,
        query_sha256=hashlib.sha256(query.encode("utf-8", "backslashreplace")).hexdigest() if mark else None,
        content=content,
        content_sha256=content_sha256,
        edge_request_id=kept_id,
        truncated=tuple(truncated),
    )


def _bounded(text: str, max_chars: int) -> str:
    cut = text[:max_chars]
    if cut.isascii():
        return cut
    return cut.encode("utf-8", "backslashreplace").decode("utf-8")[:max_chars]


class SignatureFacts(_Facts, frozen=True):
    """One signature that verified."""

    tag: Literal["pch", "pch-pq"]
    key_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{43}\Z")]
    alg: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}\Z")]
    base_sha256: Sha256Hex
    signature_sha256: Sha256Hex


class ProofFacts(_Facts, frozen=True):
    """A proof that verified: what was signed, by whom, over which connection."""

    subject: Name
    signatures: Annotated[tuple[SignatureFacts, ...], Meta(min_length=1, max_length=2)]
    binding: BindingKind
    binding_sha256: Sha256Hex | None
    challenge_sha256: Sha256Hex
    created_s: Seconds
    expires_s: Seconds
    covered: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_COMPONENT_CHARS)], ...],
        Meta(min_length=1, max_length=MAX_COVERED),
    ]
    content_sha256: Sha256Hex | None
    evidence_sha256: Sha256Hex | None
    spend_key: Sha256Hex | None

    def __post_init__(self) -> None:
        if (self.binding == "none") != (self.binding_sha256 is None):
            raise ValueError("binding and binding_sha256 contradict each other")
        if len(self.signatures) > 1 and [each.tag for each in self.signatures] != ["pch", "pch-pq"]:
            raise ValueError("two signatures are tagged pch and pch-pq, in this order")


class PolicyFacts(_Facts, frozen=True):
    """The policy in force and everything it was asked: `input` is any JSON object, not interpreted here."""

    digest: Sha256Hex
    input: dict[str, Any]


class WindowFacts(_Facts, frozen=True):
    """The time a summary speaks of: from `start_ms` to just before `end_ms`."""

    start_ms: Millis
    end_ms: Millis

    def __post_init__(self) -> None:
        if self.end_ms <= self.start_ms:
            raise ValueError("the window is empty")


class OutcomeFacts(_Facts, frozen=True):
    """How an allowed request ended: `status` is null when no answer was seen, `flags` are the edge's."""

    status: Status | None
    duration_us: Millis
    flags: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}\Z")], ...], Meta(max_length=MAX_FLAGS)
    ]


class EventFacts(_Facts, frozen=True):
    """Something that happened to the log itself: `facts` is any JSON object, defined per `name`."""

    name: Token
    facts: dict[str, Any]
