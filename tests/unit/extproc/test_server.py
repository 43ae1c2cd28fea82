"""The worker's gRPC server on a real UNIX socket."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.decision import Answer
from extproc.errors import ServerFault
from extproc.ext_authz import SERVICE, ExtAuthz
from extproc.pipeline import Pipeline
from extproc.request import EdgeRequest
from extproc.server import MESSAGE_OVERHEAD_BYTES, FilterServer
from tests.support.check_calls import CALL_TIMEOUT_S, CHECK, check_of, reason_of, unsigned
from tests.support.filter_parts import FilterParts, KeyPair

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
MAX_BODY_BYTES = 1024


class HeldPipeline:
    """The real pipeline, which goes on when told."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def answer(self, request: EdgeRequest) -> Answer:
        self.entered.set()
        await self.go_on.wait()
        return await self._pipeline.answer(request)


class Bench:
    """Real parts in a folder of their own, and servers made from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = FilterParts(folder, {"alice": KeyPair.new("alice")})
        self.pipeline = HeldPipeline(self.parts.pipeline)
        self.socket = folder / "signet-0.sock"
        self.servers: list[FilterServer] = []

    def server(self, socket: Path | None = None, *, mode: int = 0o600) -> FilterServer:
        service = ExtAuthz(self.pipeline, self.parts.parts.telemetry)  # type: ignore[arg-type]
        server = FilterServer(service, socket or self.socket, max_body_bytes=MAX_BODY_BYTES, socket_mode=mode)
        self.servers.append(server)
        return server

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix:{self.socket}")

    async def reason(self) -> str:
        async with self.channel() as channel:
            raw = await channel.unary_unary(CHECK)(check_of(unsigned()).SerializeToString(), timeout=CALL_TIMEOUT_S)
        return reason_of(CheckResponse.FromString(raw))

    async def health(self, service: str = "") -> int:
        async with self.channel() as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=CALL_TIMEOUT_S)
        return int(answer.status)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="signet-") as name:
        yield Path(name)


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    made = Bench(folder)
    await made.parts.start()
    yield made
    for server in made.servers:  # also when the test failed half-way
        await server.stop(0)
    await made.parts.stop()


async def test_serves_checks_and_health_on_a_private_socket(bench: Bench) -> None:
    server = bench.server()
    await server.start()
    try:
        assert await bench.reason() == "missing_signature"
        assert [await bench.health(), await bench.health(SERVICE)] == [SERVING, SERVING]
        assert stat.S_IMODE(bench.socket.stat().st_mode) == 0o600
        assert [path.name for path in bench.folder.iterdir() if stat.S_ISSOCK(path.stat().st_mode)] == ["signet-0.sock"]
    finally:
        await server.stop(0)


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_socket_has_the_configured_mode_whatever_the_umask(bench: Bench, mode: int) -> None:
    before = os.umask(0)
    try:
        server = bench.server(mode=mode)
        await server.start()
        assert stat.S_IMODE(bench.socket.stat().st_mode) == mode
        assert os.umask(0) == 0, "the process's own umask is as it was"
        await server.stop(0)
    finally:
        os.umask(before)


async def test_health_of_a_component_is_its_own(bench: Bench) -> None:
    server = bench.server()
    await server.start()
    await server.set_serving(serving=False, component="signet.keyring")
    assert await bench.health("signet.keyring") == NOT_SERVING
    assert await bench.health() == SERVING
    await server.set_serving(serving=False)
    assert [await bench.health(), await bench.health(SERVICE)] == [NOT_SERVING, NOT_SERVING]
    await server.stop(0)


async def test_drain_finishes_the_call_under_way_and_takes_no_other(bench: Bench) -> None:
    server = bench.server()
    await server.start()
    bench.pipeline.go_on.clear()
    first = asyncio.create_task(bench.reason())
    await asyncio.wait_for(bench.pipeline.entered.wait(), CALL_TIMEOUT_S)
    stopping = asyncio.create_task(server.stop(CALL_TIMEOUT_S))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        while True:  # until the listener is closed
            await bench.health()
            await asyncio.sleep(0)
    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert not stopping.done()
    bench.pipeline.go_on.set()
    assert await asyncio.wait_for(first, CALL_TIMEOUT_S) == "missing_signature"
    await stopping
    assert not bench.socket.exists()


async def test_drain_gives_up_a_call_that_outlasts_its_grace(bench: Bench) -> None:
    server = bench.server()
    await server.start()
    bench.pipeline.go_on.clear()
    first = asyncio.create_task(bench.reason())
    await asyncio.wait_for(bench.pipeline.entered.wait(), CALL_TIMEOUT_S)
    await asyncio.wait_for(server.stop(0.05), CALL_TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError):
        await first


async def test_leftover_socket_of_a_dead_worker_is_replaced(bench: Bench) -> None:
    dead = bench.server()
    await dead.start()
    left = bench.folder / "left"
    os.link(bench.socket, left)
    await dead.stop(0)
    left.rename(bench.socket)
    server = bench.server()
    await server.start()
    assert await bench.reason() == "missing_signature"
    await server.stop(0)


async def test_worker_that_drains_leaves_the_socket_of_its_successor(bench: Bench) -> None:
    old, new = bench.server(), bench.server()
    await old.start()
    await new.start()
    await old.stop(0)
    assert await bench.reason() == "missing_signature"
    await new.stop(0)
    assert not bench.socket.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "symlink"])
async def test_what_is_no_socket_is_not_replaced(bench: Bench, kind: str) -> None:
    if kind == "file":
        bench.socket.write_text("kept")
    elif kind == "folder":
        bench.socket.mkdir()
    else:
        bench.socket.symlink_to(bench.folder / "elsewhere")
    server = bench.server()
    with pytest.raises(ServerFault, match="is no socket"):
        await server.start()
    assert os.path.lexists(bench.socket)
    await server.stop(0)
    assert os.path.lexists(bench.socket)


async def test_folder_that_is_not_there_is_named_by_its_setting(bench: Bench) -> None:
    server = bench.server(bench.folder / "absent" / "signet-0.sock")
    with pytest.raises(ServerFault, match=r"filter\.socket_dir"):
        await server.start()
    await server.stop(0)


async def test_path_longer_than_an_address_is_refused_before_anything_starts(bench: Bench) -> None:
    with pytest.raises(ServerFault, match=r"filter\.socket_dir.*107"):
        bench.server(bench.folder / ("d" * 107) / "signet-0.sock")


async def test_message_over_the_limit_is_refused_by_the_server(bench: Bench) -> None:
    server = bench.server()
    await server.start()
    check = check_of(unsigned())
    async with bench.channel() as channel:
        call = channel.unary_unary(CHECK)
        check.attributes.request.http.raw_body = bytes(MAX_BODY_BYTES)
        await call(check.SerializeToString(), timeout=CALL_TIMEOUT_S)
        check.attributes.request.http.raw_body = bytes(MAX_BODY_BYTES + MESSAGE_OVERHEAD_BYTES)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(check.SerializeToString(), timeout=CALL_TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop(0)


async def test_method_that_is_not_served_is_unimplemented(bench: Bench) -> None:
    server = bench.server()
    await server.start()
    async with bench.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{SERVICE}/Allow")(b"", timeout=CALL_TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(0)
