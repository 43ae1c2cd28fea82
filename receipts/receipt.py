"""Receipt v1: one decision or event, as bytes that are hashed for ever (docs/reference/receipt.md).

A draft says what happened. Sealing places it in its writer's chain and yields the canonical bytes; parsing
accepts exactly what sealing can yield. Every kind has its own exact set of members.
"""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias, cast

import msgspec
from msgspec import Meta

from receipts.canonical_json import MAX_SAFE_INTEGER, CanonicalJsonError, canonical, parse_canonical
from receipts.errors import ReceiptFormatError, ReceiptTooLarge
from receipts.facts import (
    MAX_COUNTS,
    Count,
    Decision,
    EventFacts,
    Millis,
    Name,
    OutcomeFacts,
    PolicyFacts,
    ProofFacts,
    RequestFacts,
    Sha256Hex,
    Status,
    Token,
    WindowFacts,
)
from receipts.receipt_id import RECEIPT_ID_PATTERN, WRITER_ID_PATTERN, ReceiptId, WriterId

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMAT_VERSION: Final = 1
MAX_RECEIPT_BYTES: Final = 65_535
IDEMPOTENCY_KEY_BYTES: Final = 32
LEAF_PREFIX: Final = b"\x00"

Kind: TypeAlias = Literal["decision", "body_verdict", "outcome", "summary", "log_event"]
_Id = Annotated[str, Meta(pattern=RECEIPT_ID_PATTERN)]


class _Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    v: Literal[1]
    writer: Annotated[str, Meta(pattern=WRITER_ID_PATTERN)]
    wseq: Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER)]
    prev: Sha256Hex | None
    id: _Id
    time_ms: Millis
    trace_id: Annotated[str, Meta(pattern=r"^(?!0{32})[0-9a-f]{32}\Z")] | None

    def __post_init__(self) -> None:
        if (self.wseq == 1) != (self.prev is None):
            raise ValueError("only a writer's first receipt has no prev")


class DecisionReceipt(_Receipt, frozen=True, tag="decision"):
    """One answer of the verifier."""

    request: RequestFacts
    decision: Decision
    reason: Token
    status: Status | None
    route: Name | None
    proof: ProofFacts | None
    plan: Sha256Hex | None
    policy: PolicyFacts | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.decision == "deny") != (self.status is not None):
            raise ValueError("a refusal has the status it was answered with, and nothing else has")


class BodyVerdictReceipt(_Receipt, frozen=True, tag="body_verdict"):
    """What became of a decision whose content was pending."""

    refers_to: _Id
    request: RequestFacts
    decision: Decision
    reason: Token
    status: Status | None
    route: Name | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.decision == "deny") != (self.status is not None):
            raise ValueError("a refusal has the status it was answered with, and nothing else has")


class OutcomeReceipt(_Receipt, frozen=True, tag="outcome"):
    """How an allowed request ended."""

    refers_to: _Id
    outcome: OutcomeFacts


class SummaryReceipt(_Receipt, frozen=True, tag="summary"):
    """Refusals on one route that got no receipt of their own, counted by reason."""

    route: Name | None
    window: WindowFacts
    counts: Annotated[dict[Token, Count], Meta(min_length=1, max_length=MAX_COUNTS)]


class LogEventReceipt(_Receipt, frozen=True, tag="log_event"):
    """Something that happened to the log itself."""

    event: EventFacts


Receipt: TypeAlias = DecisionReceipt | BodyVerdictReceipt | OutcomeReceipt | SummaryReceipt | LogEventReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptDraft:
    """What happened, before it has a place in a chain.

    `idempotency_key`: `IDEMPOTENCY_KEY_BYTES` bytes that only one stored receipt may have; a second draft
    with the same key is answered with the first's receipt. It is kept beside the bytes, and is in them only
    as `proof.spend_key`, which must then be its lower hex.
    """

    kind: Kind
    id: ReceiptId
    time_ms: int
    trace_id: str | None = None
    request: RequestFacts | None = None
    decision: Decision | None = None
    reason: str | None = None
    status: int | None = None
    route: str | None = None
    proof: ProofFacts | None = None
    plan_digest: str | None = None
    policy: PolicyFacts | None = None
    refers_to: ReceiptId | None = None
    counts: Mapping[str, int] | None = None
    window: WindowFacts | None = None
    outcome: OutcomeFacts | None = None
    event: EventFacts | None = None
    idempotency_key: bytes | None = None


_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final[msgspec.json.Decoder[Receipt]] = msgspec.json.Decoder(Receipt)


def leaf_hash(raw: bytes) -> bytes:
    """Hash a receipt's bytes as a Merkle tree leaf, RFC 9162 §2.1.1: SHA-256(0x00 ‖ raw), 32 bytes."""
    return hashlib.sha256(LEAF_PREFIX + raw).digest()


def idempotency_key(issued_ms: int, token: bytes) -> bytes:
    """Build the key under which a spent challenge has one receipt (docs/reference/receipt.md §6).

    `issued_ms`: when the challenge was issued; `token`: the 32 bytes it was spent with (docs/reference/pch.md
    §4, step 9). Returns 8 bytes of time, big-endian, and the first 24 of the token: with the time in front,
    new keys lie side by side in the store's index, which halves what a commit writes.
    """
    return issued_ms.to_bytes(8, "big") + token[: IDEMPOTENCY_KEY_BYTES - 8]


