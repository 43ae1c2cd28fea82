"""The asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Self

from pch.client.async_pool import AsyncPool
from pch.client.errors import ConnectionLost, TimedOut, TooManyRedirects
from pch.client.exchange import Exchange
from pch.client.limits import (
    DEFAULT_TIMEOUT_S,
    MAX_CONNECTIONS_PER_ORIGIN,
    MAX_REDIRECTS,
    MAX_RESPONSE_BODY_BYTES,
)
from pch.client.request import make_request
from pch.client.settings import ClientSettings
from pch.client.wire_http import NotSent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from pch.client.async_connection import AsyncConnection
    from pch.client.exchange import Observer
    from pch.client.request import ContentTypes, HeaderTypes, ParamTypes, Request
    from pch.client.response import Response
    from pch.client.signers import KeyTypes


class AsyncClient:
    """Sign every request for the very connection it is sent on (PCH §3, §9).

    For one event loop, any number of tasks. HTTP/2 connections carry up to 8 requests at once, each with a
    challenge of its own; at most `max_connections_per_origin` are open, and further requests wait their turn.

    `key`: a `Signer`, a private JWK, or the two of a hybrid (a JWK Set, or both in a tuple), which then sign
    every request together. `verify`: True for the system's trust, the path of a PEM file or folder for that
    trust alone, False for none (testing). `binding`: what this client insists on; it never signs for less.
    `timeout_s`: the whole of one request, retries included. `follow_redirects`: sign anew for each hop; PCH
    fields, credentials and other signatures never reach another origin. `observer` sees every answer, also
    those between. `evidence`: a document of PCH §7, sent with every signed request that does not decline it.
    `relax`: `auto` moves evidence and ML-DSA signatures out of the header when the verifier asks, `always` unasked,
    `never` not even then. Every method raises a `ClientError`: `InvalidRequest`, a `NetworkError`, a `PeerFault` or
    `ChallengeUnusable`.
    """

    def __init__(
        self,
        *,
        key: KeyTypes,
        verify: bool | str | Path = True,
        http2: bool = True,
        binding: str = "tls-exporter",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        follow_redirects: bool = False,
        max_connections_per_origin: int = MAX_CONNECTIONS_PER_ORIGIN,
        max_response_bytes: int = MAX_RESPONSE_BODY_BYTES,
        observer: Observer | None = None,
        evidence: Mapping[str, Any] | None = None,
        relax: str = "auto",
        clock_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = ClientSettings(
            key=key,
            verify=verify,
            http2=http2,
            binding=binding,
            timeout_s=timeout_s,
            follow_redirects=follow_redirects,
            max_connections_per_origin=max_connections_per_origin,
            max_response_bytes=max_response_bytes,
            observer=observer,
            clock_s=clock_s,
            monotonic_s=monotonic_s,
            evidence=evidence,
            relax=relax,
        )
        self._pool = AsyncPool(self._settings.tls, max_connections_per_origin)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: HeaderTypes | None = None,
        content: ContentTypes | None = None,
        params: ParamTypes | None = None,
    ) -> Response:
        """Send one request and give its final answer, whatever its status.

        `content`: bytes; text, sent as UTF-8; a seekable binary file, which is read twice and never held whole; or an
        `Upload`, whose digest is known. Without a challenge at hand, a request that has content or
        changes something is preceded by a HEAD on the same target; any other goes out unsigned first.
        """
        request = make_request(method, url, headers=headers, content=content, params=params)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._follow(request)
        except TimeoutError as error:
            raise TimedOut("the request's time is used up") from error

    async def get(self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None) -> Response:
        """Send a GET request; see `request`."""
        return await self.request("GET", url, headers=headers, params=params)

    async def head(self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None) -> Response:
        """Send a HEAD request; see `request`."""
        return await self.request("HEAD", url, headers=headers, params=params)

    async def options(
        self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None
    ) -> Response:
        """Send a OPTIONS request; see `request`."""
        return await self.request("OPTIONS", url, headers=headers, params=params)

    async def post(
        self,
        url: str,
        *,
        content: ContentTypes | None = None,
        headers: HeaderTypes | None = None,
        params: ParamTypes | None = None,
    ) -> Response:
        """Send a POST request; see `request`."""
        return await self.request("POST", url, headers=headers, content=content, params=params)

    async def put(
        self,
        url: str,
        *,
        content: ContentTypes | None = None,
        headers: HeaderTypes | None = None,
        params: ParamTypes | None = None,
    ) -> Response:
        """Send a PUT request; see `request`."""
        return await self.request("PUT", url, headers=headers, content=content, params=params)

    async def patch(
        self,
        url: str,
        *,
        content: ContentTypes | None = None,
        headers: HeaderTypes | None = None,
        params: ParamTypes | None = None,
    ) -> Response:
        """Send a PATCH request; see `request`."""
        return await self.request("PATCH", url, headers=headers, content=content, params=params)

    async def delete(
        self, url: str, *, headers: HeaderTypes | None = None, params: ParamTypes | None = None
    ) -> Response:
        """Send a DELETE request; see `request`."""
        return await self.request("DELETE", url, headers=headers, params=params)

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
