"""An app that says what it got of each body, byte by byte, and answers when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.stack import Stack

READ_BYTES = 65536
WAIT_S = 10.0


@dataclass
class Arrived:
    """One request as it came in. `whole`: its framing says that it ended."""

    head: bytes = b""
    raw: bytearray = field(default_factory=bytearray)
    whole: bool = False
    over: bool = False

    @property
    def declared(self) -> int | None:
        for line in self.head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return int(line.partition(b":")[2])
        return None

    def take(self, data: bytes) -> None:
        self.raw += data
        if self.declared is not None:
            self.whole = len(self.raw) >= self.declared
        else:
            self.whole = self.raw.endswith(b"0\r\n\r\n")


class BodyUpstream:
    """Listens where the app did. `early`: answer as soon as the header is there."""

    def __init__(self, port: int, *, early: bool) -> None:
        self.seen: list[Arrived] = []
        self._early = early
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(WAIT_S)
            data = b""
            while b"\r\n\r\n" not in data:
                if not (more := connection.recv(READ_BYTES)):
                    return
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            arrived = Arrived(head)
            self.seen.append(arrived)
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
            if self._early:
                connection.sendall(answer)
            try:
                arrived.take(rest)
                while not arrived.whole and (more := connection.recv(READ_BYTES)):
                    arrived.take(more)
            finally:
                arrived.over = True
            if arrived.whole and not self._early:
                connection.sendall(answer)

    def only(self) -> Arrived:
        """Wait for the one request and for its end, whichever it is."""
        deadline = time.monotonic() + WAIT_S
        while not self.seen or not self.seen[0].over:
            assert time.monotonic() < deadline, "the app got no request, or it never ended"
            time.sleep(0.02)
        (arrived,) = self.seen
        return arrived

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def in_place_of_the_app(stack: Stack, *, early: bool = False) -> Iterator[BodyUpstream]:
    """Stand in for the app of `stack` during the block."""
    stack.stop_part("app")
    upstream = BodyUpstream(stack.settings.ports.app, early=early)
    try:
        yield upstream
    finally:
        upstream.close()
        stack.start_part("app")
