"""What a local stack consists of: its settings, its ports, its files, and the filter's configuration."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent
EDGES: Final = ("a", "b", "native-none")
NONCE_STORES: Final = ("sqlite", "redis", "memory")
FILTER_WORKERS: Final = 2
GIT_TIMEOUT_S: Final = 10.0
MAX_SOCKET_PATH_BYTES: Final = 107
"""The longest path of a UNIX socket on Linux (unix(7))."""

Route = Mapping[str, "str | int | bool | list[str]"]

DEMO_ROUTES: Final[tuple[Route, ...]] = (
    {"name": "protected", "path": "/protected/**", "guard": "pch", "binding": "tls-exporter"},
    {
        "name": "strict",
        "path": "/strict/**",
        "methods": ["GET", "POST"],
        "guard": "pch",
        "binding": "tls-exporter",
        "algorithms": ["ed25519"],
        "subjects": ["demo"],
        "max_body_bytes": 1024,
    },
    {"name": "uploads", "path": "/uploads/**", "guard": "pch", "body": "streamed", "max_body_bytes": 1 << 30},
    {"name": "unbound", "path": "/unbound/**", "guard": "pch", "binding": "none"},
    {"name": "public", "path": "/public/**", "guard": "open"},
)
"""The routes of a fresh stack; what matches none is 403 `no_route`. /public is envoy.yaml's streamed route as well."""


