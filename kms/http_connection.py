"""HTTP connections of the service: bounded in number, in header bytes, and in how long a peer may take.

uvicorn (httptools) parses and frames. What it leaves open is closed here: it has no bound on header bytes, keeps every
trailer, queues whatever is pipelined, waits for ever for a first or an unfinished request, and for a peer that reads
nothing (CONFIG.md §3, CONCURRENCY.md §5).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kms.correlation import IdSource
from kms.error_envelope import encode_envelope
from kms.errors import Backpressure, BadRequest, KmsError

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Callable

    from kms.config_sections import KmsConfig
    from kms.telemetry import Telemetry

MAX_HEADER_BYTES: Final = 16_384
MAX_PIPELINED_REQUESTS: Final = 16
"""Requests of one connection that wait behind the one that is served."""
SWEEP_INTERVAL_S: Final = 0.25
_UCRED: Final = struct.Struct("3i")
_REASONS: Final = {400: b"Bad Request", 503: b"Service Unavailable", 429: b"Too Many Requests"}


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """What every connection of one listener is held to. `config`: gives the settings in force."""

    config: Callable[[], KmsConfig]
    telemetry: Telemetry
    wall_ms: Callable[[], int]
    unix: bool


class _Refused(Exception):
    """The connection was refused: raised in a callback, it makes the parser leave the rest of what came."""


class _PipelineFlow(FlowControl):
    """Reads on only when nothing waits: the library does after each answer, and each read brings thousands more."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read on, unless requests wait."""
        if not self._waiting:
            super().resume_reading()


class KmsConnection(HttpToolsProtocol):
    """One connection. The event loop owns it; `sweep` looks at all of them."""

    rules: ConnectionRules

    _began_s: float | None = None  # when the first byte of an unfinished request came
    _stalled_since_s: float | None = None  # since when the peer has taken nothing of an answer
    _header_bytes: int = 0
    _in_headers: bool = True
    _body_came: bool = False
    _framing_bytes: int = 0  # of a request's body, what came since its last content: chunk extensions, trailers
    _refused: bool = False
    _buffered: int = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it: too many, or a neighbour that is not on the list."""
        super().connection_made(transport)
        self.flow = _PipelineFlow(transport, self.pipeline)
        self._began_s = self.loop.time()
        if self.rules.unix:
            uid = peer_uid(transport.get_extra_info("socket"))
            if uid not in self.rules.config().unix.allowed_uids:
                self._refused = True
                self.rules.telemetry.rejected.labels("peer_uid").inc()
                transport.abort()
                return
            self.client = (f"uid:{uid}", 0)
        if len(self.connections) > self.rules.config().max_conns:
            self.rules.telemetry.rejected.labels("max_conns").inc()
            self._answer_and_close(Backpressure("too many connections", reason="max_conns"))

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the header is longer than it may be."""
        if self._refused:
            return
        if self._in_headers:
            if self._began_s is None:
                self._began_s = self.loop.time()
            self._header_bytes += len(data)
        self._body_came = False
        super().data_received(data)
        self._framing_bytes = 0 if self._in_headers or self._body_came else self._framing_bytes + len(data)
        if self.transport.is_closing():
            return
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(BadRequest("the request's header is too large", reason="header_too_large"))
        elif self._framing_bytes > MAX_HEADER_BYTES:
            self._refuse(BadRequest("the body is framed by too much", reason="framing_too_large"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; a trailer would be kept for nobody to read, so none is taken."""
        if self._in_headers:
            super().on_header(name, value)
        elif not self._refused:
            self._refuse(BadRequest("no trailers are taken", reason="trailers"))

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._body_came = True
        super().on_body(body)

    def on_message_begin(self) -> None:
        """Begin a request, unless the connection was refused."""
        if self._refused:
            raise _Refused
        super().on_message_begin()
        if self._began_s is None:
            self._began_s = self.loop.time()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """Let the application begin, or the request wait for those before it; too many that wait are refused."""
        if len(self.pipeline) >= MAX_PIPELINED_REQUESTS:
            self._refuse(BadRequest("too many requests wait on this connection", reason="pipeline_too_long"))
            raise _Refused
        self._in_headers, self._header_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End a request: what follows is the next one."""
        super().on_message_complete()
        self._began_s, self._in_headers = None, True

    def on_response_complete(self) -> None:
        """Go on with the next request; where there is none, wait for one as long as the settings in force say."""
        self.timeout_keep_alive = self.rules.config().idle_timeout_ms / 1000  # type: ignore[assignment]  # a delay
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with the envelope instead of a plain text."""
        if not self._refused:
            self._refuse(BadRequest("not a valid HTTP request", reason="bad_request"))

    def handle_websocket_upgrade(self) -> None:
        """Refuse: there is nothing to upgrade to."""
        self._answer_and_close(BadRequest("this service has no other protocol to offer"))

    def look(self, now_s: float) -> None:
        """Close the connection when its peer takes too long to send a request or to take an answer."""
        config = self.rules.config()
        if self._began_s is not None and now_s - self._began_s > config.read_timeout_ms / 1000:
            self._time_out("read")
            return
        waiting = self.transport.get_write_buffer_size()
        if waiting == 0 or waiting < self._buffered:
            self._stalled_since_s = None
        elif self._stalled_since_s is None:
            self._stalled_since_s = now_s
        elif now_s - self._stalled_since_s > config.write_timeout_ms / 1000:
            self._time_out("write")
        self._buffered = waiting

    def _time_out(self, op: str) -> None:
        self.rules.telemetry.io_timeouts.labels(op).inc()
        self.transport.abort()

    def _refuse(self, error: BadRequest) -> None:
        """Count and answer what breaks the protocol, and close.

        Without an answer where the peer would take it for that of another request: while an earlier one is served, and
        when the broken one is answered already.
        """
        self.rules.telemetry.rejected.labels(error.reason).inc()
        cycle: Any = self.cycle  # None before the first request, whatever its type says
        pending = cycle is not None and not cycle.response_complete
        if pending and not self._in_headers:
            # Of a request whose body is broken the application sees no end: it does nothing for it.
            cycle.disconnected = True
            cycle.message_event.set()
        if self.pipeline or (pending if self._in_headers else cycle.response_started):
            self._refused = True
            self.transport.close()
        else:
            self._answer_and_close(error)

    def _answer_and_close(self, error: KmsError) -> None:
        self._refused = True
        ids = IdSource(self.rules.wall_ms)
        body = encode_envelope(error, self.rules.wall_ms(), ids.request_id())
        lines = [
            b"HTTP/1.1 %d %b" % (error.http_status, _REASONS[error.http_status]),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"x-corr-id: %b" % ids.corr_id(None, self.rules.config().observability.correlation_id_mode).encode(),
            b"connection: close",
        ]
        if error.retryable:
            lines.append(b"retry-after: 1")
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()


def connection_class(rules: ConnectionRules) -> type[KmsConnection]:
    """Make the protocol class of one listener."""
    return type("KmsConnection", (KmsConnection,), {"rules": rules})


def peer_uid(connected: Any) -> int:
    """Read the uid of a UNIX socket's peer, as it was when it connected (SO_PEERCRED)."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])


def sweep(connections: set[Any], now_s: float) -> None:
    """Look at every connection once."""
    for connection in tuple(connections):
        connection.look(now_s)
