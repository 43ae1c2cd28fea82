"""An HTTP/1.1 upstream with large bodies for the edge tests."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK_BYTES = 65536
MAX_BODY_BYTES = 64 * 1024 * 1024


@functools.lru_cache(maxsize=8)
def blob(size: int) -> bytes:
    """Build a body in which no two blocks are alike."""
    blocks = (hashlib.sha256(index.to_bytes(8, "big")).digest() for index in range(-(-size // 32)))
    return b"".join(blocks)[:size]


class _Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send /upstream/blob/SIZE."""
        self._send(blob(min(int(self.path.rpartition("/")[2]), MAX_BODY_BYTES)))

    def do_POST(self) -> None:
        """Send the body back for /upstream/echo, else its digest."""
        body = self._body()
        self._send(body if self.path == "/upstream/echo" else hashlib.sha256(body).hexdigest().encode())

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "") == "chunked":
            chunks = []
            while (size := int(self.rfile.readline(), 16)) > 0:
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        for start in range(0, len(body), CHUNK_BYTES):
            self.wfile.write(body[start : start + CHUNK_BYTES])

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def handle(self) -> None:
        """Serve until the edge hangs up, also in the middle of an answer."""
        try:
            super().handle()
        except (ConnectionError, ValueError):
            self.close_connection = True


@contextmanager
def running_upstream() -> Iterator[int]:
    """Serve on a free loopback port for the length of a with block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="upstream", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
