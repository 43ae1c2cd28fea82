#!/usr/bin/env python3
"""Write the table of docs/reference/metrics.md from the code.

python tools/metrics_table.py            rewrites what stands between `<!-- made: metrics -->` and `<!-- end -->`
python tools/metrics_table.py --check    exits with 1 when the page is not what the code says
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from extproc.body_telemetry import BodyTelemetry
from extproc.log_telemetry import LogTelemetry
from extproc.outcome_telemetry import OutcomeTelemetry
from extproc.outcome_watch import OutcomeWatch
from extproc.stress_desk import StressTelemetry
from extproc.telemetry import Telemetry
from kms.metric_aliases import ALIASES
from kms.telemetry import Telemetry as KmsTelemetry
from tools.metric_bounds import bound_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "metrics.md"
_BLOCK: Final = re.compile(r"(<!-- made: metrics -->\n).*?(<!-- end -->)", re.DOTALL)
_UNITS: Final = ("seconds", "ms", "bytes", "ratio", "percent")
FILTER: Final = "filter"
ADMIN: Final = "admin"
KMS: Final = "kms"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric. `name`: as it is scraped, without a histogram's suffixes; `family`: without `_total` as well."""

    served_by: str
    family: str
    name: str
    kind: str
    labels: tuple[str, ...]
    tells: str

    @property
    def unit(self) -> str:
        """Give the unit that the name ends with; a plain number has none."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in _UNITS if stem.endswith(f"_{unit}")), "")


def rows() -> list[MetricRow]:
    """List every metric of the filter's workers, of the admin process and of the key service."""
    return sorted((*_filter_rows(), *_admin_rows(), *_kms_rows()), key=lambda row: (row.served_by, row.name))


def _filter_rows() -> Iterator[MetricRow]:
    for kind in (Telemetry, OutcomeTelemetry, BodyTelemetry, StressTelemetry):
        yield from _registered(FILTER, kind(CollectorRegistry()))


def _registered(served_by: str, telemetry: object) -> Iterator[MetricRow]:
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase) and not metric._labelvalues:
            yield _row(served_by, metric._name, metric._type, tuple(metric._labelnames), metric._documentation)


def _row(served_by: str, family: str, kind: str, labels: tuple[str, ...], tells: str) -> MetricRow:
    name = f"{family}_total" if kind == "counter" else family
    return MetricRow(served_by, family, name, kind, labels, tells.rstrip("."))


def _admin_rows() -> Iterator[MetricRow]:
    # What these collectors read is not needed: their metrics have no labels.
    log = SimpleNamespace(problem=None, degraded=None, head=SimpleNamespace(size=0, time_s=0))
    store = SimpleNamespace(latest=lambda _count: [])
    watch = SimpleNamespace(missing=0, waiting=0)
    collected = (
        *OutcomeWatch.collect(cast("Any", watch)),
        *LogTelemetry(cast("Any", log), cast("Any", store)).collect(),
    )
    for family in collected:
        labels = tuple(sorted({label for sample in family.samples for label in sample.labels}))
        yield _row(ADMIN, family.name, family.type, labels, family.documentation)


def _kms_rows() -> Iterator[MetricRow]:
    yield from _registered(KMS, KmsTelemetry())
    for alias in ALIASES:
        yield _row(KMS, alias.name, alias.kind, alias.labels, alias.text)


def table() -> str:
    """Write the table."""
    head = ("served by", "metric", "type", "unit", "labels, and what bounds them", "tells")
    lines = [head, tuple("---" for _ in head)]
    for row in rows():
        bounds = [(label, bound_of(row.family, label)) for label in row.labels]
        labels = "; ".join(f"`{label}` ≤ {bound.values}: {bound.by}" for label, bound in bounds)
        lines.append((row.served_by, f"`{row.name}`", row.kind, row.unit, labels, row.tells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def written(text: str) -> str:
    """Give the page with its table made anew."""
    made = table()
    return _BLOCK.sub(lambda match: match[1] + made + match[2], text)


def main(argv: list[str] | None = None) -> int:
    """Rewrite the page, or compare. Returns 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    old = options.page.read_text()
    new = written(old)
    if options.check:
        return int(new != old)
    options.page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
