"""Every key of the configuration: where it is set from, and whether a reload may change it (CONFIG.md §3, §5, §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ENV_PREFIX: Final = "RON_KMS_"


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `path`: its dotted place in a file; `flag`: without its dashes, "" where there is none."""

    path: str
    env: str
    flag: str = ""
    aliases: tuple[str, ...] = ()
    reloads: bool = False
    switch: bool = False  # the flag takes no value and means true

    @property
    def steps(self) -> tuple[str, ...]:
        """Give the section names and the key's own."""
        return tuple(self.path.split("."))


def _key(path: str, env: str, flag: str = "", *aliases: str, reloads: bool = False, switch: bool = False) -> Key:
    return Key(path, ENV_PREFIX + env, flag, aliases, reloads, switch)


KEYS: Final[tuple[Key, ...]] = (
    _key("bind_addr", "BIND_ADDR", "bind", "KMS_BIND", "KMS_API_ADDR"),
    _key("grpc_addr", "GRPC_ADDR", "grpc", "KMS_GRPC_ADDR"),
    _key("metrics_addr", "METRICS_ADDR", "metrics", "KMS_METRICS_ADDR"),
    _key("max_conns", "MAX_CONNS", "max-conns", reloads=True),
    _key("read_timeout", "READ_TIMEOUT", "read-timeout", reloads=True),
    _key("write_timeout", "WRITE_TIMEOUT", "write-timeout", reloads=True),
    _key("idle_timeout", "IDLE_TIMEOUT", "idle-timeout", reloads=True),
    _key("tls.enabled", "TLS_ENABLED"),
    _key("tls.cert_path", "TLS_CERT_PATH"),
    _key("tls.key_path", "TLS_KEY_PATH"),
    _key("tls.client_ca_path", "TLS_CLIENT_CA_PATH"),
    _key("unix.path", "UNIX_PATH", "unix-path"),
    _key("unix.allowed_uids", "UNIX_ALLOWED_UIDS", "unix-allowed-uids", reloads=True),
    _key("limits.max_body_bytes", "MAX_BODY_BYTES", "", "KMS_MAX_PAYLOAD", reloads=True),
    _key("limits.decompress_ratio_cap", "DECOMPRESS_RATIO_CAP", reloads=True),
    _key("limits.max_inflight_sign", "MAX_INFLIGHT_SIGN", "", "KMS_MAX_INFLIGHT_SIGN", reloads=True),
    _key("limits.max_inflight_verify", "MAX_INFLIGHT_VERIFY", "", "KMS_MAX_INFLIGHT_VERIFY", reloads=True),
    _key("limits.tenant_share_min", "TENANT_SHARE_MIN", "", "KMS_TENANT_SHARE_MIN", reloads=True),
    _key("limits.verify_cache_max", "VERIFY_CACHE_MAX", "", "KMS_VERIFY_CACHE_MAX", reloads=True),
    _key("service.backend", "BACKEND", "backend", "KMS_BACKEND"),
    _key("service.amnesia", "AMNESIA", "amnesia", "KMS_AMNESIA", switch=True),
    _key("service.allowed_algs", "ALLOWED_ALGS", "allowed-algs", "KMS_ALLOWED_ALGS"),
    _key("service.allow_sign_fallback", "ALLOW_SIGN_FALLBACK", "allow-sign-fallback", switch=True),
    _key("service.multi_backends", "MULTI_BACKENDS", "multi-backends"),
    _key("service.state_dir", "STATE_DIR", "state-dir"),
    _key("service.worker_threads", "WORKER_THREADS"),
    _key("security.attest_require", "ATTEST_REQUIRE", "attest", "KMS_ATTEST_REQUIRE"),
    _key("security.sign_rate_limit_rps", "SIGN_RATE_LIMIT", "", "KMS_SIGN_RATE_LIMIT", reloads=True),
    _key("security.time_skew_tolerance_ms", "TIME_SKEW_TOLERANCE_MS", "", "KMS_TIME_SKEW_TOLERANCE_MS", reloads=True),
    _key("security.root_key_file", "ROOT_KEY_FILE"),
    _key("security.revocations_file", "REVOCATIONS_FILE"),
    _key("security.verify_with_read", "VERIFY_WITH_READ"),
    _key("entropy_time.rng_reseed_interval_ops", "RNG_RESEED_INTERVAL_OPS", "", "KMS_RNG_RESEED_INTERVAL_OPS"),
    _key(
        "pq.produce_hybrid",
        "PQ_PRODUCE_HYBRID",
        "pq-produce-hybrid",
        "KMS_PQ_PRODUCE_HYBRID",
        reloads=True,
        switch=True,
    ),
    _key("pq.verify_mode", "PQ_VERIFY_MODE", "pq-verify", "KMS_PQ_VERIFY_MODE", reloads=True),
    _key("pq.rollout_percent", "PQ_ROLLOUT_PERCENT", "pq-rollout", "KMS_PQ_ROLLOUT_PERCENT", reloads=True),
    _key("audit.dir", "AUDIT_DIR", "audit-dir"),
    _key("audit.checkpoint_interval_ops", "AUDIT_CHECKPOINT_INTERVAL", "audit-checkpoint-ops"),
    _key("audit.sealing", "AUDIT_SEALING", "audit-sealing"),
    _key(
        "audit.verify_cache_ttl_ms", "VERIFY_CACHE_TTL_MS", "verify-cache-ttl", "KMS_VERIFY_CACHE_TTL_MS", reloads=True
    ),
    _key("observability.redact_level", "REDACT_LEVEL", reloads=True),
    _key("observability.log_inputs", "LOG_INPUTS"),
    _key("observability.correlation_id_mode", "CORRELATION_ID_MODE", reloads=True),
    _key("observability.emit_cache_age_metric", "EMIT_CACHE_AGE_METRIC", reloads=True),
    _key("observability.log_format", "LOG_FORMAT", "log-format", reloads=True),
    _key("observability.log_level", "LOG_LEVEL", "log-level", reloads=True),
    _key("observability.otel_exporter", "OTEL_EXPORTER"),
    _key("backends.file.dir", "FILE_DIR"),
    _key("backends.file.kdf", "FILE_KDF"),
    _key("backends.file.aead", "FILE_AEAD"),
    _key("backends.file.passphrase_file", "FILE_PASSPHRASE_FILE"),
    _key("backends.pkcs11.module_path", "PKCS11_MODULE_PATH", "", "KMS_PKCS11_MODULE"),
    _key("backends.pkcs11.slot_label", "PKCS11_SLOT_LABEL"),
    _key("backends.pkcs11.pin_env", "PKCS11_PIN_ENV"),
    _key("backends.tpm.tcti", "TPM_TCTI"),
    _key("backends.tpm.dir", "TPM_DIR"),
    _key("backends.cloud.endpoint_url", "CLOUD_ENDPOINT_URL"),
    _key("backends.cloud.region", "CLOUD_REGION"),
    _key("backends.cloud.key_id", "CLOUD_KEY_ID"),
    _key("queues.sign", "QUEUE_SIGN"),
    _key("queues.audit", "QUEUE_AUDIT"),
    _key("deadlines.sign", "DEADLINE_SIGN", reloads=True),
    _key("deadlines.attest", "DEADLINE_ATTEST"),
    _key("deadlines.checkpoint", "DEADLINE_CHECKPOINT"),
    _key("deadlines.audit_append", "DEADLINE_AUDIT_APPEND"),
    _key("deadlines.drain", "DEADLINE_DRAIN", reloads=True),
    _key("policy.path", "POLICY_PATH", "policy"),
    _key("bus.redis_url", "BUS_REDIS_URL"),
)
KEYS_BY_ENV: Final = {key.env: key for key in KEYS}
KEYS_BY_ALIAS: Final = {alias: key for key in KEYS for alias in key.aliases}
KEYS_BY_PATH: Final = {key.path: key for key in KEYS}
