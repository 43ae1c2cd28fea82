"""Metrics of one worker; children are looked up once, so that a request costs a counter increment.

With PROMETHEUS_MULTIPROC_DIR set (the supervisor sets it for its workers) the values live in files there, and the admin
process merges those of all workers. Labels only ever come from the configuration and from reason codes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

from extproc.decision import ALLOWING
from pch.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

CHECK_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0)


def keep_values_as(index: int) -> None:
    """Keep the values of this process in files named for worker `index`, not for its process id.

    A worker that starts again goes on where the last one stopped, and there are never more files than workers: by
    process id each restart would leave some for ever. Before any metric is made; without effect outside a supervisor.
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        values.ValueClass = values.MultiProcessValue(lambda: index)  # type: ignore[no-untyped-call]


class Telemetry:
    """Count and time what the worker does. Owned by one event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Counter(
            "signet_decisions", "Decisions by route and reason.", ("route", "reason"), registry=registry
        )
        self._children: dict[tuple[str | None, Reason], tuple[Counter, ...]] = {}
        self._exchanges = Counter("signet_exchanges", "Requests decided.", registry=registry)
        self._denied = Counter("signet_denied", "Requests refused, by reason.", ("reason",), registry=registry)
        self._forward = Counter(
            "signet_forward", "Requests let on; the body of one may still be refused.", registry=registry
        )
        self._proofs = Counter(
            "signet_proofs", "Requests whose proof verified, by algorithm.", ("algorithm",), registry=registry
        )
        self._proof_children: dict[tuple[str, ...], Counter] = {}
        self._fallback_used = Counter(
            "signet_fallback_used", "Hybrid proofs of which the classical half was enough.", registry=registry
        )
        self.challenges = Counter("signet_challenges_issued", "Challenges issued.", registry=registry)
        self.in_flight = Gauge(
            "signet_inflight_requests", "Requests being decided.", registry=registry, multiprocess_mode="livesum"
        )
        self.receipt_seconds = Histogram(
            "signet_receipt_seconds",
            "Time from a decision to its durable receipt.",
            buckets=CHECK_BUCKETS_S,
            registry=registry,
        )
        self.check_seconds = Histogram(
            "signet_check_seconds", "Time from Check to answer.", buckets=CHECK_BUCKETS_S, registry=registry
        )
        self.refusals_summarised = Counter(
            "signet_refusals_summarised", "Refusals counted in summary receipts.", registry=registry
        )
        self.undecodable = Counter(
            "signet_undecodable_checks", "Checks from the edge that could not be decoded.", registry=registry
        )
        self.reloads = Counter(
            "signet_config_reloads", "Configuration reloads by outcome.", ("outcome",), registry=registry
        )
        # Series that are there from the start: an alert on an increase does not see the first event of a new one.
        for outcome in ("loaded", "refused"):
            self.reloads.labels(outcome)
        self.problems = Gauge(
            "signet_problems",
            "Parts of the worker that are not well.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.log_forks = Counter(
            "signet_log_forks", "Checkpoints that our log signed and that contradict it.", registry=registry
        )
        self.keys = Gauge("signet_keyring_keys", "Registered keys.", registry=registry, multiprocess_mode="livemax")

    def decided(self, route: str | None, reason: Reason) -> None:
        """Count one decision. `route`: its name from the configuration, None when none matched."""
        children = self._children.get((route, reason))
        if children is None:
            children = self._children[(route, reason)] = self._counters_of(route, reason)
        for child in children:
            child.inc()

    def proved(self, algorithms: Sequence[str], *, fell_back: bool) -> None:
        """Count one verified proof. `algorithms`: of its signatures, each one that the route's configuration names."""
        key = tuple(algorithms)
        child = self._proof_children.get(key)
        if child is None:
            child = self._proof_children[key] = self._proofs.labels("+".join(key))
        child.inc()
        if fell_back:
            self._fallback_used.inc()

    def _counters_of(self, route: str | None, reason: Reason) -> tuple[Counter, ...]:
        counters = (self._exchanges, self._decisions.labels(route or "", str(reason)))
        if reason in ALLOWING:
            return (*counters, self._forward)
        if reason is Reason.EVIDENCE_KEPT:
            return counters
        return (*counters, self._denied.labels(str(reason)))
