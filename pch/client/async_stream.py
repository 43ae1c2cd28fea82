"""An asyncio transport with the client's own TLS, for httpcore's connections."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Any, Final, cast

import httpcore

from pch.client.errors import ConnectFailed
from pch.client.limits import CLOSE_TIMEOUT_S, MAX_BUFFERED_PLAIN_BYTES, TLS_READ_BYTES, TLS_WRITE_BYTES

if TYPE_CHECKING:
    import ssl

    from pch.client.tls_session import TlsContext, TlsSession
    from pch.client.url import Origin


_TURNS_TO_DELIVER: Final = 2
"""The loop looks at its sockets in one turn and calls `data_received` in the next."""


class _Wire(asyncio.Protocol):
    """The raw bytes of one TCP connection, with back-pressure both ways."""

    def __init__(self) -> None:
        self._received: list[bytes] = []
        self._buffered_bytes = 0
        self._ended = False
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received.append(bytes(data))
        self._buffered_bytes += len(data)
        if self._buffered_bytes > MAX_BUFFERED_PLAIN_BYTES:
            self.transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        self._ended = True
        self._arrived.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._arrived.set()
        self._writable.set()
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def take(self) -> bytes | None:
        """Give what arrived, empty at the end, None when nothing did."""
        if self._received:
            data, self._received, self._buffered_bytes = b"".join(self._received), [], 0
            if not self.closed.is_set():
                self.transport.resume_reading()
            return data
        self._arrived.clear()
        return b"" if self._ended else None

    async def receive(self) -> bytes:
        """Wait for bytes, empty at the end."""
        while (data := self.take()) is None:
            await self._arrived.wait()
        return data

    async def send(self, data: bytes) -> None:
        """Send, waiting while the transport's buffer is full. Raises `ConnectionResetError`."""
        if self.closed.is_set():
            raise ConnectionResetError("the connection is closed")
        if data:
            self.transport.write(data)
        await self._writable.wait()


class AsyncStream(httpcore.AsyncNetworkStream):
    """One TCP connection, with TLS for https; used from one event loop.

    Waits end by the caller's `asyncio.timeout`, so the timeout arguments are not looked at.
    """

    def __init__(self, wire: _Wire, tls: TlsSession | None) -> None:
        self._wire = wire
        self._tls = tls
        self._plain = bytearray()

    @property
    def binding(self) -> bytes | None:
        """Give the 32 exporter bytes, or None without a channel binding."""
        return self._tls.binding if self._tls else None

    @property
    def is_http2(self) -> bool:
        """Tell whether h2 was negotiated."""
        return self._tls is not None and self._tls.is_http2

    async def handshake(self) -> None:
        """Finish the TLS handshake. Raises `ConnectFailed` or one of its kinds."""
        if self._tls is None:
            return
        try:
            complete = False
            while not complete:
                try:
                    complete = self._tls.handshake()
                finally:
                    # An alert has to leave even when the handshake failed.
                    await self._wire.send(self._tls.outgoing())
                if not complete:
                    self._tls.receive(await self._wire.receive())
        except OSError as error:
            raise ConnectFailed("the connection ended during the TLS handshake") from error

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Give at least one plain byte, or none at the end."""
        try:
            if self._plain:
                data = bytes(self._plain[:max_bytes])
                del self._plain[:max_bytes]
                return data
            if self._tls is None:
                return await self._wire.receive()
            while (plain := self._tls.read(max_bytes)) is None:
                await self._wire.send(self._tls.outgoing())
                self._tls.receive(await self._wire.receive())
        except OSError as error:
            raise httpcore.ReadError("the connection was lost") from error
        return plain

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Send all of `buffer`."""
        view = memoryview(buffer)
        try:
            for start in range(0, len(view), TLS_WRITE_BYTES):
                chunk = bytes(view[start : start + TLS_WRITE_BYTES])
                if self._tls is not None:
                    self._tls.write(chunk)
                    chunk = self._tls.outgoing()
                await self._wire.send(chunk)
        except OSError as error:
            raise httpcore.WriteError("the connection was lost") from error

    async def catch_up(self) -> None:
        """Let the event loop hand over what has arrived, if it was too busy to look."""
        if not self._wire.closed.is_set() and _is_readable(self._wire.transport.get_extra_info("socket").fileno()):
            for _ in range(_TURNS_TO_DELIVER):
                await asyncio.sleep(0)

    def is_gone(self, *, idle_data_ends: bool) -> bool:
        """Tell without waiting whether the peer ended the idle connection.

        `idle_data_ends`: whether plain bytes on an idle connection mean its end too, as they do in HTTP/1.1.
        """
        try:
            while len(self._plain) <= MAX_BUFFERED_PLAIN_BYTES:
                data = self._wire.take()
                if data is None:
                    return idle_data_ends and bool(self._plain)
                if self._tls is None:
                    self._plain += data
                    if not data:
                        return True
                    continue
                self._tls.receive(data)
                while (plain := self._tls.read(TLS_READ_BYTES)) is not None:
                    self._plain += plain
                    if not plain:
                        return True
        except OSError:
            return True
        return True

    def close_soon(self) -> None:
        """Queue close_notify and close the transport, without waiting for either."""
        if self._wire.transport.is_closing():
            return
        if self._tls:
            self._tls.close()
            self._wire.transport.write(self._tls.outgoing())
        self._wire.transport.close()

    async def aclose(self) -> None:
        """Send close_notify, and close the transport without a long wait."""
        self.close_soon()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._wire.closed.wait()
        except TimeoutError:
            self._wire.transport.abort()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._wire.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: the stream starts with its TLS or without, and never changes."""
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        """Give nothing; the connection knows its stream."""
        return None


def _is_readable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


async def connect(origin: Origin, tls: TlsContext) -> AsyncStream:
    """Open a connection to `origin` and finish its handshake; the caller's timeout bounds it.

    Raises `ConnectFailed` or one of its kinds.
    """
    loop = asyncio.get_running_loop()
    try:
        _, wire = await loop.create_connection(_Wire, origin.host, origin.port)
    except OSError as error:
        raise ConnectFailed(f"no connection to {origin.authority}") from error
    stream = AsyncStream(wire, tls.session(origin.host) if origin.is_tls else None)
    try:
        await stream.handshake()
    except BaseException:
        stream.abort()
        raise
    return stream
