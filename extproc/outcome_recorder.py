"""Make receipts of outcomes, off the request path: queue, look the decision up, write, tell the observer.

The queue is bounded and taking never waits. What does not fit is dropped, counted, and told in the log itself by a
`log_event` receipt. What the store cannot take now is tried again; a key derived from the decision's id keeps a second
try, or an entry that Envoy sends twice, from becoming a second receipt.
"""

from __future__ import annotations

import asyncio
import collections
import enum
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

from extproc.outcome import outcome_key
from extproc.stress_action import Action
from receipts.errors import ReceiptTooLarge, StoreCorrupt, StoreError
from receipts.facts import EventFacts
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ID_RANDOM_BYTES, new_receipt_id
from receipts.store import PrunedReceipt, StoredReceipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from extproc.outcome import Outcome
    from extproc.outcome_telemetry import OutcomeTelemetry
    from receipts.receipt_id import ReceiptId
    from receipts.store import ReceiptStore
    from receipts.writer import ReceiptWriter

LOG: Final = logging.getLogger("signet.outcomes")
MAX_PENDING_OUTCOMES: Final = 16_384
"""Outcomes that wait, about 8 MB: some ten seconds of what one worker can decide."""
MAX_BATCH_OUTCOMES: Final = 128
"""Outcomes handed to the writer at once; half of a commit, so that decisions always find room in the next one."""
RETRY_AFTER_S: Final = 0.25
"""Pause after the store took nothing."""
MAX_FAILED_LOOKUPS: Final = 8
"""How often one outcome's decision may fail to be looked up, for a cause of its own, before the outcome is lost."""
DROPPED_EVENT: Final = "outcomes_dropped"


class OutcomeObserver(Protocol):
    """Whoever wants to know how allowed requests end, such as a circuit breaker."""

    def ended(
        self,
        route: str,
        status: int | None,
        app_us: int | None,
        flags: tuple[str, ...],
        *,
        probe_epoch: int | None,
        subject: str = "",
    ) -> None:
        """Hear of one allowed request's end, once, after its receipt is durable. Must neither block nor raise.

        `route`, `probe_epoch` and `subject` (`extproc.breaker_bank`): from the decision's receipt. `status`: the app's,
        None when it gave none. `app_us`: as `Outcome` has it. `flags`: Envoy's response flags, by their names in
        `envoy.data.accesslog.v3.ResponseFlags`.
        """


class NoObserver:
    """An observer that does nothing."""

    def ended(
        self,
        route: str,
        status: int | None,
        app_us: int | None,
        flags: tuple[str, ...],
        *,
        probe_epoch: int | None,
        subject: str = "",
    ) -> None:
        """Hear of one allowed request's end."""


class _Stress(msgspec.Struct, frozen=True):
    """What the plan did with the request (`extproc.stress_action`)."""

    action: str
    epoch: int


class _PolicyInput(msgspec.Struct, frozen=True):
    stress: _Stress | None = None
    subject: str = ""


class _Policy(msgspec.Struct, frozen=True):
    input: _PolicyInput


class _Decision(msgspec.Struct, frozen=True):
    """What an outcome needs of its decision's receipt."""

    kind: Literal["decision"]
    decision: Literal["allow"]
    trace_id: str | None
    route: str
    policy: _Policy | None = None

    @property
    def probe_epoch(self) -> int | None:
        """Give the half-open phase that this request was a probe of."""
        stress = None if self.policy is None else self.policy.input.stress
        return stress.epoch if stress is not None and stress.action == Action.PROBE else None

    @property
    def subject(self) -> str:
        """Give whose request it was; empty where policy was not asked."""
        return "" if self.policy is None else self.policy.input.subject


@dataclass(slots=True)
class _Pending:
    """`tried`: it was handed to the writer before, and may be durable although the writer did not say so.

    `failed_lookups`: how often its decision could not be looked up, for a cause of its own.
    """

    outcome: Outcome
    tried: bool = False
    failed_lookups: int = 0


class _NoDecision(enum.Enum):
    """Why an outcome has no decision to go by: no request was allowed under its id, it cannot be had, or not now."""

    UNKNOWN = enum.auto()
    LOST = enum.auto()
    LATER = enum.auto()


