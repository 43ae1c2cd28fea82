"""What the plan does with one verified request under stress, and the numbers that led to it.

Pure but for the counters that its parts own: the caller gives the breaker's state and says what happened to probes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from extproc.breaker import BreakerState, Phase
from extproc.priority import Priority

if TYPE_CHECKING:
    from extproc.admission_floor import AdmissionFloor
    from extproc.plan import BreakerPlan


class Action(StrEnum):
    """What is done. The values go into receipts and metrics."""

    ATTEMPT = "attempt"
    RELAX_HEADER_BUDGET = "relax_header_budget"
    FALLBACK_CLASSIC = "fallback_classic"
    THROTTLE = "throttle"
    PROBE = "probe"


@dataclass(frozen=True, slots=True)
class StressAction:
    """The action and what it followed from, as the receipt holds it (shares in thousandths, whole numbers)."""

    action: Action
    phase: Phase
    epoch: int
    errors_permille: int
    slowness_permille: int
    dwell_ms: int
    crowd_limit: int = 0

    @property
    def passes(self) -> bool:
        """Tell whether the request goes on."""
        return self.action is not Action.THROTTLE


def choose(
    state: BreakerState,
    *,
    subject: str,
    now_ms: int,
    floor: AdmissionFloor,
    may_probe: bool,
    may_fall_back: bool,
    relaxing: bool,
    crowd_limit: int | None = None,
    priority: Priority = Priority.NORMAL,
) -> StressAction:
    """Choose for one request of `subject`.

    `may_probe`: the phase's budget has a probe left. `may_fall_back`: policy accepts the classical half of a hybrid
    here. `relaxing`: headers are being trimmed. `crowd_limit`: requests at once that the app of a closed breaker can
    finish in time, when it has them all; then the floor is what passes, as while it is open.
    """
    if state.phase is Phase.CLOSED:
        passes = crowd_limit is None or floor.admit(subject, now_ms, priority)
        action = Action.THROTTLE if not passes else Action.RELAX_HEADER_BUDGET if relaxing else Action.ATTEMPT
    elif state.phase is Phase.HALF_OPEN and may_probe:
        action = Action.PROBE
    elif floor.admit(subject, now_ms, priority):
        action = Action.FALLBACK_CLASSIC if may_fall_back else Action.ATTEMPT
    else:
        action = Action.THROTTLE
    return StressAction(
        action=action,
        phase=state.phase,
        epoch=state.epoch,
        errors_permille=round(state.errors.mean * 1000),
        slowness_permille=round(state.slowness.mean * 1000),
        dwell_ms=state.dwell_ms,
        crowd_limit=crowd_limit or 0,
    )


def is_relaxing(state: BreakerState, plan: BreakerPlan, *, was: bool) -> bool:
    """Tell whether headers are trimmed: on from `relax_slowness`, off again from `unrelax_slowness` (hysteresis)."""
    if state.phase is not Phase.CLOSED or state.slowness.mean >= plan.relax_slowness:
        return True
    return was and state.slowness.mean > plan.unrelax_slowness
