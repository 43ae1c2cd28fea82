"""envoy/envoy.yaml on the real Envoy: its time and number limits, lowered so that a test need not wait long."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.stack_client import TIMEOUT_S, DoubleStack, change, double_stack, manager_of, to_app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[DoubleStack]:
    with double_stack(tmp_path) as double:
        yield double


def test_app_that_is_late_is_504_with_a_reason(edge: DoubleStack) -> None:
    change(edge, lambda document: to_app(document, timeout="0.3s"))
    answer = edge.get("/protected?delay_ms=3000", method="POST")
    assert answer.status == 504
    assert answer.get("pch-reason") == "internal"
    assert answer.problem() == {
        "type": "urn:signet:reason:internal",
        "title": "No Answer",
        "status": 504,
        "detail": "The app did not answer.",
        "reason": "internal",
    }
    grpc = edge.http2("/protected?delay_ms=3000", [("content-type", "application/grpc")], method="POST", body=b"b")
    assert grpc.get("grpc-status") in {"4", "14"}


def test_app_that_talks_nonsense_is_502_or_503_with_a_reason(edge: DoubleStack) -> None:
    edge.stack.stop_part("app")
    with socket.socket() as nonsense:
        nonsense.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        nonsense.bind(("127.0.0.1", edge.stack.settings.ports.app))
        nonsense.listen()
        threading.Thread(target=_talk_nonsense, args=(nonsense,), daemon=True).start()
        answer = edge.get("/protected", method="POST")
    assert answer.status in {502, 503}
    assert answer.get("pch-reason") == "internal"
    assert answer.problem()["status"] == answer.status


def _talk_nonsense(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection = listener.accept()[0]
        with connection:
            connection.recv(65536)
            connection.sendall(b"nonsense\r\n\r\n")


def test_no_more_connections_than_allowed_are_served(edge: DoubleStack) -> None:
    def cramped(document: dict[str, Any]) -> None:
        monitor = document["overload_manager"]["resource_monitors"][0]
        monitor["typed_config"]["max_active_downstream_connections"] = 2

    change(edge, cramped)
    with contextlib.ExitStack() as held:
        for _ in range(2):
            held.enter_context(edge.tls("http/1.1"))
        with pytest.raises(OSError):  # noqa: PT011  # a reset, or the end of the stream in the handshake
            edge.tls("http/1.1")
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            assert edge.get("/protected").status == 200
            return
        assert time.monotonic() < deadline, "room comes back when connections end"


def test_slow_headers_end_in_408(edge: DoubleStack) -> None:
    change(edge, lambda document: manager_of(document).update(request_headers_timeout="0.5s"))
    began = time.monotonic()
    answer = edge.http1(b"GET /protected HTTP/1.1\r\nHost: a\r\nX-Slow: ")
    assert answer.status == 408
    assert answer.problem()["status"] == 408
    assert time.monotonic() - began < 5


def test_body_that_never_comes_ends_without_the_filter_or_the_app(edge: DoubleStack) -> None:
    change(edge, lambda document: to_app(document, idle_timeout="0.5s"))
    with edge.watch() as seen:
        answer = edge.http1(b"POST /protected HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
    assert answer.status in {408, 504}
    assert not seen.checks
    assert not seen.app


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01"])
def test_handshake_that_is_not_done_in_time_is_dropped(edge: DoubleStack, first: bytes) -> None:
    def hasty(document: dict[str, Any]) -> None:
        document["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket_connect_timeout"] = "0.5s"

    change(edge, hasty)
    began = time.monotonic()
    with socket.create_connection(edge.address, TIMEOUT_S) as connection:
        connection.sendall(first)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert time.monotonic() - began < 5
    assert edge.get("/protected").status == 200
