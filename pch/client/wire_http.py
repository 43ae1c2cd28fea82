"""Between the exchange's requests and httpcore's: framing fields, answers, and errors by their meaning."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import h2.errors
import h2.events
import h2.exceptions
import httpcore

from pch.client.errors import ClientError, ConnectionLost, PeerFault, ResponseTooLarge, TimedOut
from pch.client.exchange import Answer
from pch.client.limits import MAX_RESPONSE_HEADERS
from pch.client.response import Headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pch.client.exchange import WireRequest
    from pch.client.url import Origin

USER_AGENT: Final = b"signet-pch/1"
_CONTENT_EXPECTED: Final = frozenset({"POST", "PUT", "PATCH"})


class NotSent(ConnectionLost):
    """The connection was gone before, or the server says it did not process this (RFC 9113 §6.8, §8.7)."""


def core_request(origin: Origin, wire: WireRequest, *, http2: bool) -> httpcore.Request:
    """Turn `wire` into httpcore's request, with Host and the length of its content."""
    request = wire.request
    headers: list[tuple[bytes, bytes]] = [(b"host", origin.authority.encode("ascii"))]
    names = {name for name, _ in wire.headers}
    headers += [
        (name, value)
        for name, value in ((b"user-agent", USER_AGENT), (b"accept", b"*/*"))
        if name.decode("ascii") not in names
    ]
    headers += [(name.encode("ascii"), value) for name, value in wire.headers]
    content = wire.content
    if content or (request.method in _CONTENT_EXPECTED and not http2):
        headers.append((b"content-length", str(len(content)).encode("ascii")))
    url = httpcore.URL(
        scheme=origin.scheme.encode("ascii"),
        host=origin.host.encode("ascii"),
        port=origin.port,
        target=request.url.target.encode("ascii"),
    )
    return httpcore.Request(method=request.method.encode("ascii"), url=url, headers=headers, content=content)


def core_origin(origin: Origin) -> httpcore.Origin:
    """Give httpcore's form of `origin`."""
    return httpcore.Origin(origin.scheme.encode("ascii"), origin.host.encode("ascii"), origin.port)


def answer_headers(response: httpcore.Response) -> Headers:
    """Give the answer's field lines. Raises `PeerFault` when there are too many."""
    if len(response.headers) > MAX_RESPONSE_HEADERS:
        raise PeerFault(f"the answer has more than {MAX_RESPONSE_HEADERS} header fields")
    return Headers(tuple((name.decode("latin-1").lower(), value) for name, value in response.headers))


def make_answer(response: httpcore.Response, headers: Headers, content: bytes, *, connection_ended: bool) -> Answer:
    """Put a whole answer together."""
    version = response.extensions.get("http_version", b"HTTP/1.1")
    number = version.decode("ascii").removeprefix("HTTP/")
    return Answer(response.status, headers, content, number, connection_ended)


def check_size(size_bytes: int, limit_bytes: int) -> None:
    """Raise `ResponseTooLarge` when an answer's content passes the limit."""
    if size_bytes > limit_bytes:
        raise ResponseTooLarge(f"the answer's content is over {limit_bytes} bytes")


@contextmanager
def meaning_of_errors() -> Iterator[None]:
    """Translate httpcore's and h2's errors into this client's."""
    try:
        yield
    except ClientError:
        raise
    except httpcore.ConnectionNotAvailable as error:
        raise NotSent("the connection takes no further request") from error
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise TimedOut("the request's time is used up") from error
    except httpcore.RemoteProtocolError as error:
        if _is_unprocessed(error.args[0] if error.args else None):
            raise NotSent("the server says that it did not process the request") from error
        raise ConnectionLost("the connection ended before the whole answer arrived") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, h2.exceptions.H2Error, OSError) as error:
        raise ConnectionLost("the connection ended before the whole answer arrived") from error


def _is_unprocessed(event: object) -> bool:
    """Tell whether an HTTP/2 event excludes that the server acted on the request (RFC 9113 §6.8, §8.7)."""
    if isinstance(event, h2.events.StreamReset):
        return event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
    return isinstance(event, h2.events.ConnectionTerminated) and event.last_stream_id == 0
