"""Metrics of the bodies that ext_proc sees through. Labels only ever come from the configuration and from reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge

if TYPE_CHECKING:
    from pch.reasons import Reason


class BodyTelemetry:
    """Count what `extproc.ext_proc` does. Owned by one event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._verdicts = Counter(
            "signet_body_verdicts", "Bodies settled by route and reason.", ("route", "reason"), registry=registry
        )
        self.bytes = Counter("signet_body_bytes", "Bytes of content that arrived.", registry=registry)
        self.open = Gauge("signet_body_streams", "Bodies on their way.", registry=registry, multiprocess_mode="livesum")
        self.orders_refused = Counter(
            "signet_body_orders_refused", "Streams without an order that holds.", registry=registry
        )

    def settled(self, route: str, reason: Reason) -> None:
        """Count one verdict. `route`: its name from the configuration."""
        self._verdicts.labels(route, str(reason)).inc()
