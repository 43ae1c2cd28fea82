"""The breakers of one worker: one for each name (`extproc.tenants`), fed by outcomes, asked for each verified request.

Every tick the bank reads what all workers heard since the last one, takes over a newer state that another worker
reached, and moves each breaker on. All workers see the same sums, so they go the same way; where two differ for a
moment, the one with more transitions counts (`extproc.breaker.newer`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from extproc.admission_floor import AdmissionFloor
from extproc.breaker import BreakerState, Phase, Seen, advance, newer
from extproc.crowd_limit import CrowdLimit
from extproc.priority import Priority
from extproc.probe_budget import LANES, ProbeBudget, lane_of
from extproc.stress_action import Action, StressAction, choose, is_relaxing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.breaker_peers import BreakerPeers
    from extproc.plan import BreakerPlan

LOG: Final = logging.getLogger("signet.breaker")
TICK_S: Final = 0.1
"""How often the bank looks; also how late a worker may learn what another one heard."""
MAX_SEEN_PER_TICK: Final = 1_000_000
MAX_TOOK_MS: Final = 600_000
UPSTREAM_FAILURE_FLAGS: Final = frozenset(
    {
        "dns_resolution_failure",
        "failed_local_healthcheck",
        "no_cluster_found",
        "no_healthy_upstream",
        "upstream_connection_failure",
        "upstream_connection_termination",
        "upstream_max_stream_duration_reached",
        "upstream_overflow",
        "upstream_protocol_error",
        "upstream_remote_reset",
        "upstream_request_timeout",
        "upstream_retry_limit_exceeded",
    }
)
"""Envoy's response flags by which the app failed, and not the client."""
SLOW_READING_FLAGS: Final = frozenset({"upstream_request_timeout"})
"""Of these, what the client's reading brings about as well: the edge's timeout runs until the answer was delivered."""
CLIENT_GAVE_UP_FLAGS: Final = frozenset({"downstream_connection_termination", "downstream_remote_reset"})


class Signals(Protocol):
    """Where workers tell each other what they heard (`extproc.signal_board`, or one worker alone)."""

    def add(self, route: int, seen: Seen) -> None:
        """Add to this worker's counters of one route."""

    def totals(self, route: int) -> Seen:
        """Give the sums of all workers' counters of one route."""
        ...

    def tell(self, route: int, state: BreakerState) -> None:
        """Show this worker's view of one breaker."""

    def states(self, route: int) -> list[BreakerState]:
        """Read the other workers' views of one breaker."""
        ...

    def move_probe(self, route: int, lane: int, change: int) -> None:
        """Count a probe of `lane` (`extproc.probe_budget`) that went out, 1, or came back, -1."""

    def probes_out(self, route: int, lane: int) -> int:
        """Give how many probes of `lane` all workers count as out; below 0 where an older count was lost."""
        ...


class OwnSignals:
    """The signals of a worker that hears nothing of the others."""

    def __init__(self, routes: int) -> None:
        self._sums = [Seen()] * routes
        self._lanes = [[0] * LANES for _ in range(routes)]

    def add(self, route: int, seen: Seen) -> None:
        """Add to the counters of one route."""
        self._sums[route] = _plus(self._sums[route], seen)

    def totals(self, route: int) -> Seen:
        """Give the counters of one route."""
        return self._sums[route]

    def tell(self, route: int, state: BreakerState) -> None:
        """Tell nobody."""

    def states(self, route: int) -> list[BreakerState]:
        """Hear of nobody."""
        return []

    def move_probe(self, route: int, lane: int, change: int) -> None:
        """Count a probe of `lane`."""
        self._lanes[route][lane] += change

    def probes_out(self, route: int, lane: int) -> int:
        """Give how many probes of `lane` are out."""
        return self._lanes[route][lane]


@dataclass(slots=True)
class _Breaker:
    state: BreakerState
    floor: AdmissionFloor
    probes: ProbeBudget
    read: Seen
    crowd: CrowdLimit
    relaxing: bool = False


