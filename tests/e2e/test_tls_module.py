"""Edge A on a real Envoy: the binding contract (PCH §1.1), what is refused, reload, limits, the ABI check."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.e2e.edge_certificates import CertificateFiles, replace_file, write_certificate
from tests.e2e.edge_client import (
    Answer,
    Http1,
    Http2,
    TlsClient,
    client_context,
    connect_tcp,
    http1_client,
    http2_client,
)
from tests.e2e.edge_envoy import (
    EnvoyProcess,
    bootstrap,
    build_module,
    build_sanitized,
    listener,
    module_socket,
    native_socket,
    start_envoy,
)
from tests.e2e.edge_openssl import LibsslClient

pytestmark = pytest.mark.e2e

SUITES = (b"TLS_AES_128_GCM_SHA256", b"TLS_AES_256_GCM_SHA384", b"TLS_CHACHA20_POLY1305_SHA256")
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMALL_LIMIT = 2
RELOAD_INTERVAL_MS = 100
KEY_UPDATES_ALLOWED = 32


@dataclass(frozen=True, slots=True)
class Edge:
    envoy: EnvoyProcess
    files: CertificateFiles

    def port(self, name: str = "edge") -> int:
        return self.envoy.ports[name]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    files = write_certificate(folder / "tls")
    pair = (files.certificate, files.key)
    listeners = [
        listener("edge", module_socket(*pair, reload_interval_ms=RELOAD_INTERVAL_MS)),
        listener("small", module_socket(*pair, max_connections=SMALL_LIMIT)),
        listener("native", native_socket(*pair)),
        listener("plain", None),
    ]
    envoy = start_envoy(folder, bootstrap(listeners), modules=build_module())
    try:
        yield Edge(envoy, files)
    finally:
        status = envoy.stop()
    assert status == 0, envoy.log[-2000:]


def _plain_answer(port: int) -> str:
    with connect_tcp(port) as plain:
        plain.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return b"".join(iter(lambda: plain.recv(65536), b"")).decode()


def _ask_libssl(client: LibsslClient) -> Answer:
    client.send(GET)
    text = client.receive()
    while not text.endswith(b"ok\n"):
        text += client.receive()
    head, _, body = text.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return Answer(int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:]), body)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_binding_equals_the_clients_own_exporter(edge: Edge, protocol: str, suite: bytes) -> None:
    http: Http1 | Http2
    if protocol == "h1":
        http = Http1(http1_client(edge.port(), suites=suite))
    else:
        http = http2_client(edge.port(), suites=suite)
    with http.wire as wire:
        assert wire.tls.get_cipher_name() == suite.decode()
        for _ in range(3):
            answer = http.ask()
            assert answer.status == 200
            assert answer.binding == wire.exporter()
            assert re.fullmatch("[0-9a-f]{64}", answer.binding)


def test_two_connections_never_share_a_binding(edge: Edge) -> None:
    with http1_client(edge.port()) as first, http1_client(edge.port()) as second:
        one, two = Http1(first), Http1(second)
        seen = [(one.ask().binding, two.ask().binding) for _ in range(3)]
        assert set(seen) == {(first.exporter(), second.exporter())}
        assert first.exporter() != second.exporter()


def test_filter_sets_nothing_where_the_module_does_not_terminate_tls(edge: Edge) -> None:
    before = edge.envoy.metric("requests_without_binding")
    with http1_client(edge.port("native")) as wire:
        answer = Http1(wire).ask()
        assert (answer.status, answer.binding) == (200, None)
    text = _plain_answer(edge.port("plain"))
    assert text.startswith("HTTP/1.1 200")
    assert "x-binding" not in text
    assert edge.envoy.metric("requests_without_binding") == before + 2


def test_tls_1_2_is_refused(edge: Edge) -> None:
    with (
        TlsClient(edge.port(), client_context(version=SSL.TLS1_2_VERSION)) as wire,
        pytest.raises(SSL.Error) as refusal,
    ):
        wire.handshake()
    assert "protocol version" in str(refusal.value)
    with TlsClient(edge.port(), client_context(version=SSL.TLS1_3_VERSION)) as wire:
        wire.handshake()


@pytest.mark.parametrize(
    "opening", [GET, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 64, b"\x16\x03\x01\xff\xff" + b"A" * 100]
)
def test_anything_but_tls_gets_no_http_answer(edge: Edge, opening: bytes) -> None:
    failures = edge.envoy.metric("handshake_failures")
    with connect_tcp(edge.port()) as plain:
        plain.sendall(opening)
        received = b"".join(iter(lambda: plain.recv(65536), b""))
    assert b"HTTP" not in received
    assert edge.envoy.metric("handshake_failures") == failures + 1


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((b"h2", b"http/1.1"), b"h2"),
        ((b"http/1.1", b"h2"), b"h2"),
        ((b"http/1.1",), b"http/1.1"),
        ((b"spdy/3",), b""),
        ((b"spdy/3", b"http/1.0", b"h2c"), b""),
        ((), b""),
    ],
)
def test_alpn_falls_back_to_http_1_1(edge: Edge, offered: tuple[bytes, ...], chosen: bytes) -> None:
    with TlsClient(edge.port(), client_context(alpn=offered)).handshake() as wire:
        assert wire.alpn() == chosen
        http = Http2(wire) if chosen == b"h2" else Http1(wire)
        assert http.ask().binding == wire.exporter()


def test_http_2_is_not_guessed_after_a_foreign_alpn(edge: Edge) -> None:
    with TlsClient(edge.port(), client_context(alpn=(b"spdy/3",))).handshake() as wire:
        wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b"HTTP/1.1 400" in wire.receive()


def test_resumed_connections_have_their_own_binding_and_no_early_data(edge: Edge) -> None:
    with LibsslClient(edge.port()) as first:
        answer = _ask_libssl(first)
        session, binding = first.session(), first.exporter()
        assert answer.binding == binding
        assert not first.resumed
    assert session.max_early_data() == 0
    with LibsslClient(edge.port(), session) as second:
        assert second.resumed
        assert _ask_libssl(second).binding == second.exporter() != binding


@pytest.mark.parametrize("request_answer", [True, False])
def test_binding_survives_key_updates(edge: Edge, request_answer: bool) -> None:
    with LibsslClient(edge.port()) as wire:
        for _ in range(KEY_UPDATES_ALLOWED // 4):
            wire.key_update(request=request_answer)
            assert _ask_libssl(wire).binding == wire.exporter()


def test_key_updates_without_data_between_them_are_bounded(edge: Edge) -> None:
    with LibsslClient(edge.port()) as patient:
        for _ in range(KEY_UPDATES_ALLOWED):
            patient.key_update(request=True)
        assert _ask_libssl(patient).status == 200
    with LibsslClient(edge.port()) as flooder, pytest.raises(ConnectionError):
        for _ in range(KEY_UPDATES_ALLOWED + 1):
            flooder.key_update(request=True)
        _ask_libssl(flooder)


def test_table_is_empty_when_all_connections_are_closed(edge: Edge) -> None:
    edge.envoy.wait_metric("bindings", 0)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(http1_client(edge.port())) for _ in range(8)]
        assert all(Http1(wire).ask().status == 200 for wire in wires)
        assert edge.envoy.metric("bindings") == len(wires)
        wires[0].close()
        edge.envoy.wait_metric("bindings", len(wires) - 1)
    edge.envoy.wait_metric("bindings", 0)
    edge.envoy.wait_metric("connections", 0)


def test_connections_past_the_limit_are_refused_until_one_ends(edge: Edge) -> None:
    refused = edge.envoy.metric("connections_refused")
    with http1_client(edge.port("small")) as first, http1_client(edge.port("small")) as second:
        with connect_tcp(edge.port("small")) as third:
            assert third.recv(1) == b""
        assert edge.envoy.metric("connections_refused") == refused + 1
        assert Http1(first).ask().status == Http1(second).ask().status == 200
    edge.envoy.wait_metric("connections", 0)
    with http1_client(edge.port("small")) as again:
        assert Http1(again).ask().status == 200
    edge.envoy.wait_log("max_connections 2 reached")


def _wait_serial(edge: Edge, serial: int) -> None:
    """Connect until the edge serves the certificate with that serial."""
    deadline = time.monotonic() + 10
    while True:
        with http1_client(edge.port()) as wire:
            if wire.peer_serial() == serial:
                return
        assert time.monotonic() < deadline, "the new certificate never showed"
        time.sleep(RELOAD_INTERVAL_MS / 1000)


def test_changed_certificate_is_served_and_open_connections_stay(edge: Edge) -> None:
    with http1_client(edge.port()) as old:
        held = Http1(old)
        assert held.ask().status == 200
        reloads = edge.envoy.metric("certificate_reloads")
        fresh = write_certificate(edge.files.certificate.parent)
        _wait_serial(edge, fresh.serial)
        assert edge.envoy.metric("certificate_reloads") > reloads
        assert held.ask().binding == old.exporter()
        assert old.peer_serial() != fresh.serial


@pytest.mark.parametrize("damage", ["garbage", "empty", "missing", "other key", "key of another type", "encrypted key"])
def test_bad_new_pair_keeps_the_old_one(edge: Edge, tmp_path: Path, damage: str) -> None:
    good = write_certificate(edge.files.certificate.parent)
    _wait_serial(edge, good.serial)
    key = good.key.read_bytes()
    failures = edge.envoy.metric("certificate_reload_failures")
    if damage == "missing":
        good.key.unlink()
    elif damage == "other key":
        replace_file(good.key, write_certificate(tmp_path).key.read_bytes())
    elif damage == "key of another type":
        replace_file(good.key, _openssl("genpkey", "-algorithm", "ed25519"))
    elif damage == "encrypted key":
        replace_file(good.key, _openssl("pkcs8", "-topk8", "-passout", "pass:secret", stdin=key))
    else:
        replace_file(good.key, b"" if damage == "empty" else b"not a key")
    for _ in range(5):
        _wait_serial(edge, good.serial)
        time.sleep(RELOAD_INTERVAL_MS / 1000)
    assert edge.envoy.metric("certificate_reload_failures") == failures + 1
    assert "keeping the old certificate" in edge.envoy.log
    replace_file(good.key, key)
    later = write_certificate(edge.files.certificate.parent)
    _wait_serial(edge, later.serial)


def _openssl(*arguments: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, check=True).stdout


def test_log_tells_no_secret(edge: Edge) -> None:
    with http1_client(edge.port()) as wire:
        assert Http1(wire).ask().binding == wire.exporter()
        assert wire.exporter() not in edge.envoy.log
    assert "PRIVATE KEY" not in edge.envoy.log
    assert "serving TLS 1.3 with certificate" in edge.envoy.log


@pytest.mark.parametrize("missing", ["certificate", "key"])
def test_envoy_refuses_a_configuration_without_usable_files(tmp_path: Path, missing: str) -> None:
    files = write_certificate(tmp_path / "tls")
    getattr(files, missing).unlink()
    config = bootstrap([listener("edge", module_socket(files.certificate, files.key))])
    with pytest.raises(RuntimeError, match="missing, not a regular file, or too large"):
        start_envoy(tmp_path, config, modules=build_module())


def test_module_refuses_a_program_that_is_not_its_envoy() -> None:
    module = build_module() / "libsignet_tls.so"
    load = "import ctypes, sys; init = ctypes.CDLL(sys.argv[1]).envoy_dynamic_module_on_program_init"
    script = f"{load}; init.restype = ctypes.c_char_p; sys.exit(0 if init() is None else 1)"
    outcome = subprocess.run([sys.executable, "-c", script, str(module)], capture_output=True, text=True)
    assert outcome.returncode == 0
    assert "does not export envoy_dynamic_module_callback_transport_socket_io_read" in outcome.stderr
    assert "refusing to load: built for Envoy 1.40" in outcome.stderr


def test_module_is_hardened_and_exports_only_hooks() -> None:
    module = str(build_module() / "libsignet_tls.so")

    def elf(*flags: str) -> str:
        return subprocess.run(["readelf", "-W", *flags, module], capture_output=True, text=True, check=True).stdout

    assert re.search(r"GNU_STACK .* RW ", elf("-l"))
    assert "GNU_RELRO" in elf("-l")
    assert "NOW" in elf("-d")
    symbols = subprocess.run(["nm", "-D", module], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in symbols.splitlines() if " T " in line}
    assert exported
    assert all(name.startswith("envoy_dynamic_module_on_") for name in exported)
    assert "__stack_chk_fail" in symbols


def test_table_stays_coherent_between_threads() -> None:
    outcome = subprocess.run(build_sanitized("table_race"), capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")
