"""What the workers of one host tell each other about upstream: a small file that all of them map.

Envoy sends the outcomes of one connection to whichever worker it chose, and decisions fall in all of them. So each
worker writes what it heard, as counters that only rise, and the state of its breakers, into a row of its own, and reads
every row. One writer for each row and no lock: a counter is one aligned word, a state is guarded by a sequence
number that is odd while it is being written. Nothing durable: after a restart of the host it starts from nothing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from typing import TYPE_CHECKING, Final

from extproc.breaker import BreakerState, Phase, Seen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAX_WORKERS: Final = 64
MAX_ROUTES: Final = 1_024
_COUNTERS: Final = 10
_STATE_WORDS: Final = 6
_ROW_WORDS: Final = _COUNTERS + 1 + _STATE_WORDS
_WORD_BYTES: Final = 8
_PHASES: Final = (Phase.CLOSED, Phase.OPEN, Phase.HALF_OPEN)
_READ_TRIES: Final = 4


class SignalBoardError(Exception):
    """The board cannot be used; the breaker goes on with what this worker hears itself."""


class SignalBoard:
    """The board of one set of routes and workers. Owned by one worker's event loop; the others map the same file.

    `folder`: where the sockets are, writable by the workers alone. `routes`: names, in an order that all workers share.
    `index`: this worker's, of `workers`. Another set has another file. Raises SignalBoardError.
    """

    def __init__(self, folder: Path, routes: Sequence[str], index: int, workers: int) -> None:
        if not 0 <= index < workers <= MAX_WORKERS or not 0 < len(routes) <= MAX_ROUTES:
            raise SignalBoardError("more workers or routes than the board holds")
        self._routes, self._index, self._workers = len(routes), index, workers
        name = hashlib.sha256("\n".join((str(workers), str(_ROW_WORDS), *routes)).encode()).hexdigest()[:16]
        size = workers * len(routes) * _ROW_WORDS * _WORD_BYTES
        try:
            descriptor = os.open(folder / f"breaker-{name}.board", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, size)
                self._map = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SignalBoardError("the board's file cannot be used") from error
        self._words = memoryview(self._map).cast("Q")

    def add(self, route: int, seen: Seen) -> None:
        """Add to this worker's counters of one route."""
        start = self._row(self._index, route)
        counts = (seen.samples, seen.failed, seen.slow, seen.probes, seen.probes_failed, seen.probes_sent)
        for offset, value in enumerate((*counts, seen.took_ms, seen.admitted, seen.ended, seen.probes_void)):
            if value:
                self._words[start + offset] += value

    def totals(self, route: int) -> Seen:
        """Give the sums of all workers' counters of one route since the file was made."""
        sums = [0] * _COUNTERS
        for worker in range(self._workers):
            start = self._row(worker, route)
            for offset in range(_COUNTERS):
                sums[offset] += self._words[start + offset]
        # A probe is counted before its failure, and read the other way round it would look impossible.
        samples, failed, slow, probes, probes_failed, sent, *others = sums
        failed, slow, probes_failed = min(failed, samples), min(slow, samples), min(probes_failed, probes)
        return Seen(samples, failed, slow, probes, probes_failed, sent, *others)

    def tell(self, route: int, state: BreakerState) -> None:
        """Write this worker's view of one breaker."""
        start = self._row(self._index, route) + _COUNTERS
        words, sequence = self._words, self._words[start] | 1
        words[start] = sequence
        for offset, value in enumerate(
            (state.epoch, _PHASES.index(state.phase), state.since_ms, state.dwell_ms, state.relapses, 1), 1
        ):
            words[start + offset] = value
        words[start] = sequence + 1

    def states(self, route: int) -> list[BreakerState]:
        """Read the other workers' views of one breaker; one that is being written all the while is left out."""
        others = (worker for worker in range(self._workers) if worker != self._index)
        found = (self._state(self._row(worker, route) + _COUNTERS) for worker in others)
        return [state for state in found if state is not None]

    def close(self) -> None:
        """Let go of the file."""
        self._words.release()
        self._map.close()

    def _row(self, worker: int, route: int) -> int:
        return (worker * self._routes + route) * _ROW_WORDS

    def _state(self, start: int) -> BreakerState | None:
        for _ in range(_READ_TRIES):
            before = self._words[start]
            epoch, phase, since_ms, dwell_ms, relapses, told = self._words[start + 1 : start + 1 + _STATE_WORDS]
            if before % 2 == 0 and before == self._words[start]:
                if not told or phase >= len(_PHASES):
                    return None
                return BreakerState(
                    phase=_PHASES[phase], epoch=epoch, since_ms=since_ms, dwell_ms=dwell_ms, relapses=relapses
                )
        return None