class BreakerBank:
    """Owned by one event loop. `routes`: names of the guarded routes. `peers`: where one listens to other instances."""

    def __init__(
        self,
        plan: BreakerPlan,
        routes: Sequence[str],
        signals: Signals,
        *,
        now_ms: int,
        peers: BreakerPeers | None = None,
    ) -> None:
        self._plan, self._signals, self._peers = plan, signals, peers
        self._numbers = {name: number for number, name in enumerate(routes)}
        self._breakers = [self._new(number, now_ms) for number in range(len(routes))]

    def _new(self, number: int, now_ms: int) -> _Breaker:
        plan, totals = self._plan, self._signals.totals(number)
        return _Breaker(
            state=BreakerState(since_ms=now_ms),
            floor=AdmissionFloor(plan.floor_share, plan.floor_window_ms),
            probes=ProbeBudget(plan.probes_needed, plan.max_probes_in_flight, plan.probe_timeout_ms),
            # What others heard before this worker came is history.
            read=totals,
            crowd=CrowdLimit(plan.crowd_ms, plan.slow_ms, totals),
        )

    def state(self, route: str) -> BreakerState:
        """Give the breaker's state; a route without one is closed."""
        number = self._numbers.get(route)
        return BreakerState() if number is None else self._breakers[number].state

    def crowd_limit(self, route: str) -> int | None:
        """Give how many requests of this route may be with the app at once; None without a limit."""
        number = self._numbers.get(route)
        return None if number is None else self._breakers[number].crowd.limit

    def is_relaxing(self, route: str) -> bool:
        """Tell whether headers are trimmed on this route now."""
        number = self._numbers.get(route)
        return number is not None and self._breakers[number].relaxing

    def choose(
        self,
        route: str,
        subject: str,
        now_ms: int,
        *,
        floor_share: float = 0.0,
        may_fall_back: bool = False,
        ends_soon: bool = True,
        priority: Priority = Priority.NORMAL,
    ) -> StressAction:
        """Choose what is done with one verified request.

        `floor_share`: policy's; the plan's own is the least. `ends_soon`: its client cannot hold it open by what it
        has still to send, so it may be a probe; others are none as long as such come.
        """
        number = self._numbers.get(route)
        if number is None:
            return StressAction(Action.ATTEMPT, Phase.CLOSED, 0, 0, 0, 0)
        breaker = self._breakers[number]
        breaker.floor.set_share(max(floor_share, self._plan.floor_share))
        half_open = breaker.state.phase is Phase.HALF_OPEN
        lane = lane_of(subject, breaker.state.epoch) if half_open else 0
        done = choose(
            breaker.state,
            subject=subject,
            now_ms=now_ms,
            floor=breaker.floor,
            may_probe=half_open and self._may_probe(number, lane, now_ms, ends_soon=ends_soon),
            may_fall_back=may_fall_back,
            relaxing=breaker.relaxing,
            crowd_limit=self._reached(number),
            priority=priority,
        )
        if done.passes:
            self._signals.add(number, Seen(admitted=1, probes_sent=int(done.action is Action.PROBE)))
        if done.action is Action.PROBE:
            self._signals.move_probe(number, lane, 1)
        return done

    def _reached(self, number: int) -> int | None:
        crowd = self._breakers[number].crowd
        return None if crowd.limit is None or crowd.admits(self._signals.totals(number)) else crowd.limit

    def _may_probe(self, number: int, lane: int, now_ms: int, *, ends_soon: bool) -> bool:
        totals, probes = self._signals.totals(number), self._breakers[number].probes
        if not probes.may_send(_tried(totals), totals.probes) or not (ends_soon or probes.is_idle(now_ms)):
            return False
        return probes.is_free(lane, self._signals.probes_out(number, lane))

    def withdrawn(self, route: str, *, probe_epoch: int | None, subject: str = "") -> None:
        """Hear that a request that was let on here goes nowhere after all: it says nothing about the app.

        `probe_epoch` and `subject`: as for `ended`.
        """
        number = self._numbers.get(route)
        if number is None:
            return
        self._probe_is_back(number, probe_epoch, subject)
        void = int(self._is_of_this_phase(number, probe_epoch))
        self._signals.add(number, Seen(withdrawn=1, probes_void=void))

    def _probe_is_back(self, number: int, probe_epoch: int | None, subject: str) -> None:
        if probe_epoch is not None:
            self._signals.move_probe(number, lane_of(subject, probe_epoch), -1)

    def _is_of_this_phase(self, number: int, probe_epoch: int | None) -> bool:
        """Tell whether it was a probe of the phase now. One of a later phase is: this worker has yet to hear of it."""
        return probe_epoch is not None and probe_epoch >= self._breakers[number].state.epoch

    def ended(
        self,
        route: str,
        status: int | None,
        app_us: int | None,
        flags: Sequence[str],
        *,
        probe_epoch: int | None,
        subject: str = "",
    ) -> None:
        """Hear how one allowed request ended.

        `status`: of the app's answer, None without one: what the edge answers in its stead is no word of the app, and
        that it was never asked may be the client's doing.
        `app_us`: how long the app took to begin its answer, or has been taking when the client gave up; None where it
        never had the whole request. `probe_epoch`: of which half-open phase it was a probe; None if it was none.
        `subject`: whose request it was, for probes.
        """
        number = self._numbers.get(route)
        if number is None:
            return
        self._probe_is_back(number, probe_epoch, subject)
        slow = app_us is not None and app_us >= self._plan.slow_ms * 1000
        in_time = status is not None and status < 500 and app_us is not None and not slow
        failures = UPSTREAM_FAILURE_FLAGS.intersection(flags)
        read_slowly = in_time and bool(failures) and failures <= SLOW_READING_FLAGS
        failed = (status is not None and status >= 500) or (bool(failures) and not read_slowly)
        gave_up = status is None or read_slowly or not CLIENT_GAVE_UP_FLAGS.isdisjoint(flags)
        if not failed and not slow and gave_up:
            # A probe is given back: clients must not use the probes up, nor have them taken for lost.
            seen = Seen(ended=1, probes_void=int(self._is_of_this_phase(number, probe_epoch)))
        elif probe_epoch is None:
            took_ms = min(MAX_TOOK_MS, (app_us or 0) // 1000)
            seen = Seen(samples=1, failed=int(failed), slow=int(slow), took_ms=took_ms, ended=1)
        elif self._is_of_this_phase(number, probe_epoch):
            seen = Seen(probes=1, probes_failed=int(failed or slow), ended=1)
        else:
            seen = Seen(ended=1)
        self._signals.add(number, seen)

    def tick(self, now_ms: int) -> None:
        """Move every breaker on by what all workers heard since the last tick."""
        for name, number in self._numbers.items():
            breaker = self._breakers[number]
            totals = self._signals.totals(number)
            seen, breaker.read = _since(breaker.read, totals), totals
            before = breaker.state
            if before.phase is Phase.HALF_OPEN:
                # Every worker sees the same sums and comes to the same number: this one is not told to the others.
                lost = breaker.probes.lost(_tried(totals), totals.probes, now_ms, self._lanes(number))
                if before.probes + seen.probes == before.probes_failed + seen.probes_failed:
                    # An app that swallows all is not well. Where others were answered, their clients hold them open.
                    seen = replace(seen, probes=seen.probes + lost, probes_failed=seen.probes_failed + lost)
            state = advance(before, seen, now_ms, self._plan)
            for theirs in self._signals.states(number):
                state = _adopt(state, theirs)
            if self._peers is not None:
                state = self._peers.step(number, state, seen, now_ms)
            breaker.state = state
            if state.phase is Phase.HALF_OPEN and before.phase is not Phase.HALF_OPEN:
                breaker.probes.begin(_tried(totals), totals.probes, now_ms, self._lanes(number))
            breaker.relaxing = is_relaxing(state, self._plan, was=breaker.relaxing)
            breaker.crowd.tick(totals, now_ms)
            if state.phase is Phase.CLOSED and before.phase is not Phase.CLOSED:
                breaker.crowd.begin(now_ms)
            self._signals.tell(number, state)
            if state.phase is not before.phase:
                LOG.warning(
                    "breaker of %s: %s → %s, errors %.2f, slowness %.2f, dwell %d ms",
                    name,
                    before.phase,
                    state.phase,
                    before.errors.mean,
                    before.slowness.mean,
                    state.dwell_ms,
                )

    def _lanes(self, number: int) -> list[int]:
        return [self._signals.probes_out(number, lane) for lane in range(LANES)]


def _adopt(mine: BreakerState, theirs: BreakerState) -> BreakerState:
    """Take over a newer state. The means stay this worker's own, but for a closed breaker, which starts anew."""
    if newer(mine, theirs) is mine:
        return mine
    fresh = BreakerState(
        phase=theirs.phase,
        epoch=theirs.epoch,
        since_ms=theirs.since_ms,
        dwell_ms=theirs.dwell_ms,
        relapses=theirs.relapses,
    )
    return fresh if theirs.phase is Phase.CLOSED else replace(fresh, errors=mine.errors, slowness=mine.slowness)


def _plus(one: Seen, other: Seen) -> Seen:
    return Seen(
        one.samples + other.samples,
        one.failed + other.failed,
        one.slow + other.slow,
        one.probes + other.probes,
        one.probes_failed + other.probes_failed,
        one.probes_sent + other.probes_sent,
        one.took_ms + other.took_ms,
        one.admitted + other.admitted,
        one.ended + other.ended,
        one.probes_void + other.probes_void,
        one.withdrawn + other.withdrawn,
    )


def _tried(totals: Seen) -> int:
    """Give how many probes were sent that may tell something."""
    return totals.probes_sent - totals.probes_void


def _since(before: Seen, now: Seen) -> Seen:
    """Give what came between two sums; each part stays possible even if another worker was writing meanwhile."""
    samples = min(MAX_SEEN_PER_TICK, max(0, now.samples - before.samples))
    probes = min(MAX_SEEN_PER_TICK, max(0, now.probes - before.probes))
    return Seen(
        samples=samples,
        failed=min(samples, max(0, now.failed - before.failed)),
        slow=min(samples, max(0, now.slow - before.slow)),
        probes=probes,
        probes_failed=min(probes, max(0, now.probes_failed - before.probes_failed)),
    )
