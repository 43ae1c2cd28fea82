"""Metrics of outcomes in one worker; see `extproc.telemetry` for how they are merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from extproc.outcome import Skipped

DELAY_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class OutcomeTelemetry:
    """Count what comes in on the access log and what becomes of it. Owned by one event loop.

    Every entry received is in the end written, a duplicate, dropped or unmatched.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.received = Counter("signet_outcomes_received", "Access log entries from the edge.", registry=registry)
        self.written = Counter("signet_outcomes_written", "Outcome receipts written.", registry=registry)
        self.duplicates = Counter(
            "signet_outcomes_duplicate", "Outcomes that had their receipt already.", registry=registry
        )
        self._dropped = Counter(
            "signet_outcomes_dropped", "Outcomes lost in the worker, by cause.", ("cause",), registry=registry
        )
        self._unmatched = Counter(
            "signet_outcomes_unmatched", "Entries that are no allowed request's end.", ("cause",), registry=registry
        )
        self.refused_streams = Counter(
            "signet_outcome_streams_refused", "Access log streams that are not for outcomes.", registry=registry
        )
        self.pending = Gauge(
            "signet_outcomes_pending",
            "Outcomes that wait to be written.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.delay_seconds = Histogram(
            "signet_outcome_delay_seconds",
            "Time from the end of a request to its durable outcome.",
            buckets=DELAY_BUCKETS_S,
            registry=registry,
        )
        self.malformed = self._unmatched.labels("malformed")
        self.unknown = self._unmatched.labels("unknown_decision")

    def dropped(self, cause: str, count: int) -> None:
        """Count outcomes that get no receipt although they should. `cause`: one of a few words."""
        self._dropped.labels(cause).inc(count)

    def skipped(self, why: Skipped) -> None:
        """Count an entry that is no outcome."""
        self._unmatched.labels(str(why)).inc()
