"""The sections of the configuration with their types, bounds and defaults (CONFIG.md §3).

The names in files are the documents'; the names in the code carry their unit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from kms.config_values import DurationMs, SizeBytes, SocketAddress

BackendName = Literal["inmem", "file", "pkcs11", "tpm", "cloud"]
AllowedAlg = Literal["ed25519", "ml-dsa", "x25519", "ml-kem", "ecdsa-p256-sha256", "ml-dsa-44", "ml-dsa-87", "hkdf"]
VerifyModeName = Literal["or", "and", "pq_only"]
U32: Final = 2**32 - 1
Count = Annotated[int, msgspec.Meta(ge=1, le=U32)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]
ShortText = Annotated[str, msgspec.Meta(max_length=256)]
EnvName = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,127})?\Z")]
# The wrapped, derived and additive algorithms are allowed by naming them; `hybrid` follows from its two halves.
DEFAULT_ALGS: Final[tuple[AllowedAlg, ...]] = ("ed25519", "ml-dsa", "x25519", "ml-kem")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every section has in common: it is frozen and an unknown key refuses it."""


class TlsSection(Section, frozen=True):
    """`[tls]`: TLS 1.3 for HTTP and gRPC. With `client_ca_path` a client certificate is demanded as well."""

    enabled: bool = False
    cert_path: Path | None = None
    key_path: Path | None = None
    client_ca_path: Path | None = None


class UnixSection(Section, frozen=True):
    """`[unix]`: a listener for neighbours. Its peers' uids are checked; a capability is needed all the same."""

    path: Path | None = None
    allowed_uids: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=U32)], ...], msgspec.Meta(max_length=64)] = ()


class LimitsSection(Section, frozen=True):
    """`[limits]`: what one request, one tenant and one cache may take."""

    max_body_bytes: SizeBytes = SizeBytes(1_048_576)
    decompress_ratio_cap: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    max_inflight_sign: Count = 512
    max_inflight_verify: Count = 1024
    tenant_share_min: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.05
    verify_cache_max: Annotated[int, msgspec.Meta(ge=1, le=1_048_576)] = 262_144


class ServiceSection(Section, frozen=True):
    """`[service]`: custody. After loading, `multi_backends` is never empty and begins with `backend`."""

    backend: BackendName = "file"
    amnesia: bool = False
    allowed_algs: Annotated[tuple[AllowedAlg, ...], msgspec.Meta(min_length=1, max_length=16)] = DEFAULT_ALGS
    allow_sign_fallback: bool = False
    multi_backends: Annotated[tuple[BackendName, ...], msgspec.Meta(max_length=5)] = ()
    state_dir: Path = Path("kms-state")
    worker_threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4


class SecuritySection(Section, frozen=True):
    """`[security]`: attestation, rates, capabilities."""

    attest_require: Literal["never", "if-available", "required"] = "if-available"
    sign_rate_limit_rps: Count = 500
    time_skew_tolerance_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 2000
    root_key_file: Path = Path("kms-root.key")
    revocations_file: Path = Path("kms-revocations")
    verify_with_read: bool = False


class EntropyTimeSection(Section, frozen=True):
    """`[entropy_time]`: taken so that files of the documents load; no generator of ours is there to be reseeded.

    See docs/decisions/0014-what-custody-means.md.
    """

    rng_reseed_interval_ops: Annotated[int, msgspec.Meta(ge=1, le=2**53)] = 100_000


class PqSection(Section, frozen=True):
    """`[pq]`: the phase of the post-quantum migration (QUANTUM.md §4)."""

    produce_hybrid: bool = True
    verify_mode: VerifyModeName = "and"
    rollout_percent: Percent = 100


class AuditSection(Section, frozen=True):
    """`[audit]`. After loading, `dir` is None only under amnesia: the log is then in memory."""

    dir: Path | None = None
    checkpoint_interval_ops: Count = 5000
    sealing: Literal["software", "attested"] = "software"
    verify_cache_ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=U32)] = 300_000


class ObservabilitySection(Section, frozen=True):
    """`[observability]`: logs, metrics and spans. Inputs are never logged (I-16).

    `otel_exporter` names an installed OpenTelemetry exporter of traces, such as `otlp_proto_http`; "" makes no spans.
    """

    redact_level: Literal["none", "lengths", "hashes"] = "hashes"
    log_inputs: bool = False
    correlation_id_mode: Literal["uuidv4", "uuidv7"] = "uuidv7"
    emit_cache_age_metric: bool = True
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["trace", "debug", "info", "warn", "error"] = "info"
    otel_exporter: ShortText = ""


