"""The long runs of edge A (`make test-edge`): load, big bodies, resets, fuzzing, reload, and all of it under valgrind.

Every test runs twice: on the module as shipped, and inside Envoy under valgrind, whose findings in the module or in
OpenSSL called by it fail the run. Each test ends with the binding table empty and the edge still serving.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import h11
import pytest
from OpenSSL import SSL

from tests.e2e.edge_certificates import CertificateFiles, write_certificate
from tests.e2e.edge_client import (
    Http1,
    Http2,
    TlsClient,
    client_context,
    connect_tcp,
    http1_client,
    http2_client,
    reset,
)
from tests.e2e.edge_envoy import (
    CONNECT_TIMEOUT_S,
    EnvoyProcess,
    bootstrap,
    build_module,
    listener,
    module_socket,
    start_envoy,
)
from tests.e2e.edge_openssl import LibsslClient
from tests.e2e.edge_upstream import blob, running_upstream

pytestmark = pytest.mark.edge

CONNECTIONS = 16
REQUESTS = 200
SLOW_READERS = 4
BODY_BYTES = 10 * 1024 * 1024
SMALL_BUFFER_BYTES = 20_000  # neither a whole number of records nor more than two
VALGRIND = ("valgrind", "--soname-synonyms=somalloc=NONE", "--num-callers=30", "--error-limit=no")
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Edge:
    envoy: EnvoyProcess
    files: CertificateFiles
    slow: bool  # under valgrind: fewer repetitions, same paths

    @property
    def port(self) -> int:
        return self.envoy.ports["edge"]

    def times(self, count: int) -> int:
        return max(1, count // 5) if self.slow else count

    def assert_serving_and_empty(self) -> None:
        with http1_client(self.port) as wire:
            assert Http1(wire).ask().binding == wire.exporter()
        self.envoy.wait_metric("bindings", 0, timeout_s=30)
        self.envoy.wait_metric("connections", 0, timeout_s=30)


def valgrind_findings(log: str) -> list[str]:
    """The reports in whose stack the module appears; Envoy's own code has some at start-up."""
    reports = re.split(r"^==\d+== ?\n", log, flags=re.MULTILINE)
    return [report for report in reports if "libsignet_tls" in report and re.search(r"==\s+(at|by) 0x", report)]


