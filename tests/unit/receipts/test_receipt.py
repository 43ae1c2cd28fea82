from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receipts.canonical_json import canonical
from receipts.errors import ReceiptFormatError, ReceiptTooLarge
from receipts.facts import MAX_COUNTS, PolicyFacts
from receipts.receipt import (
    MAX_RECEIPT_BYTES,
    DecisionReceipt,
    ReceiptDraft,
    idempotency_key,
    leaf_hash,
    parse_receipt,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from receipts.receipt_id import WriterId

KINDS = ["decision", "body_verdict", "outcome", "summary", "log_event"]
PREV = bytes(range(32))


def sealed(draft: ReceiptDraft, writer: WriterId, **changes: Any) -> bytes:
    return seal(dataclasses.replace(draft, **changes), writer, 2, PREV)


def rewritten(raw: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    value = json.loads(raw)
    change(value)
    return canonical(value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_sealed_to_canonical_bytes_that_parse(
    kind: str, examples: Mapping[str, ReceiptDraft], writer: WriterId
) -> None:
    raw = seal(examples[kind], writer, 1, None)
    value = json.loads(raw)
    assert canonical(value) == raw
    assert (value["v"], value["kind"], value["writer"], value["wseq"], value["prev"]) == (1, kind, writer, 1, None)
    receipt = parse_receipt(raw)
    assert receipt.id == examples[kind].id
    assert canonical(msgspec.to_builtins(receipt)) == raw


def test_a_receipt_carries_the_hash_of_the_one_before(examples: Mapping[str, ReceiptDraft], writer: WriterId) -> None:
    first = seal(examples["decision"], writer, 1, None)
    second = parse_receipt(seal(examples["outcome"], writer, 2, leaf_hash(first)))
    assert second.prev == hashlib.sha256(b"\x00" + first).hexdigest()


def test_the_policy_input_is_carried_whole(make_draft: Callable[..., ReceiptDraft], writer: WriterId) -> None:
    asked = {"b": [1, None, {"\uffee": 0.5, "\U00010000": 1e20}], "a": {"é": True}}
    receipt = parse_receipt(sealed(make_draft(policy=PolicyFacts("0" * 64, asked)), writer))
    assert isinstance(receipt, DecisionReceipt)
    assert receipt.policy is not None
    assert receipt.policy.input == asked


def test_an_idempotency_key_begins_with_its_time() -> None:
    token = hashlib.sha256(b"token").digest()
    key = idempotency_key(1_763_712_000_123, token)
    assert key == (1_763_712_000_123).to_bytes(8, "big") + token[:24]
    assert len(key) == 32


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_is_required_and_no_other_is_known(
    kind: str, examples: Mapping[str, ReceiptDraft], writer: WriterId
) -> None:
    raw = sealed(examples[kind], writer)

    def objects(value: Any, path: tuple[Any, ...] = ()) -> Any:
        opaque = path[-1:] in (("input",), ("facts",), ("counts",))
        if isinstance(value, dict) and not opaque:
            yield path, value
            for name, item in value.items():
                yield from objects(item, (*path, name))
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield from objects(item, (*path, number))

    def reach(value: Any, path: tuple[Any, ...]) -> Any:
        for step in path:
            value = value[step]
        return value

    twins = []
    for path, members in list(objects(json.loads(raw))):
        twins += [rewritten(raw, lambda top, p=path, n=name: reach(top, p).pop(n)) for name in members]  # type: ignore[misc]
        twins.append(rewritten(raw, lambda top, p=path: reach(top, p).update(extra=1)))  # type: ignore[misc]
    assert len(twins) > 8
    for twin in twins:
        with pytest.raises(ReceiptFormatError):
            parse_receipt(twin)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    *steps, name, value = path

    def change(top: dict[str, Any]) -> None:
        place: Any = top
        for step in steps:
            place = place[step]
        place[name] = value

    return change


HEX = "ab" * 32
BAD_MEMBERS = {
    "version 0": put("v", 0),
    "version 2": put("v", 2),
    "version true": put("v", True),
    "version text": put("v", "1"),
    "kind unknown": put("kind", "verdict"),
    "kind null": put("kind", None),
    "kind of other members": put("kind", "outcome"),
    "id version 4": put("id", "019aa56d-607b-4abc-8abc-0123456789ab"),
    "id upper": put("id", "019AA56D-607B-7ABC-8ABC-0123456789AB"),
    "id newline": put("id", "019aa56d-607b-7abc-8abc-0123456789ab\n"),
    "id bare": put("id", "019aa56d607b7abc8abc0123456789ab"),
    "time negative": put("time_ms", -1),
    "time float": put("time_ms", 1.5),
    "time text": put("time_ms", "1"),
    "trace zero": put("trace_id", "0" * 32),
    "trace short": put("trace_id", "a" * 31),
    "trace upper": put("trace_id", "A" * 32),
    "writer empty": put("writer", ""),
    "wseq 0": put("wseq", 0),
    "wseq 1 with prev": put("wseq", 1),
    "wseq true": put("wseq", True),
    "prev null": put("prev", None),
    "prev short": put("prev", HEX[1:]),
    "prev upper": put("prev", HEX.upper()),
    "decision unknown": put("decision", "maybe"),
    "decision null": put("decision", None),
    "deny without status": put("decision", "deny"),
    "allow with status": put("status", 200),
    "reason empty": put("reason", ""),
    "reason shouting": put("reason", "Allowed"),
    "reason long": put("reason", "a" * 65),
    "route empty": put("route", ""),
    "route long": put("route", "r" * 257),
    "plan short": put("plan", "00"),
    "request null": put("request", None),
    "method long": put("request", "method", "M" * 65),
    "authority long": put("request", "authority", "a" * 513),
    "path long": put("request", "path", "/" * 8193),
    "query hash": put("request", "query_sha256", "q=1"),
    "content unknown": put("request", "content", "some"),
    "content verified without digest": put("request", "content_sha256", None),
    "content none with digest": put("request", "content", "none"),
    "edge id empty": put("request", "edge_request_id", ""),
    "truncated unknown": put("request", "truncated", ["query"]),
    "truncated unsorted": put("request", "truncated", ["path", "method"]),
    "subject empty": put("proof", "subject", ""),
    "signatures empty": put("proof", "signatures", []),
    "signature tag": put("proof", "signatures", 0, "tag", "other"),
    "signature key id": put("proof", "signatures", 0, "key_id", "short"),
    "signature alg": put("proof", "signatures", 0, "alg", "ED25519"),
    "binding unknown": put("proof", "binding", "tls-unique"),
    "binding none with hash": put("proof", "binding", "none"),
    "binding hash null": put("proof", "binding_sha256", None),
    "created negative": put("proof", "created_s", -1),
    "covered empty": put("proof", "covered", []),
    "covered too many": put("proof", "covered", ['"a"'] * 33),
    "covered not text": put("proof", "covered", [1]),
    "policy null input": put("policy", "input", None),
    "policy array input": put("policy", "input", []),
    "policy digest": put("policy", "digest", HEX + "0"),
}


@pytest.mark.parametrize("change", BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_a_member_outside_its_bounds_is_refused(
    change: Callable[[dict[str, Any]], None], examples: Mapping[str, ReceiptDraft], writer: WriterId
) -> None:
    raw = sealed(examples["decision"], writer)
    assert parse_receipt(raw)
    with pytest.raises(ReceiptFormatError):
        parse_receipt(rewritten(raw, change))


BAD_SUMMARIES = {
    "counts empty": put("counts", {}),
    "count zero": put("counts", {"quota": 0}),
    "count name": put("counts", {"Quota": 1}),
    "counts too many": put("counts", {f"r{n}": 1 for n in range(MAX_COUNTS + 1)}),
    "window empty": put("window", {"start_ms": 5, "end_ms": 5}),
    "with reason": put("reason", "quota"),
}


@pytest.mark.parametrize("change", BAD_SUMMARIES.values(), ids=BAD_SUMMARIES.keys())
def test_a_summary_outside_its_bounds_is_refused(
    change: Callable[[dict[str, Any]], None], examples: Mapping[str, ReceiptDraft], writer: WriterId
) -> None:
    with pytest.raises(ReceiptFormatError):
        parse_receipt(rewritten(sealed(examples["summary"], writer), change))


def test_every_bit_of_a_receipt_counts(examples: Mapping[str, ReceiptDraft], writer: WriterId) -> None:
    raw = sealed(examples["decision"], writer)
    for place in range(len(raw)):
        twin = bytearray(raw)
        twin[place] ^= 1
        assert leaf_hash(bytes(twin)) != leaf_hash(raw)
        try:
            parse_receipt(bytes(twin))
        except ReceiptFormatError:
            continue
        assert canonical(json.loads(twin)) == twin


BAD_BYTES = {
    "empty": b"",
    "not JSON": b"receipt",
    "array": b"[]",
    "number": b"1",
    "null": b"null",
    "no version": b"{}",
    "too long": b'"' + b"a" * MAX_RECEIPT_BYTES + b'"',
}


@pytest.mark.parametrize("raw", BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_bytes_that_are_no_receipt_are_refused(raw: bytes) -> None:
    with pytest.raises(ReceiptFormatError):
        parse_receipt(raw)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + b"\n",
        lambda raw: b" " + raw,
        lambda raw: raw.replace(b'"v":1', b'"v":1.0'),
        lambda raw: raw.replace(b'"wseq":2', b'"wseq":2,"wseq":2'),
        lambda raw: json.dumps(json.loads(raw)).encode(),
        lambda raw: (
            json.dumps(json.loads(raw), separators=(",", ":")).encode().replace(b'{"decision"', b'{ "decision"')
        ),
    ],
)
def test_other_spellings_of_a_receipt_are_refused(
    change: Callable[[bytes], bytes], examples: Mapping[str, ReceiptDraft], writer: WriterId
) -> None:
    raw = sealed(examples["decision"], writer)
    assert change(raw) != raw
    with pytest.raises(ReceiptFormatError):
        parse_receipt(change(raw))


def test_errors_name_the_member_and_never_its_value(examples: Mapping[str, ReceiptDraft], writer: WriterId) -> None:
    raw = rewritten(sealed(examples["decision"], writer), put("proof", "signatures", 0, "alg", "SECRET VALUE"))
    with pytest.raises(ReceiptFormatError, match=r"\$\.proof\.signatures") as caught:
        parse_receipt(raw)
    assert "SECRET" not in str(caught.value)


BAD_DRAFTS: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown kind": ("decision", {"kind": "verdict"}),
    "decision with counts": ("decision", {"counts": {"quota": 1}}),
    "decision that refers": ("decision", {"refers_to": "019aa56d-607b-7abc-8abc-0123456789ab"}),
    "decision without request": ("decision", {"request": None}),
    "decision without reason": ("decision", {"reason": None}),
    "decision with a bad id": ("decision", {"id": "1"}),
    "denial without status": ("decision", {"decision": "deny"}),
    "allow with status": ("decision", {"status": 200}),
    "summary with policy": ("summary", {"policy": PolicyFacts("0" * 64, {})}),
    "summary without counts": ("summary", {"counts": None}),
    "verdict that refers to nothing": ("body_verdict", {"refers_to": None}),
    "outcome without outcome": ("outcome", {"outcome": None}),
    "event without event": ("log_event", {"event": None}),
    "short idempotency key": ("decision", {"idempotency_key": b"short"}),
    "another idempotency key": ("decision", {"idempotency_key": b"x" * 32}),
    "spend key without idempotency key": ("decision", {"idempotency_key": None}),
    "policy input that is no JSON": ("decision", {"policy": PolicyFacts("0" * 64, {"a": b"x"})}),
    "policy input that is no object": ("decision", {"policy": PolicyFacts("0" * 64, [1])}),  # type: ignore[arg-type]
    "lone surrogate": ("decision", {"route": "\ud800"}),
    "time that is no JSON": ("decision", {"time_ms": object()}),
    "time too large": ("decision", {"time_ms": 2**53}),
}


@pytest.mark.parametrize(("kind", "changes"), BAD_DRAFTS.values(), ids=BAD_DRAFTS.keys())
def test_a_draft_that_breaks_the_format_is_not_sealed(
    kind: str, changes: dict[str, Any], examples: Mapping[str, ReceiptDraft], writer: WriterId
) -> None:
    assert sealed(examples[kind], writer)
    with pytest.raises(ReceiptFormatError):
        sealed(examples[kind], writer, **changes)


@pytest.mark.parametrize(("wseq", "prev"), [(1, PREV), (2, None), (0, None), (2, b"short"), (2**53, PREV)])
def test_a_wrong_place_in_the_chain_is_not_sealed(
    wseq: int, prev: bytes | None, examples: Mapping[str, ReceiptDraft], writer: WriterId
) -> None:
    with pytest.raises(ReceiptFormatError):
        seal(examples["decision"], writer, wseq, prev)


def test_the_bound_on_size_is_exact(make_draft: Callable[..., ReceiptDraft], writer: WriterId) -> None:
    def padded(pad: int) -> bytes:
        return sealed(draft, writer, policy=PolicyFacts("0" * 64, {"pad": "x" * pad}))

    draft = make_draft()
    room = MAX_RECEIPT_BYTES - len(padded(0))
    assert len(padded(room)) == MAX_RECEIPT_BYTES
    assert parse_receipt(padded(room))
    with pytest.raises(ReceiptTooLarge):
        padded(room + 1)


policy_inputs = st.dictionaries(
    st.text(max_size=20),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.text(max_size=20)
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
        max_leaves=10,
    ),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(min_size=1, max_size=256),
    policy_inputs,
    st.integers(2, 2**53 - 1),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**53 - 1),
)
def test_whatever_is_sealed_parses_to_itself(
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    route: str,
    asked: dict[str, Any],
    wseq: int,
    prev: bytes,
    time_ms: int,
) -> None:
    draft = make_draft(route=route, policy=PolicyFacts("0" * 64, asked), time_ms=time_ms)
    raw = seal(draft, writer, wseq, prev)
    receipt = parse_receipt(raw)
    assert isinstance(receipt, DecisionReceipt)
    assert receipt.policy is not None
    assert (receipt.route, receipt.wseq, receipt.prev, receipt.time_ms) == (route, wseq, prev.hex(), time_ms)
    assert receipt.policy.input == asked


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_one_type(raw: bytes) -> None:
    with pytest.raises(ReceiptFormatError):
        parse_receipt(raw)
