"""Edge B: what HAProxy and Envoy hand the verifier is the client's own exporter, and no one else can say it."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import stat
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from OpenSSL import SSL

from pch.client import Client
from tests.e2e.stack_client import DoubleStack, Http2, double_stack
from tools.stack import Stack
from tools.stack_config import Ports, StackSettings
from tools.stack_envoy import HAPROXY_CFG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

LABEL = b"EXPORTER-Channel-Binding"
CONNECTIONS, REQUESTS = 16, 200


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleStack]:
    assert shutil.which("haproxy"), "edge B needs HAProxy: tools/parts.sh haproxy"
    with double_stack(tmp_path_factory.mktemp("b"), edge="b") as double:
        yield double


class ExportingClient:
    """A TLS 1.3 connection that knows its own exporter (RFC 9266)."""

    def __init__(self, double: DoubleStack, alpn: bytes, suites: bytes | None = None) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.load_verify_locations(str(double.stack.files.tls / "ca.pem"))
        context.set_verify(SSL.VERIFY_PEER)
        context.set_alpn_protos([alpn])
        if suites is not None:
            context.set_tls13_ciphersuites(suites)
        self._plain = socket.create_connection(double.address, 10)
        self._plain.setblocking(True)
        self.tls = SSL.Connection(context, self._plain)
        self.tls.set_tlsext_host_name(b"localhost")
        self.tls.set_connect_state()
        self.tls.do_handshake()
        self.exporter = self.tls.export_keying_material(LABEL, 32).hex()

    def __enter__(self) -> ExportingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._plain.close()

    def get_http1(self, path: str) -> bytes:
        self.tls.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.tls.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        (length,) = (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        while len(body) < length:
            body += self.tls.recv(65536)
        return head


def binding_of(check: dict[str, Any]) -> str | None:
    value = check["binding"].get("signet.tls", {}).get("tls_exporter")
    assert value is None or isinstance(value, str)
    return value


@pytest.mark.parametrize(
    "suite", [b"TLS_AES_128_GCM_SHA256", b"TLS_AES_256_GCM_SHA384", b"TLS_CHACHA20_POLY1305_SHA256"]
)
def test_binding_is_the_clients_exporter_under_every_cipher_suite(edge: DoubleStack, suite: bytes) -> None:
    exporters = set()
    for _ in range(10):
        with edge.watch() as seen, ExportingClient(edge, b"http/1.1", suite) as client:
            assert client.tls.get_cipher_name() == suite.decode()
            assert client.get_http1("/protected").startswith(b"HTTP/1.1 200")
        assert [binding_of(check) for check in seen.checks] == [client.exporter]
        exporters.add(client.exporter)
    assert len(exporters) == 10, "every connection has its own"


def _bindings_agree(edge: DoubleStack, alpn: bytes, connections: int, requests: int) -> None:
    def one(number: int) -> tuple[str, list[str]]:
        paths = [f"/protected/{alpn.decode().replace('/', '-')}-{number}-{each}" for each in range(requests)]
        with ExportingClient(edge, alpn) as client:
            http2 = Http2(client.tls) if alpn == b"h2" else None
            for path in paths:
                if http2 is None:
                    assert client.get_http1(path).startswith(b"HTTP/1.1 200")
                else:
                    pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", path)]
                    assert http2.request(pseudo, None, []).status == 200
            return client.exporter, paths

    with edge.watch() as seen, ThreadPoolExecutor(connections) as pool:
        expected = {path: exporter for exporter, paths in pool.map(one, range(connections)) for path in paths}
    assert {check["path"]: binding_of(check) for check in seen.checks} == expected
    assert len(expected) == connections * requests


@pytest.mark.parametrize("alpn", [b"http/1.1", b"h2"])
def test_every_request_carries_the_binding_of_its_own_connection(edge: DoubleStack, alpn: bytes) -> None:
    _bindings_agree(edge, alpn, connections=8, requests=5)


@pytest.mark.edge
@pytest.mark.parametrize("alpn", [b"http/1.1", b"h2"])
def test_every_request_carries_the_binding_of_its_own_connection_at_length(edge: DoubleStack, alpn: bytes) -> None:
    _bindings_agree(edge, alpn, CONNECTIONS, REQUESTS)


def test_client_cannot_say_the_binding(edge: DoubleStack) -> None:
    forged = "ab" * 32
    with edge.watch() as seen:
        edge.get("/a", f"tls_exporter: {forged}".replace("_", "-"), f"X-Signet-Tls: {forged}")
    assert [binding_of(check) != forged for check in seen.checks] == [True]


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", b"\r\n"]
)
def test_pipe_serves_no_one_without_a_version_2_header(edge: DoubleStack, first: bytes) -> None:
    with edge.watch() as seen, socket.socket(socket.AF_UNIX) as pipe:
        pipe.settimeout(5)
        pipe.connect(str(edge.var / "run" / "edge-b.sock"))
        pipe.sendall(first + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert closed_unanswered(pipe)
    assert not seen.checks
    assert not seen.app


def closed_unanswered(pipe: socket.socket) -> bool:
    try:
        return pipe.recv(1) == b""
    except ConnectionError:
        return True


def test_pipe_is_its_owners_alone(edge: DoubleStack) -> None:
    pipe = edge.var / "run" / "edge-b.sock"
    assert stat.S_IMODE(pipe.stat().st_mode) == 0o600
    assert stat.S_IMODE(pipe.parent.stat().st_mode) == 0o700


def test_older_tls_is_refused(edge: DoubleStack) -> None:
    context = ssl.create_default_context(cafile=edge.stack.files.tls / "ca.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(edge.address, 10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_connection_without_tls_1_3_would_have_an_empty_binding(edge: DoubleStack, tmp_path: Path) -> None:
    """With `ssl-min-ver` mistakenly lowered the verifier sees no 64 digits, and says binding_missing."""
    weak = tmp_path / "weak.cfg"
    weak.write_text(HAPROXY_CFG.read_text().replace("ssl-min-ver TLSv1.3", "ssl-min-ver TLSv1.2"))
    port = Ports.free().https
    environ = {
        "SIGNET_EDGE_BIND": f"127.0.0.1:{port}",
        "SIGNET_EDGE_PEM": str(edge.stack.files.tls / "server-with-key.pem"),
        "SIGNET_EDGE_PIPE": str(edge.var / "run" / "edge-b.sock"),
    }
    haproxy = shutil.which("haproxy")
    assert haproxy is not None
    context = ssl.create_default_context(cafile=edge.stack.files.tls / "ca.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with subprocess.Popen([haproxy, "-db", "-f", str(weak)], env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            plain = _connected(port)
            with edge.watch() as seen, context.wrap_socket(plain, server_hostname="localhost") as tls:
                tls.sendall(b"GET /protected HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                assert tls.recv(12) == b"HTTP/1.1 200"
        finally:
            process.terminate()
    assert [binding_of(check) or "" for check in seen.checks] == [""]


def _connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 5)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_signed_request_passes_and_unsigned_one_does_not(tmp_path: Path) -> None:
    """The whole loop over edge B, with the real filter."""
    with Stack(StackSettings(tmp_path, Ports.free(), edge="b")) as stack:
        state = stack.state
        url = state["https"] + "/protected/edge-b"
        trusted = ssl.create_default_context(cafile=state["ca"])
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, context=trusted, timeout=10)
        with refused.value as answer:
            assert answer.status == 401
            assert answer.headers["PCH-Reason"] == "missing_signature"
        assert not stack.app_requests()
        key = json.loads(stack.files.demo_key.read_text())
        with Client(key=key, verify=state["ca"]) as client:
            assert client.get(url).status == 200
            assert client.post(url, content=b"body").status == 200
        assert [dict(each["headers"])["x-signet-subject"] for each in stack.app_requests()] == ["demo"] * 2
