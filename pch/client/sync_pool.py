"""The connections of a blocking client: each leased to one thread at a time, a bounded number per origin."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pch.client.channel import OriginClock
from pch.client.errors import InvalidRequest, PoolExhausted, TimedOut
from pch.client.limits import MAX_ORIGINS, MAX_WAITING_REQUESTS
from pch.client.sync_connection import SyncConnection

if TYPE_CHECKING:
    from pch.client.tls_session import TlsContext
    from pch.client.url import Origin


@dataclass(slots=True)
class _Origin:
    """`open_count` counts idle, leased and connecting ones."""

    clock: OriginClock = field(default_factory=OriginClock)
    idle: list[SyncConnection] = field(default_factory=list)
    open_count: int = 0


class SyncPool:
    """Owns every connection of a client. All state is guarded by `_changed`'s lock; no I/O waits under it."""

    def __init__(self, tls: TlsContext, max_connections_per_origin: int) -> None:
        self._tls = tls
        self._max = max_connections_per_origin
        self._changed = threading.Condition()
        self._origins: dict[Origin, _Origin] = {}
        self._waiting = 0
        self._closed = False

    def acquire(self, origin: Origin, deadline_s: float) -> SyncConnection:
        """Lease a connection to `origin`, the one used last if it is still there, else a new one.

        `deadline_s`: monotonic. Raises `TimedOut`, `PoolExhausted`, `ConnectFailed` or one of its kinds.
        """
        stale: list[SyncConnection] = []
        try:
            with self._changed:
                connection = self._idle_or_slot(origin, deadline_s, stale)
        finally:
            for old in stale:
                old.close()
        if connection is not None:
            return connection
        try:
            return SyncConnection.open(origin, self._tls, self._origins[origin].clock, deadline_s)
        except BaseException:
            self._give_up_slot(origin)
            raise

    def release(self, connection: SyncConnection) -> None:
        """Take a leased connection back; one that takes no further request is closed."""
        with self._changed:
            keep = connection.takes_requests() and not self._closed
            if keep:
                self._origins[connection.origin].idle.append(connection)
                self._changed.notify_all()
        if not keep:
            connection.close()
            self._give_up_slot(connection.origin)

    def close(self) -> None:
        """Close idle connections now and leased ones when they come back."""
        with self._changed:
            self._closed = True
            idle = [connection for state in self._origins.values() for connection in state.idle]
            for state in self._origins.values():
                state.open_count -= len(state.idle)
                state.idle.clear()
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def _idle_or_slot(self, origin: Origin, deadline_s: float, stale: list[SyncConnection]) -> SyncConnection | None:
        """Give an idle connection, or None when the caller now holds the right to open one."""
        while True:
            if self._closed:
                raise InvalidRequest("the client is closed")
            state = self._state(origin, stale)
            while state.idle:
                connection = state.idle.pop()
                if connection.is_fresh():
                    return connection
                stale.append(connection)
                state.open_count -= 1
            if state.open_count < self._max:
                state.open_count += 1
                return None
            self._wait(deadline_s)

    def _wait(self, deadline_s: float) -> None:
        if self._waiting >= MAX_WAITING_REQUESTS:
            raise PoolExhausted(f"{MAX_WAITING_REQUESTS} requests wait for a connection already")
        self._waiting += 1
        try:
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0 or not self._changed.wait(remaining_s):
                raise TimedOut("no connection became free in time")
        finally:
            self._waiting -= 1

    def _state(self, origin: Origin, stale: list[SyncConnection]) -> _Origin:
        state = self._origins.get(origin)
        if state is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._forget_one(stale)
            state = self._origins[origin] = _Origin()
        return state

    def _forget_one(self, stale: list[SyncConnection]) -> None:
        """Make room for another origin by the oldest one with nothing in use."""
        for origin, state in self._origins.items():
            if state.open_count == len(state.idle):
                stale.extend(state.idle)
                del self._origins[origin]
                return
        raise PoolExhausted(f"{MAX_ORIGINS} origins are in use already")

    def _give_up_slot(self, origin: Origin) -> None:
        with self._changed:
            self._origins[origin].open_count -= 1
            self._changed.notify_all()
