"""The sections of the filter's TOML file: keys, defaults, ranges (docs/reference/filter.toml)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from extproc.config_fields import rule
from extproc.config_kinds import Choice, FileMode, FilePath, Number, Text, Url
from extproc.kms_section import KmsSection
from extproc.log_section import LogSection
from extproc.policy_section import PolicySection
from receipts.open_store import STORE_SCHEMES


@dataclass(frozen=True, slots=True)
class FilterSection:
    """`[filter]`: the workers and the protocol's times."""

    realm: str = field(
        default="signet",
        metadata=rule(Text(r"[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,63}", "1 to 64 of A-Z a-z 0-9 space . _ : / -")),
    )
    socket_dir: Path = field(default=Path("run"), metadata=rule(FilePath()))
    socket_mode: int = field(default=0o600, metadata=rule(FileMode((0o600, 0o660))))
    workers: int = field(default=2, metadata=rule(Number(1, 64, "processes")))
    max_age_s: int = field(default=60, metadata=rule(Number(1, 3600, "seconds")))
    clock_skew_s: int = field(default=2, metadata=rule(Number(0, 2, "seconds; PCH §3 tolerates 2")))
    max_inflight_requests: int = field(default=1024, metadata=rule(Number(1, 65_536, "requests per worker")))
    normal_inflight_percent: int = field(
        default=80, metadata=rule(Number(1, 100, "percent of max_inflight_requests up to which class normal goes on"))
    )
    low_inflight_percent: int = field(
        default=50, metadata=rule(Number(1, 100, "percent of max_inflight_requests up to which class low goes on"))
    )
    drain_timeout_s: int = field(default=10, metadata=rule(Number(1, 300, "seconds")))
    retry_after_s: int = field(default=1, metadata=rule(Number(1, 3600, "seconds")))
    max_header_bytes: int = field(default=49_152, metadata=rule(Number(1024, 49_152, "bytes; PCH §6 caps it at 49152")))
    breaker_share: str = field(default="off", metadata=rule(Choice(("off", "redis"))))
    breaker_share_interval_ms: int = field(default=250, metadata=rule(Number(50, 5_000, "milliseconds")))


@dataclass(frozen=True, slots=True)
class NonceStoreSection:
    """`[nonce_store]`: the replay guard. `url` is used by redis, `path` by sqlite."""

    kind: str = field(default="sqlite", metadata=rule(Choice(("memory", "sqlite", "redis"))))
    path: Path = field(default=Path("nonces.sqlite3"), metadata=rule(FilePath()))
    url: str = field(default="redis://127.0.0.1:6379/0", repr=False, metadata=rule(Url(("redis", "rediss", "unix"))))
    timeout_ms: int = field(default=250, metadata=rule(Number(1, 10_000, "milliseconds")))
    max_entries: int = field(default=1_000_000, metadata=rule(Number(1, 100_000_000, "entries")))
    max_pending: int = field(default=4096, metadata=rule(Number(1, 65_536, "spends per worker")))


@dataclass(frozen=True, slots=True)
class ReceiptsSection:
    """`[receipts]`: the durable record of every decision."""

    url: str = field(default="sqlite:receipts.sqlite3", repr=False, metadata=rule(Url(STORE_SCHEMES)))
    timeout_ms: int = field(default=1000, metadata=rule(Number(1, 60_000, "milliseconds")))
    max_refusal_receipts_per_s: int = field(
        default=200, metadata=rule(Number(0, 100_000, "receipts per second and route"))
    )


@dataclass(frozen=True, slots=True)
class KeyringSection:
    """`[keyring]`: the registered client keys."""

    path: Path = field(default=Path("keyring.json"), metadata=rule(FilePath()))
    poll_interval_ms: int = field(
        default=500, metadata=rule(Number(50, 1500, "milliseconds; an edit counts within 2 s"))
    )
    ml_dsa_provider: str = field(default="cryptography", metadata=rule(Choice(("cryptography", "liboqs"))))


@dataclass(frozen=True, slots=True)
class SealingSection:
    """`[sealing]`: the keys that seal challenges."""

    path: Path = field(default=Path("sealing.json"), metadata=rule(FilePath()))


@dataclass(frozen=True, slots=True)
class AdminSection:
    """`[admin]`: the HTTP server for operators."""

    host: str = field(
        default="127.0.0.1",
        metadata=rule(Text(r"localhost|[0-9A-Fa-f.:]{2,45}", 'an IP address or "localhost"')),
    )
    port: int = field(default=8080, metadata=rule(Number(1, 65_535, "TCP port")))
    tls_cert: Path | None = field(default=None, metadata=rule(FilePath()))
    tls_key: Path | None = field(default=None, metadata=rule(FilePath()))
    bearer_token_file: Path | None = field(default=None, metadata=rule(FilePath()))


SECTIONS: dict[str, type] = {
    "filter": FilterSection,
    "nonce_store": NonceStoreSection,
    "receipts": ReceiptsSection,
    "log": LogSection,
    "keyring": KeyringSection,
    "sealing": SealingSection,
    "kms": KmsSection,
    "admin": AdminSection,
    "policy": PolicySection,
}
"""Section name in the file and in `SIGNET_<SECTION>_<KEY>`, with its class."""
