"""Count allowed requests whose end was never told, by following the receipts themselves.

Envoy drops entries when its buffer is full (it counts those) and loses what is under way on a stream that breaks (it
does not count those). Whoever lost one, what remains is a decision without an outcome: this is what is counted here,
in the admin process, and what anyone can count again from the log.
"""

from __future__ import annotations

import collections
import logging
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from receipts.errors import StoreError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from receipts.store import ReceiptStore

LOG: Final = logging.getLogger("signet.outcome_watch")
OVERDUE_MS: Final = 400_000
"""Longer than envoy.yaml lets a request take: 300 s to arrive and 60 s to be answered."""
MAX_WAITING: Final = 100_000
"""Decisions kept in mind, about 20 MB; past it the oldest counts as missing before its time."""
PAGE_RECEIPTS: Final = 1000
POLL_S: Final = 1.0


class _Link(msgspec.Struct, frozen=True):
    """What ties an outcome to its decision, of a receipt of any kind."""

    id: str
    kind: str
    time_ms: int
    decision: Literal["allow", "deny"] | None = None
    refers_to: str | None = None


_link: Final = msgspec.json.Decoder(_Link)


class OutcomeWatch:
    """Follow `store` from its end on. `step` belongs to one thread; `collect` may be called from any.

    `clock_ms`: milliseconds since the epoch, the clock that the workers write by.
    """

    def __init__(
        self,
        store: ReceiptStore,
        *,
        clock_ms: Callable[[], int],
        overdue_ms: int = OVERDUE_MS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._store, self._clock_ms = store, clock_ms
        self._overdue_ms, self._max_waiting = overdue_ms, max_waiting
        self._after_seq: int | None = None
        self._waiting: collections.OrderedDict[str, int] = collections.OrderedDict()
        self.missing = 0

    @property
    def waiting(self) -> int:
        """Allowed requests whose end was not told yet; those under way are among them."""
        return len(self._waiting)

    def step(self) -> None:
        """Read what was written since the last step. Blocks; raises StoreError."""
        if self._after_seq is None:
            newest = self._store.latest(1)
            self._after_seq = newest[0].seq if newest else 0
        while page := self._store.read(self._after_seq, PAGE_RECEIPTS):
            for stored in page:
                self._after_seq = stored.seq
                if stored.raw:
                    # What was pruned meanwhile tells nothing any more, and stops no one from looking further.
                    self._see(stored.raw)
            if len(page) < PAGE_RECEIPTS:
                break
        self._give_up(self._clock_ms() - self._overdue_ms)

    def follow(self, stop: threading.Event) -> None:
        """Step every `POLL_S` seconds until `stop` is set."""
        while not stop.wait(POLL_S):
            try:
                self.step()
            except StoreError as error:
                LOG.error("outcomes cannot be compared with decisions: %s", error.code)
            except Exception:
                LOG.exception("outcomes could not be compared with decisions; it is tried again")

    def collect(self) -> Iterator[Metric]:
        """Give the metrics (a prometheus_client collector)."""
        missing = CounterMetricFamily("signet_outcomes_missing", "Allowed requests whose end was never told.")
        missing.add_metric([], self.missing)
        yield missing
        waiting = GaugeMetricFamily("signet_outcomes_waiting", "Allowed requests whose end was not told yet.")
        waiting.add_metric([], self.waiting)
        yield waiting

    def _see(self, raw: bytes) -> None:
        link = _link.decode(raw)
        if link.kind == "decision" and link.decision == "allow":
            self._waiting[link.id] = link.time_ms
            if len(self._waiting) > self._max_waiting:
                self._waiting.popitem(last=False)
                self.missing += 1
        elif link.kind == "outcome" and link.refers_to is not None:
            self._waiting.pop(link.refers_to, None)

    def _give_up(self, before_ms: int) -> None:
        # In the order of the log, which is that of time but for a clock that stepped.
        while self._waiting:
            receipt_id, time_ms = next(iter(self._waiting.items()))
            if time_ms >= before_ms:
                return
            del self._waiting[receipt_id]
            self.missing += 1
