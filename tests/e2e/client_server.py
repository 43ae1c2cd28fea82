"""A real TLS server for the client's tests: pyOpenSSL, HTTP/1.1 by h11 and HTTP/2 by h2, one thread per connection."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h11
from OpenSSL import SSL

from pch.httpsig.message import RequestMessage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.client_verifier import Reply, Verifier

WAIT_S = 20.0


class TestServer:
    """Listens on loopback; a context manager. `connections` counts handshakes; `batch` holds h2 answers back."""

    __test__ = False

    def __init__(
        self,
        verifier: Verifier,
        certificate: tuple[Path, Path] | None,
        *,
        http2: bool = True,
        max_version: int = SSL.TLS1_3_VERSION,
        host: str = "127.0.0.1",
    ) -> None:
        self.verifier = verifier
        self.http2 = http2
        self.batch = 1
        self.connections = 0
        self._numbers = itertools.count(1)
        self._open: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._context = _context(certificate, http2=http2, max_version=max_version) if certificate else None
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._listener.getsockname()[1]

    def url(self, path: str = "/protected", host: str = "127.0.0.1") -> str:
        return f"{'https' if self._context else 'http'}://{host}:{self.port}{path}"

    def __enter__(self) -> TestServer:
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        # A listener blocked in accept does not wake on close everywhere; shutdown does.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.kill_connections()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()

    def kill_connections(self) -> None:
        """Cut every connection at the TCP level, and wait until that is done."""
        for sock in list(self._open.values()):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        number = next(self._numbers)
        sock.settimeout(None)
        self._open[number] = sock
        try:
            with contextlib.suppress(OSError, SSL.Error):
                connection: SSL.Connection | socket.socket = sock
                binding, alpn = None, b""
                if self._context:
                    connection = SSL.Connection(self._context, sock)
                    connection.set_accept_state()
                    connection.do_handshake()
                    if connection.get_protocol_version_name() == "TLSv1.3":
                        binding = connection.export_keying_material(b"EXPORTER-Channel-Binding", 32)
                    alpn = connection.get_alpn_proto_negotiated()
                self.connections += 1
                kind = _Http2 if alpn == b"h2" else _Http1
                kind(self, number, connection, binding).run()
                if isinstance(connection, SSL.Connection):
                    connection.shutdown()
        finally:
            del self._open[number]
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class _Http1:
    def __init__(
        self, server: TestServer, number: int, connection: SSL.Connection | socket.socket, binding: bytes | None
    ) -> None:
        self.server, self.number, self.connection, self.binding = server, number, connection, binding
        self.state = h11.Connection(h11.SERVER)

    def run(self) -> None:
        while True:
            request, body = self._request()
            if request is None:
                return
            headers = tuple((name.decode(), value) for name, value in request.headers)
            authority = dict(headers).get("host", b"").decode()
            method, target = request.method.decode(), request.target.decode()
            message = RequestMessage(method, "https", authority, target, headers)
            reply = self.server.verifier.answer(self.number, "1.1", self.binding, message, body)
            if reply.drop:
                return
            self._reply(method, reply)
            if self.state.our_state is h11.MUST_CLOSE or reply.close:
                return
            self.state.start_next_cycle()

    def _request(self) -> tuple[h11.Request | None, bytes]:
        request, body = None, b""
        while True:
            event = self.state.next_event()
            if event is h11.NEED_DATA:
                try:
                    data = self.connection.recv(65536)
                except (SSL.Error, OSError):
                    return None, b""
                self.state.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return request, body
            else:
                return None, b""

    def _reply(self, method: str, reply: Reply) -> None:
        headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
        out = self.state.send(h11.Response(status_code=reply.status, headers=headers)) or b""
        if method != "HEAD":
            out += self.state.send(h11.Data(data=reply.body)) or b""
        out += self.state.send(h11.EndOfMessage()) or b""
        self.connection.sendall(out)


class _Http2:
    def __init__(
        self, server: TestServer, number: int, connection: SSL.Connection | socket.socket, binding: bytes | None
    ) -> None:
        self.server, self.number, self.connection, self.binding = server, number, connection, binding
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.headers: dict[int, list[tuple[bytes, bytes]]] = {}
        self.bodies: dict[int, bytearray] = {}
        self.complete: deque[int] = deque()
        self.outgoing: dict[int, bytes] = {}

    def run(self) -> None:
        self.state.initiate_connection()
        while True:
            self.connection.sendall(self.state.data_to_send())
            try:
                data = self.connection.recv(65536)
            except (SSL.Error, OSError):
                return
            if not data:
                return
            for event in self.state.receive_data(data):
                self._take(event)
            if len(self.complete) >= self.server.batch:
                while self.complete:
                    if not self._answer(self.complete.popleft()):
                        return
            self._send_bodies()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.headers[event.stream_id] = list(event.headers)
            self.bodies[event.stream_id] = bytearray()
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
            self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.complete.append(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.outgoing.pop(event.stream_id, None)

    def _answer(self, stream: int) -> bool:
        pseudo = {name: value.decode() for name, value in self.headers[stream] if name.startswith(b":")}
        plain = tuple((name.decode(), value) for name, value in self.headers[stream] if not name.startswith(b":"))
        message = RequestMessage(pseudo[b":method"], "https", pseudo[b":authority"], pseudo[b":path"], plain)
        reply = self.server.verifier.answer(self.number, "2", self.binding, message, bytes(self.bodies[stream]))
        if reply.drop:
            return False
        if reply.goaway_after is not None:
            self.state.close_connection(last_stream_id=reply.goaway_after)
            self.connection.sendall(self.state.data_to_send())
            return False
        if reply.reset is not None:
            self.state.reset_stream(stream, reply.reset)
            return True
        headers = [(name, value) for name, value in reply.headers if name != b"connection"]
        self.state.send_headers(stream, [(b":status", str(reply.status).encode()), *headers])
        self.outgoing[stream] = b"" if message.method == "HEAD" else reply.body
        self._send_bodies()
        if reply.close:
            self.state.close_connection()
            self.connection.sendall(self.state.data_to_send())
            return False
        return True

    def _send_bodies(self) -> None:
        for stream in list(self.outgoing):
            body = self.outgoing[stream]
            while body and (room := min(self.state.local_flow_control_window(stream), 16384)):
                self.state.send_data(stream, body[:room])
                body = body[room:]
            self.outgoing[stream] = body
            if not body:
                self.state.end_stream(stream)
                del self.outgoing[stream]


def _context(certificate: tuple[Path, Path], *, http2: bool, max_version: int) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_max_proto_version(max_version)
    context.use_certificate_chain_file(str(certificate[0]))
    context.use_privatekey_file(str(certificate[1]))
    offered = [b"h2", b"http/1.1"] if http2 else [b"http/1.1"]
    context.set_alpn_select_callback(
        lambda _, theirs: next((each for each in offered if each in theirs), SSL.NO_OVERLAPPING_PROTOCOLS)
    )
    return context
