"""Turn envoy/envoy.yaml into what this stack runs: only addresses, ports, paths and the edge change."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from tools.stack_config import REPOSITORY, StackError, StackFiles

if TYPE_CHECKING:
    from tools.stack_config import StackSettings

ENVOY_YAML: Final = REPOSITORY / "envoy" / "envoy.yaml"
EDGE_B_LISTENER: Final = REPOSITORY / "envoy" / "haproxy" / "listener.yaml"
HAPROXY_CFG: Final = REPOSITORY / "envoy" / "haproxy" / "haproxy.cfg"
TLS_MODULE: Final = REPOSITORY / "envoy" / "tls_module" / "build" / "libsignet_tls.so"
TLS_MODULE_FILTER: Final = "envoy.filters.http.dynamic_modules"
LOOPBACK: Final = "127.0.0.1"

Document = dict[str, Any]


def envoy_binary() -> Path:
    """Find the real Envoy of the virtual environment, else one on PATH."""
    for scheme in ("platlib", "purelib"):
        candidate = Path(sysconfig.get_path(scheme)) / "envoy" / "_bin" / "envoy"
        if candidate.exists():
            return candidate
    found = shutil.which("envoy")
    if found is None:
        raise StackError("there is no Envoy: run `make venv`")
    return Path(found)


def envoy_config(settings: StackSettings) -> Document:
    """Give Envoy's bootstrap for this stack as plain data."""
    files = StackFiles(settings.var)
    document: Document = yaml.safe_load(ENVOY_YAML.read_text())
    document["admin"]["address"]["socket_address"].update(address=LOOPBACK, port_value=settings.ports.envoy_admin)
    listener = document["static_resources"]["listeners"][0]
    listener["address"]["socket_address"].update(address=LOOPBACK, port_value=settings.ports.https)
    http_connection_manager(listener)["forward_proto_config"]["https_destination_ports"] = [settings.ports.https]
    _EDGES[settings.edge](listener, files)
    manager = http_connection_manager(listener)
    manager["http_filters"][-1:-1] = [dict(each) for each in settings.http_filters]
    if settings.app_timeout_s is not None:
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            if route.get("route", {}).get("cluster") == "app":
                route["route"]["timeout"] = f"{settings.app_timeout_s}s"
    clusters = {cluster["name"]: cluster for cluster in document["static_resources"]["clusters"]}
    for worker, endpoint in enumerate(endpoints(clusters["signet_filter"])):
        endpoint["endpoint"]["address"]["pipe"]["path"] = str(files.socket(worker))
    app = endpoints(clusters["app"])[0]["endpoint"]["address"]["socket_address"]
    app.update(address=LOOPBACK, port_value=settings.app_dial_port or settings.ports.app)
    if settings.upstream == "http2":
        (options,) = clusters["app"]["typed_extension_protocol_options"].values()
        options["explicit_http_config"] = {"http2_protocol_options": {}}
    return document


def http_connection_manager(listener: Document) -> Document:
    """Give the one HTTP connection manager of `listener`."""
    manager: Document = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def endpoints(cluster: Document) -> list[Document]:
    """Give the endpoints of `cluster`."""
    found: list[Document] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    return found


def _edge_a(listener: Document, files: StackFiles) -> None:
    config = listener["filter_chains"][0]["transport_socket"]["typed_config"]["transport_socket_config"]
    config["value"].update(
        certificate_file=str(files.tls / "server.pem"), private_key_file=str(files.tls / "server.key")
    )


def _without_tls_module(listener: Document) -> None:
    del listener["filter_chains"][0]["transport_socket"]
    manager = http_connection_manager(listener)
    manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] != TLS_MODULE_FILTER]


def _edge_b(listener: Document, files: StackFiles) -> None:
    _without_tls_module(listener)
    listener.update(yaml.safe_load(EDGE_B_LISTENER.read_text()))
    listener["address"]["pipe"]["path"] = str(files.run / "edge-b.sock")


def _native_without_binding(listener: Document, files: StackFiles) -> None:
    """Envoy's own TLS: no binding, for comparison and for the answer `binding_missing`."""
    _without_tls_module(listener)
    listener["filter_chains"][0]["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(files.tls / "server.pem")},
                        "private_key": {"filename": str(files.tls / "server.key")},
                    }
                ],
            },
        },
    }


_EDGES: Final = {"a": _edge_a, "b": _edge_b, "native-none": _native_without_binding}


def write_envoy_config(settings: StackSettings) -> Path:
    """Write Envoy's bootstrap and give its path."""
    path = StackFiles(settings.var).envoy
    path.write_text(json.dumps(envoy_config(settings), indent=1))
    return path
