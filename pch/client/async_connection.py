"""One asyncio connection with its channel: what is signed for it is sent on it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import httpcore

from pch.client.async_stream import AsyncStream, connect
from pch.client.channel import Channel, OriginClock
from pch.client.http2 import AsyncHttp2Connection
from pch.client.limits import IDLE_EXPIRY_S, MAX_ENVELOPES_AHEAD, MAX_STREAMS_PER_CONNECTION
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


class AsyncConnection:
    """A connection to one origin; `capacity` requests at a time, more than one on HTTP/2.

    `in_flight` is the pool's count of leases. `envelope_places`: of envelopes that are sent ahead and not used yet.
    """

    def __init__(self, origin: Origin, stream: AsyncStream, clock: OriginClock) -> None:
        self.origin = origin
        self.channel = Channel(stream.binding, clock)
        self.capacity = MAX_STREAMS_PER_CONNECTION if stream.is_http2 else 1
        self.in_flight = 0
        self.answers = 0
        self.envelope_places = asyncio.Semaphore(MAX_ENVELOPES_AHEAD)
        self._stream = stream
        self._http2 = stream.is_http2
        kind = AsyncHttp2Connection if self._http2 else httpcore.AsyncHTTP11Connection
        self._http: httpcore.AsyncHTTP11Connection | httpcore.AsyncHTTP2Connection = kind(core_origin(origin), stream)
        self._broken = False
        self._idle_since_s = time.monotonic()

    @classmethod
    async def open(cls, origin: Origin, tls: TlsContext, clock: OriginClock) -> AsyncConnection:
        """Connect and finish the handshake."""
        return cls(origin, await connect(origin, tls), clock)

    @property
    def reused(self) -> bool:
        """Tell whether it has answered before."""
        return self.answers > 0

    def takes_requests(self) -> bool:
        """Tell whether the connection, as far as is known without looking, takes another request."""
        if self._broken or self._http.is_closed():
            return False
        # An HTTP/1.1 connection counts as available only between requests, and not before the first one.
        return self._http.is_available() or (not self._http2 and self.answers == 0)

    def is_fresh(self) -> bool:
        """Look whether it takes another request; an idle one must still be there and not be too old."""
        if not self.takes_requests():
            return False
        if self.in_flight:
            return True
        if time.monotonic() - self._idle_since_s > IDLE_EXPIRY_S:
            return False
        return not self._stream.is_gone(idle_data_ends=not self._http2)

    async def catch_up(self) -> None:
        """Learn what the network brought to an idle connection, before asking `is_fresh`."""
        if not self.in_flight:
            await self._stream.catch_up()

    async def send(self, wire: WireRequest, *, max_body_bytes: int) -> Answer:
        """Send one request and read its whole answer; the caller's timeout bounds it.

        Raises `NotSent`, `ConnectionLost`, `ResponseTooLarge`, `PeerFault`; the connection then takes no
        further request, also after a cancellation, since an abandoned stream would keep its share of the flow
        window.
        """
        try:
            with meaning_of_errors():
                response = await self._http.handle_async_request(core_request(self.origin, wire, http2=self._http2))
                headers = answer_headers(response)
                content = bytearray()
                async for chunk in response.aiter_stream():
                    content += chunk
                    check_size(len(content), max_body_bytes)
                await response.aclose()
        except BaseException:
            self._broken = True
            raise
        self.answers += 1
        self._idle_since_s = time.monotonic()
        return make_answer(response, headers, bytes(content), connection_ended=not self.takes_requests())

    def close_soon(self) -> None:
        """Close without waiting."""
        self._broken = True
        self._stream.close_soon()

    async def aclose(self) -> None:
        """Close, and wait for the transport to be gone."""
        self._broken = True
        await self._stream.aclose()
