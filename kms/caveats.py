"""The caveats of a capability: what each one may say, and what they allow together (API.md §1.2, K-G8).

`scope= tenant= key= alg= path=` hold one value or several with commas between them; `exp= rps=` a number. A request
must satisfy every caveat, so that one more can only narrow. One that is unknown, empty or malformed denies everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kms.errors import BadRequest, NoCapability
from kms.kid import LABEL, MAX_KID_CHARS, parse_kid_or_name
from kms.primitive import KEY_ALGORITHMS
from kms.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_TOKEN_CHARS: Final = 4096
MAX_CAVEATS: Final = 32
MAX_CAVEAT_BYTES: Final = 1024
MAX_VALUES: Final = 32
"""Values in one caveat."""
MAX_ALL_VALUES: Final = 96
"""Values in all caveats together: keeps what an authentic but greedy token costs near a millisecond."""
MAX_RATE_PER_S: Final = 1_000_000
MAX_TIME_S: Final = 2**53 - 1

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,15}\Z", re.ASCII)
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/#-]{0,255}\*?\Z", re.ASCII)
_WILDCARD: Final = "/*"


@dataclass(frozen=True, slots=True)
class Limits:
    """What all caveats together allow. None: no caveat of this name; an empty set never occurs."""

    scopes: frozenset[str] | None = None
    tenants: frozenset[str] | None = None
    keys: frozenset[str] | None = None
    algs: frozenset[str] | None = None
    paths: frozenset[str] | None = None
    expires_at_s: int | None = None
    rate_per_s: int | None = None


def limits_of(caveats: Iterable[str]) -> Limits:
    """Put caveats together. Raises NoCapability when one is not understood, or when together they allow nothing."""
    found: dict[str, list[str]] = {}
    values = 0
    for number, caveat in enumerate(caveats):
        name, equals, value = caveat.partition("=")
        if number >= MAX_CAVEATS or not equals or name not in _NAMES or len(caveat.encode()) > MAX_CAVEAT_BYTES:
            raise _not_understood()
        found.setdefault(name, []).append(value)
        values += 1 + value.count(",")
    if values > MAX_ALL_VALUES:
        raise _not_understood()
    sets = {name: _together(name, found[name]) for name in _VALUES if name in found}
    return Limits(
        scopes=sets.get("scope"),
        tenants=sets.get("tenant"),
        keys=sets.get("key"),
        algs=sets.get("alg"),
        paths=sets.get("path"),
        expires_at_s=_least(found.get("exp"), MAX_TIME_S),
        rate_per_s=_least(found.get("rps"), MAX_RATE_PER_S),
    )


def covers_key(pattern: str, kid: str) -> bool:
    """Say whether a key pattern allows `kid`, which may be a pattern itself.

    `a/b/*` covers everything below `a/b/`; a key without a version covers all of its versions.
    """
    return covers_path(pattern, kid) or ("#" not in pattern and kid.startswith(f"{pattern}#"))


def covers_path(pattern: str, path: str) -> bool:
    """Say whether a path pattern allows `path`, which may be a pattern itself.

    A version is nothing special here: what follows `#v1` in a path is another verb (`/keys/<kid>#v1/destroy`).
    """
    if pattern.endswith(_WILDCARD):
        return path.startswith(pattern[:-1]) and len(path) >= len(pattern)
    return path == pattern


def _together(name: str, values: list[str]) -> frozenset[str]:
    """Intersect the sets that caveats of one name give."""
    allowed: frozenset[str] | None = None
    for value in values:
        items = value.split(",", MAX_VALUES)
        if len(items) > MAX_VALUES or len(set(items)) != len(items) or not all(map(_VALUES[name], items)):
            raise _not_understood()
        these = frozenset(items)
        if allowed is None:
            allowed = these
        elif name in _PATTERNS:
            allowed = _common_patterns(_PATTERNS[name], allowed, these)
        else:
            allowed &= these
    if not allowed:
        raise NoCapability("the capability's caveats together allow nothing")
    return allowed


def _common_patterns(
    covers: Callable[[str, str], bool], first: frozenset[str], second: frozenset[str]
) -> frozenset[str]:
    """Give patterns that cover exactly what both sets cover: of two that overlap, one lies inside the other."""
    return frozenset(
        inner
        for one in first
        for other in second
        for inner, outer in ((one, other), (other, one))
        if covers(outer, inner)
    )


def _least(values: list[str] | None, most: int) -> int | None:
    if values is None:
        return None
    if not all(map(_NUMBER.match, values)) or any(int(each) > most for each in values):
        raise _not_understood()
    return min(map(int, values))


def _is_key(text: str) -> bool:
    if text.endswith(_WILDCARD):
        labels = text[: -len(_WILDCARD)].split("/")
        return len(labels) <= 3 and all(LABEL.match(each) for each in labels)
    if not 1 <= len(text) <= MAX_KID_CHARS:
        return False
    try:
        parse_kid_or_name(text)
    except BadRequest:
        return False
    return True


def _is_path(text: str) -> bool:
    # A star stands for whole segments, at the end alone.
    return _PATH.match(text) is not None and ("*" not in text or text.endswith(_WILDCARD))


def _not_understood() -> NoCapability:
    return NoCapability("the capability has a caveat that is unknown or malformed")


_SCOPES: Final = frozenset(each.value for each in Scope)
_VALUES: Final[dict[str, Callable[[str], object]]] = {
    "scope": _SCOPES.__contains__,
    "tenant": LABEL.match,
    "key": _is_key,
    "alg": KEY_ALGORITHMS.__contains__,
    "path": _is_path,
}
_PATTERNS: Final = {"key": covers_key, "path": covers_path}
_NAMES: Final = frozenset({*_VALUES, "exp", "rps"})
