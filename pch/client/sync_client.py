"""The blocking client."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from pch.client.errors import ConnectionLost, TooManyRedirects
from pch.client.exchange import Exchange
from pch.client.limits import MAX_REDIRECTS
from pch.client.request import make_request
from pch.client.response import Response
from pch.client.signing_client import SigningClient
from pch.client.sync_pool import SyncPool
from pch.client.wire_http import NotSent

if TYPE_CHECKING:
    from types import TracebackType

    from pch.client.request import ContentTypes, HeaderTypes, ParamTypes, Request
    from pch.client.sync_connection import SyncConnection


class Client(SigningClient[Response]):
    """Sign every request for the very connection it is sent on (PCH §3, §9).

    Thread-safe: each request leases a connection for itself, so threads that share a client use several
    connections, at most `max_connections_per_origin`; the connection's challenges go with it. For many
    requests on one HTTP/2 connection use `AsyncClient`. Its parameters are those of `SigningClient`.
    """

    def _make_pool(self) -> None:
        self._pool = SyncPool(self._settings.tls, self._settings.max_connections_per_origin)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeaderTypes | None = None,
        content: ContentTypes | None = None,
        params: ParamTypes | None = None,
    ) -> Response:
        """Send one request and give its final answer; see `SigningClient.request`."""
        deadline_s = time.monotonic() + self._settings.timeout_s
        request = make_request(method, url, headers=headers, content=content, params=params)
        for _ in range(MAX_REDIRECTS + 1):
            self._settings.check_sendable(request)
            response = self._exchange(request, deadline_s)
            following = self._settings.redirect(request, response)
            if following is None:
                return response
            request = following
        raise TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")

    def close(self) -> None:
        """Close every connection; one in use when its request ends."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, request: Request, deadline_s: float) -> Response:
        exchange = Exchange(request, self._settings.exchange)
        while True:
            connection = self._pool.acquire(request.url.origin, deadline_s)
            try:
                response = self._on_one_connection(exchange, connection, deadline_s)
            finally:
                self._pool.release(connection)
            if response is not None:
                return response

    def _on_one_connection(self, exchange: Exchange, connection: SyncConnection, deadline_s: float) -> Response | None:
        """Go on until the answer is final, or, with None, until another connection is needed."""
        while True:
            reused = connection.reused
            wire = exchange.next_request(connection.channel)
            try:
                answer = connection.send(wire, deadline_s=deadline_s, max_body_bytes=self._settings.max_response_bytes)
            except ConnectionLost as error:
                exchange.connection_gone(error, unsent=isinstance(error, NotSent), reused=reused)
                return None
            response = exchange.answered(connection.channel, answer)
            if response is not None or answer.connection_ended:
                return response
