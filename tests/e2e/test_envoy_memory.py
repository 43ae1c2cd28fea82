"""envoy/envoy.yaml on the real Envoy, its heap limit lowered: strangers who hold memory lose it, and others get in."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.exceptions
import pytest

from tests.e2e.stack_client import TIMEOUT_S, DoubleStack, change, double_stack

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

HEAP_BYTES = 64 << 20
MOST_HEAP_BYTES = HEAP_BYTES * 2
"""Pressure is taken every 0.1 s: what comes in between is over the limit. Unbounded it is 488 MiB."""
FRAME_BYTES = 2048
STREAM_BYTES = 60_000
SHED = "overload.envoy.load_shed_points.http2_server_go_away_and_close_on_dispatch.shed_load_count"
RESETS = "envoy.overload_actions.reset_high_memory_stream.count"
IDLE_ENDS = "http.signet.downstream_rq_idle_timeout"


class Holder:
    """A client that opens requests on one connection and never ends one."""

    def __init__(self, edge: DoubleStack, streams: int) -> None:
        self._wire: ssl.SSLSocket = edge.tls("h2")
        self._wire.settimeout(0.01)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._h2.initiate_connection()
        self._room: dict[int, int] = {}
        for _ in range(streams):
            stream = self._h2.get_next_available_stream_id()
            head = [(":method", "POST"), (":scheme", "https"), (":authority", edge.authority), (":path", "/protected")]
            self._h2.send_headers(stream, head)
            self._room[stream] = STREAM_BYTES
        self._wire.sendall(self._h2.data_to_send())

    def send_more(self) -> int:
        """Send a frame on each stream that takes one; gives the bytes sent."""
        sent = 0
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            self._take_in()
            for stream, left in self._room.items():
                with contextlib.suppress(h2.exceptions.StreamClosedError):
                    size = min(left, FRAME_BYTES, self._h2.local_flow_control_window(stream))
                    if size > 0:
                        self._h2.send_data(stream, bytes(size))
                        self._room[stream] -= size
                        sent += size
            self._wire.sendall(self._h2.data_to_send())
        return sent

    def _take_in(self) -> None:
        with contextlib.suppress(TimeoutError):
            data = self._wire.recv(65536)
            if not data:
                self._room.clear()
            self._h2.receive_data(data)

    def close(self) -> None:
        self._wire.close()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[DoubleStack]:
    with double_stack(tmp_path) as double:
        change(double, _small)
        yield double


def _small(document: dict[str, Any]) -> None:
    (monitor,) = [each for each in document["overload_manager"]["resource_monitors"] if "fixed_heap" in each["name"]]
    monitor["typed_config"]["max_heap_size_bytes"] = HEAP_BYTES


@contextlib.contextmanager
def _holders(edge: DoubleStack, connections: int, streams: int) -> Iterator[list[Holder]]:
    with contextlib.ExitStack() as held:
        holders = []
        for _ in range(connections):
            holders.append(Holder(edge, streams))
            held.callback(holders[-1].close)
        yield holders


def _admin(edge: DoubleStack, target: str) -> dict[str, Any]:
    port = edge.stack.settings.ports.envoy_admin
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{target}", timeout=TIMEOUT_S) as answer:
        document: dict[str, Any] = json.load(answer)
    return document


def _stats(edge: DoubleStack) -> dict[str, int]:
    stats = _admin(edge, "stats?format=json&filter=overload|http.signet")["stats"]
    return {each["name"]: each["value"] for each in stats if "value" in each}


def _allocated_bytes(edge: DoubleStack) -> int:
    return int(_admin(edge, "memory")["allocated"])


def _newcomer_is_served(edge: DoubleStack) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            if edge.get("/protected").status == 200:
                return
        assert time.monotonic() < deadline, "those who hold memory are still keeping others out"
        time.sleep(0.1)


def test_requests_that_never_end_stay_within_the_heap_limit(edge: DoubleStack) -> None:
    with _holders(edge, connections=40, streams=100) as holders:
        most = _allocated_bytes(edge)
        deadline = time.monotonic() + TIMEOUT_S
        while sum([holder.send_more() for holder in holders]) and time.monotonic() < deadline:
            most = max(most, _allocated_bytes(edge))
        assert most < MOST_HEAP_BYTES
        _newcomer_is_served(edge)
        assert _stats(edge)[SHED] > 0


def test_requests_that_only_wait_end_within_seconds_under_pressure(edge: DoubleStack) -> None:
    with _holders(edge, connections=36, streams=100):
        deadline = time.monotonic() + TIMEOUT_S
        while not _stats(edge)[IDLE_ENDS]:
            assert time.monotonic() < deadline, "without pressure they would last a minute"
            time.sleep(0.1)
        _newcomer_is_served(edge)


def test_streams_that_hold_most_are_reset_before_anyone_else_is_turned_away(edge: DoubleStack) -> None:
    with _holders(edge, connections=48, streams=16) as holders:
        deadline = time.monotonic() + TIMEOUT_S
        turns = itertools.cycle(holders)
        while not (stats := _stats(edge)).get(RESETS):
            assert time.monotonic() < deadline
            holder = next(turns)
            for _ in range(STREAM_BYTES // FRAME_BYTES):
                holder.send_more()
        assert stats[SHED] == 0
        _newcomer_is_served(edge)