def seal(draft: ReceiptDraft, writer: WriterId, wseq: int, prev: bytes | None) -> bytes:
    """Give `draft` its place in a chain; return its canonical bytes (docs/reference/receipt.md §2).

    `wseq`: from 1 without a gap. `prev`: `leaf_hash` of the writer's previous receipt, None when `wseq` is 1.
    Raises ReceiptFormatError when the draft breaks a rule of the format, ReceiptTooLarge past
    `MAX_RECEIPT_BYTES`.
    """
    _check_draft(draft)
    try:
        raw = _encoder.encode(_assemble(draft, writer, wseq, prev.hex() if prev is not None else None))
    except (TypeError, ValueError, RecursionError) as error:
        raise ReceiptFormatError("the draft has no canonical form") from error
    if len(raw) > MAX_RECEIPT_BYTES:
        raise ReceiptTooLarge(f"{len(raw)} bytes, {MAX_RECEIPT_BYTES} allowed")
    try:
        _decoder.decode(raw)  # What is written must be what a strict reader accepts.
    except msgspec.MsgspecError as error:
        raise _refused(error) from error
    return raw


def parse_receipt(raw: bytes) -> Receipt:
    """Parse the bytes of a receipt, strictly (docs/reference/receipt.md §3).

    Raises ReceiptFormatError when they are too long, not canonical, of another version, or not exactly of
    their kind.
    """
    if len(raw) > MAX_RECEIPT_BYTES:
        raise ReceiptFormatError(f"longer than {MAX_RECEIPT_BYTES} bytes")
    try:
        value = parse_canonical(raw)
    except CanonicalJsonError as error:
        raise ReceiptFormatError(f"not canonical JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReceiptFormatError("not a JSON object")
    if value.get("v") != FORMAT_VERSION or isinstance(value["v"], bool):
        raise ReceiptFormatError("not of format version 1")
    try:
        # From the value, not from the bytes: only parse_canonical reads every double as a double.
        return cast("Receipt", msgspec.convert(value, Receipt))
    except msgspec.ValidationError as error:
        raise _refused(error) from error


def _refused(error: msgspec.MsgspecError) -> ReceiptFormatError:
    """Name the place in the receipt, as a JSON path, and leave the value out."""
    place = str(error).rpartition(" - at `")[2].rstrip("`") if " - at `" in str(error) else "$"
    return ReceiptFormatError(f"not a receipt of version 1: see {place}")


def _check_draft(draft: ReceiptDraft) -> None:
    form = _FORMS.get(draft.kind)
    if form is None:
        raise ReceiptFormatError("unknown kind")
    if any(value is not None for value in form.foreign_values(draft)):
        raise ReceiptFormatError(f"the draft has a field that a {draft.kind} receipt lacks")
    key = draft.idempotency_key
    if key is not None and len(key) != IDEMPOTENCY_KEY_BYTES:
        raise ReceiptFormatError(f"idempotency_key is not {IDEMPOTENCY_KEY_BYTES} bytes")
    spend = None if draft.proof is None else draft.proof.spend_key
    if spend is not None and (key is None or key.hex() != spend):
        raise ReceiptFormatError("proof.spend_key is not the idempotency key")


def _assemble(draft: ReceiptDraft, writer: WriterId, wseq: int, prev: str | None) -> _Receipt:
    """Build the wire form; what a kind needs and the draft lacks becomes null, which the decoder refuses."""
    form = _FORMS[draft.kind]
    values = [
        PolicyFacts(value.digest, _opaque(value.input))
        if type(value) is PolicyFacts
        else EventFacts(value.name, _opaque(value.facts))
        if type(value) is EventFacts
        else value
        for value in form.own_values(draft)
    ]
    return form.struct(FORMAT_VERSION, writer, wseq, prev, *values)


def _opaque(value: dict[str, Any]) -> Any:
    return msgspec.Raw(canonical(value))


class _Form:
    """How drafts of one kind become wire structs: its members in order, and the draft fields it must not have."""

    def __init__(self, struct: type[_Receipt]) -> None:
        own = [_DRAFT_FIELD_OF.get(name, name) for name in struct.__struct_fields__[_PLACED_MEMBERS:]]
        foreign = sorted(set(ReceiptDraft.__slots__) - set(own) - {"kind", "idempotency_key"})
        self.struct: Callable[..., _Receipt] = struct
        self.own_values: Callable[[ReceiptDraft], tuple[Any, ...]] = operator.attrgetter(*own)
        self.foreign_values: Callable[[ReceiptDraft], tuple[Any, ...]] = operator.attrgetter(*foreign)


_PLACED_MEMBERS: Final = 4  # v, writer, wseq, prev: not the draft's to say
_DRAFT_FIELD_OF: Final = {"plan": "plan_digest"}
_FORMS: Final[Mapping[str, _Form]] = {
    "decision": _Form(DecisionReceipt),
    "body_verdict": _Form(BodyVerdictReceipt),
    "outcome": _Form(OutcomeReceipt),
    "summary": _Form(SummaryReceipt),
    "log_event": _Form(LogEventReceipt),
}
