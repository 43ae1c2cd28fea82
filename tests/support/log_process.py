"""A log writer that kills itself with SIGKILL at a chosen system call: python -m tests.support.log_process.

Arguments: folder, the number of the call to die at (0: never), receipts to add. Every fsync, rename, link, removal
and folder creation that Python makes counts, and every commit of a head, before and after it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from receipts.log import LogSettings
from receipts.sth_store import SthStore
from tests.support.log_parts import LogParts


class Countdown:
    def __init__(self, calls: int) -> None:
        self.left = calls

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.tick()
            result = function(*arguments, **named)
            self.tick()
            return result

        return counted


def main(folder: str, calls: str, count: str) -> None:
    parts = LogParts(Path(folder), settings=LogSettings(max_batch_receipts=100))
    parts.add(int(count))
    countdown = Countdown(int(calls))
    for name in ("fsync", "link", "mkdir", "rename", "replace", "rmdir", "unlink"):
        setattr(os, name, countdown.around(getattr(os, name)))
    SthStore.append = countdown.around(SthStore.append)  # type: ignore[method-assign]
    writer = parts.writer()
    while writer.step():
        pass
    writer.flush()
    print(-countdown.left)


if __name__ == "__main__":
    main(*sys.argv[1:])
