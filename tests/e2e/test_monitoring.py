"""Dashboards and rules on a real Prometheus that scrapes a real stack: each expression runs and finds its data."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from extproc.body_telemetry import BodyTelemetry
from extproc.outcome_telemetry import OutcomeTelemetry
from extproc.stress_desk import StressTelemetry
from extproc.telemetry import Telemetry
from kms.telemetry import Telemetry as KmsTelemetry
from pch.client import Client
from pch.keys import private_key_from_jwk
from tests.support.filter_process import until
from tests.support.monitoring_parts import (
    Prometheus,
    metric_names,
    panel_expressions,
    prometheus,
    rule_expressions,
    rule_files,
    rules,
)
from tools.stack import Stack
from tools.stack_config import DEMO_ROUTES, Ports, Route, StackSettings

pytestmark = pytest.mark.e2e

QUIET = {
    "receipts: Outcomes not written A": "no outcome was dropped",
    "receipts: Outcomes not written B": "every entry was an allowed request's end",
    "kms: Deadlines missed A": "no operation was late",
}
"""What may be without data on a stack that is well, and why."""
QUOTA: Route = {"name": "quota", "path": "/quota/**", "quota_per_s": 2, "quota_burst": 2}
ADMIN_NAMES = {
    *("signet_outcomes_missing_total", "signet_outcomes_waiting"),
    *("signet_log_problem", "signet_log_entries", "signet_log_head_time_seconds", "signet_receipts_stored"),
}
"""What the admin process makes at each scrape."""
LABELS = {"route", "reason", "algorithm", "action", "to", "cause", "outcome", "le"}
_SERIES = re.compile(r"^(signet_[a-z_]+)(\{[^}]*\})? ", re.MULTILINE)


@dataclass(frozen=True)
class Watched:
    stack: Stack
    prometheus: Prometheus

    def send(self, target: str, method: str = "GET", content: bytes | None = None, **options: object) -> int:
        state = self.stack.state
        key = private_key_from_jwk(json.loads(Path(state["demo_key"]).read_text()))
        with Client(key=key, verify=state["ca"], **options) as client:  # type: ignore[arg-type]
            return client.request(method, state["https"] + target, content=content).status

    def series(self) -> set[str]:
        """Give the filter's series as they are exposed now."""
        with urllib.request.urlopen(f"{self.stack.state['admin']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {"".join(found) for found in _SERIES.findall(text)}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder: Path = tmp_path_factory.mktemp("watched")
    ports = Ports.free()
    targets = {"filter": ports.admin, "envoy": ports.envoy_admin, "kms": ports.kms_metrics}
    addresses = {job: f"127.0.0.1:{port}" for job, port in targets.items()}
    settings = StackSettings(folder / "var", ports, kms=True, routes=(QUOTA, *DEMO_ROUTES))
    with Stack(settings) as stack, prometheus(folder, addresses) as server:
        made = Watched(stack, server)
        until(lambda: server.healthy_jobs() == set(targets), "every target is scraped", within_s=30)
        deadline_s = time.monotonic() + 6
        while time.monotonic() < deadline_s:
            assert made.send("/protected/x") == 200
            assert made.send("/public/x") == 200
            assert made.send("/uploads/x", "POST", b"y" * 300_000) == 200
            until(lambda: made.send("/quota/x") == 429, "the quota is used up")
        # The admin process tells an outcome as overdue after minutes; everything else is there within two scrapes.
        until(lambda: server.query("signet:signed_success:ratio5m > 0"), "the rules were evaluated", within_s=20)
        yield made


@pytest.mark.parametrize("where", sorted(panel_expressions()))
def test_panel_shows_data(watched: Watched, where: str) -> None:
    found = watched.prometheus.query(panel_expressions()[where])
    if where not in QUIET:
        assert found, panel_expressions()[where]


@pytest.mark.parametrize("where", sorted(rule_expressions()))
def test_rule_runs(watched: Watched, where: str) -> None:
    watched.prometheus.query(rule_expressions()[where])


def test_rules_are_evaluated_without_errors_and_none_of_ours_sounds(watched: Watched) -> None:
    groups = watched.prometheus.get("/api/v1/rules")["groups"]
    evaluated = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert len(evaluated) >= 28
    assert {name: rule["lastError"] for name, rule in evaluated.items() if rule.get("lastError")} == {}
    sounding = {name for name, rule in evaluated.items() if rule["type"] == "alerting" and rule["state"] == "firing"}
    assert not {name for name in sounding if name.startswith("Signet")}


def test_recording_rules_have_values(watched: Watched) -> None:
    for where, expression in rule_expressions().items():
        if where.startswith("recording.yml"):
            assert watched.prometheus.query(expression), where
            assert watched.prometheus.query(where.partition(": ")[2]), where


def code_names() -> set[str]:
    """Give every series name that the code registers."""
    registry = CollectorRegistry()
    for telemetry in (Telemetry, BodyTelemetry, OutcomeTelemetry, StressTelemetry):
        telemetry(registry)
    families = [*registry.collect(), *KmsTelemetry().registry.collect(), *ProcessCollector(registry=None).collect()]
    suffixes = {
        "counter": ("_total",),
        "histogram": ("_bucket", "_sum", "_count"),
        "gauge": ("",),
    }
    return {family.name + suffix for family in families for suffix in suffixes[family.type]} | ADMIN_NAMES


def test_every_metric_that_is_read_exists_in_code_or_in_envoy(watched: Watched) -> None:
    scraped = set(watched.prometheus.get("/api/v1/label/__name__/values"))
    envoys = {name for name in scraped if name.startswith("envoy_")}
    recorded = {rule["record"] for file in rule_files() for rule in rules(file) if "record" in rule}
    known = code_names() | envoys | recorded | {"up"}
    for where, expression in (panel_expressions() | rule_expressions()).items():
        assert metric_names(expression) <= known, where
    assert scraped >= ADMIN_NAMES


def test_what_clients_choose_makes_no_series(watched: Watched) -> None:
    """Paths, hosts, traces, methods, key ids: none of them becomes a label."""

    def attack(number: int) -> None:
        parts = ("GET", "PUT", "DELETE", "PATCH")
        assert watched.send(f"/nowhere/{number}?q={number}", parts[number % 4]) == 403
        assert watched.send(f"/protected/{number}?q={number}", parts[number % 4]) == 200

    for number in range(4):
        attack(number)
    before = watched.series()
    for number in range(4, 16):
        attack(number)
    assert watched.series() == before
    names = {label for each in before for label in re.findall(r'(?:\{|",|,)([a-z_]+)="', each)}
    assert names <= LABELS
    assert len(before) < 2_000
