"""Metrics of the receipt store and of the log over it, asked for at each scrape of the admin server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily

from receipts.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from extproc.log_service import LogService
    from receipts.store import ReceiptStore


class LogTelemetry:
    """A prometheus_client collector; any thread may call it. What cannot be read is left out, never told as 0."""

    def __init__(self, log: LogService, store: ReceiptStore) -> None:
        self._log, self._store = log, store

    def collect(self) -> Iterator[Metric]:
        """Give the metrics; their lag is `signet_receipts_stored - signet_log_entries`."""
        problem = self._log.problem or self._log.degraded
        yield _gauge("signet_log_problem", "1 while nothing is taken into the log.", int(problem is not None))
        if (head := self._log.head) is not None:
            yield _gauge("signet_log_entries", "Receipts under the newest signed head.", head.size)
            yield _gauge("signet_log_head_time_seconds", "When the newest head was signed, Unix time.", head.time_s)
        try:
            newest = self._store.latest(1)
        except StoreError:
            return
        yield _gauge(
            "signet_receipts_stored", "Receipts in the store, pruned ones too.", newest[0].seq if newest else 0
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family
