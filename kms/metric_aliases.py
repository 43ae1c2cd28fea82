"""The names that RUNBOOK.md and SECURITY.md have for numbers which OBSERVABILITY.md names otherwise.

They are read off the canonical metrics when somebody scrapes: no operation counts anything twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics import MetricWrapperBase

    from kms.telemetry import Telemetry

Family = CounterMetricFamily | GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name. `source`: the attribute of `Telemetry`; `only`: the labels that a sample must have."""

    name: str
    kind: str
    text: str
    source: str
    labels: tuple[str, ...] = ()
    only: Mapping[str, str] = field(default_factory=dict)


_HITS: Final = "verify_cache_hits"
_AGE: Final = "verify_cache_age"
ALIASES: Final = (
    Alias("verify_cache_hit", "counter", "Public keys found fresh", _HITS, only={"hit": "true"}),
    Alias("verify_cache_miss", "counter", "Public keys that had to be read", _HITS, only={"hit": "false"}),
    Alias("verify_cache_stale", "counter", "Public keys used past the soft TTL", "verify_cache_expired"),
    Alias("verify_cache_stale_max_ms", "gauge", "Age of the oldest public keys in use in an outage", _AGE),
    Alias("verify_cache_age_ms", "gauge", "Age of the public keys used in an outage", _AGE),
    Alias("verify_cache_ttl_ms", "gauge", "The soft TTL in force", "verify_cache_ttl"),
    Alias("backend_reconnects", "counter", "Reconnections", "backend_reconnects", ("backend",)),
)


class AliasCollector:
    """What the registry asks at each scrape."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def describe(self) -> Iterable[Family]:
        """Name the families without their values."""
        return [_family(alias) for alias in ALIASES]

    def collect(self) -> Iterator[Family]:
        """Give every alias with what its source says now."""
        for alias in ALIASES:
            family = _family(alias)
            source: MetricWrapperBase = getattr(self._telemetry, alias.source)
            for sample in (each for metric in source.collect() for each in metric.samples):
                if not sample.name.endswith("_created") and alias.only.items() <= sample.labels.items():
                    family.add_metric([sample.labels[label] for label in alias.labels], sample.value)
            yield family


def _family(alias: Alias) -> Family:
    kind = CounterMetricFamily if alias.kind == "counter" else GaugeMetricFamily
    return kind(alias.name, alias.text, labels=alias.labels)
