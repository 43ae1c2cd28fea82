"""The monitoring's files as data, promtool, and a real Prometheus on a free port of the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
DASHBOARDS = MONITORING / "grafana" / "dashboards"
START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 10.0
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABEL_PARTS = re.compile(r"\{[^}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAMES = re.compile(r"(?<![0-9])[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()(?![a-zA-Z0-9_:])")
_WORDS = frozenset({"or", "and", "unless", "bool", "offset", "by", "without"})


def program(name: str) -> str:
    """Find `prometheus` or `promtool`. Where it is missing the test is skipped, but never in the gate."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is missing (tools/parts.sh prometheus gets it)"
        if os.environ.get("CI") == "true":
            raise RuntimeError(message)
        pytest.skip(message)
    return found


def promtool(*arguments: str, cwd: Path = MONITORING) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panel_expressions() -> dict[str, str]:
    """Give every expression of every panel, by dashboard, title and reference."""
    return {
        f"{name}: {panel['title']} {target['refId']}": target["expr"]
        for name, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def rule_files() -> list[str]:
    """Give the files that monitoring/prometheus.yml reads."""
    patterns = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["rule_files"]
    return sorted(path.name for pattern in patterns for path in MONITORING.glob(pattern))


def rule_expressions() -> dict[str, str]:
    return {
        f"{file}: {rule.get('alert') or rule['record']}": rule["expr"] for file in rule_files() for rule in rules(file)
    }


def metric_names(expression: str) -> set[str]:
    """Give the names of the series that an expression reads."""
    bare = re.sub(r"\[[^\]]*\]", " ", _LABEL_PARTS.sub(" ", _STRINGS.sub('""', expression)))
    return {name for name in _NAMES.findall(bare) if name not in _WORDS}


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the API; fails on an error of any kind."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=CALL_TIMEOUT_S) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["result"]
        return found

    def healthy_jobs(self) -> set[str]:
        targets = self.get("/api/v1/targets")["activeTargets"]
        return {each["labels"]["job"] for each in targets if each["health"] == "up"}


def config_for(targets: Mapping[str, str]) -> dict[str, Any]:
    """Give monitoring/prometheus.yml with other addresses, and with a scrape each second."""
    config: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / pattern) for pattern in config["rule_files"]]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    return config


@contextlib.contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Run a server that scrapes `targets`, by job; its data lies in `folder`."""
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config_for(targets)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--log.level=error"]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _wait_until_ready(f"http://{address}/-/ready", server, folder / "prometheus.log")
            yield Prometheus(f"http://{address}")
        finally:
            server.terminate()


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until_s:
        if server.poll() is not None:
            raise RuntimeError(f"Prometheus ended: {log.read_text()}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError("Prometheus does not answer")
