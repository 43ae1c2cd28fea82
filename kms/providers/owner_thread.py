"""One thread that owns what must not be used by two: a PKCS#11 module, an ESAPI context (CONCURRENCY.md §4)."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from kms.errors import Backpressure, StoreUnavailable, Timeout
from kms.providers.connection import C, Connection, ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_WAITING: Final = 512
CLOSE_TIMEOUT_S: Final = 5.0
R = TypeVar("R")


class OwnerThread(Generic[C]):
    """Runs jobs on the connection, one after the other, each with the caller's bound on its wait.

    The thread is a daemon: a token that never answers holds up its callers until their deadline, not the exit.
    """

    def __init__(self, name: str, connection: Connection[C], max_waiting: int = MAX_WAITING) -> None:
        self._connection = connection
        self._jobs: Queue[tuple[Future[Any], Callable[[C], Any]] | None] = Queue(max_waiting)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, job: Callable[[C], R], timeout_s: float) -> R:
        """Run `job` on the thread and return its result.

        Raises StoreUnavailable when the connection is lost or closed, Backpressure when too many wait, Timeout when
        `timeout_s` is over: a job that has not begun is then not run.
        """
        if self._closed.is_set():
            raise StoreUnavailable("the provider is closed", reason="closed")
        future: Future[R] = Future()
        try:
            self._jobs.put_nowait((future, job))
        except Full as error:
            raise Backpressure("too many operations wait for the token", reason="token_queue_full") from error
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            future.cancel()
            raise Timeout("the token did not answer in time", reason="token_timeout") from error
        except CancelledError as error:
            raise StoreUnavailable("the provider is closed", reason="closed") from error

    def close(self) -> None:
        """Refuse new jobs, let go of the connection and end the thread. A second call does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._cancel_waiting()
        self._jobs.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._cancel_waiting()

    def _cancel_waiting(self) -> None:
        while not self._jobs.empty():
            waiting = self._jobs.get_nowait()
            if waiting is not None:
                waiting[0].cancel()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if future.set_running_or_notify_cancel():
                self._do(future, job)
            # A connection lives longer than a job: nothing of one is kept for the next.
            del item, future, job
        self._connection.close()

    def _do(self, future: Future[Any], job: Callable[[C], Any]) -> None:
        try:
            future.set_result(job(self._connection.get()))
        except ConnectionLostError as error:
            lost = self._connection.lose()
            lost.__cause__ = error
            future.set_exception(lost)
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            future.set_exception(error)
