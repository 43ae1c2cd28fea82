"""What the parts of a stack are, in the order they start, and how to tell that each one is ready."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tools.stack_certs import ensure_demo_key, ensure_server_certificate
from tools.stack_config import FILTER_WORKERS, REPOSITORY, StackError, StackFiles, filter_toml
from tools.stack_envoy import HAPROXY_CFG, TLS_MODULE, envoy_binary, write_envoy_config
from tools.stack_kms import kms_command, kms_ready, prepare_kms, provision_kms
from tools.stack_probe import LOOPBACK, accepts, get, listens
from tools.stack_process import RUN_ID_VARIABLE, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tools.stack_config import StackSettings

BUILD_TIMEOUT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part and the question whether it is ready, which never blocks for long and never raises for "not yet".

    `then`: what is to be done once it is, before the next part starts. Raises `StackError`.
    """

    part: Part
    ready: Callable[[], bool]
    then: Callable[[], None] = lambda: None


def prepare(settings: StackSettings) -> None:
    """Make the folders, certificates, keys and configuration files. Raises `StackError`."""
    files = StackFiles(settings.var)
    for folder in (files.var, files.run, files.logs, files.tls):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.run.chmod(0o700)
    ensure_server_certificate(files.tls)
    ensure_demo_key(files.demo_key, files.keyring)
    files.toml.write_text(filter_toml(settings))
    if settings.kms:
        prepare_kms(settings)
    if settings.edge == "a":
        build_tls_module()
    if settings.edge == "b" and shutil.which("haproxy") is None:
        raise StackError("edge b needs HAProxy: run `tools/parts.sh haproxy`")
    if settings.nonce_store == "redis" and shutil.which("redis-server") is None:
        raise StackError("the Redis nonce store needs redis-server: run `tools/parts.sh redis-server`")
    write_envoy_config(settings)


def build_tls_module() -> None:
    """Build edge A's module (quick when it is up to date). Raises `StackError` with the compiler's words."""
    command = ["make", "--no-print-directory", "-C", str(TLS_MODULE.parent.parent)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"the TLS module could not be built: {error}") from error
    if done.returncode != 0 or not TLS_MODULE.exists():
        hint = "run `tools/parts.sh libssl-dev gcc make` if headers or the compiler are missing"
        raise StackError(f"the TLS module could not be built ({hint}):\n{(done.stdout + done.stderr)[-2000:]}")


def planned_parts(settings: StackSettings, run_id: str) -> list[PlannedPart]:
    """List the parts in the order in which they start."""
    files = StackFiles(settings.var)
    ports = settings.ports
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY), RUN_ID_VARIABLE: run_id}
    words = {"python": sys.executable, "config": str(files.toml), "var": str(files.var)}

    def part(name: str, argv: tuple[str, ...], extra: Callable[[], Mapping[str, str]] = dict) -> Part:
        return Part(name, argv, files.logs / f"{name}.log", lambda: {**environ, **extra()}, files.var)

    app_words = {**words, "port": str(ports.app), "log": str(files.app_log), "repository": str(REPOSITORY)}
    app = tuple(word.format(**app_words) for word in settings.app_command)
    parts = [PlannedPart(part("app", app), lambda: listens(ports.app))]
    if settings.nonce_store == "redis":
        parts.append(PlannedPart(part("redis", _redis(settings)), lambda: listens(ports.redis)))
    if settings.kms:
        kms = part("kms", kms_command(settings))
        parts.append(PlannedPart(kms, lambda: kms_ready(settings), lambda: _write_toml_with_kms(settings)))
    filter_argv = tuple(word.format(**words) for word in settings.filter_command)
    sockets = [files.socket(worker) for worker in range(FILTER_WORKERS)]
    parts.append(PlannedPart(part("filter", filter_argv, lambda: settings.environ), lambda: all(map(accepts, sockets))))
    if settings.admin_command:
        admin_argv = tuple(word.format(**words) for word in settings.admin_command)
        parts.append(
            PlannedPart(
                part("admin", admin_argv, lambda: settings.environ), lambda: get(ports.admin, "/readyz") is not None
            )
        )
    parts.append(PlannedPart(part("envoy", _envoy(settings), _envoy_environ), lambda: _envoy_ready(settings)))
    if settings.edge == "b":
        names = {
            "SIGNET_EDGE_BIND": f"{LOOPBACK}:{ports.https}",
            "SIGNET_EDGE_PEM": str(files.tls / "server-with-key.pem"),
            "SIGNET_EDGE_PIPE": str(files.run / "edge-b.sock"),
        }
        haproxy = ("haproxy", "-db", "-f", str(HAPROXY_CFG))
        parts.append(PlannedPart(part("haproxy", haproxy, lambda: names), lambda: listens(ports.https)))
    return parts


def _write_toml_with_kms(settings: StackSettings) -> None:
    StackFiles(settings.var).toml.write_text(filter_toml(settings, provision_kms(settings)))


def _redis(settings: StackSettings) -> tuple[str, ...]:
    folder = settings.var / "redis"
    folder.mkdir(exist_ok=True, mode=0o700)
    nothing_kept = (
        "--save",
        "",
        "--appendonly",
        "no",
        "--maxmemory-policy",
        "noeviction",
        "--dir",
        str(folder),
    )
    return ("redis-server", "--bind", LOOPBACK, "--port", str(settings.ports.redis), *nothing_kept)


def _envoy(settings: StackSettings) -> tuple[str, ...]:
    config = str(StackFiles(settings.var).envoy)
    # Without hot restart several Envoys live side by side on one machine.
    return (
        str(envoy_binary()),
        *("-c", config, "--disable-hot-restart", "--concurrency", str(settings.envoy_concurrency)),
        *("--log-level", settings.envoy_log_level, "--drain-time-s", "2", "--parent-shutdown-time-s", "3"),
    )


def _envoy_environ() -> dict[str, str]:
    """Where the module lies, and the edge's name: new at each start, since stream ids are unique only within one."""
    return {
        "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(TLS_MODULE.parent),
        "SIGNET_EDGE_INSTANCE": str(uuid.uuid4()),
    }


def _envoy_ready(settings: StackSettings) -> bool:
    """Envoy is live, its listener is open, and it holds every filter worker for healthy."""
    if get(settings.ports.envoy_admin, "/ready") is None:
        return False
    clusters = get(settings.ports.envoy_admin, "/clusters?format=json")
    if clusters is None or not (settings.edge == "b" or listens(settings.ports.https)):
        return False
    for cluster in json.loads(clusters)["cluster_statuses"]:
        if cluster["name"] == "signet_filter":
            states = [host["health_status"] for host in cluster.get("host_statuses", [])]
            bad = {"failed_active_health_check", "failed_outlier_check", "pending_active_hc"}
            return len(states) == FILTER_WORKERS and not any(bad & state.keys() for state in states)
    return False
