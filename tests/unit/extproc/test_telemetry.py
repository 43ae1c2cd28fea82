"""A worker's metrics: what is counted, under which labels, at which price in series."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from extproc.telemetry import CHECK_BUCKETS_S, Telemetry
from pch.reasons import Reason


def test_decisions_are_counted_by_route_and_reason() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    for _ in range(3):
        telemetry.decided("protected", Reason.ALLOWED)
    telemetry.decided("protected", Reason.NONCE_REPLAY)
    telemetry.decided(None, Reason.NO_ROUTE)

    def count(route: str, reason: Reason) -> float | None:
        return registry.get_sample_value("signet_decisions_total", {"route": route, "reason": str(reason)})

    assert count("protected", Reason.ALLOWED) == 3
    assert count("protected", Reason.NONCE_REPLAY) == 1
    assert count("", Reason.NO_ROUTE) == 1
    assert count("protected", Reason.NO_ROUTE) is None


def test_every_metric_is_exposed_with_its_name() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    telemetry.check_seconds.observe(0.003)
    telemetry.refusals_summarised.inc(7)
    telemetry.undecodable.inc()
    telemetry.reloads.labels("loaded").inc()
    telemetry.problems.set(2)
    telemetry.keys.set(5)
    text = generate_latest(registry).decode()
    for line in (
        'signet_check_seconds_bucket{le="0.002"} 0.0',
        'signet_check_seconds_bucket{le="0.004"} 1.0',
        "signet_refusals_summarised_total 7.0",
        "signet_undecodable_checks_total 1.0",
        'signet_config_reloads_total{outcome="loaded"} 1.0',
        "signet_problems 2.0",
        "signet_keyring_keys 5.0",
    ):
        assert line in text.splitlines()


def test_each_decision_is_an_exchange_and_either_let_on_or_denied() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    decided = [Reason.ALLOWED, Reason.BODY_PENDING, Reason.UNGUARDED, Reason.EVIDENCE_KEPT]
    decided += [Reason.NONCE_REPLAY, Reason.NONCE_REPLAY, Reason.INTERNAL]
    for route in ("a", "b", None):
        for reason in decided:
            telemetry.decided(route, reason)

    def count(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert count("signet_exchanges_total") == 21
    assert count("signet_forward_total") == 9
    assert count("signet_denied_total", reason=str(Reason.NONCE_REPLAY)) == 6
    assert count("signet_denied_total", reason=str(Reason.INTERNAL)) == 3
    for reason in (Reason.ALLOWED, Reason.UNGUARDED, Reason.EVIDENCE_KEPT):
        assert count("signet_denied_total", reason=str(reason)) is None


def test_proofs_are_counted_by_algorithm_and_fallbacks_apart() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    telemetry.proved(["ed25519"], fell_back=False)
    telemetry.proved(["ed25519", "ml-dsa-65"], fell_back=False)
    assert registry.get_sample_value("signet_fallback_used_total") == 0
    telemetry.proved(["ed25519"], fell_back=True)
    for algorithm, expected in (("ed25519", 2), ("ed25519+ml-dsa-65", 1)):
        assert registry.get_sample_value("signet_proofs_total", {"algorithm": algorithm}) == expected
    assert registry.get_sample_value("signet_fallback_used_total") == 1


def test_buckets_rise_and_tell_the_promised_latency_apart() -> None:
    assert list(CHECK_BUCKETS_S) == sorted(set(CHECK_BUCKETS_S))
    assert CHECK_BUCKETS_S[0] <= 0.0005
    assert CHECK_BUCKETS_S[-1] >= 2.0, "the time after which Envoy gives up"
