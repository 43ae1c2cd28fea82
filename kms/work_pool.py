"""Threads for what would hold the event loop up, handed out to the tenants in turn (I-17, CONCURRENCY.md §1)."""

from __future__ import annotations

import asyncio
import contextvars
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class WorkPool:
    """As many threads as may work at once. Who waits is bounded by `Admission`; the event loop owns the queues.

    A thread is given to the tenants that wait one after the other, whatever each has waiting. It stays taken until its
    work has ended, even when nobody waits for the result any more: a hung provider cannot make threads pile up.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="kms-work")
        self._free = threads
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Count the calls that wait for a thread."""
        return sum(len(each) for each in self._waiting.values())

    async def run(self, tenant: str, work: Callable[[], T], begin: Callable[[], None] | None = None) -> T:
        """Run `work` on a thread when it is the tenant's turn. Raises what it raises.

        `begin` is called on the event loop when that turn has come: up to it, giving up leaves no trace.
        """
        await self._turn(tenant)
        if begin is not None:
            begin()
        loop = asyncio.get_running_loop()
        try:
            # Whatever belongs to the request, such as its span, goes along to the thread.
            future = loop.run_in_executor(self._executor, contextvars.copy_context().run, work)
        except BaseException:
            self._release()
            raise
        future.add_done_callback(self._finished)
        # Given up from here on, the thread still works: only its end gives the place back.
        return await asyncio.shield(future)

    def close(self) -> None:
        """Start nothing new; threads that work are left to end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, tenant: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The turn came in the same moment: pass it on.
                self._release()
            else:
                self._forget(tenant, turn)
            raise

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(tenant)
        if turns is not None and turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[tenant]

    def _finished(self, future: asyncio.Future[T]) -> None:
        if not future.cancelled():
            future.exception()  # Looked at, so that the loop does not report work that nobody waited for.
        self._release()

    def _release(self) -> None:
        while self._waiting:
            tenant, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            if turns:
                self._waiting.move_to_end(tenant)
            else:
                del self._waiting[tenant]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
