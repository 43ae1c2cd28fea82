"""The long runs of edge A (`make test-edge`): load, large bodies, slow readers, reload, KeyUpdate, resumption.

Every test runs twice: on the module as shipped, and inside Envoy under valgrind, whose findings in the module or in
OpenSSL called by it fail the run. Each test ends with the binding table empty and the edge still serving.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import h11
import pytest

from tests.e2e.edge_certificates import write_certificate
from tests.e2e.edge_client import Http1, Http2, TlsClient, client_context, http1_client, http2_client
from tests.e2e.edge_openssl import LibsslClient
from tests.e2e.edge_stage import GET, Edge, open_edge
from tests.e2e.edge_upstream import blob

pytestmark = pytest.mark.edge

CONNECTIONS = 16
REQUESTS = 200
SLOW_READERS = 4
BODY_BYTES = 10 * 1024 * 1024


@pytest.fixture(scope="module", params=["shipped", "valgrind"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with open_edge(tmp_path_factory.mktemp("edge"), valgrind=request.param == "valgrind") as running:
        yield running


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
