"""What the bench says of our goodput beside Envoy's filters; the measuring itself is `make bench`."""

from __future__ import annotations

import math

import pytest

from loadtest.bench_stress import OTHERS, OURS, verdict


def figures(ours: float, first: float, second: float, flaps: float = 0) -> dict[str, dict[str, float]]:
    rows = dict(zip((OURS, *OTHERS), (ours, first, second), strict=True))
    return {name: {"goodput_per_s": per_s, "flaps": flaps if name == OURS else 9} for name, per_s in rows.items()}


@pytest.mark.parametrize(
    ("measured", "ratio", "met"),
    [
        (figures(40, 30, 20), 40 / 30, True),
        (figures(40, 20, 40), 1.0, True),
        (figures(39.3, 40, 20), 0.9825, True),
        (figures(39.1, 40, 20), 0.9775, False),
        (figures(40, 30, 20, flaps=1), 40 / 30, False),
        (figures(0, 30, 20), 0.0, False),
    ],
)
def test_the_better_of_the_two_is_what_counts(measured: dict[str, dict[str, float]], ratio: float, met: bool) -> None:
    found, is_met = verdict(measured)
    assert found == pytest.approx(ratio)
    assert is_met is met


def test_where_neither_let_anything_through_nothing_is_shown() -> None:
    ratio, met = verdict(figures(40, 0, 0))
    assert math.isnan(ratio)
    assert not met
