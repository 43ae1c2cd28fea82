"""What the workers of one host tell each other about upstream: a small file that all of them map.

Envoy sends the outcomes of one connection to whichever worker it chose, and decisions fall in all of them. So each
worker writes what it heard, as counters that only rise, and the state of its breakers, into a row of its own, and reads
every row. One writer for each row and no lock: a counter is one aligned word, a state is guarded by a sequence
number that is odd while it is being written. Nothing durable: its times are those since the host was booted, so a
board of another boot is removed and never read.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from extproc.breaker import BreakerState, Phase, Seen
from extproc.probe_budget import LANES

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_WORKERS: Final = 64
MAX_ROUTES: Final = 1_024
BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_COUNTERS: Final = 11
_STATE_WORDS: Final = 6
_LANES_AT: Final = _COUNTERS + 1 + _STATE_WORDS
_ROW_WORDS: Final = _LANES_AT + LANES
_WORD_BYTES: Final = 8
_MASK: Final = (1 << 64) - 1
_SIGN: Final = 1 << 63
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
            boot = _boot()
            _remove_those_of_other_boots(folder, boot)
            path = folder / f"breaker-{boot}-{name}.board"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # Room for all of it now: where a mapped file finds none later, the process gets SIGBUS.
                os.posix_fallocate(descriptor, 0, size)
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
        others = (seen.took_ms, seen.admitted, seen.ended, seen.probes_void, seen.withdrawn)
        for offset, value in enumerate((*counts, *others)):
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

    def move_probe(self, route: int, lane: int, change: int) -> None:
        """Count a probe of `lane` that went out, 1, or came back, -1; often to another worker than it went out of."""
        at = self._row(self._index, route) + _LANES_AT + lane
        self._words[at] = (self._words[at] + change) & _MASK

    def probes_out(self, route: int, lane: int) -> int:
        """Give how many probes of `lane` all workers count as out."""
        at = _LANES_AT + lane
        out = sum(self._words[self._row(worker, route) + at] for worker in range(self._workers)) & _MASK
        return out - ((out & _SIGN) << 1)

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


def _boot() -> str:
    """Name the boot of this host: the monotonic clock, and so every time on a board, is of one boot alone."""
    return hashlib.sha256(BOOT_ID_FILE.read_bytes()).hexdigest()[:8]


def _remove_those_of_other_boots(folder: Path, boot: str) -> None:
    for path in folder.glob("breaker-*.board"):
        if not path.name.startswith(f"breaker-{boot}-"):
            path.unlink(missing_ok=True)
