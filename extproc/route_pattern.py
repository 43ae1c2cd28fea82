"""What a route rule matches: hosts and path globs (docs/reference/filter.toml).

Paths are compared as they were sent: nothing is decoded, no segment is folded, and case counts. The one
exception is the case of the hex digits of an escape, because `%c3` and `%C3` are the same byte to every
reader (RFC 3986 §6.2.2.1).

    *    any number of characters inside one segment, none included
    **   only as the whole last segment: any rest. `/a/**` also matches `/a` and `/a/`

A trailing slash counts: `/a` does not match `/a/`, nor the other way round.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

MAX_PATTERN_CHARS: Final = 1024
"""Characters in a path glob."""
MAX_STARS: Final = 16
"""`*` in a path glob; each costs at most one pass over a segment."""
DEFAULT_PORT: Final = "443"
"""The edge speaks https only, so @authority leaves this port out (RFC 9421 §2.2.3)."""

_PATH_CHARS: Final = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})+")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HOST: Final = re.compile(r"(?:\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]{2,45}\])")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_AUTHORITY: Final = re.compile(
    r"(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]{2,45}\])\.?(?::(?P<port>[1-9][0-9]{0,4}))?"
)


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority taken apart; `port` is text, the default one filled in.

    An IPv6 address is in its one canonical form, whichever it was sent in. One trailing dot of the name is
    dropped, so that `example.com.` cannot walk past a rule for `example.com`.
    """

    name: str
    port: str


@dataclass(frozen=True, slots=True)
class HostPattern:
    """A host rule: an exact name, a suffix (`*.example.com`) or any, with or without a port."""

    exact: str | None
    suffix: str | None
    port: str | None

    def matches(self, authority: Authority) -> bool:
        """Tell whether `authority` is one of this rule's."""
        if self.port is not None and self.port != authority.port:
            return False
        if self.exact is not None:
            return authority.name == self.exact
        return self.suffix is None or authority.name.endswith(self.suffix)


def parse_authority(text: str) -> Authority | None:
    """Take apart an authority in the form of RFC 9421 §2.2.3; None when it is no host with a port."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    try:
        return Authority(_canonical(match["name"]), match["port"] or DEFAULT_PORT)
    except ValueError:
        return None


def parse_host(pattern: str) -> HostPattern:
    """Read a host rule: `name`, `*.name` or `*`, each with an optional `:port`. Raises ValueError."""
    name, colon, port = pattern, "", ""
    if not pattern.endswith("]"):
        head, colon, tail = pattern.rpartition(":")
        name, port = (head, tail) if colon else (pattern, "")
    if len(pattern) > MAX_PATTERN_CHARS or not _HOST.fullmatch(name):
        raise ValueError("must be a lower-case host name, *.name or *, with an optional :port")
    if colon and (not _PORT.fullmatch(port) or int(port) > 65535):
        raise ValueError("must end in a port from 1 to 65535, or have none")
    wanted_port = port if colon else None
    if name == "*":
        return HostPattern(None, None, wanted_port)
    if name.startswith("*."):
        return HostPattern(None, name[1:], wanted_port)
    return HostPattern(_canonical(name), None, wanted_port)


def _canonical(name: str) -> str:
    """Give the one spelling of an IPv6 address in brackets, and any other name as it is. Raises ValueError."""
    if not name.startswith("["):
        return name
    try:
        return f"[{ipaddress.IPv6Address(name[1:-1]).compressed}]"
    except ValueError as error:
        raise ValueError("must hold an IPv6 address inside its brackets") from error


def compile_path(pattern: str) -> re.Pattern[str]:
    """Compile a path glob for `fullmatch`; no path makes it backtrack more than once a segment.

    Raises ValueError.
    """
    _check_path_pattern(pattern)
    rest = pattern.endswith("/**")
    segments = (pattern[:-3] if rest else pattern).split("/")[1:]
    expression = "".join("/" + _segment(segment) for segment in segments)
    return re.compile(expression + ("(?:/.*)?" if rest else ""), re.DOTALL)


def _check_path_pattern(pattern: str) -> None:
    if not pattern.startswith("/"):
        raise ValueError("must start with /")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"must have at most {MAX_PATTERN_CHARS} characters")
    if not _PATH_CHARS.fullmatch(pattern):
        raise ValueError("must hold only what a URL path may hold (RFC 3986), without query")
    segments = pattern.split("/")[1:]
    if any("**" in segment for segment in segments[:-1]) or ("**" in segments[-1] and segments[-1] != "**"):
        raise ValueError("may hold ** only as its last segment")
    if pattern.count("*") > MAX_STARS:
        raise ValueError(f"may hold at most {MAX_STARS} *")
    if "" in segments[:-1] or any(segment in {".", ".."} for segment in segments):
        raise ValueError("must have neither // nor dot segments: such paths are refused before routing")
    for escape in re.findall("%(..)", pattern):
        byte = int(escape, 16)
        if byte in _UNRESERVED or byte in b"/\\\0":
            raise ValueError("must not hold an escape that is refused before routing")


def _segment(segment: str) -> str:
    """Compile one segment.

    Each `*` but the last takes the least it can and never gives back. That is enough for globs, and no
    hostile path can make the match explode.
    """
    first, *others = segment.split("*")
    parts = [_literal(first)]
    parts.extend(f"(?>[^/]*?{_literal(middle)})" for middle in others[:-1])
    if others:
        parts.append("[^/]*" + _literal(others[-1]))
    return "".join(parts)


def _literal(text: str) -> str:
    """Quote `text`, letting the hex digits of escapes match in either case."""
    return re.sub(
        "%(..)",
        lambda escape: "%" + "".join(f"[{d.lower()}{d.upper()}]" if d.isalpha() else d for d in escape[1]),
        re.escape(text),
    )
