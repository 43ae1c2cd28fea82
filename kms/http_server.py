"""uvicorn's server as one part of ours: sockets handed in, no signals taken, our connections, drained on demand."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from kms.http_connection import SWEEP_INTERVAL_S, connection_class, sweep
from kms.tls_accept import TlsAcceptor

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator

    from kms.http_connection import ConnectionRules

START_TIMEOUT_S: Final = 5.0
_START_POLL_S: Final = 0.005


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, rules: ConnectionRules) -> None:
        super().__init__(config)
        self._rules = rules

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the service."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets handed in."""
        await self.lifespan.startup()
        servers: list[Any] = [await self._listen(each) for each in sockets or []]
        self.servers = servers
        self.started = True

    async def _listen(self, listener: socket.socket) -> Any:
        config, state = self.config, self.server_state

        def connection() -> asyncio.Protocol:
            kind: Any = config.http_protocol_class
            made: asyncio.Protocol = kind(config=config, server_state=state, app_state={})
            return made

        if config.ssl is None:
            return await asyncio.get_running_loop().create_server(connection, sock=listener)
        return TlsAcceptor(listener, connection, lambda: len(state.connections), self._rules, config.ssl)


class HttpServer:
    """One listener with its connections. `tls`: a context, or None for plain HTTP."""

    def __init__(self, app: Any, listener: socket.socket, rules: ConnectionRules, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            app,
            http=connection_class(rules),
            loop="none",
            lifespan="off",
            ws="none",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config, rules)
        self._listener = listener
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Serve; return when connections are accepted."""
        self._tasks = [
            asyncio.create_task(self._server.serve([self._listener]), name="kms-http"),
            asyncio.create_task(self._sweep(), name="kms-http-sweep"),
        ]
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self._server.started:
                if self._tasks[0].done():
                    self._tasks[0].result()
                await asyncio.sleep(_START_POLL_S)

    async def stop(self, grace_s: float) -> None:
        """Close the listener and idle connections, give others `grace_s` seconds to end, then cut them."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        self._tasks[1].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[1]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + 1):
                await self._tasks[0]
        for connection in tuple(self._server.server_state.connections):
            connection.transport.abort()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            sweep(self._server.server_state.connections, loop.time())
