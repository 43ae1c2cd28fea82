"""A real Redis server for the tests, on a UNIX socket, ended by its process id."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class RedisServer:
    """One redis-server process; `url` stays the same over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        binary = shutil.which("redis-server")
        # Not a skip: without a real server the contract is not tested.
        assert binary is not None, "redis-server is not installed (tools/parts.sh installs it)"
        self.process = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", self.socket, "--dir", self.folder, "--save", "", *options],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.socket))
                    return
            except OSError:
                assert self.process.poll() is None, "redis-server ended at once"
                assert time.monotonic() < deadline, "redis-server does not listen"
                time.sleep(0.01)

    def stop(self) -> None:
        if self.process is not None:
            # A stopped process takes SIGKILL too.
            self.process.kill()
            self.process.wait(10)
            self.process = None
        self.socket.unlink(missing_ok=True)

    def hang(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))


@pytest.fixture(scope="session")
def _redis_session() -> Iterator[RedisServer]:
    # Not tmp_path: a UNIX socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def redis_server(_redis_session: RedisServer) -> RedisServer:
    """A shared server, empty at the start of each test."""
    with _redis_session.client() as client:
        client.flushall()
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "0")
    return _redis_session


@pytest.fixture
def own_redis_server() -> Iterator[Callable[..., RedisServer]]:
    """Start servers that the test may stop, hang and restart."""
    servers: list[RedisServer] = []
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:

        def start(*options: str) -> RedisServer:
            path = Path(folder) / str(len(servers))
            path.mkdir()
            server = RedisServer(path)
            servers.append(server)
            server.start(*options)
            return server

        try:
            yield start
        finally:
            for server in servers:
                server.stop()
