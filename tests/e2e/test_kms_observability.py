"""What a running key service shows of itself: metrics, events, spans, logs (OBSERVABILITY.md, INTEROP.md §3)."""

import base64
import contextlib
import json
import re
import time
import uuid

import pytest
import redis

from kms.telemetry import Telemetry
from tests.support.kms_service import DIGEST, KmsProcess
from tests.support.redis_server import redis_server

MEMORY = {"BACKEND": "inmem", "AMNESIA": "1"}
# Every name that a document or an alert has for a metric; governance's come with governance.
NAMED = (
    "http_requests_total",
    "request_latency_seconds",
    "inflight_requests",
    "rejected_total",
    "service_restarts_total",
    "bus_lagged_total",
    "kms_ops_total",
    "kms_latency_seconds",
    "kms_reject_total",
    "kms_audit_appends_total",
    "kms_audit_checkpoint_total",
    "kms_audit_integrity_failed_total",
    "kms_audit_queue_depth",
    "kms_audit_dropped_total",
    "kms_attest_total",
    "kms_backend_sessions",
    "kms_backend_reconnects_total",
    "kms_pq_mode",
    "kms_pq_rollout_percent",
    "kms_verify_cache_age_ms",
    "kms_verify_cache_hits_total",
    "kms_config_verify_cache_ttl_ms",
    "queue_depth",
    "queue_dropped_total",
    "busy_rejections_total",
    "kms_keys_total",
    "kms_key_version_head",
    "tasks_spawned_total",
    "tasks_aborted_total",
    "tasks_canceled_total",
    "io_timeouts_total",
    "backoff_retries_total",
    "verify_cache_age_ms",
    "verify_cache_hit_total",
    "verify_cache_miss_total",
    "verify_cache_stale_total",
    "verify_cache_size",
    "verify_cache_stale_max_ms",
    "verify_cache_ttl_ms",
    "verify_cache_expired_total",
    "backend_reconnects_total",
    "tls_handshake_failures_total",
    "auth_failures_total",
    "kube_probe_ready",
)
TOPICS = {
    "kms.health": {"service", "ok"},
    "kms.ready": {"ready", "missing", "degraded"},
    "kms.audit.checkpoint": {"head", "index", "ok"},
    "kms.attestation.status": {"backend", "class", "ok"},
    "kms.config.updated": {"version"},
    "kms.policy.hint": {"pq_mode", "rollout_percent"},
}
PLAINTEXT = base64.b64encode(b"a key that nobody may see 123456").decode()


def smoke(service, **headers):
    """Drive every kind of operation once, and some refusals; give what must be seen nowhere."""
    token, kid = service.token(), service.create()
    rest = {"token": token, **headers}
    signed = service.ask("POST", "/v1/kms/sign", {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}, **rest)
    assert signed.status == 200, signed.body
    body = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST, "sigs": signed.json["sigs"]}
    for _ in range(2):
        assert service.ask("POST", "/v1/kms/verify", body, **rest).json["ok"] is True
    wrapping = service.create("x25519", "kem")
    wrapped = service.ask("POST", "/v1/kms/wrap", {"kid": wrapping, "plaintext_key_b64": PLAINTEXT}, **rest).json
    opened = service.ask("POST", "/v1/kms/unwrap", {"kid": wrapping, "wrapped_b64": wrapped["wrapped_b64"]}, **rest)
    assert opened.json["plaintext_key_b64"] == PLAINTEXT
    assert service.ask("POST", f"/v1/kms/keys/{kid.partition('#')[0]}/rotate", {}, **rest).status == 200
    assert service.ask("POST", "/v1/kms/sign", body, token=None).status == 401
    assert service.ask("POST", "/v1/kms/sign", {"payload": "raw secret payload"}, **rest).status == 400
    passphrase = (service.folder / "passphrase").read_text()
    return [token, PLAINTEXT, "raw secret payload", passphrase, wrapped["wrapped_b64"], kid.partition("#")[0], wrapping]