@pytest.fixture(scope="module", params=["shipped", "valgrind"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    folder = tmp_path_factory.mktemp("edge")
    files = write_certificate(folder / "tls")
    report = folder / "valgrind.log"
    wrapper = (*VALGRIND, f"--log-file={report}") if request.param == "valgrind" else ()
    with running_upstream() as upstream:
        socket_config = module_socket(files.certificate, files.key, reload_interval_ms=100)
        # Small buffers: reading stops and goes on again many times in a large body.
        small = listener("small", socket_config, upstream_port=upstream, buffer_bytes=SMALL_BUFFER_BYTES)
        config = bootstrap([listener("edge", socket_config, upstream_port=upstream), small], upstream)
        envoy = start_envoy(folder, config, modules=build_module(), wrapper=wrapper)
        try:
            yield Edge(envoy, files, slow=bool(wrapper))
        finally:
            status = envoy.stop()
    assert status == 0, envoy.log[-2000:]
    if wrapper:
        text = report.read_text()
        assert "ERROR SUMMARY" in text
        assert valgrind_findings(text) == []


@pytest.fixture
def edge(running: Edge) -> Iterator[Edge]:
    yield running
    running.assert_serving_and_empty()


def _client(edge: Edge, protocol: str, name: str = "edge") -> Http1 | Http2:
    port = edge.envoy.ports[name]
    return Http1(http1_client(port)) if protocol == "h1" else http2_client(port)


def _in_parallel(work: Callable[[int], None], count: int) -> None:
    with ThreadPoolExecutor(count) as pool:
        for outcome in [pool.submit(work, index) for index in range(count)]:
            outcome.result()


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_every_request_of_every_connection_carries_its_own_binding(edge: Edge, protocol: str) -> None:
    bindings: set[str] = set()
    turn = threading.Barrier(CONNECTIONS)

    def work(_: int) -> None:
        http = _client(edge, protocol)
        with http.wire as wire:
            turn.wait(60)  # all sixteen are open at once
            bindings.add(wire.exporter())
            for _ in range(REQUESTS):
                answer = http.ask()
                assert (answer.status, answer.binding) == (200, wire.exporter())

    _in_parallel(work, CONNECTIONS)
    assert len(bindings) == CONNECTIONS


@pytest.mark.parametrize("name", ["edge", "small"])
@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_large_bodies_arrive_whole_both_ways(edge: Edge, protocol: str, name: str) -> None:
    body = blob(BODY_BYTES)
    http = _client(edge, protocol, name)
    with http.wire as wire:
        assert http.ask("POST", "/upstream/digest", body).body.decode() == hashlib.sha256(body).hexdigest()
        assert http.ask("GET", f"/upstream/blob/{BODY_BYTES}").body == body
        answer = http.ask("POST", "/upstream/echo", body)
        assert answer.body == body
        assert answer.binding == wire.exporter()


@pytest.mark.parametrize("size", [19_999, 20_001, 60_000, 300_000])
def test_a_body_that_arrives_in_one_burst_is_read_to_its_end(edge: Edge, size: int) -> None:
    body = blob(size)
    http = Http1(http1_client(edge.envoy.ports["small"]))
    with http.wire as wire:
        for _ in range(edge.times(20)):
            head = b"POST /upstream/digest HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
            http.state.send(h11.Request(method="POST", target="/", headers=[("host", "l"), ("content-length", "0")]))
            http.state.send(h11.EndOfMessage())
            for start in range(0, size, 16_384):
                wire.tls.sendall(head + body[start : start + 16_384])
                head = b""
            wire.flush()  # nothing follows that could wake the edge again
            assert http.read().body.decode() == hashlib.sha256(body).hexdigest()


def test_slow_readers_get_everything_and_hold_nobody_up(edge: Edge) -> None:
    size = BODY_BYTES  # more than the kernel's socket buffers take, so that the edge has to wait and retry
    expected = hashlib.sha256(blob(size)).hexdigest()

    def read_slowly(_: int) -> None:
        context = client_context(alpn=(b"http/1.1",))
        with TlsClient(edge.port, context, receive_buffer_bytes=4096).handshake() as wire:
            wire.send(b"GET /upstream/blob/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % size)
            received = bytearray()
            while (start := received.find(b"\r\n\r\n") + 4) < 4 or len(received) - start < size:
                received += wire.receive(16_000)
                time.sleep(0.002)
            assert hashlib.sha256(received[start:]).hexdigest() == expected

    with ThreadPoolExecutor(SLOW_READERS) as pool:
        slow = [pool.submit(read_slowly, index) for index in range(SLOW_READERS)]
        with http1_client(edge.port) as wire:
            http = Http1(wire)
            for _ in range(100):
                assert http.ask().status == 200
        for reader in slow:
            reader.result()


def _opened(edge: Edge) -> TlsClient:
    return TlsClient(edge.port, client_context(alpn=(b"http/1.1",)))


def _hello(wire: TlsClient) -> bytes:
    with contextlib.suppress(SSL.WantReadError):
        wire.tls.do_handshake()
    return wire.outgoing()


def _reset_after_connect(_: TlsClient) -> None:
    """Nothing was sent."""


def _reset_in_hello(wire: TlsClient) -> None:
    hello = _hello(wire)
    wire.plain.sendall(hello[: len(hello) // 2])


def _reset_after_hello(wire: TlsClient) -> None:
    wire.plain.sendall(_hello(wire))


def _reset_before_finished(wire: TlsClient) -> None:
    wire.plain.sendall(_hello(wire))
    wire.receive_ciphertext()


def _reset_after_handshake(wire: TlsClient) -> None:
    wire.handshake()


def _reset_in_request_head(wire: TlsClient) -> None:
    wire.handshake().send(GET[:20])


def _reset_in_record(wire: TlsClient) -> None:
    wire.handshake().tls.send(GET)
    wire.plain.sendall(wire.outgoing()[:-5])


def _reset_in_request_body(wire: TlsClient) -> None:
    wire.handshake().send(
        b"POST /upstream/digest HTTP/1.1\r\nHost: l\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 200_000
    )


def _reset_before_answer(wire: TlsClient) -> None:
    wire.handshake().send(b"GET /upstream/blob/1000000 HTTP/1.1\r\nHost: l\r\n\r\n")


def _reset_in_answer(wire: TlsClient) -> None:
    wire.handshake().send(b"GET /upstream/blob/10000000 HTTP/1.1\r\nHost: l\r\n\r\n")
    wire.receive(5000)


def _reset_after_close_notify(wire: TlsClient) -> None:
    wire.handshake().tls.shutdown()
    wire.flush()


PHASES = [value for name, value in sorted(globals().items()) if name.startswith("_reset_")]


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__.removeprefix("_reset_"))
def test_reset_leaves_nothing_behind(edge: Edge, phase: Callable[[TlsClient], None]) -> None:
    for _ in range(edge.times(20)):
        wire = _opened(edge)
        phase(wire)
        reset(wire.plain)


def test_reset_in_http_2_stream_leaves_nothing_behind(edge: Edge) -> None:
    for _ in range(edge.times(20)):
        http = http2_client(edge.port)
        for _ in range(5):
            http.start("GET", "/upstream/blob/10000000")
        http.wire.receive(5000)
        reset(http.wire.plain)


def test_silent_and_stalled_handshakes_are_ended(edge: Edge) -> None:
    silent = [connect_tcp(edge.port) for _ in range(10)]
    stalled = [_opened(edge) for _ in range(10)]
    for wire in stalled:
        wire.plain.sendall(_hello(wire)[:100])
    begin = time.monotonic()
    for plain in [*silent, *(wire.plain for wire in stalled)]:
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(1) == b""
        plain.close()
    assert time.monotonic() - begin < CONNECT_TIMEOUT_S + 20


def _until_hung_up(plain: socket.socket) -> bytes:
    """Read until the edge hangs up or answers nothing more for a moment."""
    received = b""
    plain.settimeout(0.05)
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while data := plain.recv(65536):
            received += data
    return received


def _damaged(data: bytes, chance: random.Random) -> bytes:
    """Change, cut, repeat or insert a few bytes."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out))
        match chance.randrange(5):
            case 0:
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                out[at] = chance.randrange(256)
            case 2:
                del out[at : at + chance.randint(1, 40)]
            case 3:
                out[at:at] = out[at : at + chance.randint(1, 40)]
            case _:
                out[at:at] = chance.randbytes(chance.randint(1, 40))
        if not out:
            return b"\x16"
    return bytes(out)


def test_damaged_client_hellos_do_no_harm(edge: Edge) -> None:
    chance = random.Random(20_260)
    for _ in range(edge.times(400)):
        with contextlib.closing(_opened(edge)) as wire, contextlib.suppress(OSError):
            wire.plain.sendall(_damaged(_hello(wire), chance))
            if chance.random() < 0.3:
                wire.plain.shutdown(socket.SHUT_WR)
            _until_hung_up(wire.plain)


def test_random_records_do_no_harm(edge: Edge) -> None:
    chance = random.Random(20_261)
    for _ in range(edge.times(200)):
        with contextlib.closing(connect_tcp(edge.port)) as plain, contextlib.suppress(OSError):
            for _ in range(chance.randint(1, 4)):
                size = chance.choice((0, 1, 5, 100, 16384, 16640, 16641, 65535))
                kind = chance.choice((0, 20, 21, 22, 23, 24, 255))
                body = chance.randbytes(chance.choice((size, size // 2)))
                plain.sendall(bytes((kind, 3, chance.choice((0, 1, 3, 4)))) + size.to_bytes(2, "big") + body)
            _until_hung_up(plain)


def test_damaged_second_flights_do_no_harm(edge: Edge) -> None:
    chance = random.Random(20_262)
    for _ in range(edge.times(100)):
        with contextlib.closing(_opened(edge)) as wire, contextlib.suppress(OSError, SSL.Error):
            wire.plain.sendall(_hello(wire))
            while True:
                wire.receive_ciphertext()
                with contextlib.suppress(SSL.WantReadError):
                    wire.tls.do_handshake()
                    break
            wire.plain.sendall(_damaged(wire.outgoing(), chance))
            assert b"HTTP" not in _until_hung_up(wire.plain)


def test_a_damaged_record_ends_the_connection_unanswered(edge: Edge) -> None:
    chance = random.Random(20_263)
    for _ in range(edge.times(200)):
        with contextlib.closing(_opened(edge)) as wire:
            wire.handshake()
            wire.tls.send(GET)
            record = bytearray(wire.outgoing())
            record[chance.randrange(5, len(record))] ^= 1 << chance.randrange(8)  # past the header: tag or ciphertext
            wire.plain.sendall(record)
            with pytest.raises((SSL.Error, ConnectionResetError)):
                while wire.receive():
                    pytest.fail("an unauthentic record was answered")


def test_oversized_handshake_is_cut_off(edge: Edge) -> None:
    told = edge.envoy.log.count("handshake too large")
    with contextlib.closing(connect_tcp(edge.port)) as plain:
        hello_of_128_kib = b"\x01\x01\xff\xff\x03\x03" + b"\x00" * (131_071 - 2)
        with contextlib.suppress(OSError):
            for start in range(0, len(hello_of_128_kib) - 16384, 16384):
                plain.sendall(b"\x16\x03\x01\x40\x00" + hello_of_128_kib[start : start + 16384])
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(1) == b""
    assert edge.envoy.log.count("handshake too large") == told + 1


def test_reload_under_load_drops_no_connection(edge: Edge) -> None:
    done = threading.Event()
    serials: set[int] = set()

    def hold(_: int) -> int:
        asked = 0
        with http1_client(edge.port) as wire:
            http = Http1(wire)
            while not done.is_set():
                assert http.ask().binding == wire.exporter()
                asked += 1
        return asked

    def come_and_go(_: int) -> int:
        opened = 0
        while not done.is_set():
            with http1_client(edge.port) as wire:
                serials.add(wire.peer_serial())
                assert Http1(wire).ask().binding == wire.exporter()
            opened += 1
        return opened

    written = set()
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(hold if index < 4 else come_and_go, index) for index in range(8)]
        try:
            for _ in range(6):
                written.add(write_certificate(edge.files.certificate.parent).serial)
                time.sleep(2.5 if edge.slow else 0.6)
        finally:
            done.set()
        assert all(job.result() > 0 for job in work)
    assert len(serials & written) >= len(written) - 1  # a short-lived one may pass unseen


def test_key_updates_in_the_middle_of_traffic(edge: Edge) -> None:
    def work(index: int) -> None:
        with LibsslClient(edge.port) as wire:
            for turn in range(edge.times(100)):
                wire.key_update(request=(index + turn) % 2 == 0)
                wire.send(GET)
                text = b""
                while not text.endswith(b"ok\n"):
                    text += wire.receive()
                assert wire.exporter().encode() in text

    _in_parallel(work, 4)


def test_resumption_storm_never_repeats_a_binding(edge: Edge) -> None:
    bindings: set[str] = set()
    session = None
    resumed = 0
    count = edge.times(100)
    for _ in range(count):
        with LibsslClient(edge.port, session) as wire:
            wire.send(GET)
            text = b""
            while not text.endswith(b"ok\n"):
                text += wire.receive()
            assert wire.exporter().encode() in text
            bindings.add(wire.exporter())
            resumed += wire.resumed
            session = wire.session()
    assert len(bindings) == count
    assert resumed >= count - 2


def test_valgrind_findings_are_recognised() -> None:
    report = (
        "==7== Invalid read of size 8\n==7==    at 0x1: own (in /b/libsignet_tls.so)\n==7==    by 0x2: ??? (in /e)\n"
    )
    foreign = "==7== Invalid read of size 8\n==7==    at 0x1: ??? (in /envoy)\n"
    assert valgrind_findings(f"{foreign}==7== \n") == []
    assert len(valgrind_findings(f"==7== \n{report}==7== \n{foreign}")) == 1
