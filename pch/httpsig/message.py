"""The parts of an HTTP message that a signature can cover (RFC 9421 §2)."""

from __future__ import annotations

from dataclasses import dataclass

HeaderLines = tuple[tuple[str, bytes], ...]
"""Field lines in the order they arrived: lower-case name, raw value bytes."""


@dataclass(frozen=True, slots=True)
class RequestMessage:
    """A request as it was sent.

    `method`: case-sensitive. `scheme`: lower-case `http` or `https`. `authority`: as received, not normalised.
    `target`: the request target as received, path and query (`/a?b=c`), ASCII. `headers`: raw field lines.
    """

    method: str
    scheme: str
    authority: str
    target: str
    headers: HeaderLines

    def lines(self, name: str) -> list[bytes]:
        """Give the raw values of every line of the field `name` (lower-case), in order; empty if absent."""
        return [value for field, value in self.headers if field == name]


@dataclass(frozen=True, slots=True)
class ResponseMessage:
    """A response as it was sent; `status` is the three-digit code."""

    status: int
    headers: HeaderLines

    def lines(self, name: str) -> list[bytes]:
        """Give the raw values of every line of the field `name` (lower-case), in order; empty if absent."""
        return [value for field, value in self.headers if field == name]
