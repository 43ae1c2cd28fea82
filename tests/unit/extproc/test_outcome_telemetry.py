"""Metrics of outcomes: their names are what dashboards and alerts ask for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from extproc.outcome import Skipped
from extproc.outcome_telemetry import DELAY_BUCKETS_S, OutcomeTelemetry


def test_every_metric_is_exposed_with_its_name() -> None:
    registry = CollectorRegistry()
    telemetry = OutcomeTelemetry(registry)
    telemetry.received.inc(9)
    telemetry.written.inc(2)
    telemetry.duplicates.inc()
    telemetry.dropped("queue_full", 3)
    telemetry.skipped(Skipped.UNDECIDED)
    telemetry.malformed.inc()
    telemetry.unknown.inc()
    telemetry.refused_streams.inc()
    telemetry.pending.set(4)
    telemetry.delay_seconds.observe(0.06)
    lines = generate_latest(registry).decode().splitlines()
    for line in (
        "signet_outcomes_received_total 9.0",
        "signet_outcomes_written_total 2.0",
        "signet_outcomes_duplicate_total 1.0",
        'signet_outcomes_dropped_total{cause="queue_full"} 3.0',
        'signet_outcomes_unmatched_total{cause="undecided"} 1.0',
        'signet_outcomes_unmatched_total{cause="malformed"} 1.0',
        'signet_outcomes_unmatched_total{cause="unknown_decision"} 1.0',
        "signet_outcome_streams_refused_total 1.0",
        "signet_outcomes_pending 4.0",
        'signet_outcome_delay_seconds_bucket{le="0.05"} 0.0',
        'signet_outcome_delay_seconds_bucket{le="0.075"} 1.0',
    ):
        assert line in lines


def test_buckets_rise_and_tell_the_promised_second_apart() -> None:
    assert list(DELAY_BUCKETS_S) == sorted(set(DELAY_BUCKETS_S))
    assert 1.0 in DELAY_BUCKETS_S
