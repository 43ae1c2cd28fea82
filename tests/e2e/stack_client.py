"""Raw HTTP/1.1 and HTTP/2 clients over TLS for tests: what they send is exactly what they are given."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tools.stack import Stack
from tools.stack_config import Ports, StackSettings
from tools.stack_envoy import http_connection_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TIMEOUT_S = 10.0
AUTHZ = Path(__file__).with_name("stack_authz.py")

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """`status` 0: no answer, the stream or the connection was reset."""

    status: int
    headers: Headers = field(default_factory=list)
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for field_name, value in self.headers if field_name.lower() == name]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    def problem(self) -> dict[str, Any]:
        assert self.get("content-type") == "application/problem+json"
        document: dict[str, Any] = json.loads(self.body)
        return document


@dataclass
class DoubleStack:
    """A stack whose filter is the stand-in of stack_authz.py."""

    stack: Stack

    @property
    def var(self) -> Path:
        return self.stack.settings.var

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.stack.settings.ports.https)

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.stack.settings.ports.https}"

    def filter_will(self, behaviour: str) -> None:
        (self.var / "authz-behaviour").write_text(behaviour)

    def worker_pids(self) -> list[int]:
        return [int(pid) for pid in (self.var / "authz-pids").read_text().split()]

    def checks(self) -> list[dict[str, Any]]:
        log = self.var / "log" / "checks.jsonl"
        return [json.loads(line) for line in log.read_bytes().rpartition(b"\n")[0].splitlines()] if log.exists() else []

    @contextlib.contextmanager
    def watch(self) -> Iterator[Seen]:
        """Note what reaches the filter and the app during the block."""
        checks, requests = len(self.checks()), len(self.stack.app_requests())
        seen = Seen()
        yield seen
        seen.checks = self.checks()[checks:]
        seen.app = self.stack.app_requests()[requests:]

    def tls(self, *alpn: str) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.stack.files.tls / "ca.pem")
        context.set_alpn_protocols(list(alpn))
        plain = socket.create_connection(self.address, TIMEOUT_S)
        try:
            return context.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise

    def http1(self, raw: bytes, *, method: str = "GET") -> Answer:
        """Send these very bytes and read one answer; informational ones are skipped."""
        with self.tls("http/1.1") as connection:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                connection.sendall(raw)
            return read_http1(connection, method)

    def get(self, target: str, *lines: str, method: str = "GET", body: bytes = b"") -> Answer:
        """Send one HTTP/1.1 request with these extra header lines."""
        head = [f"{method} {target} HTTP/1.1", f"Host: {self.authority}", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        return self.http1("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body, method=method)

    def http2(
        self,
        target: str,
        headers: Sequence[tuple[str, str]] = (),
        *,
        method: str = "GET",
        body: bytes | None = None,
        trailers: Sequence[tuple[str, str]] = (),
        pseudo: Sequence[tuple[str, str]] | None = None,
    ) -> Answer:
        """Send one HTTP/2 request; nothing is normalised or checked on this side."""
        if pseudo is None:
            pseudo = [(":method", method), (":scheme", "https"), (":authority", self.authority), (":path", target)]
        with self.tls("h2") as connection:
            return Http2(connection).request([*pseudo, *headers], body, list(trailers))


@dataclass
class Seen:
    checks: list[dict[str, Any]] = field(default_factory=list)
    app: list[dict[str, Any]] = field(default_factory=list)


def read_http1(connection: ssl.SSLSocket, method: str) -> Answer:
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        return Answer(response.status, response.getheaders(), response.read())
    except (OSError, http.client.HTTPException):
        return Answer(0)
    finally:
        response.close()


class Http2:
    """One connection, one stream at a time."""

    def __init__(self, connection: Any) -> None:
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
        self._connection = connection
        self._h2 = h2.connection.H2Connection(config)
        self._h2.initiate_connection()
        self._status, self._body, self._headers, self._done = 0, bytearray(), Headers(), False

    def request(self, headers: Headers, body: bytes | None, trailers: Headers) -> Answer:
        self._status, self._body, self._headers, self._done = 0, bytearray(), [], False
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers, end_stream=body is None and not trailers)
        with contextlib.suppress(ConnectionError, ssl.SSLError, h2.exceptions.ProtocolError):
            self._send_body(stream, body or b"", last=body is not None and not trailers)
            if trailers:
                self._h2.send_headers(stream, trailers, end_stream=True)
            self._connection.sendall(self._h2.data_to_send())
        while not self._done and self._receive():
            pass
        return Answer(self._status, self._headers, bytes(self._body))

    def _send_body(self, stream: int, body: bytes, *, last: bool) -> None:
        sent = 0
        while sent < len(body) and not self._done:
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(body) - sent)
            if room <= 0:
                if not self._receive():
                    return
                continue
            self._h2.send_data(stream, body[sent : sent + room])
            sent += room
            self._connection.sendall(self._h2.data_to_send())
        if last and not self._done:
            self._h2.end_stream(stream)

    def _receive(self) -> bool:
        """Take in what arrived; False when nothing more will."""
        try:
            data = self._connection.recv(65536)
            events = self._h2.receive_data(data) if data else []
        except (OSError, h2.exceptions.ProtocolError):
            data, events = b"", []
        for event in events:
            if isinstance(event, h2.events.ResponseReceived):
                self._headers = [(str(name), str(value)) for name, value in event.headers]
                self._status = int(dict(self._headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                self._body += event.data
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)):
                self._done = True
        if data:
            with contextlib.suppress(OSError):
                self._connection.sendall(self._h2.data_to_send())
        return bool(data)


@contextlib.contextmanager
def double_stack(var: Path, **settings: Any) -> Iterator[DoubleStack]:
    """Run a stack with the stand-in filter and no admin process."""
    command = ("{python}", str(AUTHZ), "{var}")
    with Stack(StackSettings(var, Ports.free(), filter_command=command, admin_command=(), **settings)) as stack:
        yield DoubleStack(stack)


def change(edge: DoubleStack, how: Callable[[dict[str, Any]], None]) -> None:
    """Restart Envoy with one thing changed in what envoy.yaml says."""
    config = edge.stack.files.envoy
    document = json.loads(config.read_text())
    how(document)
    config.write_text(json.dumps(document))
    edge.stack.restart_part("envoy")


def manager_of(document: dict[str, Any]) -> dict[str, Any]:
    return http_connection_manager(document["static_resources"]["listeners"][0])


def to_app(document: dict[str, Any], **settings: Any) -> None:
    """Change every route that leads to the app."""
    for route in manager_of(document)["route_config"]["virtual_hosts"][0]["routes"]:
        route.get("route", {}).update(settings)
