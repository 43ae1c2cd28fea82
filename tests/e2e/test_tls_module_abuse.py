"""Edge A under abuse (`make test-edge`): resets in every phase, stalled handshakes, damaged handshakes and records.

Every test runs twice, as shipped and under valgrind, and ends with the binding table empty and the edge still serving.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from OpenSSL import SSL

from tests.e2e.edge_client import TlsClient, client_context, connect_tcp, http2_client, reset
from tests.e2e.edge_envoy import CONNECT_TIMEOUT_S
from tests.e2e.edge_stage import GET, Edge, open_edge, valgrind_findings

pytestmark = pytest.mark.edge


@pytest.fixture(scope="module", params=["shipped", "valgrind"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with open_edge(tmp_path_factory.mktemp("edge"), valgrind=request.param == "valgrind") as running:
        yield running


@pytest.fixture
def edge(running: Edge) -> Iterator[Edge]:
    yield running
    running.assert_serving_and_empty()


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


def test_valgrind_findings_are_recognised() -> None:
    report = (
        "==7== Invalid read of size 8\n==7==    at 0x1: own (in /b/libsignet_tls.so)\n==7==    by 0x2: ??? (in /e)\n"
    )
    foreign = "==7== Invalid read of size 8\n==7==    at 0x1: ??? (in /envoy)\n"
    assert valgrind_findings(f"{foreign}==7== \n") == []
    assert len(valgrind_findings(f"==7== \n{report}==7== \n{foreign}")) == 1
