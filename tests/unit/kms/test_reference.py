"""The tables of docs/reference/kms.md are what the code says (CONFIG.md §3, OBSERVABILITY.md §1.3)."""

import re
from pathlib import Path

import pytest

from kms.config_keys import KEYS
from kms.telemetry import Telemetry
from tools.kms_reference import REFERENCE_FILE, TABLES, metrics_table, settings_table, written

SOURCES = Path(__file__).parents[3] / "kms"


def test_every_table_is_there_and_is_the_codes():
    text = REFERENCE_FILE.read_text()
    assert re.findall(r"<!-- made: ([a-z]+) -->", text) == list(TABLES)
    assert written(text) == text, "run tools/kms_reference.py"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_that_was_edited_is_found(name):
    text = REFERENCE_FILE.read_text()
    edited = text.replace(f"<!-- made: {name} -->\n", f"<!-- made: {name} -->\nedited\n")
    assert edited != text
    assert written(edited) == text


def test_no_setting_and_no_metric_is_left_out():
    assert settings_table().count("\n") == len(KEYS) + 2
    registered = {family.name for family in Telemetry().registry.collect()}
    for name in registered:
        assert f"`{name}`" in metrics_table() or f"`{name}_total`" in metrics_table()


def test_metrics_are_registered_in_one_place():
    registering = re.compile(r"from prometheus_client import .*\b(Counter|Gauge|Histogram|Summary)\b")
    found = [path.name for path in SOURCES.rglob("*.py") if registering.search(path.read_text())]
    assert found == ["telemetry.py"]
