"""TLS connections with their channel binding, on which tests send exactly the bytes they choose."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from pch.client.tls_session import TlsContext

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.e2e.attack_request import Request

TIMEOUT_S = 10.0
READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: no answer, the stream or the connection was reset."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for field_name, value in self.headers if field_name.lower() == name]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    @property
    def reason(self) -> str | None:
        return self.get("pch-reason")

    @property
    def receipt_id(self) -> str | None:
        value = self.get("pch-receipt")
        return None if value is None else value.strip('"')

    @property
    def challenges(self) -> list[str]:
        value = self.get("pch-challenge")
        return [] if value is None else [each.strip().strip('"') for each in value.split(",")]

    def json(self) -> Any:
        return json.loads(self.body)


class TlsWire:
    """One TLS 1.3 connection. `binding`: its RFC 9266 exporter, 32 bytes."""

    def __init__(self, address: tuple[str, int], ca: Path, *, http2: bool) -> None:
        self._socket = socket.create_connection(address, TIMEOUT_S)
        self._session = TlsContext(verify=ca, bound=True, http2=http2).session(address[0])
        try:
            while not self._session.handshake():
                self._socket.sendall(self._session.outgoing())
                self._session.receive(self._socket.recv(READ_BYTES))
            self._socket.sendall(self._session.outgoing())
        except BaseException:
            self._socket.close()
            raise
        assert self._session.is_http2 == http2
        assert self._session.binding is not None
        self.binding: bytes = self._session.binding

    def send(self, data: bytes) -> None:
        """Send `data`; a peer that closed already is for `receive` to tell."""
        with contextlib.suppress(ConnectionError):
            self._session.write(data)
            self._socket.sendall(self._session.outgoing())

    def receive(self) -> bytes:
        """Give what comes next; empty at the end, however it came about."""
        try:
            while (data := self._session.read(READ_BYTES)) is None:
                self._session.receive(self._socket.recv(READ_BYTES))
        except ConnectionError:
            return b""
        return data

    def close(self) -> None:
        self._socket.close()


class _Stream(io.RawIOBase):
    """What http.client reads from; one answer's end does not close the connection."""

    def __init__(self, wire: TlsWire) -> None:
        self._wire = wire
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest or self._wire.receive()
        taken = min(len(buffer), len(data))
        buffer[:taken] = data[:taken]
        self._rest = data[taken:]
        return taken


class _Reader(io.BufferedReader):
    def close(self) -> None:
        """Stay open for the next answer."""


class Http1Session:
    """One HTTP/1.1 connection."""

    protocol = "http1"

    def __init__(self, address: tuple[str, int], ca: Path) -> None:
        self.wire = TlsWire(address, ca, http2=False)
        self._reader = _Reader(_Stream(self.wire))

    @property
    def binding(self) -> bytes:
        return self.wire.binding

    def send(self, request: Request) -> Answer:
        return self.raw(request.http1(), method=request.method)

    def raw(self, data: bytes, *, method: str = "GET") -> Answer:
        """Send these very bytes and read one answer; informational ones are skipped."""
        self.wire.send(data)
        return self.read(method)

    def read(self, method: str = "GET") -> Answer:
        """Read the next answer."""
        response = http.client.HTTPResponse(self, method=method)  # type: ignore[arg-type]
        try:
            response.begin()
            return Answer(response.status, tuple(response.getheaders()), response.read())
        except (TimeoutError, http.client.HTTPException, ConnectionError):
            return Answer(0)

    def makefile(self, _mode: str) -> _Reader:
        return self._reader

    def close(self) -> None:
        self.wire.close()


@dataclass(slots=True)
class _H2Stream:
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytearray = field(default_factory=bytearray)
    done: bool = False

    def answer(self) -> Answer:
        return Answer(self.status, self.headers, bytes(self.body)) if self.done or self.status else Answer(0)


class Http2Session:
    """One HTTP/2 connection; nothing is normalised or checked on this side."""

    protocol = "http2"

    def __init__(self, address: tuple[str, int], ca: Path) -> None:
        self.wire = TlsWire(address, ca, http2=True)
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._streams: dict[int, _H2Stream] = {}
        self._over = False

    @property
    def binding(self) -> bytes:
        return self.wire.binding

    def send(self, request: Request) -> Answer:
        return self.send_all([request])[0]

    def send_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Send every request in one write, then read all the answers: they race."""
        opened = [self._open(*request.http2()) for request in requests]
        return self._finish(opened)

    def raw(
        self,
        headers: Sequence[tuple[str, bytes]],
        body: bytes | None = None,
        trailers: Sequence[tuple[str, bytes]] = (),
    ) -> Answer:
        """Send one request with these pseudo-header and header fields."""
        return self._finish([self._open(list(headers), body, list(trailers))])[0]

    def break_off(self, request: Request, sent: int) -> None:
        """Send the head and `sent` bytes of the content of `request`, then reset the stream."""
        fields, body, _ = request.http2()
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, [(name.encode(), value) for name, value in fields])
        if sent:
            self._h2.send_data(stream, (body or b"")[:sent])
        self._h2.reset_stream(stream)
        self.wire.send(self._h2.data_to_send())

    def _open(self, headers: list[tuple[str, bytes]], body: bytes | None, trailers: list[tuple[str, bytes]]) -> int:
        stream = self._h2.get_next_available_stream_id()
        self._streams[stream] = _H2Stream()
        encoded = [(name.encode("latin-1"), value) for name, value in headers]
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.send_headers(stream, encoded, end_stream=body is None and not trailers)
            self._send_body(stream, body or b"", last=body is not None and not trailers)
            if trailers:
                ends = [(name.encode("latin-1"), value) for name, value in trailers]
                self._h2.send_headers(stream, ends, end_stream=True)
        return stream

    def _send_body(self, stream: int, body: bytes, *, last: bool) -> None:
        waiting = deque(body[start : start + 16384] for start in range(0, len(body), 16384))
        while waiting and not self._over and not self._streams[stream].done:
            if self._h2.local_flow_control_window(stream) < len(waiting[0]):
                self._receive()
                continue
            self._h2.send_data(stream, waiting.popleft())
            self.wire.send(self._h2.data_to_send())
        if last and not self._streams[stream].done:
            self._h2.end_stream(stream)

    def _finish(self, opened: list[int]) -> list[Answer]:
        self.wire.send(self._h2.data_to_send())
        while not self._over and not all(self._streams[stream].done for stream in opened):
            self._receive()
        return [self._streams.pop(stream).answer() for stream in opened]

    def _receive(self) -> None:
        try:
            data = self.wire.receive()
            events = self._h2.receive_data(data) if data else []
        except (TimeoutError, h2.exceptions.ProtocolError):
            data, events = b"", []
        self._over = not data
        for event in events:
            self._take(event)
        self.wire.send(self._h2.data_to_send())

    def _take(self, event: h2.events.Event) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.ConnectionTerminated):
            self._over = True
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            stream.headers = tuple((str(name), str(value)) for name, value in event.headers)
            stream.status = int(dict(stream.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            stream.done = True

    def close(self) -> None:
        self.wire.close()


Session = Http1Session | Http2Session
SESSIONS: dict[str, type[Http1Session] | type[Http2Session]] = {"http1": Http1Session, "http2": Http2Session}
