"""A turnstile before a lock, so that processes that share a database file take turns.

SQLite's own waiting sleeps up to 100 ms between tries, and a process with a full queue takes the write lock
again within microseconds: the other process may wait for seconds. Whoever wants the lock passes the turnstile
first, and keeps others out of it until the lock is his; so the last holder queues behind everyone who came
before. The kernel opens the turnstile when its holder dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FIRST_WAIT_S: Final = 0.0002
_LONGEST_WAIT_S: Final = 0.002
_FILE_MODE: Final = 0o600


def wait_for(attempt: Callable[[], bool], deadline_s: float) -> bool:
    """Try until `attempt` succeeds; return False when `deadline_s` (of the monotonic clock) has passed."""
    wait_s = _FIRST_WAIT_S
    while not attempt():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.1, _LONGEST_WAIT_S)
    return True


class Turnstile:
    """An advisory lock on a small file beside the database; one thread uses an object. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE)

    def enter(self, deadline_s: float) -> bool:
        """Be the only one inside; return False when `deadline_s` has passed."""
        return wait_for(self._try_enter, deadline_s)

    def leave(self) -> None:
        """Let the next one in."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave for good."""
        os.close(self._file)

    def _try_enter(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
