"""The app behind the benchmark of bodies: takes whatever comes, keeps nothing, answers `ok`. Loopback only."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from typing import Final, cast

import uvloop

_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)
_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Sink(asyncio.BufferedProtocol):
    """One connection; the buffer is written over again and again."""

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 18)
        self._head = b""
        self._left: int | None = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own, which is no subclass

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Give the one buffer."""
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        """Count what came, and answer at the end of each request."""
        start = 0
        if self._left == 0:
            self._head += bytes(self._buffer[:count])
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._head[:end])
            self._left = int(length[1]) if length else -1 if b"chunked" in self._head[:end].lower() else 0
            start = count - (len(self._head) - end - 4)
            self._head = b""
        if self._left == -1:
            self._tail = (self._tail + bytes(self._buffer[max(start, count - 5) : count]))[-5:]
            if self._tail == _LAST_CHUNK:
                self._left = 0
        else:
            self._left -= count - start
        if self._left == 0:
            self._tail = b""
            self._transport.write(_ANSWER)


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(Sink, "127.0.0.1", port)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
