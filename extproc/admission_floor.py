"""Which requests pass an open breaker: the availability floor (docs/reference/breaker.md §5).

Two credits grow with every arrival, by the floor's share each. The first is spent whenever it holds a whole request,
on whoever comes: so of any n arrivals in a row at least ⌊n · share⌋ pass, exactly, whatever anyone sends. The second
is spent only on subjects that had less than an equal part of what passed in the window: so nobody who floods can keep
the others out. One whole request of it is kept for subjects of class high, who spend it whatever they had before, and
class low spends none of it. No more than 2 · n · share + 4 pass. No randomness: the same arrivals always give the same
answers.
"""

from __future__ import annotations

import collections
from typing import Final

from extproc.priority import Priority

WINDOW_SLOTS: Final = 10
MAX_SUBJECTS_PER_SLOT: Final = 10_000
"""Subjects counted in one slot; those beyond it share one count, so that memory is bounded."""
_SHARE_UNIT: Final = 1_000_000
_OTHERS: Final = ""
_KEPT: Final = _SHARE_UNIT
"""Of the second credit, for class high alone."""


class AdmissionFloor:
    """Admit the floor's share. Owned by one event loop, one for each breaker.

    `share`: 0 to 1. `window_ms`: how far back fairness looks.
    """

    def __init__(self, share: float, window_ms: int) -> None:
        if not 0.0 <= share <= 1.0 or window_ms < WINDOW_SLOTS:
            raise ValueError("the share lies between 0 and 1, the window holds its slots")
        self._slot_ms = window_ms // WINDOW_SLOTS
        self._due = 0
        self._fair = _KEPT
        self.set_share(share)
        self._slots: collections.deque[tuple[int, collections.Counter[str]]] = collections.deque(maxlen=WINDOW_SLOTS)
        self._passed: collections.Counter[str] = collections.Counter()
        self._total = 0

    def set_share(self, share: float) -> None:
        """Let the credits grow by `share` from the next arrival on; what they hold stays. 0 to 1."""
        # Whole numbers, so that a million additions lose nothing.
        self._share = round(share * _SHARE_UNIT)

    def admit(self, subject: str, now_ms: int, priority: Priority = Priority.NORMAL) -> bool:
        """Tell whether this arrival of `subject` passes."""
        self._forget(now_ms)
        counted = self._name(subject)
        self._due += self._share
        self._fair = min(self._fair + self._share, _KEPT + 2 * _SHARE_UNIT)
        if self._due >= _SHARE_UNIT:
            self._due -= _SHARE_UNIT
        elif self._may_spend(priority, counted):
            self._fair -= _SHARE_UNIT
        else:
            self._passed.setdefault(counted, 0)
            self._slots[-1][1].setdefault(counted, 0)
            return False
        self._total += 1
        self._passed[counted] += 1
        self._slots[-1][1][counted] += 1
        return True

    def _may_spend(self, priority: Priority, subject: str) -> bool:
        if not self._share:
            return False
        match priority:
            case Priority.HIGH:
                return self._fair >= _SHARE_UNIT
            case Priority.NORMAL:
                return self._fair >= _KEPT + _SHARE_UNIT and self._is_behind(subject)
            case Priority.LOW:
                return False

    def _is_behind(self, subject: str) -> bool:
        """Tell whether `subject` had less than an equal part of what passed in the window."""
        subjects = len(self._passed) + (subject not in self._passed)
        return self._passed[subject] * subjects < self._total or self._total == 0

    def _name(self, subject: str) -> str:
        return subject if subject in self._slots[-1][1] or len(self._slots[-1][1]) < MAX_SUBJECTS_PER_SLOT else _OTHERS

    def _forget(self, now_ms: int) -> None:
        slot = now_ms // self._slot_ms
        if self._slots and slot < (newest := self._slots[-1][0]):
            # The clock stepped back: what was counted keeps its age.
            moved = [(number - newest + slot, counts) for number, counts in self._slots]
            self._slots = collections.deque(moved, maxlen=WINDOW_SLOTS)
        if self._slots and slot == self._slots[-1][0]:
            return
        while self._slots and self._slots[0][0] <= slot - WINDOW_SLOTS:
            self._drop_oldest()
        if len(self._slots) == WINDOW_SLOTS:
            self._drop_oldest()
        self._slots.append((slot, collections.Counter()))

    def _drop_oldest(self) -> None:
        _, counts = self._slots.popleft()
        still = {name for _, later in self._slots for name in later}
        for name, count in counts.items():
            self._total -= count
            self._passed[name] -= count
            if name not in still:
                del self._passed[name]
