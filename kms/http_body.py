"""Request bodies: read within their bound, inflated within their ratio, decoded strictly (INTEROP.md §1.3, I-13)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.errors import BadRequest, TooLarge, Unsupported

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Receive = Callable[[], Awaitable[dict[str, Any]]]

MAX_LENGTH_DIGITS: Final = 12
# zlib's window sizes: gzip alone, and zlib (which RFC 9110 §8.4.1.2 calls deflate) alone.
_WBITS: Final = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


class Disconnected(Exception):
    """The peer went away before its body was whole; nobody reads an answer."""


def check_length(content_length: bytes | None, max_body_bytes: int) -> None:
    """Refuse a body by its announced length, before a byte of it is read. Raises TooLarge or BadRequest."""
    if content_length is None:
        return
    if not content_length.isdigit() or len(content_length) > MAX_LENGTH_DIGITS:
        raise BadRequest("Content-Length must be a number")
    if int(content_length) > max_body_bytes:
        raise TooLarge(f"the body is larger than {max_body_bytes} bytes")


async def read_body(receive: Receive, max_body_bytes: int) -> bytes:
    """Read the body whole. Raises TooLarge past `max_body_bytes`, Disconnected when the peer went away."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    body: bytes = message["body"]
    if not message["more_body"]:
        if len(body) > max_body_bytes:
            raise TooLarge(f"the body is larger than {max_body_bytes} bytes")
        return body
    parts, size = [body], len(body)
    while message["more_body"]:
        if size > max_body_bytes:
            raise TooLarge(f"the body is larger than {max_body_bytes} bytes")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message["body"])
        size += len(message["body"])
    if size > max_body_bytes:
        raise TooLarge(f"the body is larger than {max_body_bytes} bytes")
    return b"".join(parts)


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
