"""Outcome receipts as an auditor finds them, and access log entries as Envoy sends them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage

from extproc.access_log import LOG_NAME
from extproc.outcome import AUTHZ_METADATA

RECEIPT_ID = "01a1fd4b-8279-7ca5-a1de-7670eb338c58"


def receipts(var: Path) -> list[dict[str, Any]]:
    """Give all receipts of a stack in the order of the log."""
    with contextlib.closing(sqlite3.connect(f"file:{var / 'receipts.sqlite3'}?mode=ro", uri=True)) as connection:
        return [json.loads(raw) for (raw,) in connection.execute("SELECT raw FROM receipts ORDER BY seq")]


def outcomes_of(var: Path, decision_id: str) -> list[dict[str, Any]]:
    """Give the outcome receipts that refer to a decision."""
    return [each for each in receipts(var) if each["kind"] == "outcome" and each["refers_to"] == decision_id]


def entry_of(receipt_id: str = RECEIPT_ID, *, status: int = 200, duration_us: int = 1500) -> HTTPAccessLogEntry:
    """Make an entry as Envoy 1.40 sends it for an allowed request."""
    entry = HTTPAccessLogEntry()
    common = entry.common_properties
    common.access_log_type = 6
    common.start_time.FromMilliseconds(1_790_000_000_000)
    common.duration.FromMicroseconds(duration_us + 7)
    common.time_to_last_downstream_tx_byte.FromMicroseconds(duration_us)
    common.metadata.filter_metadata[AUTHZ_METADATA].update(
        {"decision": "allow", "receipt": receipt_id, "route": "protected", "subject": "alice"}
    )
    entry.request.path = "/protected?secret=query"
    entry.response.response_code.value = status
    return entry


def message_of(entries: Iterable[HTTPAccessLogEntry] = (), log_name: str | None = LOG_NAME) -> StreamAccessLogsMessage:
    """Wrap entries; the first message of a stream has the log's name."""
    message = StreamAccessLogsMessage()
    if log_name is not None:
        message.identifier.log_name = log_name
        message.identifier.node.id = "signet-edge"
    message.http_logs.log_entry.extend(entries)
    return message
