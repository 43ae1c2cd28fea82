"""Relaxed evidence: the field that says so, and the envelope."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.errors import MalformedSignature
from pch.relaxed import (
    MAX_ENVELOPE_BYTES,
    Envelope,
    Relaxed,
    compose_envelope,
    is_relax_offer,
    parse_envelope,
    parse_relaxed_field,
    relaxed_field,
)


@pytest.mark.parametrize("length_bytes", [None, 1, 9, 10, 99_999, MAX_ENVELOPE_BYTES])
def test_the_field_says_how_long_the_envelope_is(length_bytes: int | None) -> None:
    assert parse_relaxed_field([relaxed_field(length_bytes)]) == Relaxed(length_bytes)


def test_no_field_is_not_relaxed() -> None:
    assert parse_relaxed_field([]) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"?0",
        b"1",
        b"true",
        b"?1;",
        b"?1; length=1",
        b"?1;length",
        b"?1;length=",
        b"?1;length=0",
        b"?1;length=01",
        b"?1;length=-1",
        b"?1;length=+1",
        b"?1;length=1.0",
        b'?1;length="1"',
        b"?1;length=131073",
        b"?1;length=999999",
        b"?1;length=1000000",
        b"?1;length=1;length=2",
        b"?1;length=1;x=1",
        b"?1;Length=1",
        b"?1, ?1",
        b"?1\x0b",
        b"\xff",
    ],
)
def test_a_field_out_of_grammar_is_refused(value: bytes) -> None:
    with pytest.raises(MalformedSignature):
        parse_relaxed_field([value])


def test_the_field_twice_is_refused() -> None:
    with pytest.raises(MalformedSignature):
        parse_relaxed_field([b"?1", b"?1"])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"evidence=body"], True),
        ([b" evidence=body "], True),
        ([], False),
        ([b"evidence=header"], False),
        ([b"evidence=body, more"], False),
        ([b"evidence=body", b"evidence=body"], False),
    ],
)
def test_an_offer_to_relax_is_exactly_one_value(lines: list[bytes], expected: bool) -> None:
    assert is_relax_offer(lines) is expected


_labels = st.from_regex(r"[a-z*][a-z0-9_\-.*]{0,20}", fullmatch=True)
_signatures = st.dictionaries(_labels, st.binary(min_size=1, max_size=64), max_size=8)


@given(evidence=st.none() | st.binary(min_size=1, max_size=200), signatures=_signatures)
def test_an_envelope_gives_back_what_was_put_in(evidence: bytes | None, signatures: dict[str, bytes]) -> None:
    raw = compose_envelope(evidence, signatures)
    assert parse_envelope(raw) == Envelope(evidence, signatures)
    blank = {label: bytes(len(each)) for label, each in signatures.items()}
    assert len(compose_envelope(evidence, blank)) == len(raw), "the length is known before anything is signed"


@given(raw=st.binary(max_size=100))
def test_arbitrary_bytes_never_raise_anything_else(raw: bytes) -> None:
    with pytest.raises(MalformedSignature):
        parse_envelope(raw)


def test_blanks_between_members_are_json_too() -> None:
    assert parse_envelope(b' {"signatures": {}, "evidence": null}\n') == Envelope(None, {})


def document(**changes: Any) -> bytes:
    return json.dumps({"evidence": "e30=", "signatures": {"pch": "AAAA"}} | changes).encode()


NINE = {f"label{number}": "AAAA" for number in range(9)}
REFUSED = {
    "nothing": b"",
    "not JSON": b"{",
    "null": b"null",
    "a list": b"[]",
    "evidence absent": b'{"signatures":{}}',
    "signatures absent": b'{"evidence":null}',
    "unknown member": document(note=""),
    "evidence twice": b'{"evidence":null,"evidence":null,"signatures":{}}',
    "evidence twice, spelt otherwise": b'{"evidence":null,"evid\\u0065nce":"AAAA","signatures":{}}',
    "label twice": b'{"evidence":null,"signatures":{"pch":"AAAA","pch":"AAAA"}}',
    "two documents": document() + document(),
    "content behind": document() + b"x",
    "not UTF-8": b'{"evidence":null,"signatures":{"\xff":"AAAA"}}',
    "UTF-16": document().decode().encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + document(),
    "a control character": b'{"evidence":null,"signatures":{"a\n":"AAAA"}}',
    "a comment": b'/**/{"evidence":null,"signatures":{}}',
    "a comma at the end": b'{"evidence":null,"signatures":{},}',
    "signatures are null": document(signatures=None),
    "signatures are a list": document(signatures=["AAAA"]),
    "too many signatures": document(signatures=NINE),
    "a label of another grammar": document(signatures={"Pch": "AAAA"}),
    "an empty label": document(signatures={"": "AAAA"}),
    "a signature is null": document(signatures={"pch": None}),
    "a signature is empty": document(signatures={"pch": ""}),
    "a signature is a number": document(signatures={"pch": 1}),
    "evidence is empty": document(evidence=""),
    "evidence is an object": document(evidence={}),
    "evidence without padding": document(evidence="e30"),
    "evidence with spare bits": document(evidence="e31="),
    "evidence with a line break": document(evidence="e3\n0="),
    "evidence as base64url": document(evidence="_-8="),
    "evidence past ASCII": document(evidence="é30="),
    "depth": b'{"evidence":null,"signatures":' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    "a long integer": b'{"evidence":' + b"1" * 10_000 + b',"signatures":{}}',
    "too long": document() + b" " * MAX_ENVELOPE_BYTES,
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_whatever_else_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedSignature):
        parse_envelope(raw)


@pytest.mark.parametrize(
    "signatures",
    [
        b"[" + b",".join([b"{}"] * 40_000) + b"]",
        b"{" + b",".join(b'"%d":0' % number for number in range(13_000)) + b"}",
        b"[" * 60_000 + b"]" * 60_000,
        b"[" + b",".join([b"1e5"] * 30_000) + b"]",
    ],
    ids=["objects", "members", "depth", "numbers"],
)
def test_json_of_many_values_is_refused_before_it_is_built(signatures: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(_raw: str, **_options: object) -> None:
        pytest.fail("it was parsed")

    monkeypatch.setattr("pch.relaxed.json.loads", built)
    with pytest.raises(MalformedSignature):
        parse_envelope(b'{"evidence":null,"signatures":' + signatures + b"}")


def test_it_may_be_128_kib() -> None:
    raw = document() + b" " * (MAX_ENVELOPE_BYTES - len(document()))
    assert parse_envelope(raw).signatures == {"pch": base64.b64decode("AAAA")}
