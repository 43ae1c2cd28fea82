"""How an allowed request ended, read from one entry of the edge's access log.

The entry names its decision by the metadata that came with the pass (`extproc.response`): only the filter can write
there, but the entry itself is whatever the peer on the socket sent, so every member is checked as if it were forged.
Whether the decision exists is for the recorder to find out.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType

from extproc.response import DECISION_ALLOW, DECISION_KEY, RECEIPT_KEY
from receipts.canonical_json import MAX_SAFE_INTEGER
from receipts.facts import OutcomeFacts
from receipts.receipt import idempotency_key
from receipts.receipt_id import RECEIPT_ID_PATTERN, ReceiptId

if TYPE_CHECKING:
    from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogCommon, HTTPAccessLogEntry
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.struct_pb2 import Struct

AUTHZ_METADATA: Final = "envoy.filters.http.ext_authz"
STATUS_OUT_OF_RANGE: Final = "status_out_of_range"
"""Flag of an outcome whose status is none of 100 to 599: apps may send one, a receipt cannot hold it."""
_KEY_DOMAIN: Final = b"signet outcome v1\x00"
_RECEIPT_ID: Final = re.compile(RECEIPT_ID_PATTERN)
_ENDS: Final = frozenset({AccessLogType.NotSet, AccessLogType.DownstreamEnd})
_NANOS: Final = 1_000_000_000


class MalformedEntry(ValueError):
    """The entry claims a decision and cannot be what the edge logs for one. Messages hold no value of it."""


class Skipped(StrEnum):
    """Why an entry is no outcome, without anything being wrong with it."""

    UNDECIDED = "undecided"
    """The filter did not let this request through, or let it through without a receipt."""
    INTERMEDIATE = "intermediate"
    """Written before the request's end; another entry follows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one request. What the receipt does not hold is for metrics and the breaker alone.

    `ended_ms`: by the edge's clock. `app_us`: from the moment when the app had the whole request to the first byte of
    its answer, or to the end when none came; None where it never had the whole request. So neither a slow upload nor a
    slow reader makes an app look slow. `answered`: the status is the app's, not the edge's in its stead.
    """

    decision_id: ReceiptId
    facts: OutcomeFacts
    ended_ms: int
    app_us: int | None = None
    answered: bool = False


def decode_entry(entry: HTTPAccessLogEntry) -> Outcome | Skipped:
    """Read one access log entry. Raises `MalformedEntry`."""
    common = entry.common_properties
    # Asking a protobuf map for an absent key would add it.
    metadata = common.metadata.filter_metadata
    if AUTHZ_METADATA not in metadata:
        return Skipped.UNDECIDED
    said = metadata[AUTHZ_METADATA]
    if _text(said, DECISION_KEY) != DECISION_ALLOW or RECEIPT_KEY not in said.fields:
        return Skipped.UNDECIDED
    if common.intermediate_log_entry or common.access_log_type not in _ENDS:
        return Skipped.INTERMEDIATE
    receipt = _text(said, RECEIPT_KEY)
    if receipt is None or not _RECEIPT_ID.match(receipt):
        raise MalformedEntry("the decision's id is no receipt id")
    duration_us = _duration_us(common)
    started = common.start_time
    ended_ms = started.seconds * 1000 + (started.nanos + duration_us * 1000) // 1_000_000
    flags = [field.name for field, _ in common.response_flags.ListFields()]
    status: int | None = entry.response.response_code.value or None
    if status is not None and not 100 <= status <= 599:
        status = None
        flags.append(STATUS_OUT_OF_RANGE)
    facts = OutcomeFacts(status, duration_us, tuple(flags))
    answered = common.HasField("time_to_first_upstream_rx_byte")
    return Outcome(ReceiptId(receipt), facts, ended_ms, _app_us(common), answered)


def outcome_key(decision_id: ReceiptId) -> bytes:
    """Build the key under which a decision has one outcome (docs/reference/receipt.md §6).

    Laid out like that of a spent challenge, the decision's time in front, so that it too goes to the end of the index.
    """
    packed = bytes.fromhex(decision_id.replace("-", ""))
    return idempotency_key(int.from_bytes(packed[:6], "big"), hashlib.sha256(_KEY_DOMAIN + packed).digest())


def _text(said: Struct, name: str) -> str | None:
    """Give a string member; None when it is absent or anything else."""
    if name not in said.fields:
        return None
    value = said.fields[name]
    return str(value.string_value) if value.WhichOneof("kind") == "string_value" else None


def _duration_us(common: AccessLogCommon) -> int:
    """Give the time to the last byte of the answer; to the end of the stream when no answer was sent."""
    for name in ("time_to_last_downstream_tx_byte", "duration"):
        if common.HasField(name):
            return _microseconds(getattr(common, name))
    raise MalformedEntry("the entry has no duration")


def _app_us(common: AccessLogCommon) -> int | None:
    if not common.HasField("time_to_last_upstream_tx_byte"):
        return None
    asked_us = _microseconds(common.time_to_last_upstream_tx_byte)
    for name in ("time_to_first_upstream_rx_byte", "duration"):
        if common.HasField(name):
            # An app may answer before it has everything.
            return max(0, _microseconds(getattr(common, name)) - asked_us)
    return None


def _microseconds(duration: Duration) -> int:
    if duration.seconds < 0 or not 0 <= duration.nanos < _NANOS:
        raise MalformedEntry("the duration is none")
    microseconds = int(duration.seconds) * 1_000_000 + int(duration.nanos) // 1000
    if microseconds > MAX_SAFE_INTEGER:
        raise MalformedEntry("the duration is none")
    return microseconds
