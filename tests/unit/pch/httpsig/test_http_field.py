"""Fields as components, RFC 9421 §2.1; examples are the RFC's unless they are attacks."""

from typing import Any

import pytest

from pch.httpsig import http_field, structured_field
from pch.httpsig.component import MAX_COMPONENTS, ComponentId
from pch.httpsig.errors import ComponentError
from pch.httpsig.http_field import MAX_STRUCTURED_BYTES, field_value

EXAMPLE_DICT = b"a=1,    b=2;x=1;y=2,   c=(a   b   c), d"


def value(lines: list[bytes], name: str = "x", **params: str | bool) -> str:
    return field_value(lines, ComponentId(name, tuple(params.items())))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"www.example.com"], "www.example.com"),
        ([b"   OWS around\t "], "OWS around"),
        ([b"max-age=60", b"   must-revalidate"], "max-age=60, must-revalidate"),
        ([b""], ""),
        ([b"", b""], ", "),
        ([b"a, b", b"c"], "a, b, c"),
        ([b"a,b"], "a,b"),
        ([b"tab\tinside"], "tab\tinside"),
    ],
)
def test_lines_are_stripped_and_joined(lines: list[bytes], expected: str) -> None:
    assert value(lines) == expected


BAD_LINES = [
    [b"obs\r\n fold"],
    [b"obs\n fold"],
    [b"line\n"],
    [b"\r"],
    [b'x\n"@method": GET'],
    [b"nul\x00"],
    [b"escape\x1b"],
    [b"delete\x7f"],
    [b"latin-1 \xe9"],
    ["utf-8 é".encode()],
    [b"\xa0nbsp"],
    [b"\x0bvertical tab"],
    [b"fine", b"not\xff"],
]


@pytest.mark.parametrize("lines", [[], *BAD_LINES])
def test_absent_field_and_unsafe_bytes_are_refused(lines: list[bytes]) -> None:
    with pytest.raises(ComponentError):
        value(lines)


@pytest.mark.parametrize("lines", [[], *BAD_LINES])
def test_wrapping_as_bytes_does_not_let_unsafe_bytes_in(lines: list[bytes]) -> None:
    with pytest.raises(ComponentError):
        value(lines, bs=True)


def test_bs_wraps_every_line_by_itself() -> None:
    assert value([b"value, with, lots", b"of, commas"], bs=True) == ":dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:"
    assert value([b"value, with, lots, of, commas"], bs=True) == ":dmFsdWUsIHdpdGgsIGxvdHMsIG9mLCBjb21tYXM=:"
    assert value([b" a "], bs=True) == ":YQ==:"


@pytest.mark.parametrize(
    ("key", "expected"),
    [("a", "1"), ("d", "?1"), ("b", "2;x=1;y=2"), ("c", "(a b c)")],
)
def test_key_takes_one_member_of_a_dictionary(key: str, expected: str) -> None:
    assert value([EXAMPLE_DICT], "example-dict", key=key) == expected
    assert value([EXAMPLE_DICT], "example-dict", sf=True, key=key) == expected


def test_key_works_across_lines() -> None:
    assert value([b"a=1", b"b=2"], "example-dict", key="b") == "2"


@pytest.mark.parametrize(
    ("lines", "name", "key"),
    [
        ([EXAMPLE_DICT], "example-dict", "e"),
        ([EXAMPLE_DICT], "example-dict", ""),
        ([b""], "example-dict", "a"),
        ([b"a=1, a=2"], "example-dict", "a"),
        ([b"a=1", b"a=1"], "example-dict", "a"),
        ([b"a=1, b=2, b=3"], "example-dict", "a"),
        ([b"a=1,"], "example-dict", "a"),
        ([b"a=1;p;p"], "example-dict", "a"),
        ([b"not a dictionary!"], "example-dict", "not"),
        ([b"a=1"], "proxy-status", "a"),
        ([b"a=1"], "client-cert", "a"),
    ],
)
def test_key_without_one_such_member_is_refused(lines: list[bytes], name: str, key: str) -> None:
    with pytest.raises(ComponentError):
        value(lines, name, key=key)


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("content-digest", [b"sha-256=:YQ==:,  sha-512=:YQ==:"], "sha-256=:YQ==:, sha-512=:YQ==:"),
        ("priority", [b"u=1,   i"], "u=1, i"),
        ("priority", [b"u=1", b"i=?1"], "u=1, i"),
        ("cache-status", [b"a;hit,b;fwd=miss"], "a;hit, b;fwd=miss"),
        ("pch-relaxed", [b"?1;length=007"], "?1;length=7"),
    ],
)
def test_sf_serialises_strictly(name: str, lines: list[bytes], expected: str) -> None:
    assert value(lines, name, sf=True) == expected


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("x-unknown", [b"a=1"]),
        ("priority", [b""]),
        ("cache-status", [b""]),
        ("client-cert", [b""]),
        ("priority", [b"u=1,"]),
        ("priority", [b"u=1, u=2"]),
        ("priority", [b"u=99999999999999999999"]),
        ("pch-relaxed", [b"?1", b"?1"]),
    ],
)
def test_sf_of_something_else_is_refused(name: str, lines: list[bytes]) -> None:
    with pytest.raises(ComponentError):
        value(lines, name, sf=True)


@pytest.mark.parametrize("param", ["req", "tr"])
def test_trailers_and_the_related_request_are_refused(param: str) -> None:
    with pytest.raises(ComponentError):
        value([b"a"], "x", **{param: True})
    with pytest.raises(ComponentError):
        value([b"u=1"], "priority", sf=True, **{param: True})


def test_structured_value_is_bounded() -> None:
    longest = b"a=1;p=" + b"x" * (MAX_STRUCTURED_BYTES - 6)
    assert value([longest], "example-dict", key="a").startswith("1;p=xxx")
    with pytest.raises(ComponentError):
        value([longest + b"x"], "example-dict", key="a")


def test_a_dictionary_is_parsed_once_in_whatever_order_its_members_are_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    real = structured_field.parse

    def counting(raw: bytes, kind: str) -> Any:
        parsed.append(raw)
        return real(raw, kind)

    monkeypatch.setattr(http_field, "parse", counting)
    fields = [b"a=1, b=2, once=%d" % number for number in range(MAX_COMPONENTS // 2)]
    for key in ("a", "b"):
        for line in fields:
            value([line], "example-dict", key=key)
    assert parsed == fields