def test_every_metric_that_a_document_names_is_there_after_a_smoke_scenario(kms):
    service = kms()
    smoke(service)
    text = service.ask("GET", "/metrics", token=None, role="metrics").body.decode()
    series = set(re.findall(r"^(\w+?)(?:_bucket|_sum|_count)?(?:\{.*\})? [0-9.e+-]+$", text, re.MULTILINE))
    assert [name for name in NAMED if name not in series] == []
    registered = {sample.removesuffix("_total") for sample in NAMED}
    families = {family.name.removesuffix("_total") for family in Telemetry().registry.collect()}
    assert families == registered, "a metric no document names"
    for line in ("kube_probe_ready 1.0", "verify_cache_hit_total 1.0", "verify_cache_miss_total 1.0"):
        assert f"\n{line}\n" in text
    for reason in ("unauth", "backpressure", "pq_policy", "attest_missing", "store_unavailable"):
        assert f'rejected_total{{reason="{reason}"}}' in text
    assert 'kms_backend_sessions{backend="file",state="connected"} 1.0' in text


class Bus:
    """Whoever listens to everything on the bus."""

    def __init__(self, url):
        self.client = redis.Redis.from_url(url)
        self.subscription = self.client.pubsub(ignore_subscribe_messages=True)
        self.subscription.psubscribe("kms.*")
        self.subscription.get_message(timeout=5)
        self.seen = {}

    def wait_for(self, true):
        end_s = time.monotonic() + 15
        while not true(self.seen):
            assert time.monotonic() < end_s, self.seen
            message = self.subscription.get_message(timeout=0.2)
            if message is not None:
                self.seen.setdefault(message["channel"].decode(), []).append(json.loads(message["data"]))

    def close(self):
        self.subscription.close()
        self.client.close()


def test_six_events_are_published_and_two_are_listened_to(tmp_path, kms):
    config = tmp_path / "Config.toml"
    config.write_text("[pq]\nrollout_percent = 10\n")
    with redis_server() as url, contextlib.closing(Bus(url)) as bus:
        service = kms(BUS_REDIS_URL=url, CONFIG=str(config), AUDIT_CHECKPOINT_INTERVAL="1")
        smoke(service)
        wanted = set(TOPICS) - {"kms.attestation.status"}  # sealed files attest nothing
        bus.wait_for(lambda seen: wanted <= seen.keys())
        for topic in wanted:
            assert set(bus.seen[topic][0]) == TOPICS[topic], topic
        assert bus.seen["kms.health"] == [{"service": "ron-kms", "ok": True}]
        assert bus.seen["kms.policy.hint"] == [{"pq_mode": "and", "rollout_percent": 10}]
        config.write_text("[pq]\nrollout_percent = 20\n")
        bus.client.publish("config.updated", "whatever this is")
        bus.wait_for(lambda seen: {"pq_mode": "and", "rollout_percent": 20} in seen["kms.policy.hint"])
        assert [each["version"] for each in bus.seen["kms.config.updated"]] == [1, 2]
        bus.client.publish("kms.health", '{"forged": true}')
        bus.client.publish("bus.shutdown", "")
        bus.wait_for(lambda seen: {"service": "ron-kms", "ok": False, "reason": "draining"} in seen["kms.health"])
        assert service.process.wait(10) == 0
        assert bus.seen["kms.ready"][-1]["missing"] == ["listener_bound"]


def test_without_the_bus_the_service_goes_on_and_events_are_counted_as_lost(kms, tmp_path):
    path = tmp_path.parent / "bus.sock"
    service = kms(**MEMORY, BUS_REDIS_URL=f"unix://{path}", AUDIT_CHECKPOINT_INTERVAL="1")
    smoke(service)
    assert service.ask("GET", "/readyz", token=None, role="metrics").status == 200
    assert service.metric('backoff_retries_total{op="bus"}') >= 1
    began_s = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began_s < 6


