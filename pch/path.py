"""Which request targets have only one reading (docs/reference/pch.md §1.2)."""

from __future__ import annotations

import re
from typing import Final

from pch.errors import AmbiguousPath

MAX_TARGET_BYTES: Final = 8192
"""The longest request target, path and query, in bytes (RFC 9110 §4.1 asks for at least 8000 octets)."""

_AMBIGUOUS: Final = re.compile(
    r"""
      //                               # an empty segment
    | \\                               # a backslash, a slash to some
    | /\.{1,2}(?=[/;]|$)               # a dot segment, also with a parameter
    | %(?![0-9A-Fa-f]{2})              # a bad escape
    | %(?:2[Ff]|5[Cc]|00)              # an encoded slash, backslash or NUL
    | %(?:3[0-9]|4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9Aa]|2[DdEe]|5[Ff]|7[Ee])  # encoded unreserved
    | [^\x21-\x7e] | \#                # what RFC 3986 has no place for in a path
    """,
    re.VERBOSE,
)
_NOT_IN_QUERY: Final = re.compile(r"[^\x21-\x7e]|#")


def check_target(target: str) -> None:
    """Refuse a request target with more than one reading, PCH §1.2.

    `target`: path and query as received. Raises `AmbiguousPath`.
    """
    path, _, query = target.partition("?")
    if len(target) > MAX_TARGET_BYTES:
        raise AmbiguousPath("the request target is too long")
    if not path.startswith("/"):
        raise AmbiguousPath("the request target is not in origin form")
    if _AMBIGUOUS.search(path) or _NOT_IN_QUERY.search(query):
        raise AmbiguousPath("the path has more than one reading")
