"""Destroyed keys whose private halves may still be with their provider: erased as soon as it is there (I-1).

A provider that is away, or a crash, may leave halves behind whose key says that it is destroyed. Nothing uses them any
more; they are erased all the same, one key after the other, without anybody waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kms.clock import Clock
    from kms.kid import KeyName

RETRY_S: Final = 10.0


class Erasures:
    """The keys that are left, each once. The event loop owns it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: dict[KeyName, None] = {}
        self._next_s = -math.inf
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._left)

    @property
    def under_way(self) -> bool:
        """Tell whether some are being erased now."""
        return self._task is not None and not self._task.done()

    def add(self, name: KeyName) -> None:
        """Note a key whose private halves may still be there."""
        self._left[name] = None

    def look(self, erase: Callable[[KeyName], Awaitable[bool]]) -> None:
        """Begin with what is left, unless that is under way or was tried a moment ago.

        `erase`: erases the private halves of a key, and tells whether that was done.
        """
        now_s = self._clock.monotonic_s()
        if not self._left or now_s < self._next_s or self.under_way:
            return
        self._next_s = now_s + RETRY_S
        self._task = asyncio.create_task(self._run(erase), name="kms-erase")

    async def stop(self) -> None:
        """End what is under way: the next start begins with all destroyed keys."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, erase: Callable[[KeyName], Awaitable[bool]]) -> None:
        for name in tuple(self._left):
            if await erase(name):
                del self._left[name]
