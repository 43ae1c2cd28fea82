from __future__ import annotations

import enum
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from receipts.canonical_json import MAX_DEPTH, MAX_SAFE_INTEGER, CanonicalJsonError, canonical, parse_canonical

VECTORS = Path(__file__).parents[2] / "vectors" / "jcs"
CASES = sorted(path.stem for path in (VECTORS / "input").glob("*.json"))


class Colour(enum.StrEnum):
    RED = "red"


class Text(str):
    __slots__ = ()


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
any_json = st.recursive(
    plain | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def test_there_are_published_vectors() -> None:
    assert CASES == ["arrays", "french", "structures", "values"]


@pytest.mark.parametrize("case", CASES)
def test_published_inputs_give_the_published_bytes(case: str) -> None:
    value = json.loads((VECTORS / "input" / f"{case}.json").read_text("utf-8"))
    expected = bytes.fromhex((VECTORS / "outhex" / f"{case}.txt").read_text("ascii"))
    assert canonical(value) == expected
    assert canonical(value) == (VECTORS / "output" / f"{case}.json").read_bytes().rstrip(b"\n")


def test_published_numbers_give_the_published_spelling() -> None:
    lines = [line for line in (VECTORS / "numbers.csv").read_text("ascii").splitlines() if not line.startswith("#")]
    wrong = [
        line
        for line, (bits, text) in ((line, line.split(",")) for line in lines)
        if canonical(struct.unpack(">d", bytes.fromhex(bits.zfill(16)))[0]) != text.encode()
    ]
    assert len(lines) > 7000
    assert wrong == []


@given(plain)
def test_the_fast_path_agrees_with_the_reference(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@given(any_json)
def test_every_value_agrees_with_the_reference_and_comes_back(value: Any) -> None:
    raw = canonical(value)
    assert raw == rfc8785.dumps(value)
    assert parse_canonical(raw) == value


@given(st.dictionaries(st.text(st.characters(min_codepoint=0xD000, exclude_categories=["Cs"])), st.none()))
def test_members_are_sorted_by_utf16_code_units(value: dict[str, None]) -> None:
    assert list(json.loads(canonical(value))) == sorted(value, key=lambda name: name.encode("utf-16-be"))


def test_members_past_the_bmp_come_before_the_last_of_it() -> None:
    assert canonical({"\uffee": 1, "\U00010000": 2}) == '{"\U00010000":2,"\uffee":1}'.encode()


def test_tuples_and_string_enums_are_arrays_and_strings() -> None:
    assert canonical({"a": (1, Colour.RED)}) == b'{"a":[1,"red"]}'


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


REFUSED = {
    "int too large": 2**53,
    "int too small": -(2**53),
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity inside": [-math.inf],
    "lone surrogate": "\ud800",
    "lone surrogate in a name": {"\udfff": 1},
    "lone surrogate beside a float": ["\ud800", 0.5],
    "lone surrogate in a name beside a float": {"\ud800": 0.5},
    "bytes": b"x",
    "set": {1},
    "object": object(),
    "int name": {1: 2},
    "none name": {None: 2},
    "string subclass": Text("x"),
    "string subclass name": {Text("x"): 1},
    "too deep": nested(MAX_DEPTH + 1),
    "too deep in objects": {"a": nested(MAX_DEPTH)},
    "int subclass": enum.IntEnum("Number", "ONE").ONE,
    "complex": 1j,
    "int hidden behind a float": [0.5, 2**53],
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(CanonicalJsonError):
        canonical(value)


def test_bounds_themselves_are_accepted() -> None:
    assert canonical([2**53 - 1, -(2**53) + 1]) == b"[9007199254740991,-9007199254740991]"
    assert canonical(nested(MAX_DEPTH)) == b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH


@pytest.mark.parametrize("number", [1e20, 2.0**53, -(2.0**53), 1e21, 5e-324, -1.5])
def test_doubles_written_like_integers_come_back(number: float) -> None:
    assert parse_canonical(canonical({"n": number})) == {"n": number}


NOT_CANONICAL = {
    "space": b'{"a": 1}',
    "trailing newline": b"1\n",
    "order": b'{"b":1,"a":2}',
    "duplicate": b'{"a":1,"a":1}',
    "escape": b'"\\u0061"',
    "upper hex escape": b'"\\u001F"',
    "slash": b'"\\/"',
    "float": b"1.0",
    "exponent": b"1e2",
    "minus zero": b"-0",
    "int past the safe range, no double": b"9007199254740993",
    "int past the safe range beside spaces": b"[9007199254740992, 1]",
    "huge int": b"1" + b"0" * 400,
    "very huge int": b"1" * 5000,
    "huge double": b"1e400",
    "nan": b"NaN",
    "empty": b"",
    "two values": b"1 2",
    "bad utf-8": b'"\xff"',
    "surrogate escape": b'"\\ud800"',
    "byte order mark": b"\xef\xbb\xbf1",
    "too deep": b"[" * 33 + b"]" * 33,
    "bomb": b"[" * 60_000,
    "closed bomb": b"[" * 30_000 + b"]" * 30_000,
}


@pytest.mark.parametrize("raw", NOT_CANONICAL.values(), ids=NOT_CANONICAL.keys())
def test_bytes_that_are_not_canonical_are_refused(raw: bytes) -> None:
    with pytest.raises(CanonicalJsonError):
        parse_canonical(raw)


@given(any_json, st.data())
def test_a_change_of_one_byte_never_reads_as_the_same_value(value: Any, data: st.DataObject) -> None:
    raw = bytearray(canonical(value))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        changed = parse_canonical(bytes(raw))
    except CanonicalJsonError:
        return
    assert canonical(changed) == raw


@given(st.binary(max_size=200))
def test_arbitrary_bytes_parse_to_their_own_form_or_are_refused(raw: bytes) -> None:
    try:
        value = parse_canonical(raw)
    except CanonicalJsonError:
        return
    assert canonical(value) == raw
