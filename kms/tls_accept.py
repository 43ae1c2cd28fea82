"""Accept TLS connections so that those in a handshake count as connections: the library has no bound on them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from kms.http_connection import ConnectionRules

ACCEPT_PAUSE_S: Final = 0.05
"""How long after a failed accept the next is tried: descriptors may be free again then."""


class TlsAcceptor:
    """Stands where asyncio's server does. One event loop owns it.

    `make`: makes the protocol of a connection; `count`: tells how many are through with their handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        rules: ConnectionRules,
        context: ssl.SSLContext,
    ) -> None:
        """Begin to accept."""
        listener.setblocking(False)  # noqa: FBT003 - its only name
        self._listener, self._make, self._count, self._rules, self._context = listener, make, count, rules, context
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(), name="kms-tls-accept")

    def close(self) -> None:
        """Accept no more, and give up what has not shaken hands."""
        for task in (self._accepting, *self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until nothing of it runs any more."""
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._count() + len(self._handshakes) >= self._rules.config().max_conns:
                # Whoever has not shaken hands cannot be told why.
                self._rules.telemetry.rejected.labels("max_conns").inc()
                connected.close()
                continue
            task = loop.create_task(self._shake_hands(connected), name="kms-tls-handshake")
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connected: socket.socket) -> None:
        timeout_s = self._rules.config().read_timeout_ms / 1000
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, connected, ssl=self._context, ssl_handshake_timeout=timeout_s
            )
        except OSError:  # TLS's own errors and a deadline's among them
            self._rules.telemetry.tls_handshake_failures.inc()
