"""compose.yaml as Compose reads it: merged, interpolated with defaults, and its dependencies resolved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose.yaml"
SNIPPET = ("redis", "app", "envoy", "prometheus", "grafana")
"""What the pilot's one-pager starts by name."""
_DEFAULTED = re.compile(r"\$\{[A-Z_]+:-([^}]*)\}")


class DependencyCycle(Exception):
    pass


def document(path: Path = COMPOSE) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = document()["services"]
    return found


def interpolated(text: str) -> str:
    """Fill in the defaults of `${NAME:-default}`, and take `$$` for one dollar sign."""
    return _DEFAULTED.sub(r"\1", text).replace("$$", "$")


def needed_by(service: dict[str, Any]) -> set[str]:
    """Give what Compose starts before a service: what it depends on, and the owner of its network."""
    needed = set(service.get("depends_on", {}))
    kind, _, owner = service.get("network_mode", "").partition(":")
    return needed | {owner} if kind == "service" else needed


def started(wanted: tuple[str, ...], all_services: dict[str, dict[str, Any]]) -> list[str]:
    """Give everything that Compose starts for `wanted`, in order. Raises DependencyCycle, KeyError."""
    order: list[str] = []

    def start(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            raise DependencyCycle(" → ".join((*waiting, name)))
        for each in sorted(needed_by(all_services[name])):
            start(each, (*waiting, name))
        if name not in order:
            order.append(name)

    for name in wanted:
        start(name, ())
    return order
