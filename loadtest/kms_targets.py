"""What the key service's bench holds its numbers against: targets, the drift from a baseline, the tenants' skew.

Pure: numbers in, sentences out; what is measured and when is bench_kms.py's (PERFORMANCE.md §1.1, §5; I-17).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TARGETS_MS: Final = {
    "sign ed25519": 1.0,
    "sign ml-dsa": 10.0,
    "verify hit": 1.0,
    "verify miss": 5.0,
    "wrap": 6.0,
    "unwrap": 6.0,
}
"""p95 of one caller, by operation."""
DRIFT_LIMITS: Final = {"sign ed25519": 1.10, "sign ml-dsa": 1.15, "verify hit": 1.10}
"""How many times the baseline's ratio of p95 over raw work an operation may come to."""
MAX_SKEW: Final = 2.0


@dataclass(frozen=True, slots=True)
class Drift:
    """How one measurement stands to the baseline. `change` is None where the baseline has none; `limit` may be none."""

    name: str
    change: float | None
    limit: float | None

    @property
    def beyond(self) -> bool:
        """Tell whether it passed its limit. Without a baseline nothing is known, and that is no pass."""
        return self.limit is not None and (self.change is None or self.change > self.limit)

    def __str__(self) -> str:
        change = "no baseline" if self.change is None else f"{self.change:.2f} of the baseline"
        return f"{self.name}: {change}" + ("" if self.limit is None else f", limit {self.limit:.2f}")


def operation_of(name: str) -> str:
    """Take the transport off a measurement's name: `http sign ed25519` is of `sign ed25519`."""
    return name.partition(" ")[2]


def missed_targets(p95_ms: Mapping[str, float]) -> list[str]:
    """Name every measurement over its target, with how many times over. `p95_ms`: by transport and operation."""
    return [
        f"{name}: p95 {value:.2f} ms is {value / target:.2f} times the target of {target} ms"
        for name, value in p95_ms.items()
        if (target := TARGETS_MS.get(operation_of(name))) is not None and not value <= target
    ]


def raw_ratios(p95_ms: Mapping[str, float], raw_work_ms: float) -> dict[str, float]:
    """Divide by the time of the same raw work on the same machine: what is left tells of the program."""
    return {name: round(value / raw_work_ms, 3) for name, value in p95_ms.items()}


def drifts(ratios: Mapping[str, float], baseline: Mapping[str, float]) -> list[Drift]:
    """Compare every ratio with the baseline's."""
    return [
        Drift(name, ratio / baseline[name] if name in baseline else None, DRIFT_LIMITS.get(operation_of(name)))
        for name, ratio in ratios.items()
    ]


def skew(first_ms: float, second_ms: float) -> float:
    """Give how many times the slower tenant's p95 is the other's."""
    return max(first_ms, second_ms) / min(first_ms, second_ms)
