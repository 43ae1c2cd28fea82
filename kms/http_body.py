"""Request bodies: read within their bound, inflated within their ratio, decoded strictly (INTEROP.md §1.3, I-13)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.errors import Backpressure, BadRequest, TooLarge, Unsupported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Receive = Callable[[], Awaitable[dict[str, Any]]]

MAX_LENGTH_DIGITS: Final = 12
MAX_BODIES_BYTES: Final = 64 * 1_048_576
"""Of all requests of the process together, what came of their bodies and is not answered."""
# zlib's window sizes: gzip alone, and zlib (which RFC 9110 §8.4.1.2 calls deflate) alone.
_WBITS: Final = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class Disconnected(Exception):
    """The peer went away before its body was whole; nobody reads an answer."""


class BodyBudget:
    """How many bytes of bodies may be under way at once. The event loop owns it."""

    def __init__(self, max_bytes: int = MAX_BODIES_BYTES) -> None:
        self._max_bytes = max_bytes
        self.taken_bytes = 0
        """What requests hold now."""

    def lease(self) -> BodyLease:
        """Give what one request takes its bytes with, and gives them back with when it is left."""
        return BodyLease(self)

    def take(self, size_bytes: int) -> None:
        """Count bytes that came. Raises Backpressure: they are too many, and must be dropped."""
        if self.taken_bytes + size_bytes > self._max_bytes:
            raise Backpressure("too many request bodies are under way", reason="body_budget", retry_after_s=1)
        self.taken_bytes += size_bytes


class BodyLease:
    """The bytes of one request, as a context: however it is left, they are given back."""

    __slots__ = ("_budget", "_held_bytes")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget, self._held_bytes = budget, 0

    def __enter__(self) -> BodyLease:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.taken_bytes -= self._held_bytes
        self._held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Count bytes that came. Raises Backpressure."""
        self._budget.take(size_bytes)
        self._held_bytes += size_bytes


def check_length(content_length: bytes | None, max_body_bytes: int) -> None:
    """Refuse a body by its announced length, before a byte of it is read. Raises TooLarge or BadRequest."""
    if content_length is None:
        return
    if not content_length.isdigit() or len(content_length) > MAX_LENGTH_DIGITS:
        raise BadRequest("Content-Length must be a number")
    if int(content_length) > max_body_bytes:
        raise TooLarge(f"the body is larger than {max_body_bytes} bytes")


async def read_body(receive: Receive, max_body_bytes: int, lease: BodyLease) -> bytes:
    """Read the body whole, each piece counted as it comes.

    Raises TooLarge past `max_body_bytes`, Backpressure past what all requests may hold, Disconnected when the peer went
    away.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        piece: bytes = message["body"]
        more = message["more_body"]
        size += len(piece)
        if size > max_body_bytes:
            raise TooLarge(f"the body is larger than {max_body_bytes} bytes")
        lease.take(len(piece))
        parts.append(piece)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def inflate(body: bytes, content_encoding: bytes | None, max_body_bytes: int, ratio_cap: int) -> bytes:
    """Undo the Content-Encoding, stopping at the bounds rather than after them.

    `ratio_cap`: how many times larger than what was sent the content may be. Raises BadRequest (reason `ratio_cap`)
    past it or for damaged data, TooLarge (reason `decompress_cap`) past `max_body_bytes`, Unsupported for an encoding
    that is not gzip or deflate.
    """
    if content_encoding is None or content_encoding.strip().lower() in (b"", b"identity"):
        return body
    wbits = _WBITS.get(content_encoding.strip().lower())
    if wbits is None:
        raise Unsupported("Content-Encoding must be gzip or deflate")
    within_ratio = len(body) * ratio_cap
    allowed = min(within_ratio, max_body_bytes)
    inflater = zlib.decompressobj(wbits)
    try:
        content = inflater.decompress(body, allowed + 1)
    except zlib.error as error:
        raise BadRequest("the body does not match its Content-Encoding") from error
    if len(content) > within_ratio:
        raise BadRequest(f"the body inflates more than {ratio_cap} times", reason="ratio_cap")
    if len(content) > max_body_bytes:
        raise TooLarge(f"the inflated body is larger than {max_body_bytes} bytes", reason="decompress_cap")
    if not inflater.eof or inflater.unused_data:
        raise BadRequest("the body does not match its Content-Encoding")
    return content


# The starts of msgspec's messages that name nothing but our own schema; any other becomes a general one, because it
# may quote the caller's text.
_SAFE_STARTS: Final = ("Expected `", "Object missing required field `")
_PATH_MARK: Final = " - at `$"


def explain_invalid(error: Exception) -> BadRequest:
    """Turn a decoder's complaint into a BadRequest that quotes nothing of the body."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return BadRequest("the body is not valid JSON")
    what, mark, path = text.partition(_PATH_MARK)
    place = f" at ${path.rstrip('`')}" if mark and path != "`" else ""
    if what.startswith("Object contains unknown field"):
        return BadRequest("unknown field" + place, hint="fields that the contract does not name are refused")
    if what.startswith(_SAFE_STARTS):
        return BadRequest(what.replace("`", "'") + place)
    return BadRequest("a value is not one of those that the contract names" + place)