class StackError(RuntimeError):
    """The stack cannot run as asked; the message is for the person who asked."""


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports on loopback. `redis` is used only with the Redis nonce store, `kms…` only with the key service."""

    https: int = 8443
    envoy_admin: int = 9901
    admin: int = 8080
    app: int = 8088
    redis: int = 6379
    kms: int = 9446
    kms_grpc: int = 9445
    kms_metrics: int = 9909

    @classmethod
    def free(cls) -> Ports:
        """Take ports that no one listens on now."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in fields(cls)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return cls(*(each.getsockname()[1] for each in sockets))


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What to run. Commands replace the filter's own where a test brings its own double.

    `toml`: overrides of the filter's TOML by section. `environ`: added for the filter's processes.
    `filter_command` and `admin_command`: argv with `{python}`, `{config}` and `{var}` filled in; an empty admin
    command starts none; `app_command` has `{port}`, `{log}` and `{repository}` too. `upstream`: how Envoy speaks to the
    app, `http1` or `http2`. `app_dial_port` and `redis_dial_port`: where Envoy finds the app and the filter Redis, when
    something stands between. `http_filters` stand right before Envoy's router, and `app_timeout_s` is how long it waits
    for the app. `kms`: whether the filter's keys are with a key service, which then starts before it.
    """

    var: Path
    ports: Ports = field(default_factory=Ports)
    edge: str = "a"
    nonce_store: str = "sqlite"
    upstream: str = "http1"
    envoy_concurrency: int = 2
    envoy_log_level: str = "warning"
    filter_command: tuple[str, ...] = ("{python}", "-m", "extproc", "serve", "--config", "{config}")
    admin_command: tuple[str, ...] = ("{python}", "-m", "extproc", "admin", "--config", "{config}")
    app_command: tuple[str, ...] = (
        "{python}",
        "{repository}/tools/example_app.py",
        "--port",
        "{port}",
        "--log",
        "{log}",
    )
    app_dial_port: int | None = None
    redis_dial_port: int | None = None
    http_filters: tuple[Mapping[str, Any], ...] = ()
    app_timeout_s: float | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    toml: Mapping[str, Mapping[str, str | int | bool]] = field(default_factory=dict)
    routes: tuple[Route, ...] = DEMO_ROUTES
    kms: bool = False

    def __post_init__(self) -> None:
        if self.edge not in EDGES:
            raise StackError(f"edge {self.edge!r} is not one of {', '.join(EDGES)}")
        if self.nonce_store not in NONCE_STORES:
            raise StackError(f"nonce store {self.nonce_store!r} is not one of {', '.join(NONCE_STORES)}")
        if self.upstream not in {"http1", "http2"}:
            raise StackError(f"upstream {self.upstream!r} is not http1 or http2")
        longest = len(str(self.var / "run" / "signet-0.sock").encode())
        if longest > MAX_SOCKET_PATH_BYTES:
            raise StackError(f"{self.var} is too long a path for UNIX sockets ({longest} > {MAX_SOCKET_PATH_BYTES})")

    def as_json(self) -> str:
        """Write the settings for the supervising process."""
        return json.dumps(asdict(self) | {"var": str(self.var)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> StackSettings:
        """Read what `as_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        data["var"] = Path(data["var"])
        data["ports"] = Ports(**data["ports"])
        for name in ("filter_command", "admin_command", "app_command", "routes", "http_filters"):
            data[name] = tuple(data[name])
        return cls(**data)

    def used_ports(self) -> dict[str, int]:
        """Name the ports that this stack listens on."""
        ports = asdict(self.ports)
        if self.nonce_store != "redis":
            del ports["redis"]
        if not self.admin_command:
            del ports["admin"]
        if not self.kms:
            for name in ("kms", "kms_grpc", "kms_metrics"):
                del ports[name]
        return ports


@dataclass(frozen=True, slots=True)
class StackFiles:
    """Where everything lies under `var`."""

    var: Path

    @property
    def run(self) -> Path:
        """Sockets and what the running stack needs; mode 0700."""
        return self.var / "run"

    @property
    def logs(self) -> Path:
        """One log file per part."""
        return self.var / "log"

    @property
    def tls(self) -> Path:
        """The development CA and the server's certificate."""
        return self.var / "tls"

    @property
    def toml(self) -> Path:
        """The filter's configuration."""
        return self.var / "signet.toml"

    @property
    def envoy(self) -> Path:
        """Envoy's configuration as it is run."""
        return self.var / "envoy.json"

    @property
    def settings(self) -> Path:
        """The settings of the running stack."""
        return self.run / "settings.json"

    @property
    def supervisor(self) -> Path:
        """Which process owns the stack, from its first moment on."""
        return self.run / "supervisor.json"

    @property
    def state(self) -> Path:
        """Where the running stack tells the world what it is."""
        return self.var / "stack.json"

    @property
    def demo_key(self) -> Path:
        """The private JWK of the subject `demo`."""
        return self.var / "demo-key.jwk.json"

    @property
    def keyring(self) -> Path:
        """The registered keys."""
        return self.var / "keyring.json"

    @property
    def receipt_log(self) -> Path:
        """The transparency log of the receipts."""
        return self.var / "receipt-log"

    @property
    def kms(self) -> Path:
        """Everything of the key service; mode 0700."""
        return self.var / "kms"

    @property
    def kms_toml(self) -> Path:
        """The key service's configuration."""
        return self.kms / "kms.toml"

    @property
    def kms_root(self) -> Path:
        """The key that capabilities are minted under."""
        return self.kms / "root-key.json"

    @property
    def kms_passphrase(self) -> Path:
        """What the sealed keys are under."""
        return self.kms / "passphrase"

    @property
    def kms_keys(self) -> Path:
        """The names of the filter's keys."""
        return self.kms / "filter-keys.json"

    @property
    def kms_filter_token(self) -> Path:
        """The filter's capability."""
        return self.kms / "filter.token"

    @property
    def kms_socket(self) -> Path:
        """Where the filter reaches the key service."""
        return self.run / "kms.sock"

    @property
    def app_log(self) -> Path:
        """Every request that reached the app, one JSON line each."""
        return self.logs / "app-requests.jsonl"

    def socket(self, worker: int) -> Path:
        """Give the socket of one filter worker."""
        return self.run / f"signet-{worker}.sock"


def check_ports_free(settings: StackSettings) -> None:
    """Raise `StackError` naming the first port that is taken."""
    for name, port in settings.used_ports().items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                message = f"port {port} ({name}) is in use; stop what listens there, or use --free-ports"
                raise StackError(message) from error


def _toml_value(value: object) -> str:
    # JSON's strings, numbers, booleans and flat lists of them are TOML's too.
    return json.dumps(value)


def policy_commit() -> str | None:
    """Give the git commit that the policy of this checkout is of; None where it is of none, or was changed since."""
    told = []
    for command in (["status", "--porcelain", "--", "policy"], ["log", "-1", "--format=%H", "--", "policy"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(REPOSITORY), *command],
                capture_output=True,
                text=True,
                timeout=GIT_TIMEOUT_S,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        told.append(done.stdout.strip())
    changed, commit = told
    return None if changed else commit or None


def filter_toml(settings: StackSettings, kms: Mapping[str, str | int | bool] | None = None) -> str:
    """Write the filter's configuration for this stack. `kms`: its `[kms]`, None without a key service."""
    files = StackFiles(settings.var)
    sections: dict[str, dict[str, str | int | bool]] = {
        "filter": {"realm": "signet", "socket_dir": "run", "workers": FILTER_WORKERS},
        "nonce_store": {"kind": settings.nonce_store},
        "receipts": {"url": "sqlite:receipts.sqlite3"},
        "log": {"dir": files.receipt_log.name},  # var/log holds what the processes write to stderr.
        "keyring": {"path": files.keyring.name},
        "sealing": {"path": "sealing.json"},
        "admin": {"host": "127.0.0.1", "port": settings.ports.admin},
    }
    if kms is not None:
        sections["kms"] = dict(kms)
    # A policy from elsewhere is not of this checkout.
    if "policy" not in settings.toml and (commit := policy_commit()) is not None:
        sections["policy"] = {"commit": commit}
    if settings.nonce_store == "sqlite":
        sections["nonce_store"]["path"] = "nonces.sqlite3"
    if settings.nonce_store == "redis":
        sections["nonce_store"]["url"] = f"redis://127.0.0.1:{settings.redis_dial_port or settings.ports.redis}/0"
    for section, values in settings.toml.items():
        sections.setdefault(section, {}).update(values)
    lines = ["# Written by tools/stack.py at each start: change tools/stack_config.py, or run the filter yourself."]
    for section, values in sections.items():
        lines += ["", f"[{section}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items())]
    for route in settings.routes:
        lines += ["", "[[route]]", *(f"{key} = {_toml_value(value)}" for key, value in route.items())]
    return "\n".join(lines) + "\n"
