"""The asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Self

from pch.client.async_pool import AsyncPool
from pch.client.errors import ConnectionLost, TimedOut, TooManyRedirects
from pch.client.exchange import Exchange
from pch.client.limits import MAX_REDIRECTS
from pch.client.request import is_file, make_request
from pch.client.response import Response
from pch.client.signing_client import SigningClient
from pch.client.wire_http import NotSent

if TYPE_CHECKING:
    from types import TracebackType

    from pch.client.async_connection import AsyncConnection
    from pch.client.request import ContentTypes, HeaderTypes, ParamTypes, Request


class AsyncClient(SigningClient[Coroutine[Any, Any, Response]]):
    """Sign every request for the very connection it is sent on (PCH §3, §9).

    For one event loop, any number of tasks. HTTP/2 connections carry up to 8 requests at once, each with a
    challenge of its own; at most `max_connections_per_origin` are open, and further requests wait their turn.
    Its parameters are those of `SigningClient`.
    """

    def _make_pool(self) -> None:
        self._pool = AsyncPool(self._settings.tls, self._settings.max_connections_per_origin)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeaderTypes | None = None,
        content: ContentTypes | None = None,
        params: ParamTypes | None = None,
    ) -> Response:
        """Send one request and give its final answer; see `SigningClient.request`."""
        if is_file(content):
            # All of it is read for its digest: other requests go on meanwhile.
            request = await asyncio.to_thread(
                make_request, method, url, headers=headers, content=content, params=params
            )
        else:
            request = make_request(method, url, headers=headers, content=content, params=params)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._follow(request)
        except TimeoutError as error:
            raise TimedOut("the request's time is used up") from error

    async def aclose(self) -> None:
        """Close every connection; one in use when its request ends."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _follow(self, request: Request) -> Response:
        for _ in range(MAX_REDIRECTS + 1):
            self._settings.check_sendable(request)
            response = await self._exchange(request)
            following = self._settings.redirect(request, response)
            if following is None:
                return response
            request = following
        raise TooManyRedirects(f"more than {MAX_REDIRECTS} redirects")

    async def _exchange(self, request: Request) -> Response:
        exchange = Exchange(request, self._settings.exchange)
        while True:
            connection = await self._pool.acquire(request.url.origin)
            try:
                response = await self._on_one_connection(exchange, connection)
            finally:
                self._pool.release(connection)
            if response is not None:
                return response

    async def _on_one_connection(self, exchange: Exchange, connection: AsyncConnection) -> Response | None:
        """Go on until the answer is final, or, with None, until another connection is needed."""
        async with contextlib.AsyncExitStack() as held:
            has_place = False
            while True:
                reused = connection.reused
                wire = exchange.next_request(connection.channel)
                if wire.is_ahead and not has_place:
                    # Until the request that the envelope is for is answered.
                    await held.enter_async_context(connection.envelope_places)
                    has_place = True
                try:
                    answer = await connection.send(wire, max_body_bytes=self._settings.max_response_bytes)
                except ConnectionLost as error:
                    exchange.connection_gone(error, unsent=isinstance(error, NotSent), reused=reused)
                    return None
                response = exchange.answered(connection.channel, answer)
                if response is not None or answer.connection_ended:
                    return response
