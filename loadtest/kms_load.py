"""Clients for the key service's bench: prepared requests over kept connections, paced or in a closed loop."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from kms.operation_table import BY_OP
from kms.proto.ron.kms.v1 import kms_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Call:
    """One prepared request. `form`: the same as protobuf."""

    op: str
    raw: bytes
    form: Any


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of one run."""

    p50: float
    p95: float
    p99: float
    per_s: float
    cpu_s: float = 0.0
    count: int = 0

    @property
    def per_cpu_s(self) -> float:
        """Give the operations per CPU-second of the service."""
        return self.count / self.cpu_s if self.cpu_s else math.nan


def prepare(op: str, body: dict[str, Any], token: str) -> Call:
    """Write one request for both interfaces."""
    content = json.dumps(body).encode()
    head = (
        f"POST {BY_OP[op].route} HTTP/1.1\r\nhost: kms\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    form = getattr(kms_pb2, BY_OP[op].request.__name__)(**body)
    return Call(op, head.encode() + content, form)


class HttpLine:
    """One kept connection that carries one request at a time."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")

    async def open(self) -> HttpLine:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))
        return self

    async def send(self, call: Call) -> float:
        """Send and read the answer; give the seconds it took. Anything but 200 ends the bench."""
        began_s = time.perf_counter()
        self._writer.write(call.raw)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        took_s = time.perf_counter() - began_s
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"{call.op}: {head[:40]!r} {body[:300]!r}")
        return took_s

    async def close(self) -> None:
        """Close it."""
        self._writer.close()


class GrpcLine:
    """One channel."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def open(self) -> GrpcLine:
        """Make the channel, which connects with the first call."""
        self._channel = grpc.aio.insecure_channel(self._address)
        self._methods = {
            op: self._channel.unary_unary(
                f"/ron.kms.v1.Kms/{operation.rpc}",
                request_serializer=getattr(kms_pb2, operation.request.__name__).SerializeToString,
            )
            for op, operation in BY_OP.items()
        }
        return self

    async def send(self, call: Call) -> float:
        """Call; give the seconds it took."""
        began_s = time.perf_counter()
        await self._methods[call.op](call.form, metadata=self._metadata, timeout=10)
        return time.perf_counter() - began_s

    async def close(self) -> None:
        """Close it."""
        await self._channel.close()


Line = HttpLine | GrpcLine


def summary(taken_s: Sequence[float], elapsed_s: float, cpu_s: float = 0.0) -> Latencies:
    """Sum up one run."""
    ordered = sorted(taken_s)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] * 1000

    return Latencies(at(0.5), at(0.95), at(0.99), len(ordered) / elapsed_s, cpu_s, len(ordered))


async def alone(line: Line, calls: Sequence[Call], seconds: float) -> Latencies:
    """Send one request after the other: what a caller waits when nothing else is asked of the service."""
    for call in calls[:1] * 20:
        await line.send(call)
    taken_s: list[float] = []
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < seconds:
        taken_s.append(await line.send(calls[len(taken_s) % len(calls)]))
    return summary(taken_s, time.perf_counter() - began_s)


async def paced(line: Line, calls: Sequence[Call], rate_per_s: float, seconds: float) -> Latencies:
    """Send one at a time, at most `rate_per_s`."""
    taken_s: list[float] = []
    began_s = time.perf_counter()
    for index in range(int(rate_per_s * seconds)):
        wait_s = began_s + index / rate_per_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        taken_s.append(await line.send(calls[index % len(calls)]))
    return summary(taken_s, time.perf_counter() - began_s)


async def closed_loop(lines: Sequence[Line], calls: Sequence[Call], seconds: float, pid: int) -> Latencies:
    """Keep every line busy: the most that the service does, and the CPU that it takes."""
    taken_s: list[float] = []
    before_s, began_s = cpu_of(pid), time.perf_counter()

    async def run(line: Line, offset: int) -> None:
        index = offset
        while time.perf_counter() - began_s < seconds:
            taken_s.append(await line.send(calls[index % len(calls)]))
            index += 1

    await asyncio.gather(*(run(line, number * 7) for number, line in enumerate(lines)))
    return summary(taken_s, time.perf_counter() - began_s, cpu_of(pid) - before_s)


async def shared(streams: Sequence[tuple[Line, Sequence[Call], float]], seconds: float) -> list[Latencies]:
    """Run several callers at their own rates, at the same time, one result each."""
    return list(await asyncio.gather(*(paced(line, calls, rate, seconds) for line, calls, rate in streams)))


def cpu_of(pid: int) -> float:
    """Read the CPU seconds that a process has used."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def timed(work: Callable[[], object], repeat: int) -> float:
    """Time one call of `work`, seconds, the median of `repeat`."""
    taken_s = []
    for _ in range(repeat):
        began_s = time.perf_counter()
        work()
        taken_s.append(time.perf_counter() - began_s)
    return sorted(taken_s)[repeat // 2]
