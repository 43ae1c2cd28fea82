"""One blocking connection with its channel: what is signed for it is sent on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpcore

from pch.client.channel import Channel, OriginClock
from pch.client.http2 import Http2Connection
from pch.client.limits import IDLE_EXPIRY_S
from pch.client.sync_stream import SyncStream, connect
from pch.client.wire_http import (
    answer_headers,
    check_size,
    core_origin,
    core_request,
    make_answer,
    meaning_of_errors,
)

if TYPE_CHECKING:
    from pch.client.exchange import Answer, WireRequest
    from pch.client.tls_session import TlsContext
    from pch.client.url import Origin


class SyncConnection:
    """A connection to one origin, leased by one thread at a time."""

    def __init__(self, origin: Origin, stream: SyncStream, clock: OriginClock) -> None:
        self.origin = origin
        self.channel = Channel(stream.binding, clock)
        self.answers = 0
        self._stream = stream
        self._http2 = stream.is_http2
        kind = Http2Connection if self._http2 else httpcore.HTTP11Connection
        self._http: httpcore.HTTP11Connection | httpcore.HTTP2Connection = kind(core_origin(origin), stream)
        self._broken = False
        self._idle_since_s = time.monotonic()

    @classmethod
    def open(cls, origin: Origin, tls: TlsContext, clock: OriginClock, deadline_s: float) -> SyncConnection:
        """Connect and finish the handshake before `deadline_s` (monotonic)."""
        return cls(origin, connect(origin, tls, deadline_s), clock)

    @property
    def reused(self) -> bool:
        """Tell whether it has answered before."""
        return self.answers > 0

    def takes_requests(self) -> bool:
        """Tell whether the connection, as far as is known without looking, takes another request."""
        return not self._broken and not self._http.is_closed() and (self._http.is_available() or self.answers == 0)

    def is_fresh(self) -> bool:
        """Look whether the idle connection is still there and not too old."""
        if not self.takes_requests() or time.monotonic() - self._idle_since_s > IDLE_EXPIRY_S:
            return False
        return not self._stream.is_gone(idle_data_ends=not self._http2)

    def send(self, wire: WireRequest, *, deadline_s: float, max_body_bytes: int) -> Answer:
        """Send one request and read its whole answer.

        Raises `NotSent`, `ConnectionLost`, `TimedOut`, `ResponseTooLarge`, `PeerFault`; the connection is
        then over.
        """
        self._stream.deadline_s = deadline_s
        try:
            with meaning_of_errors():
                response = self._http.handle_request(core_request(self.origin, wire, http2=self._http2))
                headers = answer_headers(response)
                content = bytearray()
                for chunk in response.iter_stream():
                    content += chunk
                    check_size(len(content), max_body_bytes)
                response.close()
        except BaseException:
            self._broken = True
            raise
        self.answers += 1
        self._idle_since_s = time.monotonic()
        return make_answer(response, headers, bytes(content), connection_ended=not self.takes_requests())

    def close(self) -> None:
        """Close the connection."""
        self._broken = True
        self._stream.close()
