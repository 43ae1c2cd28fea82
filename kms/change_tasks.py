"""Changes of keys in tasks of their own: what has begun is made whole, whoever still waits for it (I-2, I-14)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from kms.operations.operation import Progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")


class ChangeTasks:
    """The changes under way. The event loop owns it; how many there are is bounded by `Admission`."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], Progress] = {}

    @property
    def epochs(self) -> set[int]:
        """List the epochs of changes that are durable and not at their end: their task audits them."""
        return {progress.epoch for progress in self._tasks.values() if progress.epoch is not None}

    async def run(
        self,
        work: Callable[[Progress], Coroutine[Any, Any, T]],
        deadline_s: float,
        *,
        ended: Callable[[], None],
        failed: Callable[[Exception], Awaitable[None]],
    ) -> T:
        """Run a change and wait for it up to its deadline. Raises TimeoutError, and what it raises.

        A caller who goes away, or whose time is over, ends a change that has not begun. One that has goes on: otherwise
        private halves would be left that nothing names, or a key destroyed and not erased. `ended` is called at the end
        of the task, `failed` is told how it failed when its caller does not hear of it any more.
        """
        progress, left = Progress(), False

        async def whole() -> T:
            try:
                return await work(progress)
            except Exception as error:
                if left:
                    await failed(error)
                raise

        task = asyncio.create_task(whole(), name="kms-change")
        self._tasks[task] = progress

        def forget(done: asyncio.Task[T]) -> None:
            del self._tasks[done]
            if not done.cancelled():
                done.exception()  # Looked at, so that the loop does not report what nobody waited for.
            ended()

        task.add_done_callback(forget)
        try:
            await asyncio.wait([task], timeout=deadline_s)
        finally:
            left = not task.done()
            if left and not progress.begun:
                task.cancel()
        if left:
            raise TimeoutError
        return task.result()