class FileBackendSection(Section, frozen=True):
    """`[backends.file]`: sealed blobs in a directory."""

    dir: Path = Path("kms-sealed")
    kdf: Literal["scrypt", "argon2id", "age"] = "scrypt"
    aead: Literal["chacha20poly1305", "aes-gcm"] = "chacha20poly1305"
    passphrase_file: Path | None = None


class Pkcs11BackendSection(Section, frozen=True):
    """`[backends.pkcs11]`: a token. `pin_env` names the environment variable that holds the PIN."""

    module_path: Path | None = None
    slot_label: Annotated[str, msgspec.Meta(min_length=1, max_length=32)] = "RON-KMS"
    pin_env: EnvName = ""


class TpmBackendSection(Section, frozen=True):
    """`[backends.tpm]`: a TPM 2.0 and the directory of what it sealed."""

    tcti: ShortText = "device:/dev/tpmrm0"
    dir: Path = Path("kms-tpm")


class CloudBackendSection(Section, frozen=True):
    """`[backends.cloud]`: a cloud's key service; credentials come from its own chain, never from here."""

    endpoint_url: ShortText = ""
    region: ShortText = ""
    key_id: ShortText = ""


class BackendsSection(Section, frozen=True):
    """`[backends.*]`: one section for each backend; only those in use are checked."""

    file: FileBackendSection = FileBackendSection()
    pkcs11: Pkcs11BackendSection = Pkcs11BackendSection()
    tpm: TpmBackendSection = TpmBackendSection()
    cloud: CloudBackendSection = CloudBackendSection()


class QueuesSection(Section, frozen=True):
    """`[queues]`: items that may wait (CONCURRENCY.md §3)."""

    sign: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 512
    audit: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 2048


class DeadlinesSection(Section, frozen=True):
    """`[deadlines]` (CONCURRENCY.md §5 and §6)."""

    sign_ms: DurationMs = msgspec.field(default=DurationMs(2000), name="sign")
    attest_ms: DurationMs = msgspec.field(default=DurationMs(3000), name="attest")
    checkpoint_ms: DurationMs = msgspec.field(default=DurationMs(1000), name="checkpoint")
    audit_append_ms: DurationMs = msgspec.field(default=DurationMs(200), name="audit_append")
    drain_ms: DurationMs = msgspec.field(default=DurationMs(3000), name="drain")


class PolicySection(Section, frozen=True):
    """`[policy]`: the tenants' table; without a path every tenant has the service's own settings."""

    path: Path | None = None


class BusSection(Section, frozen=True):
    """`[bus]`: where kms.* events go; without a URL they go nowhere."""

    redis_url: ShortText = ""


class KmsConfig(Section, frozen=True):
    """The whole configuration. `kms.config.load_config` alone makes one that was checked."""

    bind_addr: SocketAddress = SocketAddress("127.0.0.1:9446")
    grpc_addr: SocketAddress | None = SocketAddress("127.0.0.1:9445")
    metrics_addr: SocketAddress = SocketAddress("127.0.0.1:9909")
    max_conns: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 1024
    read_timeout_ms: DurationMs = msgspec.field(default=DurationMs(5000), name="read_timeout")
    write_timeout_ms: DurationMs = msgspec.field(default=DurationMs(5000), name="write_timeout")
    idle_timeout_ms: DurationMs = msgspec.field(default=DurationMs(60_000), name="idle_timeout")
    tls: TlsSection = TlsSection()
    unix: UnixSection = UnixSection()
    limits: LimitsSection = LimitsSection()
    service: ServiceSection = ServiceSection()
    security: SecuritySection = SecuritySection()
    entropy_time: EntropyTimeSection = EntropyTimeSection()
    pq: PqSection = PqSection()
    audit: AuditSection = AuditSection()
    observability: ObservabilitySection = ObservabilitySection()
    backends: BackendsSection = BackendsSection()
    queues: QueuesSection = QueuesSection()
    deadlines: DeadlinesSection = DeadlinesSection()
    policy: PolicySection = PolicySection()
    bus: BusSection = BusSection()