_decision: Final = msgspec.json.Decoder(_Decision)


class OutcomeRecorder:
    """Record outcomes in the order of their arrival. Owned by one event loop.

    `store` is only read, from a thread. `timeout_s`: how long one receipt may take. `clock_ms`: milliseconds since the
    epoch.
    """

    def __init__(
        self,
        store: ReceiptStore,
        writer: ReceiptWriter,
        telemetry: OutcomeTelemetry,
        *,
        timeout_s: Callable[[], float],
        clock_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        observer: OutcomeObserver | None = None,
        max_pending: int = MAX_PENDING_OUTCOMES,
    ) -> None:
        self._store, self._writer, self._telemetry = store, writer, telemetry
        self._timeout_s, self._clock_ms, self._random_bytes = timeout_s, clock_ms, random_bytes
        self._observer: OutcomeObserver = observer or NoObserver()
        self._max_pending = max_pending
        self._pending: collections.deque[_Pending] = collections.deque()
        self._in_hand: list[_Pending] = []
        self._arrived = asyncio.Event()
        self._untold: collections.Counter[str] = collections.Counter()

    @property
    def pending_outcomes(self) -> int:
        """Outcomes taken and not yet settled."""
        return len(self._pending) + len(self._in_hand)

    def take(self, outcome: Outcome) -> None:
        """Queue `outcome`; when the queue is full it is dropped and counted. Never waits."""
        if self.pending_outcomes >= self._max_pending:
            self._drop("queue_full")
            return
        self._pending.append(_Pending(outcome))
        self._arrived.set()

    async def run(self) -> None:
        """Record what is taken, until cancelled; then `drain` records what is left."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._pending:
                if not await self._settle_batch():
                    await asyncio.sleep(RETRY_AFTER_S)

    async def drain(self, within_s: float) -> None:
        """Record what is left, for at most `within_s` seconds; the rest is dropped and counted."""
        try:
            async with asyncio.timeout(within_s):
                while self._pending:
                    if not await self._settle_batch():
                        await asyncio.sleep(RETRY_AFTER_S)
        except TimeoutError:
            self._drop("shutdown", len(self._pending))
            self._pending.clear()
        await self.tell_dropped()

    async def tell_dropped(self) -> None:
        """Write a receipt of how many outcomes were dropped since the last one, if any."""
        if not self._untold:
            return
        told, self._untold = self._untold, collections.Counter()
        draft = ReceiptDraft(
            kind="log_event",
            id=self._new_id(),
            time_ms=self._clock_ms(),
            event=EventFacts(DROPPED_EVENT, {"causes": dict(sorted(told.items())), "count": told.total()}),
        )
        try:
            await self._writer.append(draft, self._timeout_s())
        except asyncio.CancelledError:
            self._untold += told
            raise
        except StoreError as error:
            self._untold += told
            LOG.error("%d dropped outcomes could not be told in the log: %s", told.total(), error.code)
        else:
            LOG.error("%d outcomes were dropped", told.total())

    def _drop(self, cause: str, count: int = 1) -> None:
        self._untold[cause] += count
        self._telemetry.dropped(cause, count)

    def _new_id(self) -> ReceiptId:
        return new_receipt_id(self._clock_ms(), self._random_bytes(ID_RANDOM_BYTES))

    async def _settle_batch(self) -> bool:
        """Settle the oldest outcomes; False when some must be tried again."""
        count = min(len(self._pending), MAX_BATCH_OUTCOMES)
        self._in_hand = [self._pending.popleft() for _ in range(count)]
        again = self._in_hand
        try:
            again = await self._record(self._in_hand)
        except StoreError as error:
            LOG.error("outcomes wait for the store: %s", error.code)
        except Exception:
            LOG.exception("outcomes could not be recorded; they are tried again")
        finally:
            # Also when cancelled: what is in hand is then for `drain`.
            self._pending.extendleft(reversed(again))
            self._in_hand = []
            self._telemetry.pending.set(len(self._pending))
        return not again

    async def _record(self, batch: Sequence[_Pending]) -> list[_Pending]:
        """Write the outcomes of known decisions; return those to try again. One bad entry holds up no other."""
        looked_up = list(zip(batch, await asyncio.to_thread(self._decisions, batch), strict=True))
        known = [(each, found) for each, found in looked_up if isinstance(found, _Decision)]
        again = [each for each, found in looked_up if found is _NoDecision.LATER]
        self._telemetry.unknown.inc(sum(found is _NoDecision.UNKNOWN for _, found in looked_up))
        if lost := sum(found is _NoDecision.LOST for _, found in looked_up):
            LOG.error("the decisions of %d outcomes cannot be read", lost)
            self._drop("unrecordable", lost)
        tried_before = [each.tried for each, _ in known]
        for each, _ in known:
            each.tried = True
        timeout_s = self._timeout_s()
        appends = (self._append(each.outcome, found, timeout_s) for each, found in known)
        results = await asyncio.gather(*appends, return_exceptions=True)
        for (each, found), tried, result in zip(known, tried_before, results, strict=True):
            if isinstance(result, StoredReceipt):
                self._written(each.outcome, found, first=tried or not result.duplicate)
            elif isinstance(result, StoreError) and not isinstance(result, ReceiptTooLarge):
                again.append(each)
            elif isinstance(result, Exception):
                # Another try would end the same way, and hold up all that come after.
                LOG.error("an outcome could not be recorded", exc_info=result)
                self._drop("unrecordable")
            else:
                raise result
        if again:
            LOG.error("%d outcomes wait for the store", len(again))
        return again

    def _decisions(self, batch: Sequence[_Pending]) -> list[_Decision | _NoDecision]:
        """Look decisions up. Blocks. Raises StoreError when the store as a whole cannot be read."""
        return [self._decision_of(each) for each in batch]

    def _decision_of(self, pending: _Pending) -> _Decision | _NoDecision:
        try:
            stored = self._store.get(pending.outcome.decision_id)
        except StoreError as error:
            if not isinstance(error, StoreCorrupt):
                raise
            return self._failed(pending)
        except Exception:
            LOG.exception("a decision could not be looked up")
            return self._failed(pending)
        if stored is None:
            return _NoDecision.UNKNOWN
        if isinstance(stored, PrunedReceipt):
            # Its route went with its payload. Only what allowed a request has an outcome at all.
            return _NoDecision.LOST if stored.decision == "allow" else _NoDecision.UNKNOWN
        try:
            return _decision.decode(stored.raw)
        except msgspec.MsgspecError:
            return _NoDecision.UNKNOWN

    @staticmethod
    def _failed(pending: _Pending) -> _NoDecision:
        pending.failed_lookups += 1
        return _NoDecision.LOST if pending.failed_lookups >= MAX_FAILED_LOOKUPS else _NoDecision.LATER

    async def _append(self, outcome: Outcome, decision: _Decision, timeout_s: float) -> StoredReceipt:
        return await self._writer.append(self._draft(outcome, decision), timeout_s)

    def _draft(self, outcome: Outcome, decision: _Decision) -> ReceiptDraft:
        return ReceiptDraft(
            kind="outcome",
            id=self._new_id(),
            time_ms=self._clock_ms(),
            trace_id=decision.trace_id,
            refers_to=outcome.decision_id,
            outcome=outcome.facts,
            idempotency_key=outcome_key(outcome.decision_id),
        )

    def _written(self, outcome: Outcome, decision: _Decision, *, first: bool) -> None:
        if not first:
            self._telemetry.duplicates.inc()
            return
        self._telemetry.written.inc()
        self._telemetry.delay_seconds.observe(max(0, self._clock_ms() - outcome.ended_ms) / 1000)
        facts = outcome.facts
        # A body that ext_proc refuses with 503, say for want of room, is not the app's failure.
        status = facts.status if outcome.answered else None
        try:
            self._observer.ended(
                decision.route,
                status,
                outcome.app_us,
                facts.flags,
                probe_epoch=decision.probe_epoch,
                subject=decision.subject,
            )
        except Exception:
            # The receipt is durable; to try again would tell those of the whole batch anew.
            LOG.exception("the end of a request could not be told")
