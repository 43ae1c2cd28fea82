"""End a run that started processes: a signal ends it as Ctrl-C does, through every `with` and `finally`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


def end_as_by_an_interrupt() -> None:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt; a second one does not disturb the clean-up."""

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    for each in ENDING:
        signal.signal(each, interrupt)
