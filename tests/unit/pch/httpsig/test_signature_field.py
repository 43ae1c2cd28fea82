"""The Signature field, RFC 9421 §4.2, and the attacks on it."""

import re
from typing import Any, cast

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.httpsig.errors import DuplicateError, FieldSyntaxError, HttpSigError, NonCanonicalError
from pch.httpsig.signature_field import parse_signature, serialise_signature
from pch.httpsig.signature_input import MAX_LABELS
from pch.httpsig.structured_field import MAX_FIELD_BYTES


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], {}),
        ([b""], {}),
        ([b" \t"], {}),
        ([b"a=:YQ==:"], {"a": b"a"}),
        ([b" a=:YWI=:\t"], {"a": b"ab"}),
        ([b"b=:YWJj:, a=:YQ==:"], {"b": b"abc", "a": b"a"}),
        ([b"b=:YWJj:,a=:YQ==:"], {"b": b"abc", "a": b"a"}),
        ([b"b=:YWJj: \t,\t a=:YQ==:"], {"b": b"abc", "a": b"a"}),
        ([b"b=:YWJj:", b"a=:YQ==:"], {"b": b"abc", "a": b"a"}),
        ([b"a=::"], {"a": b""}),
        ([b"*_-.0=:+/+/:"], {"*_-.0": b"\xfb\xff\xbf"}),
    ],
)
def test_field_is_accepted(lines: list[bytes], expected: dict[str, bytes]) -> None:
    assert parse_signature(lines) == expected


REFUSED: list[tuple[str, list[bytes], type[HttpSigError]]] = [
    ("duplicate label", [b"a=:YQ==:, a=:YQ==:"], DuplicateError),
    ("duplicate label across lines", [b"a=:YQ==:", b"a=:Yg==:"], DuplicateError),
    ("upper-case label", [b"A=:YQ==:"], FieldSyntaxError),
    ("label starting with a digit", [b"0=:YQ==:"], FieldSyntaxError),
    ("no value", [b"a"], FieldSyntaxError),
    ("string", [b'a="YQ=="'], FieldSyntaxError),
    ("token", [b"a=YQ"], FieldSyntaxError),
    ("inner list", [b"a=(:YQ==:)"], FieldSyntaxError),
    ("parameter", [b"a=:YQ==:;p=1"], FieldSyntaxError),
    ("trailing comma", [b"a=:YQ==:,"], FieldSyntaxError),
    ("trailing comma and space", [b"a=:YQ==:, ,"], FieldSyntaxError),
    ("leading comma", [b",a=:YQ==:"], FieldSyntaxError),
    ("empty line", [b"a=:YQ==:", b""], FieldSyntaxError),
    ("missing comma", [b"a=:YQ==: b=:YQ==:"], FieldSyntaxError),
    ("unclosed", [b"a=:YQ=="], FieldSyntaxError),
    ("unclosed before another", [b"a=:YQ==, b=:YQ==:"], FieldSyntaxError),
    ("space in base64", [b"a=:YQ ==:"], FieldSyntaxError),
    ("space around the equals sign", [b"a = :YQ==:"], FieldSyntaxError),
    ("line feed in base64", [b"a=:YQ\n==:"], FieldSyntaxError),
    ("line feed at the end", [b"a=:YQ==:\n"], FieldSyntaxError),
    ("obs-fold", [b"a=:YQ==:,\r\n b=:YQ==:"], FieldSyntaxError),
    ("base64url", [b"a=:-_-_:"], FieldSyntaxError),
    ("three padding characters", [b"a=:Y===:"], FieldSyntaxError),
    ("padding inside", [b"a=:YQ==YQ==:"], FieldSyntaxError),
    ("non-ASCII", [b"a=:\xff:"], FieldSyntaxError),
    ("non-ASCII look-alike", ["a=:YQ＝＝:".encode()], FieldSyntaxError),
    ("NUL", [b"a=:YQ==:\x00"], FieldSyntaxError),
    ("no padding", [b"a=:YQ:"], NonCanonicalError),
    ("half the padding", [b"a=:YQ=:"], NonCanonicalError),
    ("too much padding", [b"a=:YWJj=:"], NonCanonicalError),
    ("only padding", [b"a=:==:"], NonCanonicalError),
    ("one character", [b"a=:Y:"], NonCanonicalError),
    ("spare bits", [b"a=:YR==:"], NonCanonicalError),
    ("spare bits of a longer value", [b"a=:YWJ=:"], NonCanonicalError),
    ("second member not canonical", [b"a=:YQ==:, b=:YR==:"], NonCanonicalError),
]


@pytest.mark.parametrize(("lines", "error"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_field_is_refused(lines: list[bytes], error: type[HttpSigError]) -> None:
    with pytest.raises(HttpSigError) as caught:
        parse_signature(lines)
    assert type(caught.value) is error


def test_limits_hold_exactly() -> None:
    members = [b"a%d=:YQ==:" % n for n in range(MAX_LABELS + 1)]
    assert len(parse_signature(members[:-1])) == MAX_LABELS
    with pytest.raises(FieldSyntaxError):
        parse_signature(members)
    longest = b"a=:" + b"A" * (MAX_FIELD_BYTES - 4) + b":"
    assert len(parse_signature([longest])["a"]) == (MAX_FIELD_BYTES - 4) // 4 * 3
    with pytest.raises(FieldSyntaxError):
        parse_signature([longest[:-1] + b"AAAA:"])


@pytest.mark.parametrize("signatures", [{}, {"A": b""}, {"": b""}, {"a,b": b""}])
def test_labels_that_are_no_keys_are_not_serialised(signatures: dict[str, bytes]) -> None:
    with pytest.raises(FieldSyntaxError):
        serialise_signature(signatures)


def general_parse(field: bytes) -> dict[str, tuple[Any, dict[str, Any]]]:
    return cast("dict[str, tuple[Any, dict[str, Any]]]", http_sf.parse(field, tltype="dictionary"))


LABELS = st.from_regex(r"[a-z*][a-z0-9_\-.*]{0,8}", fullmatch=True)


@given(st.dictionaries(LABELS, st.binary(max_size=100), min_size=1, max_size=MAX_LABELS))
def test_parsing_what_was_serialised_gives_it_back(signatures: dict[str, bytes]) -> None:
    field = serialise_signature(signatures).encode()
    assert parse_signature([field]) == signatures
    assert {label: value for label, (value, _) in general_parse(field).items()} == signatures


FRAGMENTS = st.sampled_from(
    [
        b"a",
        b"b2",
        b"*",
        b"=",
        b":",
        b"=:",
        b":,",
        b", ",
        b"\t",
        b"YQ",
        b"==",
        b"YWJj",
        b"+/",
        b";p",
        b'"',
        b"(",
        b"\xff",
    ]
)


@given(st.one_of(st.binary(max_size=60), st.lists(FRAGMENTS, max_size=14).map(b"".join)))
def test_this_parser_agrees_with_the_general_one(field: bytes) -> None:
    """What is accepted here means the same to `http_sf`; what is refused is no canonical dictionary of bytes."""
    stripped = field.strip(b" \t")
    try:
        general = general_parse(stripped)
    except ValueError:
        general = {}
    try:
        ours = parse_signature([field])
    except HttpSigError:
        values = [value for value, params in general.values() if type(value) is bytes and not params]
        if general and len(values) == len(general) <= MAX_LABELS:
            canonical = serialise_signature({label: value for label, (value, _) in general.items()}).encode()
            assert re.sub(rb"[ \t]*,[ \t]*", b", ", stripped) != canonical
        return
    assert {label: value for label, (value, _) in general.items()} == ours
