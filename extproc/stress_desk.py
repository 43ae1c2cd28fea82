"""Step 10, second half: admission by subject and by the breaker of the route (docs/reference/breaker.md).

The desk of one worker: quotas and breakers for the rules in force. What it decides goes into the receipt.
"""

from __future__ import annotations

import logging
import secrets
import warnings
from typing import TYPE_CHECKING, Final

from extproc.breaker import Phase
from extproc.breaker_bank import BreakerBank, OwnSignals, Signals
from extproc.breaker_peers import BreakerPeers
from extproc.errors import BreakerOpen
from extproc.priority import Priority
from extproc.quota import Quota
from extproc.signal_board import SignalBoard, SignalBoardError
from extproc.stress_action import Action
from extproc.tenants import TenantBreakers
from policy.evaluator import StressFacts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from extproc.config import FilterConfig
    from extproc.route import Route
    from extproc.stress_action import StressAction
    from policy.evaluator import PolicyVerdict

from prometheus_client import Counter, Gauge

LOG: Final = logging.getLogger("signet.stress")
_PHASE_VALUES: Final = {Phase.CLOSED: 0, Phase.HALF_OPEN: 1, Phase.OPEN: 2}


class StressTelemetry:
    """The metrics of breakers and quotas; labels are route names and fixed words."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.phase = Gauge(
            "signet_breaker_phase",
            "Phase of a route's breaker: 0 closed, 1 half-open, 2 open",
            ["route"],
            registry=registry,
            multiprocess_mode="max",
        )
        self.errors = Gauge(
            "signet_breaker_errors_ratio",
            "Weighted mean of failed outcomes",
            ["route"],
            registry=registry,
            multiprocess_mode="max",
        )
        self.slowness = Gauge(
            "signet_breaker_slowness_ratio",
            "Weighted mean of slow outcomes",
            ["route"],
            registry=registry,
            multiprocess_mode="max",
        )
        self.relaxing = Gauge(
            "signet_breaker_relaxing",
            "1 while clients of a route are asked to trim their headers",
            ["route"],
            registry=registry,
            multiprocess_mode="max",
        )
        self.transitions = Counter(
            "signet_breaker_transitions",
            "Changes of phase that this worker reached or took over",
            ["route", "to"],
            registry=registry,
        )
        self.crowd_limit = Gauge(
            "signet_crowd_limit_requests",
            "Requests that may be with the app at once; 0 without a limit",
            ["route"],
            registry=registry,
            multiprocess_mode="max",
        )
        self.actions = Counter(
            "signet_plan_actions", "What the plan did with verified requests", ["route", "action"], registry=registry
        )
        self.quota_refusals = Counter(
            "signet_quota_refusals", "Requests over their subject's quota", ["route"], registry=registry
        )
        self.share_up = Gauge(
            "signet_breaker_share_up",
            "1 while breakers are shared with other instances, 0 while this one goes on alone",
            registry=registry,
            multiprocess_mode="max",
        )
        self.share_peers = Gauge(
            "signet_breaker_share_peers",
            "Other instances that were heard in the last round",
            registry=registry,
            multiprocess_mode="max",
        )
        self.share_refused = Counter(
            "signet_breaker_share_refused", "Words of other instances that were not understood", registry=registry
        )

    def forget(self, route: str) -> None:
        """Take back what the gauges say of a route that is no longer there."""
        for gauge in (self.phase, self.errors, self.slowness, self.relaxing, self.crowd_limit):
            # The file that workers' values are merged from keeps a removed label set: it says nothing is the matter.
            gauge.labels(route).set(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                gauge.remove(route)


class StressDesk:
    """Owned by one event loop. `index`: this worker's, of `config.filter.workers`, for the board that they share.

    `now_ms`: a clock that never steps back, the same in all processes of one boot; nothing here is the time of day.
    """

    def __init__(
        self,
        config: FilterConfig,
        telemetry: StressTelemetry,
        *,
        index: int,
        now_ms: Callable[[], int],
        random_below: Callable[[int], int],
    ) -> None:
        self._telemetry, self._index, self._now_ms, self._random_below = telemetry, index, now_ms, random_below
        self._board: SignalBoard | None = None
        self._names: list[str] = []
        self.peers: BreakerPeers | None = None
        self.load(config)

    def load(self, config: FilterConfig) -> None:
        """Take over the routes and the plan of `config`, or raise and change nothing.

        Breakers start closed and hear of the others at once.
        """
        guarded = [route for route in config.routes if route.guarded]
        workers, plan = config.filter.workers, config.plan.breaker
        quotas = {
            route.name: Quota(route.quota_per_s / workers, max(1, route.quota_burst // workers))
            for route in guarded
            if route.quota_per_s
        }
        breakers = TenantBreakers(guarded)
        names = breakers.names
        board = self._open_board(config.filter.socket_dir, names, workers) if names and workers > 1 else None
        signals: Signals = board or OwnSignals(len(names))
        # One worker listens for all: the others take its state over from the board.
        shared = bool(names) and self._index == 0 and config.filter.breaker_share == "redis"
        peers = BreakerPeers(plan, config.filter.realm, names, secrets.token_hex) if shared else None
        bank = BreakerBank(plan, names, signals, now_ms=self._now_ms(), peers=peers)
        old_board, old_names = self._board, self._names
        self._plan, self._quotas, self._names, self._breakers = plan, quotas, names, breakers
        self._board, self.peers, self._bank = board, peers, bank
        if old_board is not None:
            old_board.close()
        for name in set(old_names) - set(names):
            self._telemetry.forget(name)

    def _open_board(self, folder: Path, names: list[str], workers: int) -> SignalBoard | None:
        try:
            return SignalBoard(folder, names, self._index, workers)
        except SignalBoardError as error:
            LOG.error("breakers hear only what this worker hears: %s", error)
            return None

    def phase(self, route: str, subject: str = "") -> Phase:
        """Give the phase of the breaker that requests of `subject` meet on a route."""
        return self._bank.state(self._breakers.of(route, subject)).phase

    def may_fall_back(self, route: Route) -> bool:
        """Tell whether the classical half of a hybrid may be enough now, for some tenant; policy has the last word."""
        if not route.fallback_classic:
            return False
        return any(self._bank.state(name).phase is not Phase.CLOSED for name in self._breakers.all_of(route.name))

    def is_relaxing(self, route: Route) -> bool:
        """Tell whether clients are to trim their headers now (the actuator; PCH §6): for any tenant, none is known."""
        return any(self._bank.is_relaxing(name) for name in self._breakers.all_of(route.name))

    def admit(
        self,
        route: Route,
        subject: str,
        verdict: PolicyVerdict,
        *,
        fell_back: bool,
        ends_soon: bool = True,
        priority: Priority = Priority.NORMAL,
    ) -> StressFacts:
        """Admit one verified request that policy allows, and say what was done.

        `ends_soon`: nothing of it is still to come, so it may be a probe. Raises QuotaExceeded; BreakerOpen, whose
        `facts` say why.
        """
        now_ms = self._now_ms()
        quota = self._quotas.get(route.name)
        if quota is not None:
            try:
                quota.take(subject, now_ms)
            except Exception:
                self._telemetry.quota_refusals.labels(route.name).inc()
                raise
        done = self._bank.choose(
            self._breakers.of(route.name, subject),
            subject,
            now_ms,
            floor_share=verdict.floor_share,
            may_fall_back=fell_back,
            ends_soon=ends_soon,
            priority=priority,
        )
        self._telemetry.actions.labels(route.name, done.action).inc()
        if not done.passes:
            retry_after_s = self._plan.retry_after_s + self._random_below(self._plan.retry_jitter_s + 1)
            raise BreakerOpen("the app is not well, or has all that it can finish", _facts(done), retry_after_s)
        return _facts(done)

    def withdrawn(self, route: str, stress: StressFacts, subject: str) -> None:
        """Hear that a request of `subject` that was admitted with `stress` goes nowhere: refused later, or given up."""
        probe_epoch = stress.epoch if stress.action == Action.PROBE else None
        self._bank.withdrawn(self._breakers.of(route, subject), probe_epoch=probe_epoch, subject=subject)

    def ended(
        self,
        route: str,
        status: int | None,
        app_us: int | None,
        flags: tuple[str, ...],
        *,
        probe_epoch: int | None,
        subject: str = "",
    ) -> None:
        """Hear of one allowed request's end (`extproc.outcome_recorder.OutcomeObserver`)."""
        name = self._breakers.of(route, subject)
        self._bank.ended(name, status, app_us, flags, probe_epoch=probe_epoch, subject=subject)

    def tick(self) -> None:
        """Move the breakers on; called every `extproc.breaker_bank.TICK_S`."""
        before = [self._bank.state(name).phase for name in self._names]
        self._bank.tick(self._now_ms())
        for name, phase in zip(self._names, before, strict=True):
            state = self._bank.state(name)
            self._telemetry.phase.labels(name).set(_PHASE_VALUES[state.phase])
            self._telemetry.errors.labels(name).set(state.errors.mean)
            self._telemetry.slowness.labels(name).set(state.slowness.mean)
            self._telemetry.crowd_limit.labels(name).set(self._bank.crowd_limit(name) or 0)
            self._telemetry.relaxing.labels(name).set(int(self._bank.is_relaxing(name)))
            if state.phase is not phase:
                self._telemetry.transitions.labels(name, state.phase).inc()


def _facts(done: StressAction) -> StressFacts:
    return StressFacts(
        action=str(Action(done.action)),
        epoch=done.epoch,
        errors_permille=done.errors_permille,
        slowness_permille=done.slowness_permille,
        dwell_ms=done.dwell_ms,
        crowd_limit=done.crowd_limit,
    )
