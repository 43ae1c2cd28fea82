"""An outcome recorder on a real store and writer, whose writer fails when told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from extproc.outcome import Outcome
from extproc.outcome_recorder import MAX_PENDING_OUTCOMES, OutcomeRecorder
from extproc.outcome_telemetry import OutcomeTelemetry
from receipts.facts import OutcomeFacts, request_facts
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ReceiptId, WriterId, new_receipt_id
from receipts.store import StoredReceipt
from receipts.store_sqlite import SqliteReceiptStore
from receipts.writer import ReceiptWriter
from tests.support.filter_parts import NOW_MS, CountingRandom, SetClock

WAIT_S = 10.0


class TroubledWriter:
    """A real writer. `trouble` gets each draft first: it may raise, wait, or tell to fail after the fact."""

    def __init__(self, writer: ReceiptWriter) -> None:
        self.writer = writer
        self.trouble: Callable[[ReceiptDraft], Exception | None] = lambda _draft: None
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.entered = asyncio.Event()

    async def append(self, draft: ReceiptDraft, timeout_s: float) -> StoredReceipt:
        self.entered.set()
        await self.go_on.wait()
        after = self.trouble(draft)
        stored = await self.writer.append(draft, timeout_s)
        if after is not None:
            raise after
        return stored


@dataclass
class Heard:
    """What the observer was told."""

    ends: list[tuple[str, int | None, int | None, tuple[str, ...], int | None]] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

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
        self.ends.append((route, status, app_us, flags, probe_epoch))
        self.subjects.append(subject)


class OutcomeParts:
    """Everything that an outcome passes through, in `folder`."""

    def __init__(self, folder: Path, *, max_pending: int = MAX_PENDING_OUTCOMES) -> None:
        self.store = SqliteReceiptStore(folder / "receipts.sqlite3")
        self._writer = ReceiptWriter(self.store, writer_id=WriterId("11111111-1111-4111-8111-111111111111"))
        self.writer = TroubledWriter(self._writer)
        self.registry, self.heard = CollectorRegistry(), Heard()
        self.telemetry = OutcomeTelemetry(self.registry)
        self.clock, self.random = SetClock(), CountingRandom()
        self.recorder = OutcomeRecorder(
            self.store,
            self.writer,  # type: ignore[arg-type]
            self.telemetry,
            timeout_s=lambda: WAIT_S,
            clock_ms=self.clock,
            random_bytes=self.random,
            observer=self.heard,
            max_pending=max_pending,
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> OutcomeParts:
        self._writer.start()
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self._writer.aclose(WAIT_S)
        self.store.close()

    def start(self) -> None:
        self._task = asyncio.create_task(self.recorder.run())

    async def stop(self) -> None:
        """Cancel the recorder as a draining worker does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def decide(self, decision: str = "allow", **changes: Any) -> ReceiptId:
        """Store a decision."""
        values: dict[str, Any] = {
            "kind": "decision",
            "id": new_receipt_id(self.clock(), self.random(10)),
            "time_ms": self.clock(),
            "request": request_facts(method="GET", authority="a", target="/", content="none"),
            "decision": decision,
            "reason": "allowed" if decision == "allow" else "key_revoked",
            "status": None if decision == "allow" else 401,
            "route": "protected",
        }
        return (await self._writer.append(ReceiptDraft(**(values | changes)), WAIT_S)).id

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"signet_outcomes_{name}_total", labels) or 0.0

    async def settled(self) -> None:
        """Wait until nothing waits any more."""
        await self.until(lambda: self.recorder.pending_outcomes == 0)

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not reached():
                await asyncio.sleep(0.001)


def end_of(
    decision: ReceiptId, status: int | None = 200, flags: tuple[str, ...] = (), *, answered: bool = True
) -> Outcome:
    return Outcome(decision, OutcomeFacts(status, 1500, flags), NOW_MS, 900, answered)
