"""The connections of an asyncio client: shared by streams on HTTP/2, a bounded number per origin."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pch.client.async_connection import AsyncConnection
from pch.client.channel import OriginClock
from pch.client.errors import InvalidRequest, PoolExhausted
from pch.client.limits import MAX_ORIGINS, MAX_WAITING_REQUESTS

if TYPE_CHECKING:
    from pch.client.tls_session import TlsContext
    from pch.client.url import Origin


@dataclass(slots=True)
class _Origin:
    clock: OriginClock = field(default_factory=OriginClock)
    connections: list[AsyncConnection] = field(default_factory=list)
    connecting: int = 0
    waiters: deque[asyncio.Future[None]] = field(default_factory=deque)

    @property
    def unused(self) -> bool:
        return not (self.connecting or self.waiters or any(each.in_flight for each in self.connections))

    def wake(self, count: int) -> None:
        """Let `count` waiting requests look again."""
        while count > 0 and self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1


class AsyncPool:
    """Owns every connection of a client. Used from one event loop, so its state needs no lock."""

    def __init__(self, tls: TlsContext, max_connections_per_origin: int) -> None:
        self._tls = tls
        self._max = max_connections_per_origin
        self._origins: dict[Origin, _Origin] = {}
        self._waiting = 0
        self._closed = False

    async def acquire(self, origin: Origin) -> AsyncConnection:
        """Lease a place on a connection to `origin`; the caller's timeout bounds the wait.

        Raises `PoolExhausted`, `ConnectFailed` or one of its kinds.
        """
        while True:
            known = self._origins.get(origin)
            for each in list(known.connections) if known else ():
                await each.catch_up()
            # From here to the lease nothing awaits, so what is decided still holds.
            if self._closed:
                raise InvalidRequest("the client is closed")
            state = self._state(origin)
            connection = self._place(state)
            if connection is not None:
                connection.in_flight += 1
                return connection
            if len(state.connections) + state.connecting < self._max:
                return await self._open(origin, state)
            await self._wait(state)

    def release(self, connection: AsyncConnection) -> None:
        """Give a place back; a connection that takes no further request is closed with its last lease."""
        connection.in_flight -= 1
        state = self._origins[connection.origin]
        if connection.in_flight == 0 and (self._closed or not connection.takes_requests()):
            connection.close_soon()
            if connection in state.connections:
                state.connections.remove(connection)
        state.wake(1)

    async def aclose(self) -> None:
        """Close idle connections now and leased ones with their last lease."""
        self._closed = True
        idle = []
        for state in self._origins.values():
            idle += [each for each in state.connections if not each.in_flight]
            state.connections = [each for each in state.connections if each.in_flight]
            state.wake(len(state.waiters))
        await asyncio.gather(*(each.aclose() for each in idle))

    def _place(self, state: _Origin) -> AsyncConnection | None:
        """Choose a connection with room: one with a challenge at hand, of those the least busy."""
        for each in [each for each in state.connections if not each.in_flight and not each.is_fresh()]:
            each.close_soon()
            state.connections.remove(each)
        room = [each for each in state.connections if each.in_flight < each.capacity and each.takes_requests()]
        return min(room, key=lambda each: (not len(each.channel.challenges), each.in_flight), default=None)

    async def _open(self, origin: Origin, state: _Origin) -> AsyncConnection:
        state.connecting += 1
        try:
            connection = await AsyncConnection.open(origin, self._tls, state.clock)
        except BaseException:
            state.wake(1)
            raise
        finally:
            state.connecting -= 1
        connection.in_flight = 1
        state.connections.append(connection)
        state.wake(connection.capacity - 1)
        return connection

    async def _wait(self, state: _Origin) -> None:
        if self._waiting >= MAX_WAITING_REQUESTS:
            raise PoolExhausted(f"{MAX_WAITING_REQUESTS} requests wait for a connection already")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiters.append(waiter)
        self._waiting += 1
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                state.wake(1)  # The wake-up is passed on instead of being lost.
            raise
        finally:
            self._waiting -= 1

    def _state(self, origin: Origin) -> _Origin:
        state = self._origins.get(origin)
        if state is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._forget_one()
            state = self._origins[origin] = _Origin()
        return state

    def _forget_one(self) -> None:
        """Make room for another origin by the oldest one with nothing in use."""
        for origin, state in self._origins.items():
            if state.unused:
                for each in state.connections:
                    each.close_soon()
                del self._origins[origin]
                return
        raise PoolExhausted(f"{MAX_ORIGINS} origins are in use already")
