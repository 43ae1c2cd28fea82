"""TLS clients for the edge tests: pyOpenSSL over memory BIOs, so that a test may damage every byte on the wire."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events
import h11
from OpenSSL import SSL

EXPORTER_LABEL = b"EXPORTER-Channel-Binding"
EXPORTER_BYTES = 32
CHUNK_BYTES = 65536
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def binding(self) -> str | None:
        """What the exporter filter set, as the route tells it; None when it set nothing."""
        return self.headers.get("x-binding") or None


def client_context(
    *, alpn: tuple[bytes, ...] = (), suites: bytes | None = None, version: int = SSL.TLS1_3_VERSION
) -> SSL.Context:
    """Build a client context of exactly one TLS version that trusts anyone."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    if alpn:
        context.set_alpn_protos(list(alpn))
    if suites is not None:
        context.set_tls13_ciphersuites(suites)
    return context


def connect_tcp(port: int, *, receive_buffer_bytes: int | None = None) -> socket.socket:
    """Open a TCP connection to a loopback port."""
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    plain.settimeout(TIMEOUT_S)
    if receive_buffer_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    plain.connect(("127.0.0.1", port))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain


def reset(plain: socket.socket) -> None:
    """Close a TCP connection with RST."""
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.close()


class TlsClient:
    """One TLS connection. Raises SSL.Error when the peer refuses, EOFError when it hangs up during the handshake."""

    def __init__(
        self, port: int, context: SSL.Context | None = None, *, receive_buffer_bytes: int | None = None
    ) -> None:
        self.plain = connect_tcp(port, receive_buffer_bytes=receive_buffer_bytes)
        self.tls = SSL.Connection(context or client_context(), None)
        self.tls.set_tlsext_host_name(b"localhost")
        self.tls.set_connect_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def outgoing(self) -> bytes:
        """Take the ciphertext that waits to be sent."""
        taken = bytearray()
        with contextlib.suppress(SSL.WantReadError):
            while True:
                taken += self.tls.bio_read(CHUNK_BYTES)
        return bytes(taken)

    def flush(self) -> None:
        """Send the ciphertext that waits."""
        if taken := self.outgoing():
            self.plain.sendall(taken)

    def receive_ciphertext(self) -> bool:
        """Wait for bytes of the peer and hand them to TLS; False when it hung up."""
        data = self.plain.recv(CHUNK_BYTES)
        if data:
            self.tls.bio_write(data)
        return bool(data)

    def handshake(self) -> Self:
        """Finish the handshake."""
        while True:
            try:
                self.tls.do_handshake()
            except SSL.WantReadError:
                self.flush()
                if not self.receive_ciphertext():
                    raise EOFError("the peer hung up during the handshake") from None
            else:
                self.flush()
                return self

    def exporter(self) -> str:
        """Compute the RFC 9266 binding on this side, as hex."""
        return self.tls.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES).hex()

    def alpn(self) -> bytes:
        """Tell the negotiated application protocol."""
        return self.tls.get_alpn_proto_negotiated()

    def peer_serial(self) -> int:
        """Tell the serial number of the server's certificate."""
        certificate = self.tls.get_peer_certificate()
        assert certificate is not None
        return certificate.get_serial_number()

    def send(self, data: bytes) -> None:
        """Encrypt and send all of data."""
        view = memoryview(data)
        while view:
            sent = self.tls.send(bytes(view[:CHUNK_BYTES]))
            self.flush()
            view = view[sent:]

    def receive(self, limit: int = CHUNK_BYTES) -> bytes:
        """Wait for plaintext; empty when the peer finished."""
        while True:
            try:
                return self.tls.recv(limit)
            except SSL.WantReadError:
                if not self.receive_ciphertext():
                    return b""
            except SSL.ZeroReturnError:
                return b""

    def close(self) -> None:
        """Say close_notify if possible and close."""
        with contextlib.suppress(SSL.Error, OSError):
            self.tls.shutdown()
            self.flush()
        self.plain.close()


def http1_client(port: int, suites: bytes | None = None) -> TlsClient:
    """Connect for HTTP/1.1."""
    return TlsClient(port, client_context(alpn=(b"http/1.1",), suites=suites)).handshake()


def http2_client(port: int, suites: bytes | None = None) -> Http2:
    """Connect for HTTP/2."""
    return Http2(TlsClient(port, client_context(alpn=(b"h2",), suites=suites)).handshake())


@dataclass(slots=True)
class Http1:
    """HTTP/1.1 over any object with send and receive."""

    wire: TlsClient
    state: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))

    def ask(self, method: str = "GET", path: str = "/", body: bytes = b"") -> Answer:
        """Send one request and read its answer."""
        headers = [("host", "localhost"), ("content-length", str(len(body)))]
        self.wire.send(self.state.send(h11.Request(method=method, target=path, headers=headers)) or b"")
        if body:
            self.wire.send(self.state.send(h11.Data(body)) or b"")
        self.wire.send(self.state.send(h11.EndOfMessage()) or b"")
        return self.read()

    def read(self) -> Answer:
        """Read the answer of the request on the wire."""
        status, headers, chunks = 0, {}, []
        while True:
            event = self.state.next_event()
            if event is h11.NEED_DATA:
                self.state.receive_data(self.wire.receive())
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, _texts(event.headers)
            elif isinstance(event, h11.Data):
                chunks.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self.state.start_next_cycle()
                return Answer(status, headers, b"".join(chunks))
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError("the server hung up before it answered")


class Http2:
    """HTTP/2, one request after the other."""

    def __init__(self, wire: TlsClient) -> None:
        self.wire = wire
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.state.initiate_connection()
        self.state.increment_flow_control_window(2**24)
        self._flush()

    def _flush(self) -> None:
        self.wire.send(self.state.data_to_send())

    def _events(self) -> list[h2.events.Event]:
        data = self.wire.receive()
        if not data:
            raise EOFError("the server hung up before it answered")
        events = self.state.receive_data(data)
        self._flush()
        return events

    def start(self, method: str = "GET", path: str = "/", *, end: bool = True) -> int:
        """Open a stream with its headers; return its id."""
        stream = self.state.get_next_available_stream_id()
        headers = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        self.state.send_headers(stream, headers, end_stream=end)
        self._flush()
        return stream

    def ask(self, method: str = "GET", path: str = "/", body: bytes = b"") -> Answer:
        """Send one request and read its answer."""
        stream = self.start(method, path, end=not body)
        left, status, headers, chunks = memoryview(body), 0, {}, []
        while True:
            while left and (room := min(self.state.local_flow_control_window(stream), 16384)) > 0:
                self.state.send_data(stream, bytes(left[:room]), end_stream=len(left) <= room)
                left = left[room:]
            self._flush()
            for event in self._events():
                if isinstance(event, h2.events.ResponseReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    status = int(headers[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    chunks.append(event.data)
                    self.state.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamEnded):
                    self._flush()
                    return Answer(status, headers, b"".join(chunks))
                elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    raise EOFError(f"the server ended the stream: {event}")


def _texts(headers: h11._headers.Headers) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}