def test_a_bus_url_that_is_none_ends_with_a_plain_word_and_without_its_password(tmp_path):
    service = KmsProcess(tmp_path, MEMORY | {"BUS_REDIS_URL": "http://user:hunter2@localhost"})
    with pytest.raises(AssertionError, match="no serving"):
        service.start()
    assert service.stop() == 2
    assert "bus.redis_url" in service.log_file.read_text()
    assert "hunter2" not in service.log_file.read_text()


def spans_of(service, tmp_path):
    """Read what the console exporter printed."""
    text = (tmp_path / "spans").read_text()
    decoder, spans, at = json.JSONDecoder(), [], text.find("{")
    while at >= 0:
        span, end = decoder.raw_decode(text, at)
        spans.append(span)
        at = text.find("{", end)
    return spans


def test_no_log_line_span_event_or_metric_holds_a_secret_an_input_or_a_kid(tmp_path, monkeypatch):
    """I-16, and the span tree with its correlation id, on a real service with a real bus."""
    corr_id = str(uuid.uuid4())
    with redis_server() as url, contextlib.closing(Bus(url)) as bus:
        settings = {"BUS_REDIS_URL": url, "OTEL_EXPORTER": "console", "LOG_LEVEL": "trace", "PQ_PRODUCE_HYBRID": "0"}
        service = SpyProcess(tmp_path, settings).start()
        try:
            secrets = smoke(service, x_corr_id=corr_id)
            bus.wait_for(lambda seen: "kms.audit.checkpoint" in seen)
            metrics = service.ask("GET", "/metrics", token=None, role="metrics").body.decode()
        finally:
            assert service.stop() == 0
        bus.wait_for(lambda seen: len(seen["kms.health"]) == 2)
    shown = {"log": service.log_file.read_text(), "spans": (tmp_path / "spans").read_text()}
    shown |= {"metrics": metrics, "events": json.dumps(bus.seen)}
    for where, text in shown.items():
        assert [each for each in secrets if each in text] == [], where
    spans = {span["context"]["span_id"]: span for span in spans_of(service, tmp_path)}
    names = {span["name"] for span in spans.values()}
    ops = {f"svc.kms.{op}" for op in ("http", "sign", "verify", "wrap", "unwrap", "rotate", "create_key")}
    assert ops | {"svc.kms.audit.append", "svc.kms.audit.checkpoint", "backend.file.sign"} <= names
    backend = next(span for span in spans.values() if span["name"] == "backend.file.sign" and span["parent_id"])
    operation = spans[backend["parent_id"]]
    root = spans[operation["parent_id"]]
    assert (operation["name"], root["name"], root["parent_id"]) == ("svc.kms.sign", "svc.kms.http", None)
    assert [each["attributes"]["corr_id"] for each in (operation, root)] == [corr_id] * 2
    assert {"route", "tenant", "kid_hash", "kid_version", "alg", "pq_mode", "result"} <= set(root["attributes"])
    assert root["resource"]["attributes"]["service.name"] == "ron-kms"
    refused = [span for span in spans.values() if span["attributes"].get("error.kind") == "unauth"]
    assert [span["status"]["status_code"] for span in refused] == ["ERROR"]


class SpyProcess(KmsProcess):
    """A service whose standard output is kept: the console exporter prints there."""

    def start(self):
        import subprocess
        import sys

        with self.log_file.open("ab") as log, (self.folder / "spans").open("wb") as spans:
            command = [sys.executable, "-m", "kms", self.command]
            self.process = subprocess.Popen(command, cwd=self.folder, env=self.environ, stderr=log, stdout=spans)
        self.wait_for("serving")
        return self


def test_an_exporter_that_is_not_installed_is_an_error_of_the_configuration(tmp_path):
    service = KmsProcess(tmp_path, MEMORY | {"OTEL_EXPORTER": "nowhere"})
    with pytest.raises(AssertionError, match="no serving"):
        service.start()
    assert service.stop() == 2
    assert "observability.otel_exporter" in service.log_file.read_text()
