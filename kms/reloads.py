"""Reloads, one after the other: a signal asks for one and waits for nothing (CONFIG.md §5)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Reloads:
    """Does `work` whenever it was asked for, in a task of its own. The event loop owns it.

    However often it is asked for while one is under way, one more follows: it sees what all of them were asked for.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Ask for a reload."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="kms-reload")

    async def stop(self) -> None:
        """End what is under way; what a thread of it still reads is left to itself."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while self._again:
            self._again = False
            await self._work()
