"""Group commit: many waiters, one owner thread, one transaction for all that queued meanwhile.

Everything submitted while a commit runs goes into the next one, up to `max_batch_items`, so that the cost of
making a write durable is shared by the requests that wait for it, and an idle store adds no delay. The event
loop is never blocked: the commit runs on the owner thread, and each batch wakes a loop once.

Ownership: `_queue`, `_in_flight`, `_closing` and `_started` belong to the lock of `_changed`; the counters
belong to the owner thread.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from receipts.errors import StoreClosed, StoreOverloaded, StoreTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_MAX_BATCH_ITEMS: Final = 256
DEFAULT_MAX_PENDING_ITEMS: Final = 4096


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error for one waiter. The traceback is kept apart, since one error may be raised in many tasks."""

    error: Exception
    traceback: TracebackType | None = None


class _Waiter(Generic[T, R]):
    """One item and the future that its outcome goes to; `loop` is None for a synchronous caller."""

    __slots__ = ("future", "item", "loop")

    def __init__(
        self,
        item: T,
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[R | _Failure] | concurrent.futures.Future[R | _Failure],
    ) -> None:
        self.item = item
        self.loop = loop
        self.future = future


class GroupCommit(Generic[T, R]):
    """Queue items from any task or thread and commit them in batches on one thread.

    `commit` gets 1 to `max_batch_items` items in the order of their submission and returns one result or
    exception for each. When it raises, every item of the batch fails with that exception. `on_close` runs on
    the same thread after the last commit (close the database connection there).
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        name: str,
        max_batch_items: int = DEFAULT_MAX_BATCH_ITEMS,
        max_pending_items: int = DEFAULT_MAX_PENDING_ITEMS,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        if max_batch_items < 1 or max_pending_items < 1:
            raise ValueError("max_batch_items and max_pending_items must be at least 1")
        self._commit = commit
        self._name = name
        self._max_batch_items = max_batch_items
        self._max_pending_items = max_pending_items
        self._on_close = on_close
        self._queue: collections.deque[_Waiter[T, R]] = collections.deque()
        self._changed = threading.Condition()
        self._started = False
        self._closing = False
        self._in_flight: Sequence[_Waiter[T, R]] = ()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the owner thread; once, and after any fork. Raises RuntimeError when started before."""
        with self._changed:
            if self._started:
                raise RuntimeError(f"{self._name} was already started")
            self._started = True
        self._thread.start()

    @property
    def pending_items(self) -> int:
        """Items queued and not yet being committed."""
        return len(self._queue)

    async def submit(self, item: T, timeout_s: float) -> R:
        """Queue `item` and wait for its commit.

        Raises StoreOverloaded when `max_pending_items` are queued, StoreTimeout after `timeout_s`,
        StoreClosed, or what `commit` raised or returned for it. An item given up (timeout, cancellation)
        before its batch began is never committed; after that it may be.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R | _Failure] = loop.create_future()
        self._enqueue(_Waiter(item, loop, future))
        timer = loop.call_later(timeout_s, self._expire, future)
        try:
            outcome = await future
        finally:
            timer.cancel()
        return _unwrap(outcome)

    def submit_sync(self, item: T, timeout_s: float) -> R:
        """Queue `item` and block the calling thread until its commit; as `submit`.

        Never call it on an event loop's thread.
        """
        future: concurrent.futures.Future[R | _Failure] = concurrent.futures.Future()
        self._enqueue(_Waiter(item, None, future))
        try:
            outcome = future.result(timeout_s)
        except TimeoutError:
            if future.cancel():
                raise self._timeout() from None
            outcome = future.result()
        return _unwrap(outcome)

    def close(self, drain_s: float) -> int:
        """Take nothing new, commit what is queued, stop the thread.

        Returns how many items were given up because `drain_s` seconds were not enough; 0 when all were done.
        Call it from outside the event loop whose tasks wait here (`aclose` does). Safe to call twice.
        """
        with self._changed:
            self._closing = True
            started = self._started
            self._changed.notify()
        if not started:
            return 0
        self._thread.join(drain_s)
        if not self._thread.is_alive():
            return 0
        with self._changed:
            # The commit hangs: its waiters and the queued ones must not hang with it.
            abandoned = [*self._in_flight, *self._queue]
            self._queue.clear()
        failure = _Failure(StoreClosed(f"{self._name} was closed before the item was committed"))
        self._deliver(abandoned, [failure] * len(abandoned))
        return len(abandoned)

    async def aclose(self, drain_s: float) -> int:
        """Close without blocking the event loop; as `close`."""
        return await asyncio.to_thread(self.close, drain_s)

    def _timeout(self) -> StoreTimeout:
        return StoreTimeout(f"{self._name} did not commit in time")

    def _expire(self, future: asyncio.Future[R | _Failure]) -> None:
        if not future.done():
            future.set_result(_Failure(self._timeout()))

    def _enqueue(self, waiter: _Waiter[T, R]) -> None:
        with self._changed:
            if self._closing or not self._started:
                raise StoreClosed(f"{self._name} is not running")
            if len(self._queue) >= self._max_pending_items:
                raise StoreOverloaded(f"{self._name} has {self._max_pending_items} items waiting")
            self._queue.append(waiter)
            self._changed.notify()

    def _take(self) -> list[_Waiter[T, R]] | None:
        """Wait for items and take a batch, dropping those given up; None when closed and drained."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    self._in_flight = ()
                    return None
                self._changed.wait()
            batch: list[_Waiter[T, R]] = []
            while self._queue and len(batch) < self._max_batch_items:
                waiter = self._queue.popleft()
                if not waiter.future.done():
                    batch.append(waiter)
            self._in_flight = batch
            return batch

    def _run(self) -> None:
        try:
            while (batch := self._take()) is not None:
                if batch:
                    self._deliver(batch, self._commit_batch(batch))
        finally:
            # Also when something other than an Exception ends the thread: nobody may wait for ever.
            with self._changed:
                self._closing = True
                left = [*self._in_flight, *self._queue]
                self._queue.clear()
            failure = _Failure(StoreClosed(f"{self._name} stopped"))
            self._deliver(left, [failure] * len(left))
            if self._on_close is not None:
                self._on_close()

    def _commit_batch(self, batch: Sequence[_Waiter[T, R]]) -> list[R | _Failure]:
        try:
            results = self._commit([waiter.item for waiter in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{self._name}: {len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - whatever it was, every waiter must hear of it
            failure = _Failure(error, error.__traceback__)
            return [failure] * len(batch)
        return [
            _Failure(result, result.__traceback__) if isinstance(result, Exception) else result for result in results
        ]

    @staticmethod
    def _deliver(waiters: Sequence[_Waiter[T, R]], outcomes: Sequence[R | _Failure]) -> None:
        """Hand out outcomes, waking each event loop once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[R | _Failure], R | _Failure]]] = {}
        for waiter, outcome in zip(waiters, outcomes, strict=True):
            if isinstance(waiter.future, concurrent.futures.Future):
                # Given up between our look and now, or already told at close.
                with contextlib.suppress(concurrent.futures.InvalidStateError):
                    waiter.future.set_result(outcome)
            elif waiter.loop is not None:
                by_loop.setdefault(waiter.loop, []).append((waiter.future, outcome))
        for loop, pairs in by_loop.items():
            # A closed loop has no waiters left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, pairs)


def _resolve(pairs: Iterable[tuple[asyncio.Future[R | _Failure], R | _Failure]]) -> None:
    for future, outcome in pairs:
        if not future.done():
            future.set_result(outcome)


def _unwrap(outcome: R | _Failure) -> R:
    if isinstance(outcome, _Failure):
        raise outcome.error.with_traceback(outcome.traceback)
    return outcome
