#!/usr/bin/env python3
"""What the containers of compose.yaml are set up with.

    python tools/compose_stack.py prepare | keys

`prepare` writes certificates, keys and every configuration file into /var/lib/signet (SIGNET_COMPOSE_DIR names another
folder); `keys` has the key service, once it runs, make the filter's keys.
The containers share one network, as the parts of a local stack do, so that what listens on the loopback stays there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from extproc.config import load_config
from extproc.policy_engine import route_data
from tools.compose_alive import folder
from tools.stack_certs import ensure_demo_key, ensure_server_certificate
from tools.stack_config import Ports, StackError, StackFiles, StackSettings, filter_toml
from tools.stack_envoy import envoy_config
from tools.stack_kms import prepare_kms, provision_kms
from tools.stack_probe import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POLICY_DATA_NAME: Final = "policy-data.json"
"""The filter's routes for an OPA server; the engine in the process has them from the filter itself."""
ALL_ADDRESSES: Final = "0.0.0.0"
ADMIN_DOOR_PORT: Final = 18080
"""Where Envoy takes connections for the admin server in: a published port does not lead to the loopback."""


def settings(place: Path) -> StackSettings:
    """Give the settings of the containers' stack: the usual ports, Redis, a key service."""
    return StackSettings(var=place, ports=Ports(), nonce_store="redis", kms=True)


def prepare(place: Path) -> None:
    """Write everything that must be there before the first process. Raises `StackError`."""
    chosen, files = settings(place), StackFiles(place)
    for each in (files.var, files.run, files.logs, files.tls):
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
    ensure_server_certificate(files.tls)
    ensure_demo_key(files.demo_key, files.keyring)
    if not files.toml.exists():
        files.toml.write_text(filter_toml(chosen))
    prepare_kms(chosen)
    files.envoy.write_text(json.dumps(edge_config(chosen), indent=1))
    (place / POLICY_DATA_NAME).write_bytes(route_data(load_config(files.toml, {})))


def edge_config(chosen: StackSettings) -> dict[str, Any]:
    """Give Envoy's bootstrap: the edge open to the host, and a door to the admin server."""
    document = envoy_config(chosen)
    resources = document["static_resources"]
    resources["listeners"][0]["address"]["socket_address"]["address"] = ALL_ADDRESSES
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "admin_door",
        "cluster": "signet_admin",
    }
    resources["listeners"].append(
        {
            "name": "admin_door",
            "address": {"socket_address": {"address": ALL_ADDRESSES, "port_value": ADMIN_DOOR_PORT}},
            "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}],
        }
    )
    address = {"socket_address": {"address": LOOPBACK, "port_value": chosen.ports.admin}}
    resources["clusters"].append(
        {
            "name": "signet_admin",
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": "signet_admin",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }
    )
    return document


def make_keys(place: Path) -> None:
    """Have the key service make the filter's keys, and name them in its configuration. Raises `StackError`."""
    chosen = settings(place)
    StackFiles(place).toml.write_text(filter_toml(chosen, provision_kms(chosen)))


COMMANDS: Final[Mapping[str, Callable[[Path], None]]] = {"prepare": prepare, "keys": make_keys}


def main(argv: list[str] | None = None) -> int:
    """Obey the command line; 1 with the reason on standard error when it cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=sorted(COMMANDS))
    options = parser.parse_args(argv)
    try:
        COMMANDS[options.command](folder())
    except StackError as error:
        print(f"signet: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
