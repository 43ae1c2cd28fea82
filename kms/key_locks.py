"""One writer at a time for each key and each op_id (CONCURRENCY.md §1)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable


class KeyLocks:
    """A lock for each thing that is being written; none for the rest. The event loop owns it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, list[None]]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @contextlib.asynccontextmanager
    async def hold(self, thing: Hashable) -> AsyncIterator[None]:
        """Hold the lock of one thing. Who waits is bounded by `Admission` and each operation's deadline."""
        lock, users = self._locks.setdefault(thing, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[thing]
