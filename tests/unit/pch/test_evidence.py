"""Evidence: what is accepted byte for byte, and what an attacker may try instead."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from pch.errors import EvidenceRejected, MalformedSignature
from pch.evidence import (
    MAX_EVIDENCE_BYTES,
    canonical_evidence,
    decode_base64,
    evidence_digest_field,
    evidence_field,
    parse_evidence,
    parse_evidence_digest_field,
    parse_evidence_field,
)

FULL: dict[str, Any] = {
    "type": "pch.evidence.v1",
    "checkpoint": "log\n1\nAAAA\n\n— log AAAA\n",
    "cbom_sha256": "0f" * 32,
    "claims": {"build": "4711", "deep": {"list": [1, 2.5, None, True, "é"]}},
}
MINIMAL = b'{"type":"pch.evidence.v1"}'


def test_a_whole_object_is_read_and_its_digest_is_over_its_bytes() -> None:
    raw = canonical_evidence(FULL)
    evidence = parse_evidence(raw)
    assert (evidence.raw, evidence.checkpoint, evidence.cbom_sha256) == (raw, FULL["checkpoint"], FULL["cbom_sha256"])
    assert dict(evidence.claims) == FULL["claims"]
    assert evidence.sha256 == hashlib.sha256(raw).digest()


def test_only_the_type_is_needed() -> None:
    evidence = parse_evidence(MINIMAL)
    assert (evidence.checkpoint, evidence.cbom_sha256, dict(evidence.claims)) == (None, None, {})


def test_it_may_be_64_kib_and_no_more() -> None:
    room = MAX_EVIDENCE_BYTES - len(canonical_evidence({"type": "pch.evidence.v1", "claims": {"a": ""}}))
    whole = canonical_evidence({"type": "pch.evidence.v1", "claims": {"a": "x" * room}})
    assert len(parse_evidence(whole).raw) == MAX_EVIDENCE_BYTES
    with pytest.raises(EvidenceRejected):
        canonical_evidence({"type": "pch.evidence.v1", "claims": {"a": "x" * (room + 1)}})


REFUSED = {
    "nothing": b"",
    "not JSON": b"{",
    "not an object": b'"pch.evidence.v1"',
    "a list": b'["pch.evidence.v1"]',
    "no type": b"{}",
    "another type": b'{"type":"pch.evidence.v2"}',
    "type is no text": b'{"type":1}',
    "unknown member": b'{"note":"x","type":"pch.evidence.v1"}',
    "member twice": b'{"type":"pch.evidence.v1","type":"pch.evidence.v1"}',
    "claim twice": b'{"claims":{"a":1,"a":1},"type":"pch.evidence.v1"}',
    "blank": b'{"type": "pch.evidence.v1"}',
    "newline at the end": MINIMAL + b"\n",
    "BOM": b"\xef\xbb\xbf" + MINIMAL,
    "members out of order": b'{"type":"pch.evidence.v1","claims":{}}',
    "escape where none is needed": b'{"type":"pch.evidence.v\\u0031"}',
    "number in another spelling": b'{"claims":{"a":1.0},"type":"pch.evidence.v1"}',
    "exponent": b'{"claims":{"a":1e1},"type":"pch.evidence.v1"}',
    "integer past 2^53": b'{"claims":{"a":9007199254740993},"type":"pch.evidence.v1"}',
    "NaN": b'{"claims":{"a":NaN},"type":"pch.evidence.v1"}',
    "Infinity": b'{"claims":{"a":Infinity},"type":"pch.evidence.v1"}',
    "lone surrogate": b'{"claims":{"a":"\\ud800"},"type":"pch.evidence.v1"}',
    "not UTF-8": b'{"claims":{"a":"\xff"},"type":"pch.evidence.v1"}',
    "depth": b'{"claims":' + b'{"a":' * 9000 + b"1" + b"}" * 9000 + b',"type":"pch.evidence.v1"}',
    "claims are a list": b'{"claims":[],"type":"pch.evidence.v1"}',
    "claims are null": b'{"claims":null,"type":"pch.evidence.v1"}',
    "checkpoint is null": b'{"checkpoint":null,"type":"pch.evidence.v1"}',
    "checkpoint is empty": b'{"checkpoint":"","type":"pch.evidence.v1"}',
    "checkpoint is a number": b'{"checkpoint":1,"type":"pch.evidence.v1"}',
    "cbom is null": b'{"cbom_sha256":null,"type":"pch.evidence.v1"}',
    "cbom is short": b'{"cbom_sha256":"00","type":"pch.evidence.v1"}',
    "cbom is upper case": b'{"cbom_sha256":"' + b"AB" * 32 + b'","type":"pch.evidence.v1"}',
    "a long integer": b'{"claims":{"a":' + b"1" * 5000 + b'},"type":"pch.evidence.v1"}',
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_whatever_else_is_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceRejected):
        parse_evidence(raw)


@pytest.mark.parametrize(
    "document",
    [{}, {"type": "x"}, FULL | {"extra": 1}, FULL | {"claims": {"a": float("nan")}}, FULL | {"claims": {1: 2}}],
)
def test_a_client_cannot_write_what_a_verifier_refuses(document: dict[str, Any]) -> None:
    with pytest.raises(EvidenceRejected):
        canonical_evidence(document)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(claims=st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), _json, max_size=4))
def test_what_is_written_is_read_again_and_has_one_form(claims: dict[str, Any]) -> None:
    try:
        raw = canonical_evidence({"type": "pch.evidence.v1", "claims": claims})
    except EvidenceRejected:
        # Keys inside may hold a lone surrogate, which has no UTF-8 form.
        with pytest.raises((rfc8785.CanonicalizationError, UnicodeEncodeError)):
            rfc8785.dumps(claims)
        return
    assert rfc8785.dumps(dict(parse_evidence(raw).claims)) == rfc8785.dumps(claims)
    loose = json.dumps(json.loads(raw)).encode()
    if loose != raw:
        with pytest.raises(EvidenceRejected):
            parse_evidence(loose)


_wild = st.text(st.sampled_from('aé\n\x7f\x1f/"\\\u2028\ue000\U00010000\U0001f600'), max_size=4)
_wilder = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | _wild,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_wild, inner, max_size=4),
    max_leaves=10,
)


@given(claims=st.dictionaries(_wild, _wilder, max_size=4), spelling=st.sampled_from(["python", "canonical", "ascii"]))
def test_one_form_is_accepted_and_it_is_that_of_rfc_8785(claims: dict[str, Any], spelling: str) -> None:
    document = {"claims": claims, "type": "pch.evidence.v1"}
    try:
        wanted = rfc8785.dumps(json.loads(json.dumps(document), parse_int=lambda text: _as_rfc8785(int(text))))
    except rfc8785.CanonicalizationError:
        wanted = b""
    if spelling == "canonical" and wanted:
        raw = wanted
    else:
        raw = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=spelling == "ascii").encode()
    if raw == wanted:
        assert parse_evidence(raw).raw == raw
    else:
        with pytest.raises(EvidenceRejected):
            parse_evidence(raw)


def _as_rfc8785(value: int) -> int | float:
    return value if abs(value) < 2**53 else float(value)


@given(raw=st.binary(max_size=64))
def test_arbitrary_bytes_never_raise_anything_else(raw: bytes) -> None:
    for parse in (parse_evidence, lambda each: parse_evidence_field([each]), lambda each: decode_base64(each)):
        try:
            parse(raw)
        except (EvidenceRejected, MalformedSignature, ValueError):
            continue


@given(raw=st.binary(max_size=200))
def test_the_field_gives_back_its_bytes(raw: bytes) -> None:
    assert parse_evidence_field([evidence_field(raw)]) == raw
    assert parse_evidence_field([b" \t" + evidence_field(raw) + b" "]) == raw
    assert parse_evidence_digest_field([evidence_digest_field(raw)]) == hashlib.sha256(raw).digest()


def test_absent_fields_are_none_and_no_evidence_is_zero_bytes() -> None:
    assert parse_evidence_field([]) is None
    assert parse_evidence_digest_field([]) is None
    assert evidence_digest_field(None) == evidence_digest_field(b"")


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [b":"],
        [b":e30="],
        [b"e30="],
        [b":e30:"],
        [b":e30=:;a=1"],
        [b":e31=:"],
        [b":e3 0=:"],
        [b":e30-:"],
        [b":====:"],
        [b":e30=:", b":e30=:"],
        [b":e30=:, :e30=:"],
    ],
)
def test_a_malformed_evidence_field_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(MalformedSignature):
        parse_evidence_field(lines)


GOOD_DIGEST = evidence_digest_field(b"x")


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [GOOD_DIGEST, GOOD_DIGEST],
        [GOOD_DIGEST + b", " + GOOD_DIGEST],
        [GOOD_DIGEST.replace(b"256", b"512")],
        [GOOD_DIGEST + b";a"],
        [b"sha-256=:" + base64.b64encode(bytes(31)) + b":"],
        [b"sha-256=:" + base64.b64encode(bytes(33)) + b":"],
        [b"sha-256=:" + b"A" * 42 + b"B=:"],
        [b"sha-256 = " + GOOD_DIGEST[8:]],
    ],
)
def test_a_malformed_evidence_digest_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(MalformedSignature):
        parse_evidence_digest_field(lines)
