"""The text of `/metrics`: written on a thread, and for whoever asks meanwhile only once.

Thousands of series take many milliseconds to write, and the port asks for no capability: whoever scrapes as often as he
can must not take the event loop, nor the processor, from those who sign.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from prometheus_client import generate_latest

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

REST_FACTOR: Final = 4
"""After a text nothing is written for so many times as long as it took: a fifth of one processor at most."""


class MetricsText:
    """Gives texts that were begun after they were asked for. The event loop owns it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._one_at_a_time = asyncio.Lock()
        self._rested_s = 0.0
        self._next: asyncio.Task[bytes] | None = None

    async def get(self) -> bytes:
        """Write the text, or share what others wait for and was not begun yet."""
        if self._next is None:
            self._next = asyncio.create_task(self._write(), name="kms-metrics")
        # Whoever goes away leaves it to the others.
        return await asyncio.shield(self._next)

    async def _write(self) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._one_at_a_time:
            await asyncio.sleep(max(0.0, self._rested_s - loop.time()))
            self._next = None  # what counts from here on is for the next one
            began_s = loop.time()
            try:
                return await asyncio.to_thread(generate_latest, self._registry)
            finally:
                now_s = loop.time()
                self._rested_s = now_s + REST_FACTOR * (now_s - began_s)
