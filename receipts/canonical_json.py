"""Canonical JSON, RFC 8785: the only bytes that receipts are hashed, signed and stored as.

Values without floating-point numbers take a fast path through msgspec, whose sorted output is RFC 8785's for
every key inside the Basic Multilingual Plane; everything else goes through the reference implementation. Both
accept exactly the same values, and a differential test holds them to the same bytes.
"""

from __future__ import annotations

import enum
import json
from typing import Any, Final

import msgspec
import rfc8785

MAX_SAFE_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exact, RFC 8785 §3.2.2.3 (RFC 7493 §2.2)."""

MAX_DEPTH: Final = 32
"""Nested arrays and objects accepted, so that no value can exhaust the stack."""

_LAST_BMP_CHARACTER: Final = "\uffff"

_encoder: Final = msgspec.json.Encoder(order="sorted")


class CanonicalJsonError(ValueError):
    """The value, or the text, has no canonical form. Messages never hold the value."""


class _UnsafeIntegerError(CanonicalJsonError):
    """An int that not every JSON reader keeps exact."""


def canonical(value: object) -> bytes:
    """Serialise a JSON value by RFC 8785.

    `value`: None, bool, str, int within ±(2^53 − 1), finite float, list, tuple, or dict with str keys, at
    most `MAX_DEPTH` deep. Returns UTF-8. Raises CanonicalJsonError for anything else, lone surrogates
    included.
    """
    fast = _scan(value, 0)
    try:
        return _encoder.encode(value) if fast else rfc8785.dumps(value)  # type: ignore[arg-type]
    except UnicodeEncodeError as error:
        raise CanonicalJsonError("a string holds a lone surrogate") from error
    except rfc8785.CanonicalizationError as error:
        raise CanonicalJsonError("a number is not finite, or a string holds a lone surrogate") from error


def parse_canonical(raw: bytes) -> Any:
    """Parse `raw` and return its value; it must equal its own RFC 8785 serialisation.

    So duplicate members, spaces, other orders, escapes and number spellings are refused. Raises
    CanonicalJsonError.
    """
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise CanonicalJsonError("not JSON") from error
    try:
        if canonical(value) == raw:
            return value
    except CanonicalJsonError as error:
        if not isinstance(error, _UnsafeIntegerError):
            raise
        # RFC 8785 writes a double such as 1e20 without an exponent: read as doubles what no integer may be.
        value = json.loads(raw, parse_int=_double_past_safe_integers)
        if canonical(value) == raw:
            return value
    raise CanonicalJsonError("not canonical JSON")


def _double_past_safe_integers(text: str) -> int | float:
    number = float(text)
    return int(text) if abs(number) <= MAX_SAFE_INTEGER else number


def _scan(value: object, depth: int) -> bool:
    """Refuse what has no canonical form; return whether the fast path gives the canonical bytes."""
    kind = type(value)
    if kind is str or kind is bool or value is None or isinstance(value, enum.StrEnum):
        return True
    if kind is int:
        if not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:  # type: ignore[operator]
            raise _UnsafeIntegerError("an integer is outside ±(2^53 − 1)")
        return True
    if kind is float:
        return False
    if depth >= MAX_DEPTH:
        raise CanonicalJsonError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        return _scan_members(value, depth + 1)
    if kind is list or kind is tuple:
        # Not all(): every element has to be looked at.
        return not sum(not _scan(item, depth + 1) for item in value)  # type: ignore[attr-defined]
    raise CanonicalJsonError(f"{kind.__name__} is not a JSON type")


def _scan_members(members: dict[object, object], depth: int) -> bool:
    fast = True
    for name, item in members.items():
        if type(name) is not str:
            raise CanonicalJsonError("a member name is not a string")
        if not name.isascii() and max(name) > _LAST_BMP_CHARACTER:
            # Sorted by UTF-16 code units (RFC 8785 §3.2.3), which differs from code points from here on.
            fast = False
        kind = type(item)
        if kind is str or kind is bool or item is None:
            continue
        if not _scan(item, depth):
            fast = False
    return fast
