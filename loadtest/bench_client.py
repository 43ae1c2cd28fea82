"""A lean keep-alive load generator: signs every request for its connection, HTTP/1.1 over TLS 1.3.

Every variant is sent the same signed requests, so that the client costs the same everywhere; a variant that gives no
challenges is sent an old one.
"""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from OpenSSL import SSL

from pch.client.signing import sign_request
from pch.httpsig.message import RequestMessage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pch.algorithms import Signer

TIMEOUT_S: Final = 10.0
PIECE_BYTES: Final = 1 << 18
_CHALLENGE: Final = re.compile(rb'pch-challenge: "([A-Za-z0-9_-]{60})"', re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)
_FIXED: Final = "A" * 60


@dataclass
class LoadResult:
    """What one run saw. Latencies in seconds; `statuses`: how often each status came."""

    elapsed_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def percentile_ms(self, share: float) -> float:
        """Give the latency below which `share` of the requests lie, in milliseconds."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class LoadConnection:
    """One TLS connection that sends signed requests one after another."""

    def __init__(self, port: int, path: str, signer: Signer) -> None:
        self._authority, self._path, self._signer = f"127.0.0.1:{port}", path, signer
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION)
        raw = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.settimeout(None)  # pyOpenSSL wants a blocking socket; the kernel's timeout bounds each wait instead
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, int(TIMEOUT_S).to_bytes(8, "little") + bytes(8))
        self._raw, self._tls = raw, SSL.Connection(context, raw)
        self._tls.set_connect_state()
        self._wait(self._tls.do_handshake)
        self._binding = self._tls.export_keying_material(b"EXPORTER-Channel-Binding", 32)
        self._challenge: bytes | None = None
        self._answer = b""

    def prime(self) -> None:
        """Fetch the first challenge, if the variant gives any."""
        self._exchange(f"GET {self._path} HTTP/1.1\r\nhost: {self._authority}\r\n\r\n".encode())

    def signed(self) -> int:
        """Send one signed request; returns the status."""
        return self._send("GET", self._path, b"")

    def signed_body(self, path: str, body: bytes) -> int:
        """Send one signed POST with `body`; returns the status."""
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: bytes) -> int:
        return self._exchange(self.make(method, path, body), body)

    def make(self, method: str, path: str, body: bytes) -> bytes:
        """Sign one request with the newest challenge; returns its head."""
        challenge = self._challenge.decode() if self._challenge else _FIXED
        message = RequestMessage(method, "https", self._authority, path, ())
        proof = sign_request(
            message,
            body,
            signers=(self._signer,),
            challenge=challenge,  # type: ignore[arg-type]
            binding=self._binding,
            created_s=int(time.time()),
            max_age_s=60,
        )
        fields = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in proof.added)
        start = f"{method} {path} HTTP/1.1\r\nhost: {self._authority}\r\n".encode()
        if body:
            fields += b"content-length: %d\r\n" % len(body)
        return start + fields + b"\r\n"

    def _exchange(self, head: bytes, body: bytes = b"") -> int:
        self._wait(self._tls.sendall, head)
        for place in range(0, len(body), PIECE_BYTES):
            self._wait(self._tls.sendall, memoryview(body)[place : place + PIECE_BYTES])
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._wait(self._tls.recv, 65536)
        self._answer = head = data[: end + 4]
        length = _LENGTH.search(head)
        missing = (int(length[1]) if length else 0) - (len(data) - len(head))
        while missing > 0:
            missing -= len(self._wait(self._tls.recv, 65536))
        found = _CHALLENGE.search(head)
        self._challenge = found[1] if found else None
        return int(head[9:12])

    def _wait(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Call into TLS; where sockets are made non-blocking beneath us (gevent does), wait and call again."""
        while True:
            try:
                return call(*arguments)
            except SSL.WantReadError:
                ready = select.select([self._raw], [], [], TIMEOUT_S)[0]
            except SSL.WantWriteError:
                ready = select.select([], [self._raw], [], TIMEOUT_S)[1]
            if not ready:
                raise TimeoutError("nothing came")

    def close(self) -> None:
        """End the connection."""
        self._tls.shutdown()
        self._tls.close()


def run_load(port: int, path: str, signer: Signer, connections: int, requests: int) -> LoadResult:
    """Send `requests` signed requests over `connections` connections at once."""
    opened = [LoadConnection(port, path, signer) for _ in range(connections)]
    for connection in opened:
        connection.prime()
    result = LoadResult()
    each = requests // connections
    lock = threading.Lock()

    def drive(connection: LoadConnection) -> None:
        latencies, statuses = [], {}
        for _ in range(each):
            started_s = time.perf_counter()
            status = connection.signed()
            latencies.append(time.perf_counter() - started_s)
            statuses[status] = statuses.get(status, 0) + 1
        with lock:
            result.latencies_s += latencies
            for status, count in statuses.items():
                result.statuses[status] = result.statuses.get(status, 0) + count

    threads = [threading.Thread(target=drive, args=(connection,)) for connection in opened]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.elapsed_s = time.perf_counter() - started_s
    for connection in opened:
        connection.close()
    return result
