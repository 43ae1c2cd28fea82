"""Access log entries: what an allowed request's end looks like, and everything that must not pass for one."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogType, HTTPAccessLogEntry, ResponseFlags
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from extproc.outcome import (
    AUTHZ_METADATA,
    STATUS_OUT_OF_RANGE,
    MalformedEntry,
    Outcome,
    Skipped,
    decode_entry,
    outcome_key,
)
from receipts.canonical_json import MAX_SAFE_INTEGER
from receipts.facts import MAX_FLAGS
from receipts.receipt import IDEMPOTENCY_KEY_BYTES, ReceiptDraft, idempotency_key, seal
from receipts.receipt_id import ReceiptId, WriterId, new_receipt_id
from tests.support.outcomes import RECEIPT_ID, entry_of

Change = Callable[[HTTPAccessLogEntry], object]


def said(entry: HTTPAccessLogEntry) -> object:
    return entry.common_properties.metadata.filter_metadata[AUTHZ_METADATA]


def outcome(change: Change = lambda _: None) -> Outcome:
    entry = entry_of()
    change(entry)
    found = decode_entry(entry)
    assert isinstance(found, Outcome)
    return found


def test_end_of_an_allowed_request_names_its_decision_status_and_duration() -> None:
    found = outcome()
    assert found.decision_id == RECEIPT_ID
    assert (found.facts.status, found.facts.duration_us, found.facts.flags) == (200, 1500, ())
    assert found.ended_ms == 1_790_000_000_001


def timed(**times_us: int) -> Change:
    def change(entry: HTTPAccessLogEntry) -> None:
        for name, value in times_us.items():
            getattr(entry.common_properties, name).FromMicroseconds(value)

    return change


@pytest.mark.parametrize(
    ("times_us", "app_us"),
    [
        ({}, None),
        ({"time_to_last_upstream_tx_byte": 400, "time_to_first_upstream_rx_byte": 1_300}, 900),
        ({"time_to_last_upstream_tx_byte": 400}, 1_107),
        ({"time_to_last_upstream_tx_byte": 400, "time_to_first_upstream_rx_byte": 100}, 0),
        ({"time_to_first_upstream_rx_byte": 1_300}, None),
    ],
    ids=["never asked", "answered", "gave up waiting", "answered early", "answered before the request was whole"],
)
def test_the_apps_time_leaves_out_what_the_client_took(times_us: dict[str, int], app_us: int | None) -> None:
    assert outcome(timed(**times_us)).app_us == app_us


@pytest.mark.parametrize(
    ("times_us", "answered"),
    [
        ({}, False),
        ({"time_to_last_upstream_tx_byte": 400}, False),
        ({"time_to_first_upstream_rx_byte": 1_300}, True),
    ],
    ids=["never asked", "no answer", "answered"],
)
def test_an_answer_is_the_apps_when_something_of_it_came(times_us: dict[str, int], answered: bool) -> None:
    assert outcome(timed(**times_us)).answered is answered


def set_type(name: str) -> Change:
    return lambda entry: setattr(entry.common_properties, "access_log_type", AccessLogType.Value(name))


@pytest.mark.parametrize("name", ["NotSet", "DownstreamEnd"])
def test_entry_at_the_end_counts(name: str) -> None:
    assert outcome(set_type(name)).facts.status == 200


@pytest.mark.parametrize("name", sorted(set(AccessLogType.keys()) - {"NotSet", "DownstreamEnd"}))
def test_entry_before_the_end_does_not(name: str) -> None:
    entry = entry_of()
    set_type(name)(entry)
    assert decode_entry(entry) is Skipped.INTERMEDIATE


def test_intermediate_entry_does_not_count() -> None:
    entry = entry_of()
    entry.common_properties.intermediate_log_entry = True
    assert decode_entry(entry) is Skipped.INTERMEDIATE


UNDECIDED: dict[str, Change] = {
    "no metadata": lambda entry: entry.common_properties.ClearField("metadata"),
    "another filter's metadata": lambda entry: (
        entry.common_properties.metadata.filter_metadata["envoy.filters.http.other"].CopyFrom(said(entry)),
        entry.common_properties.metadata.filter_metadata.pop(AUTHZ_METADATA),
    ),
    "no decision": lambda entry: said(entry).fields.pop("decision"),
    "refused": lambda entry: said(entry).update({"decision": "deny"}),
    "in other letters": lambda entry: said(entry).update({"decision": "Allow"}),
    "decision is no string": lambda entry: said(entry).update({"decision": True}),
    "allowed without a receipt": lambda entry: said(entry).fields.pop("receipt"),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_request_without_a_decision_is_no_outcome(name: str) -> None:
    entry = entry_of()
    UNDECIDED[name](entry)
    assert decode_entry(entry) is Skipped.UNDECIDED


def test_looking_does_not_change_the_entry() -> None:
    entry = HTTPAccessLogEntry()
    assert decode_entry(entry) is Skipped.UNDECIDED
    assert entry == HTTPAccessLogEntry()


FORGED_IDS = (
    "",
    "x",
    RECEIPT_ID.upper(),
    RECEIPT_ID + "\n",
    " " + RECEIPT_ID,
    RECEIPT_ID[:-1],
    RECEIPT_ID + "0",
    RECEIPT_ID.replace("-", ""),
    str(uuid.UUID(int=0)),
    RECEIPT_ID[:14] + "4" + RECEIPT_ID[15:],
    RECEIPT_ID[:19] + "c" + RECEIPT_ID[20:],
    "'; DROP TABLE receipts; --",
    "٠" * 36,
)


@pytest.mark.parametrize("receipt", [*FORGED_IDS, 7, None, True, [RECEIPT_ID], {"id": RECEIPT_ID}])
def test_what_is_no_receipt_id_is_refused_and_not_repeated(receipt: object) -> None:
    entry = entry_of()
    said(entry).update({"receipt": receipt})
    with pytest.raises(MalformedEntry) as refused:
        decode_entry(entry)
    assert not receipt or str(receipt) not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "recorded"),
    [(100, 100), (200, 200), (599, 599), (0, None), (99, None), (600, None), (999, None), (2**32 - 1, None)],
)
def test_status_is_that_of_the_answer_or_none(status: int, recorded: int | None) -> None:
    facts = outcome(lambda entry: setattr(entry.response.response_code, "value", status)).facts
    assert facts.status == recorded
    assert facts.flags == (() if recorded or not status else (STATUS_OUT_OF_RANGE,))


def test_answer_that_was_never_sent_has_no_status() -> None:
    assert outcome(lambda entry: entry.ClearField("response")).facts.status is None


def test_duration_without_an_answer_is_that_of_the_stream() -> None:
    facts = outcome(lambda entry: entry.common_properties.ClearField("time_to_last_downstream_tx_byte")).facts
    assert facts.duration_us == 1507


@pytest.mark.parametrize(
    ("seconds", "nanos", "duration_us"),
    [(0, 0, 0), (0, 999, 0), (0, 1000, 1), (3, 999_999_999, 3_999_999), (MAX_SAFE_INTEGER // 1_000_000, 0, None)],
)
def test_duration_is_exact_in_microseconds(seconds: int, nanos: int, duration_us: int | None) -> None:
    def change(entry: HTTPAccessLogEntry) -> None:
        duration = entry.common_properties.time_to_last_downstream_tx_byte
        duration.seconds, duration.nanos = seconds, nanos

    assert outcome(change).facts.duration_us == (seconds * 1_000_000 if duration_us is None else duration_us)


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(-1, 0), (0, -1), (0, 1_000_000_000), (MAX_SAFE_INTEGER // 1_000_000 + 1, 0), (2**63 - 1, 0), (-(2**63), 0)],
)
def test_duration_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    entry = entry_of()
    duration = entry.common_properties.time_to_last_downstream_tx_byte
    duration.seconds, duration.nanos = seconds, nanos
    with pytest.raises(MalformedEntry):
        decode_entry(entry)


def test_entry_without_any_duration_is_refused() -> None:
    entry = entry_of()
    for name in ("time_to_last_downstream_tx_byte", "duration"):
        entry.common_properties.ClearField(name)
    with pytest.raises(MalformedEntry):
        decode_entry(entry)


def every_flag(entry: HTTPAccessLogEntry) -> None:
    for field in ResponseFlags.DESCRIPTOR.fields:
        if field.message_type is None:
            setattr(entry.common_properties.response_flags, field.name, True)
        else:
            getattr(entry.common_properties.response_flags, field.name).SetInParent()
    entry.response.response_code.value = 700


def test_every_flag_that_the_edge_has_fits_a_receipt() -> None:
    facts = outcome(every_flag).facts
    assert {field.name for field in ResponseFlags.DESCRIPTOR.fields} | {STATUS_OUT_OF_RANGE} == set(facts.flags)
    assert len(facts.flags) <= MAX_FLAGS
    assert sealed(outcome(every_flag))


def sealed(found: Outcome) -> bytes:
    draft = ReceiptDraft(
        kind="outcome",
        id=ReceiptId(RECEIPT_ID),
        time_ms=1,
        refers_to=found.decision_id,
        outcome=found.facts,
        idempotency_key=outcome_key(found.decision_id),
    )
    return seal(draft, WriterId(str(uuid.UUID(int=1))), 1, None)


def test_nothing_but_status_duration_and_flags_enters_the_receipt() -> None:
    raw = sealed(outcome())
    assert b"secret" not in raw
    assert b"alice" not in raw


@given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=8))
def test_whatever_bytes_parse_are_read_or_refused(junk: bytes, cut: int, patch: bytes) -> None:
    raw = entry_of().SerializeToString()
    for candidate in (junk, raw[:cut] + patch + raw[cut + len(patch) :]):
        try:
            entry = HTTPAccessLogEntry.FromString(candidate)
            found = decode_entry(entry)
        except (DecodeError, MalformedEntry):
            continue
        assert isinstance(found, Skipped) or sealed(found)


def test_key_is_one_per_decision_and_sorts_by_its_time() -> None:
    early, late = new_receipt_id(1_000, bytes(10)), new_receipt_id(1_001, bytes(10))
    other = new_receipt_id(1_000, bytes(range(10)))
    keys = [outcome_key(each) for each in (early, other, late)]
    assert len(set(keys)) == 3
    assert keys[0] < keys[2]
    assert keys[1] < keys[2]
    assert {len(key) for key in keys} == {IDEMPOTENCY_KEY_BYTES}
    assert outcome_key(early) == keys[0]


def test_key_is_never_that_of_a_spent_challenge() -> None:
    packed = uuid.UUID(RECEIPT_ID).bytes
    issued_ms = int.from_bytes(packed[:6], "big")
    for token in (packed * 2, bytes(32), packed + bytes(16)):
        assert outcome_key(ReceiptId(RECEIPT_ID)) != idempotency_key(issued_ms, token)
