"""HTTP connections of the admin server: none is held for ever by a peer that says or takes nothing.

uvicorn ends a connection that is idle after an answer, but waits without end for a first request, for the rest of a
request, and for a peer that does not read. Its limit on connections would then be used up by a few silent ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

STALL_LIMIT_S: Final = 10.0
"""Between looks at a connection: the first request is there by then, and nothing stands still from one to the next."""


class AdminConnection(H11Protocol):
    """One connection, looked at every `STALL_LIMIT_S` seconds. Owned by the event loop."""

    _look: asyncio.TimerHandle | None = None
    _last: tuple[RequestResponseCycle, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        super().connection_made(transport)
        self._look = self.loop.call_later(STALL_LIMIT_S, self._close_if_stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _close_if_stalled(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None:
            self.transport.abort()
            return
        now = (cycle, self.transport.get_write_buffer_size())
        # An answer that is still being worked out is nobody's fault; one that nobody takes, or no next request, is.
        if now == self._last and (cycle.response_complete or self.flow.write_paused):
            self.transport.abort()
            return
        self._last = now
        self._look = self.loop.call_later(STALL_LIMIT_S, self._close_if_stalled)
