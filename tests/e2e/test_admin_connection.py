"""Peers of the admin server that say nothing, or take nothing, do not keep their connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from extproc import admin_connection
from extproc.admin_connection import AdminConnection

LIMIT_S = 0.15
LARGE_BYTES = 64 << 20
HEAD = b"GET %b HTTP/1.1\r\nHost: localhost\r\n"


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """Answer /large with more than any buffer holds, /slow after several looks, and anything else at once."""
    if scope["path"] == "/slow":
        await asyncio.sleep(LIMIT_S * 4)
    body = b"x" * (LARGE_BYTES if scope["path"] == "/large" else 2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body"})


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[int, set[Any]]]:
    """A server's port, and the connections that it has."""
    monkeypatch.setattr(admin_connection, "STALL_LIMIT_S", LIMIT_S)
    config = uvicorn.Config(app, http=AdminConnection, log_config=None, lifespan="off")
    config.load()
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: AdminConnection(config, server.server_state, {}), "127.0.0.1", 0)
    yield listener.sockets[0].getsockname()[1], server.server_state.connections
    listener.close()


@pytest.fixture
def port(served: tuple[int, set[Any]]) -> int:
    return served[0]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET",
        HEAD % b"/",
        HEAD % b"/" + b"\r\n",
        HEAD % b"/" + b"\r\n" + HEAD % b"/",
        HEAD % b"/" + b"Content-Length: 9\r\n\r\n",
    ],
    ids=["nothing", "part of a line", "part of a head", "one request", "one and a part", "a head without its content"],
)
async def test_connection_that_stands_still_is_closed(port: int, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    async with asyncio.timeout(LIMIT_S * 20):
        with pytest.raises((ConnectionError, EOFError)):
            while await reader.read(1024):
                pass
            raise EOFError
    writer.close()


async def test_answer_that_nobody_reads_is_given_up(served: tuple[int, set[Any]]) -> None:
    port, connections = served
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(HEAD % b"/large" + b"\r\n")
    async with asyncio.timeout(20):
        while not connections:
            await asyncio.sleep(0.01)
        while connections:
            await asyncio.sleep(0.01)
    received = 0
    async with asyncio.timeout(10):
        with pytest.raises((ConnectionError, EOFError)):
            while data := await reader.read(65536):
                received += len(data)
            raise EOFError
    assert received < LARGE_BYTES
    writer.close()


async def test_answer_that_takes_long_to_work_out_arrives(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD % b"/slow" + b"\r\n")
    async with asyncio.timeout(LIMIT_S * 20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_requests_that_follow_each_other_keep_their_connection(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(6):
        writer.write(HEAD % b"/" + b"\r\n")
        async with asyncio.timeout(LIMIT_S * 20):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(2) == b"xx"
        await asyncio.sleep(LIMIT_S / 2)
    writer.close()
