"""What the key service's bench calls missed, drifted and unfair (G-5). That it holds is measured, by `make bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.kms_targets import (
    DRIFT_LIMITS,
    MAX_SKEW,
    TARGETS_MS,
    drifts,
    missed_targets,
    raw_ratios,
    skew,
)

BASELINE = Path(__file__).parents[3] / "loadtest" / "baselines" / "kms.json"
AT_TARGET = {f"{kind} {name}": target for kind in ("http", "grpc") for name, target in TARGETS_MS.items()}


def test_the_targets_are_the_documents_and_every_one_has_a_baseline() -> None:
    assert (TARGETS_MS["sign ed25519"], TARGETS_MS["sign ml-dsa"], TARGETS_MS["verify hit"]) == (1.0, 10.0, 1.0)
    assert (TARGETS_MS["verify miss"], TARGETS_MS["wrap"], TARGETS_MS["unwrap"]) == (5.0, 6.0, 6.0)
    stored = json.loads(BASELINE.read_text())["p95_over_raw_work"]
    assert AT_TARGET.keys() <= stored.keys()
    assert DRIFT_LIMITS.keys() <= TARGETS_MS.keys()


@pytest.mark.parametrize("name", AT_TARGET)
def test_a_p95_over_its_target_is_missed_with_its_ratio_and_one_at_it_is_not(name: str) -> None:
    assert missed_targets(AT_TARGET) == []
    (line,) = missed_targets(AT_TARGET | {name: AT_TARGET[name] * 1.5})
    assert line.startswith(f"{name}: ")
    assert "1.50 times the target" in line


def test_what_is_not_a_number_is_missed_and_what_has_no_target_is_not() -> None:
    assert len(missed_targets({"http wrap": float("nan")})) == 1
    assert missed_targets({"http mix 70/20/10": 1000.0, "http sign hybrid": 1000.0}) == []


def test_the_machines_speed_divides_out() -> None:
    slow = {name: value * 3 for name, value in AT_TARGET.items()}
    assert raw_ratios(slow, 6.0) == raw_ratios(AT_TARGET, 2.0)


@pytest.mark.parametrize(("operation", "limit"), DRIFT_LIMITS.items())
def test_a_ratio_beyond_the_baselines_limit_has_drifted_and_one_within_has_not(operation: str, limit: float) -> None:
    baseline = {f"http {operation}": 2.0}
    (within,) = drifts({f"http {operation}": 2.0 * limit - 0.001}, baseline)
    assert not within.beyond
    (beyond,) = drifts({f"http {operation}": 2.0 * limit + 0.01}, baseline)
    assert beyond.beyond
    assert str(beyond) == f"http {operation}: {limit + 0.005:.2f} of the baseline, limit {limit:.2f}"


def test_without_a_baseline_nothing_passes_that_has_a_limit() -> None:
    limited, free = drifts({"grpc sign ed25519": 1.0, "grpc wrap": 1.0}, {})
    assert limited.beyond
    assert "no baseline" in str(limited)
    assert not free.beyond
    assert str(free) == "grpc wrap: no baseline"


def test_an_operation_without_a_limit_drifts_freely() -> None:
    (found,) = drifts({"http wrap": 9.0}, {"http wrap": 1.0})
    assert found.change == 9.0
    assert not found.beyond


@pytest.mark.parametrize(("heavy", "light", "fair"), [(1.0, 1.0, True), (2.0, 1.0, True), (1.0, 2.1, False)])
def test_the_skew_is_the_slower_over_the_faster_whichever_it_is(heavy: float, light: float, fair: bool) -> None:
    assert skew(heavy, light) == skew(light, heavy)
    assert (skew(heavy, light) <= MAX_SKEW) is fair
