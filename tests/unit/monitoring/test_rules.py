"""Rules and dashboards as files: promtool's verdict, every alert tested both ways, one definition for each name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitoring_parts import (
    MONITORING,
    dashboards,
    metric_names,
    panel_expressions,
    promtool,
    rule_expressions,
    rule_files,
    rules,
)

TESTS = ("recording_test.yml", "alerts_test.yml")
GRID_COLUMNS = 24


def test_prometheus_takes_the_configuration_with_all_its_rules() -> None:
    done = promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"recording.yml", "alerts.yml"} <= set(rule_files())
    assert all(f"Checking {name}" in done.stdout for name in rule_files())


def test_scrapes_are_of_the_ports_of_a_stack() -> None:
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs} == {
        "filter": ["127.0.0.1:8080"],
        "envoy": ["127.0.0.1:9901"],
        "kms": ["127.0.0.1:9909"],
    }


@pytest.mark.parametrize("name", TESTS)
def test_rules_do_what_their_tests_say(name: str) -> None:
    done = promtool("test", "rules", name, cwd=MONITORING / "tests")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_where_it_sounds_and_one_where_it_is_quiet() -> None:
    cases = [
        case
        for test in yaml.safe_load((MONITORING / "tests" / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {rule["alert"] for rule in rules("alerts.yml")}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_every_recording_rule_has_a_case() -> None:
    tests = yaml.safe_load((MONITORING / "tests" / "recording_test.yml").read_text())["tests"]
    asked = {name for test in tests for case in test["promql_expr_test"] for name in metric_names(case["expr"])}
    assert asked == {rule["record"] for rule in rules("recording.yml")}


@pytest.mark.parametrize(("expression", "what"), [("vector(0) > 1", "sounds"), ("vector(1)", "is quiet")])
def test_alert_that_never_or_always_sounds_fails_its_tests(tmp_path: Path, expression: str, what: str) -> None:
    """A twin of the alerts: whichever one is broken, a case of its own says so."""
    document = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    names = []
    for group in document["groups"]:
        for rule in group["rules"]:
            rule["expr"] = expression
            names.append(rule["alert"])
    (tmp_path / "tests").mkdir()
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(document))
    shutil.copy(MONITORING / "recording.yml", tmp_path)
    shutil.copy(MONITORING / "tests" / "alerts_test.yml", tmp_path / "tests")
    done = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path / "tests")
    assert done.returncode != 0
    assert [name for name in names if f"{name} {what}" not in done.stdout + done.stderr] == []


def test_alerts_say_how_grave_they_are_and_what_is_wrong() -> None:
    for rule in rules("alerts.yml"):
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]
        assert rule["annotations"]["summary"].endswith((".", "}}.")), rule["alert"]


@pytest.mark.parametrize("name", ["overview", "breaker", "crypto", "receipts", "kms"])
def test_dashboard_is_whole(name: str) -> None:
    dashboard = dashboards()[name]
    assert dashboard["uid"] == f"signet-{name}"
    assert dashboard["schemaVersion"] >= 36
    panels: list[dict[str, Any]] = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels) > 4
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= GRID_COLUMNS, panel["title"]
        columns, lines = range(place["w"]), range(place["h"])
        cells = {(place["x"] + column, place["y"] + line) for column in columns for line in lines}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        assert panel["targets"], panel["title"]
        assert all(each["datasource"]["uid"] == "signet" for each in (panel, *panel["targets"]))


def test_provisioning_names_the_data_source_of_the_panels_and_their_folder() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "signet.yml").read_text())["datasources"]
    assert (source["uid"], source["type"]) == ("signet", "prometheus")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "signet.yml").read_text())["providers"]
    assert provider["type"] == "file"


def test_every_recorded_name_that_is_read_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules("recording.yml")}
    for where, expression in (panel_expressions() | rule_expressions()).items():
        assert {name for name in metric_names(expression) if ":" in name} <= recorded, where


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("a", {"a"}),
        ('sum by (route) (rate(a_total{b="c or d"}[5m])) or vector(0)', {"a_total"}),
        ("time() - a > 3 and on(x) b:c:d", {"a", "b:c:d"}),
        ("1 - a / (b > 0)", {"a", "b"}),
        ("a unless a offset 5m", {"a"}),
    ],
)
def test_names_are_read_out_of_expressions(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names
