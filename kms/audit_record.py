"""One audit record: canonical JSON on a line of its own, chained to the one before (I-2, IDB.md §3.6).

`seq` counts from 0 without a gap; `prev` is the leaf hash of the record before it, so that a record taken out, put in
or changed breaks the chain; the same leaf hashes make the tree that is signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from receipts.canonical_json import CanonicalJsonError, canonical, parse_canonical
from receipts.merkle import leaf_hash

if TYPE_CHECKING:
    from kms.audit_event import AuditEvent

MAX_RECORD_BYTES: Final = 16_384
VERSION: Final = 1
EPOCH_DETAIL: Final = "epoch"
STATE_DETAIL: Final = "digest"
"""The members of `detail` that say to which state of the key store a change led."""
NO_PREVIOUS: Final = ""

_MAX_TEXT_CHARS: Final = 256
_MAX_DETAILS: Final = 32

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Hash = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]


class AuditRecordError(ValueError):
    """Bytes are no audit record; the message never quotes them."""


class AuditRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of an event. `actor` is the token's id, "" for what the service does by itself."""

    v: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    seq: _Count
    prev: _Hash
    ts_ms: _Count
    op: str
    result: str
    reason: str
    tenant: str
    kid: str
    alg: str
    payload_b3: str
    op_id: str
    actor: str
    root: str
    corr_id: str
    request_id: str
    path: str
    peer: str
    transport: str
    detail: dict[str, str]


def encode_event(event: AuditEvent, seq: int, prev: str, now_ms: int) -> bytes:
    """Write an event as the record `seq`. `prev`: leaf hash, hex, "" before the first. `now_ms`: since the epoch, UTC.

    Texts beyond their bound are cut: a record is always written. Raises AuditRecordError when one has no JSON form.
    """
    context = event.context
    record = {
        "v": VERSION,
        "seq": seq,
        "prev": prev,
        "ts_ms": now_ms,
        "op": event.op,
        "result": event.result,
        "reason": event.reason,
        "tenant": event.tenant,
        "kid": event.kid,
        "alg": event.alg,
        "payload_b3": event.payload_b3,
        "op_id": event.op_id,
        "actor": "" if context is None else context.principal.token_id,
        "root": "" if context is None else context.principal.root_key_id,
        "corr_id": "" if context is None else context.corr_id,
        "request_id": "" if context is None else context.request_id,
        "path": "" if context is None else context.path,
        "peer": "" if context is None else context.peer,
        "transport": "" if context is None else context.transport,
        "detail": {
            name[:_MAX_TEXT_CHARS]: text[:_MAX_TEXT_CHARS] for name, text in sorted(event.detail.items())[:_MAX_DETAILS]
        },
    }
    try:
        raw = canonical({name: text[:_MAX_TEXT_CHARS] if type(text) is str else text for name, text in record.items()})
    except CanonicalJsonError as error:
        raise AuditRecordError("the event has no JSON form") from error
    if len(raw) > MAX_RECORD_BYTES:
        raise AuditRecordError("the event is too long for a record")
    return raw


def parse_record(raw: bytes) -> AuditRecord:
    """Read a record's line, without its end. Raises AuditRecordError when it is not exactly as we would write it."""
    try:
        parse_canonical(raw)
        return msgspec.json.decode(raw, type=AuditRecord)
    except (CanonicalJsonError, msgspec.MsgspecError) as error:
        raise AuditRecordError("not an audit record") from error


def record_hash(raw: bytes) -> bytes:
    """Hash a record as a leaf of the tree, RFC 9162 §2.1.1: 32 bytes."""
    return leaf_hash(raw)
