"""Every metric of the service, registered once (OBSERVABILITY.md §1, CONCURRENCY.md §9, SECURITY.md, RUNBOOK.md).

One `Telemetry` belongs to one process. Callers look a child up once and keep it: `labels()` costs more than `inc`.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kms.metric_aliases import AliasCollector

SIGN_ED25519_BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)
SIGN_ML_DSA_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
# One histogram has one set of buckets: the union of what the documents ask for by algorithm.
LATENCY_BUCKETS_S: Final = tuple(sorted({*SIGN_ED25519_BUCKETS_S, *SIGN_ML_DSA_BUCKETS_S, 0.2, 0.5, 1.0, 2.0, 5.0}))
# Series that are there from the start: an alert on an increase does not see a series' first event.
REASONS: Final = (
    *("unauth", "backpressure", "decompress_cap", "ratio_cap", "pq_policy", "attest_missing", "store_unavailable"),
    *("bad_request", "clock_skew", "timeout"),
)
QUEUES: Final = ("sign", "verify", "audit")
SESSION_STATES: Final = ("connected", "connecting", "error")
ATTEST_RESULTS: Final = ("ok", "err", "missing")


class Telemetry:
    """The metrics by the names that the documents and their alerts use; labels come from fixed sets or hashes."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._register_service()
        self._register_operations()
        self._register_audit_and_backends()
        self._register_queues_and_tasks()
        self._register_policy_and_keys()
        self.registry.register(AliasCollector(self))
        self._begin_series()

    def begin_backend(self, name: str) -> None:
        """Begin the series of a backend that the service runs with."""
        for state in SESSION_STATES:
            self.backend_sessions.labels(name, state)
        for result in ATTEST_RESULTS:
            self.attest.labels(name, result)
        self.backend_reconnects.labels(name)

    def _begin_series(self) -> None:
        for reason in REASONS:
            self.rejected.labels(reason)
            self.reject.labels(reason)
        for queue in QUEUES:
            self.busy_rejections.labels(queue)
            self.queue_dropped.labels(queue)
            self.queue_depth.labels(queue)
        for dropped in ("non_checkpoint", "other"):
            self.audit_dropped.labels(dropped)
        for result in ("ok", "error"):
            self.audit_appends.labels(result)
            self.audit_checkpoints.labels(result)
        for op in ("sign", "attest", "checkpoint"):
            self.io_timeouts.labels(op)
        for op in ("reconnect", "bus"):
            self.backoff_retries.labels(op)
        for kind in ("request", "keeper"):
            for counter in (self.tasks_spawned, self.tasks_aborted, self.tasks_canceled):
                counter.labels(kind)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=LATENCY_BUCKETS_S)

    def _register_service(self) -> None:
        self.http_requests = self._counter("http_requests_total", "Requests answered", "route", "method", "status")
        self.request_latency = self._histogram("request_latency_seconds", "Whole request", "route", "method")
        self.inflight_requests = self._gauge("inflight_requests", "Requests in flight", "route")
        self.rejected = self._counter("rejected_total", "Requests refused", "reason")
        self.service_restarts = self._counter("service_restarts_total", "Restarts of the serving process")
        self.bus_lagged = self._counter("bus_lagged_total", "Events that a slow bus made us drop")
        # As a Kubernetes probe would tell it; where nobody probes, this is what the alerts read.
        self.ready = self._gauge("kube_probe_ready", "1 while /readyz answers 200")
        self.auth_failures = self._counter("auth_failures_total", "Capabilities that did not verify")
        self.tls_handshake_failures = self._counter("tls_handshake_failures_total", "TLS handshakes that failed")

    def _register_operations(self) -> None:
        self.ops = self._counter("kms_ops_total", "Operations", "op", "alg", "result")
        self.latency = self._histogram("kms_latency_seconds", "Operations", "op", "alg")
        self.reject = self._counter("kms_reject_total", "Operations refused", "reason")
        self.verify_cache_age = self._gauge("kms_verify_cache_age_ms", "Age of the public keys used in an outage")
        self.verify_cache_hits = self._counter("kms_verify_cache_hits_total", "Verify cache", "hit")
        self.verify_cache_expired = self._counter("verify_cache_expired_total", "Verify past the soft TTL")
        self.verify_cache_ttl = self._gauge("kms_config_verify_cache_ttl_ms", "The soft TTL in force")
        self.verify_cache_size = self._gauge("verify_cache_size", "Public keys held")

    def _register_audit_and_backends(self) -> None:
        self.audit_appends = self._counter("kms_audit_appends_total", "Audit appends", "result")
        self.audit_checkpoints = self._counter("kms_audit_checkpoint_total", "Audit checkpoints", "result")
        self.audit_integrity_failed = self._counter("kms_audit_integrity_failed_total", "Audit log not as it was left")
        self.audit_queue_depth = self._gauge("kms_audit_queue_depth", "Audit events that wait")
        self.audit_dropped = self._counter("kms_audit_dropped_total", "Always 0: nothing is dropped", "kind")
        self.attest = self._counter("kms_attest_total", "Attestations", "backend", "result")
        self.backend_sessions = self._gauge("kms_backend_sessions", "Sessions by state", "backend", "state")
        self.backend_reconnects = self._counter("kms_backend_reconnects_total", "Reconnections", "backend")

    def _register_queues_and_tasks(self) -> None:
        self.queue_depth = self._gauge("queue_depth", "Items that wait", "queue")
        self.queue_dropped = self._counter("queue_dropped_total", "Always 0: a full queue refuses", "queue")
        self.busy_rejections = self._counter("busy_rejections_total", "Requests refused by a full queue", "queue")
        self.tasks_spawned = self._counter("tasks_spawned_total", "Tasks started", "kind")
        self.tasks_aborted = self._counter("tasks_aborted_total", "Tasks aborted at the drain's deadline", "kind")
        self.tasks_canceled = self._counter("tasks_canceled_total", "Tasks cancelled", "kind")
        self.io_timeouts = self._counter("io_timeouts_total", "Deadlines missed", "op")
        self.backoff_retries = self._counter("backoff_retries_total", "Attempts after a pause that grows", "op")

    def _register_policy_and_keys(self) -> None:
        self.pq_mode = self._gauge("kms_pq_mode", "1 for the mode in force", "mode")
        self.pq_rollout_percent = self._gauge("kms_pq_rollout_percent", "Share of tenants in the PQ rollout")
        self.keys = self._gauge("kms_keys_total", "Keys", "tenant", "purpose", "alg")
        self.key_version_head = self._gauge("kms_key_version_head", "Newest version by kid hash", "kid")
