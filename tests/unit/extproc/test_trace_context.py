"""A W3C traceparent: in the receipt and in the JSON log line of a real filter; a malformed one is in neither."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from extproc.__main__ import EXIT_OK
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.check_calls import FilterCalls, check_of, reason_of, unsigned
from tests.support.filter_process import filter_folder

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def recorded(value: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send one request with a traceparent; gives its receipt and its log line."""
    with filter_folder(workers=1) as folder:
        process = folder.start("--log-format", "json", "--log-level", "debug", "serve")
        folder.pid()
        message = replace(unsigned(), headers=(("traceparent", value.encode()),))
        with FilterCalls(folder.socket(0)) as calls:
            assert reason_of(calls.check(check_of(message))) == "missing_signature"
        process.terminate()
        assert process.wait(15) == EXIT_OK
        (line,) = (line for line in folder.logged().splitlines() if "refused: missing_signature" in line)
        store = SqliteReceiptStore(folder.folder / "receipts.sqlite3")
        try:
            found = [json.loads(stored.raw) for stored in store.latest(10)]
        finally:
            store.close()
    (receipt,) = (each for each in found if each.get("reason") == "missing_signature")
    return receipt, json.loads(line)


def test_trace_of_the_client_is_in_the_receipt_and_in_the_log() -> None:
    receipt, line = recorded(f"00-{TRACE}-{SPAN}-01")
    assert receipt["trace_id"] == TRACE
    assert line["trace_id"] == TRACE


@pytest.mark.parametrize("value", [f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01"])
def test_malformed_trace_is_in_neither(value: str) -> None:
    receipt, line = recorded(value)
    assert receipt.get("trace_id") is None
    assert "trace_id" not in line
