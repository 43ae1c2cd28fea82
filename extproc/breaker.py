"""The breaker as a table: closed, open, half-open (docs/reference/breaker.md).

Pure: `advance` takes a state and what was seen since, and gives the next state. Clock, counters and sharing are the
caller's. Only upstream outcomes come in here; a client's bad signature never does.

    from        when                                                         to
    closed      enough evidence, and errors or slowness at their trip level  open, dwell = base · 2^relapses, to a cap
    open        the dwell is over                                            half-open, probes start at zero
    half-open   more probes failed than may                                  open, one relapse more
    half-open   all probes told, few enough failed                           closed, with evidence of its own to gather
    closed      healthy for the whole forgiveness time                       closed, one relapse less
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from extproc.ewma import Ewma

if TYPE_CHECKING:
    from extproc.plan import BreakerPlan


_NOTHING_KNOWN: Final = Ewma()


class Phase(StrEnum):
    """Where the breaker stands. The values go into receipts and metrics."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Seen:
    """What upstream did since the last tick: ordinary outcomes, and those of probes, apart.

    `failed`: no answer, or one of 5xx; `slow`: answered later than the plan's limit, whatever the status. `probes` were
    told of; how many were sent, and how many of these went nowhere (`probes_void`), is for the budget alone. Four are
    for `extproc.crowd_limit`: `took_ms`, the app's time of all ordinary outcomes; every request that was `admitted`,
    every one of these that was `withdrawn` before it went on, and every one that `ended`, whatever its end says.
    """

    samples: int = 0
    failed: int = 0
    slow: int = 0
    probes: int = 0
    probes_failed: int = 0
    probes_sent: int = 0
    took_ms: int = 0
    admitted: int = 0
    ended: int = 0
    probes_void: int = 0
    withdrawn: int = 0


@dataclass(frozen=True, slots=True)
class BreakerState:
    """One breaker at one time. `epoch` counts transitions, so that of two copies the newer one is known.

    `relapses`: openings that are not forgiven yet. `healthy_since_ms`: since when it has been closed and below the
    clear levels without a break; None while it is not.
    """

    phase: Phase = Phase.CLOSED
    epoch: int = 0
    since_ms: int = 0
    dwell_ms: int = 0
    relapses: int = 0
    errors: Ewma = _NOTHING_KNOWN
    slowness: Ewma = _NOTHING_KNOWN
    probes: int = 0
    probes_failed: int = 0
    healthy_since_ms: int | None = None


def advance(state: BreakerState, seen: Seen, now_ms: int, plan: BreakerPlan) -> BreakerState:
    """Give the state after `seen`. At most one transition a call.

    A clock that steps back only makes it wait, for no longer than what it was waiting for takes in all. Raises
    ValueError for counts that contradict each other.
    """
    state = _take_in(state, seen, now_ms, plan)
    match state.phase:
        case Phase.CLOSED:
            return _closed(state, now_ms, plan)
        case Phase.OPEN:
            if now_ms - state.since_ms < state.dwell_ms:
                return state
            return _enter(state, Phase.HALF_OPEN, now_ms)
        case Phase.HALF_OPEN:
            return _half_open(state, now_ms, plan)


def _take_in(state: BreakerState, seen: Seen, now_ms: int, plan: BreakerPlan) -> BreakerState:
    if not 0 <= seen.probes_failed <= seen.probes:
        raise ValueError("more probes failed than were told")
    constant_ms, gain = plan.time_constant_ms, plan.max_gain
    healthy_since_ms = state.healthy_since_ms
    state = replace(
        state,
        since_ms=min(state.since_ms, now_ms),
        healthy_since_ms=None if healthy_since_ms is None else min(healthy_since_ms, now_ms),
        errors=state.errors.after(seen.samples, seen.failed, now_ms, time_constant_ms=constant_ms, max_gain=gain),
        slowness=state.slowness.after(seen.samples, seen.slow, now_ms, time_constant_ms=constant_ms, max_gain=gain),
    )
    if state.phase is Phase.HALF_OPEN:
        return replace(state, probes=state.probes + seen.probes, probes_failed=state.probes_failed + seen.probes_failed)
    return state


def _closed(state: BreakerState, now_ms: int, plan: BreakerPlan) -> BreakerState:
    if trips(state.errors, state.slowness, now_ms, plan):
        return trip(state, now_ms, plan)
    if state.errors.mean > plan.clear_errors or state.slowness.mean > plan.clear_slowness:
        return replace(state, healthy_since_ms=None)
    if state.healthy_since_ms is None:
        return replace(state, healthy_since_ms=now_ms)
    if state.relapses and now_ms - state.healthy_since_ms >= plan.forgive_after_ms:
        return replace(state, relapses=state.relapses - 1, healthy_since_ms=now_ms)
    return state


def _half_open(state: BreakerState, now_ms: int, plan: BreakerPlan) -> BreakerState:
    if state.probes_failed > plan.probes_may_fail:
        return trip(state, now_ms, plan)
    if state.probes >= plan.probes_needed:
        # What was seen while it was open speaks of a time that is over.
        return replace(
            _enter(state, Phase.CLOSED, now_ms), errors=_NOTHING_KNOWN, slowness=_NOTHING_KNOWN, healthy_since_ms=now_ms
        )
    return state


def has_evidence(errors: Ewma, now_ms: int, plan: BreakerPlan) -> bool:
    """Tell whether enough samples still count to judge by."""
    return errors.weight_at(now_ms, time_constant_ms=plan.time_constant_ms) >= plan.min_samples


def trips(errors: Ewma, slowness: Ewma, now_ms: int, plan: BreakerPlan) -> bool:
    """Tell whether evidence opens a closed breaker: by the mean, and by the share of all samples that still count.

    The mean is one of ticks: without the share a tick of one outcome would weigh as much as one of a thousand.
    """
    return has_evidence(errors, now_ms, plan) and (
        min(errors.mean, errors.pooled) >= plan.trip_errors or min(slowness.mean, slowness.pooled) >= plan.trip_slowness
    )


def trip(state: BreakerState, now_ms: int, plan: BreakerPlan, *, least_dwell_ms: int = 0) -> BreakerState:
    """Open the breaker (docs/reference/breaker.md §3). `least_dwell_ms`: as long at least, to the plan's cap (§9)."""
    # 2^relapses would grow without end; past the cap its value does not matter.
    dwell_ms = min(plan.max_dwell_ms, max(least_dwell_ms, plan.base_dwell_ms << min(state.relapses, 32)))
    return replace(_enter(state, Phase.OPEN, now_ms), dwell_ms=dwell_ms, relapses=state.relapses + 1)


def _enter(state: BreakerState, phase: Phase, now_ms: int) -> BreakerState:
    return replace(
        state,
        phase=phase,
        epoch=state.epoch + 1,
        since_ms=now_ms,
        probes=0,
        probes_failed=0,
        healthy_since_ms=None,
    )


def newer(mine: BreakerState, theirs: BreakerState) -> BreakerState:
    """Choose between two copies of one breaker: the one with more transitions; of equals the more careful one."""
    rank = {Phase.CLOSED: 0, Phase.HALF_OPEN: 1, Phase.OPEN: 2}
    if (theirs.epoch, rank[theirs.phase]) > (mine.epoch, rank[mine.phase]):
        return theirs
    return mine
