"""docs/reference/metrics.md is what the code says, and no label of any metric is without a bound."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from extproc.outcome import Skipped
from extproc.outcome_telemetry import OutcomeTelemetry
from extproc.telemetry import Telemetry
from kms.errors import KmsError
from kms.operation_metrics import MAX_SERIES, OperationMetrics
from kms.telemetry import Telemetry as KmsTelemetry
from pch.reasons import Reason
from tools import metrics_table
from tools.metric_bounds import DROP_CAUSES, KMS_REASON_WORDS, UNMATCHED_CAUSES, bound_of
from tools.metrics_table import ADMIN, FILTER, KMS, PAGE, main, rows

ROOT = Path(__file__).resolve().parents[3]
REGISTERING = re.compile(
    r'(?:Counter|Gauge|Histogram|CounterMetricFamily|GaugeMetricFamily|_gauge)\(\s*"(signet_[a-z_]+)"'
)


def series(registry: CollectorRegistry) -> set[str]:
    return {str((each.name, sorted(each.labels.items()))) for family in registry.collect() for each in family.samples}


def test_committed_table_is_the_codes() -> None:
    assert main(["--check"]) == 0, "run tools/metrics_table.py"


@pytest.mark.parametrize(
    ("old", "new"),
    [("signet_exchanges_total` | counter", "signet_exchanges_total` | gauge"), ("`route` ≤", "`path` ≤")],
)
def test_table_that_was_edited_is_found_and_mended(tmp_path: Path, old: str, new: str) -> None:
    twin = tmp_path / "metrics.md"
    assert old in PAGE.read_text()
    twin.write_text(PAGE.read_text().replace(old, new, 1))
    assert main(["--check", "--page", str(twin)]) == 1
    assert main(["--page", str(twin)]) == 0
    assert twin.read_text() == PAGE.read_text()


def test_no_metric_that_the_filter_makes_is_left_out() -> None:
    sources = (path.read_text() for path in (ROOT / "extproc").rglob("*.py"))
    made = {name for text in sources for name in REGISTERING.findall(text)}
    assert made == {row.family for row in rows() if row.served_by in {FILTER, ADMIN}}
    assert {family.name for family in KmsTelemetry().registry.collect()} == {
        row.family.removesuffix("_total") if row.kind == "counter" else row.family
        for row in rows()
        if row.served_by == KMS
    }


def test_names_of_the_first_design_are_served() -> None:
    names = {row.name for row in rows()}
    exchanges, denied, forward = (f"signet_{each}_total" for each in ("exchanges", "denied", "forward"))
    assert {exchanges, denied, forward, "signet_fallback_used_total"} <= names
    assert not {name for name in names if "billing" in name}


def test_every_label_has_a_bound_and_says_what_it_is() -> None:
    for row in rows():
        assert row.tells
        for label in row.labels:
            bound = bound_of(row.family, label)
            assert 0 < bound.values <= MAX_SERIES + 1
            assert bound.by


@pytest.mark.parametrize("label", ["subject", "path", "key", "trace_id", "tenant"])
def test_label_without_a_bound_is_found(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = metrics_table.MetricRow(FILTER, "signet_denied", "signet_denied_total", "counter", (label,), "Refused")
    monkeypatch.setattr(metrics_table, "rows", lambda: [twin])
    with pytest.raises(LookupError):
        metrics_table.table()


def test_causes_of_the_table_are_those_in_code() -> None:
    dropped = re.findall(r'_drop\("([a-z_]+)"', (ROOT / "extproc/outcome_recorder.py").read_text())
    assert set(dropped) == set(DROP_CAUSES)
    registry = CollectorRegistry()
    telemetry = OutcomeTelemetry(registry)
    for why in Skipped:
        telemetry.skipped(why)
    found = {labels for labels in series(registry) if "signet_outcomes_unmatched_total" in labels}
    assert len(found) == len(UNMATCHED_CAUSES)


def reasons_in(text: str) -> tuple[set[str], set[str]]:
    """Give the words that are given as `reason=`, and the expressions that some are put together with."""
    words: set[str] = set()
    parts: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg == "reason":
            if isinstance(node.value, ast.Constant):
                words.add(str(node.value.value))
            if isinstance(node.value, ast.JoinedStr):
                parts |= {ast.unparse(each.value) for each in node.value.values if isinstance(each, ast.FormattedValue)}
    return words, parts


def test_reasons_of_the_key_service_are_words_in_its_source() -> None:
    words: set[str] = set()
    parts: set[str] = set()
    for folder in (".", "providers", "operations"):
        for path in (ROOT / "kms" / folder).glob("*.py"):
            more, made = reasons_in(path.read_text())
            words, parts = words | more, parts | made
    assert parts == {"self.state.value", "record.state.value", "error.reason"}, "an enum's, or a word already counted"
    # The rest is for those of the classes, the states of a key, and what opening a sealed file says in two stores.
    assert 20 < len(words) < KMS_REASON_WORDS * 2 // 3


def test_reason_with_a_clients_word_in_it_is_noticed() -> None:
    assert reasons_in('raise Conflict("x", reason=f"no_{request.kid}")') == (set(), {"request.kid"})


def test_every_decision_there_can_be_makes_no_more_series_than_the_table_says() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry)
    before, routes = len(series(registry)), ("a", "b", None)
    for _ in range(3):
        for route in routes:
            for reason in Reason:
                telemetry.decided(route, reason)
    added = len(series(registry)) - before
    # Each counter has its `_created` beside it.
    assert added <= 2 * len(Reason) * (len(routes) + 1)


def test_keys_of_any_number_of_tenants_make_no_more_series_than_the_table_says() -> None:
    class Name:
        def __init__(self, number: int) -> None:
            self.tenant, self.purpose, self.alg = f"tenant-{number}", "p", "ed25519"
            self.hash8 = f"{number:08x}"

    class Record:
        def __init__(self, number: int) -> None:
            self.name = Name(number)
            self.newest = type("Newest", (), {"number": 1})

    telemetry = KmsTelemetry()
    metrics = OperationMetrics(telemetry)
    for number in range(MAX_SERIES + 200):
        metrics.key_set(Record(number), new=True)  # type: ignore[arg-type]
    assert len(series_of(telemetry, "kms_keys_total")) == bound_of("kms_keys_total", "tenant").values
    assert len(series_of(telemetry, "kms_key_version_head")) == bound_of("kms_key_version_head", "kid").values


def series_of(telemetry: KmsTelemetry, name: str) -> set[str]:
    return {each for each in series(telemetry.registry) if each.startswith(f"('{name}'")}


def test_refusals_of_the_key_service_make_one_series_for_each_reason() -> None:
    telemetry = KmsTelemetry()
    metrics = OperationMetrics(telemetry)
    kinds = [kind for kind in vars(__import__("kms.errors", fromlist=["x"])).values() if isinstance(kind, type)]
    errors = [kind for kind in kinds if issubclass(kind, KmsError)]
    for number in range(50):
        for kind in errors:
            metrics.failed("sign", "ed25519", kind(f"what {number} said"))
    assert len(series_of(telemetry, "kms_reject_total")) <= bound_of("kms_reject", "reason").values
    assert not [each for each in series(telemetry.registry) if "what" in each]
