"""Structured fields with the project's stricter rules, RFC 9651."""

import pytest
from http_sf import Token

from pch.httpsig.errors import DuplicateError, FieldSyntaxError, NonCanonicalError
from pch.httpsig.structured_field import (
    MAX_FIELD_BYTES,
    check_canonical,
    check_key,
    join_lines,
    parse,
    serialise,
    serialise_parameters,
)


def test_lines_are_stripped_joined_and_bounded() -> None:
    assert join_lines([b" a\t", b"", b"b"]) == b"a, , b"
    assert join_lines([b"x" * MAX_FIELD_BYTES]) == b"x" * MAX_FIELD_BYTES
    with pytest.raises(FieldSyntaxError):
        join_lines([b"x" * MAX_FIELD_BYTES, b""])
    with pytest.raises(FieldSyntaxError):
        join_lines([b"abc"], 2)


@pytest.mark.parametrize("key", ["a", "*", "a-b_c.d*0"])
def test_keys_are_accepted(key: str) -> None:
    check_key(key)
    with pytest.raises(FieldSyntaxError):
        check_key(key.upper() + "A")
    with pytest.raises(FieldSyntaxError):
        check_key(key + "\n")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ([], ""),
        ([("a", True)], ";a"),
        ([("a", False)], ";a=?0"),
        ([("a", 0), ("b", -1), ("c", 999_999_999_999_999)], ";a=0;b=-1;c=999999999999999"),
        ([("a", "text"), ("b", 'a"b\\c'), ("c", "")], ';a="text";b="a\\"b\\\\c";c=""'),
        ([("a", Token("t")), ("b", b"a")], ";a=t;b=:YQ==:"),
    ],
)
def test_parameters_are_serialised(parameters: list[tuple[str, object]], expected: str) -> None:
    assert serialise_parameters(parameters) == expected


@pytest.mark.parametrize("value", ["é", "\n", "\x7f", 10**15, -(10**15), object(), None, float("nan")])
def test_values_without_a_form_are_refused(value: object) -> None:
    with pytest.raises(FieldSyntaxError):
        serialise_parameters([("a", value)])
    with pytest.raises(FieldSyntaxError):
        serialise(value)


def test_parse_refuses_duplicates_that_the_rfc_lets_overwrite() -> None:
    assert parse(b"a=1, b=2", "dictionary") == {"a": (1, {}), "b": (2, {})}
    for raw in (b"a=1, a=1", b"a;x;x"):
        with pytest.raises(DuplicateError):
            parse(raw, "dictionary")
    with pytest.raises(DuplicateError):
        parse(b"a;x;x", "list")
    with pytest.raises(DuplicateError):
        parse(b"a;x;x", "item")


@pytest.mark.parametrize(
    ("text", "members"),
    [("", []), ("a", ["a"]), ("a, b", ["a", "b"]), ("a,b", ["a", "b"]), ("a\t , b", ["a", "b"])],
)
def test_canonical_text_is_accepted(text: str, members: list[str]) -> None:
    check_canonical(text, members)
    for altered in (text + "x", text + " ", "x" + text, text.replace(",", "") + ";"):
        with pytest.raises(NonCanonicalError):
            check_canonical(altered, members)


def test_canonical_text_needs_the_separators() -> None:
    with pytest.raises(NonCanonicalError):
        check_canonical("ab", ["a", "b"])
    with pytest.raises(NonCanonicalError):
        check_canonical("a, c", ["a", "b"])
