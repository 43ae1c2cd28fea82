"""Counting allowed requests whose end was never told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from extproc import outcome_watch
from extproc.outcome_watch import PAGE_RECEIPTS, OutcomeWatch
from receipts.errors import ReceiptStoreUnavailable
from receipts.facts import OutcomeFacts, request_facts
from receipts.prune import PrunePlan, prune
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ReceiptId, WriterId, new_receipt_id
from receipts.store import WriterTail
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.filter_parts import NOW_MS, CountingRandom, SetClock

OVERDUE_MS = 1000


class Log:
    """A store that receipts are written to, and a watch on it."""

    def __init__(self, folder: Path, **settings: int) -> None:
        self.store = SqliteReceiptStore(folder / "receipts.sqlite3")
        self.clock, self.random = SetClock(), CountingRandom()
        self.tail = WriterTail(WriterId("11111111-1111-4111-8111-111111111111"))
        self.watch = OutcomeWatch(self.store, clock_ms=self.clock, **({"overdue_ms": OVERDUE_MS} | settings))

    def write(self, *drafts: ReceiptDraft) -> None:
        for start in range(0, len(drafts), 250):
            self.tail = self.store.append(drafts[start : start + 250], self.tail).tail

    def new_id(self) -> ReceiptId:
        return new_receipt_id(self.clock(), self.random(10))

    def decision(self, decision: str = "allow") -> ReceiptDraft:
        return ReceiptDraft(
            kind="decision",
            id=self.new_id(),
            time_ms=self.clock(),
            request=request_facts(method="GET", authority="a", target="/", content="none"),
            decision=decision,  # type: ignore[arg-type]
            reason="allowed" if decision == "allow" else "key_revoked",
            status=None if decision == "allow" else 401,
            route="protected",
        )

    def outcome(self, decision: ReceiptDraft) -> ReceiptDraft:
        facts = OutcomeFacts(200, 1, ())
        return ReceiptDraft(
            kind="outcome", id=self.new_id(), time_ms=self.clock(), refers_to=decision.id, outcome=facts
        )

    def counts(self) -> tuple[int, int]:
        self.watch.step()
        return self.watch.waiting, self.watch.missing


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    made.watch.step()
    yield made
    made.store.close()


def test_decision_waits_for_its_outcome_and_is_missing_only_when_overdue(log: Log) -> None:
    told, untold = log.decision(), log.decision()
    log.write(told, untold)
    assert log.counts() == (2, 0)
    log.write(log.outcome(told))
    assert log.counts() == (1, 0)
    log.clock.now_ms += OVERDUE_MS
    assert log.counts() == (1, 0)
    log.clock.now_ms += 1
    assert log.counts() == (0, 1)
    assert log.counts() == (0, 1), "once"


def test_refusals_end_with_their_decision(log: Log) -> None:
    log.write(log.decision("deny"))
    assert log.counts() == (0, 0)
    log.clock.now_ms += OVERDUE_MS + 1
    assert log.counts() == (0, 0)


def test_outcome_of_another_decision_settles_nothing(log: Log) -> None:
    known, unknown = log.decision(), log.decision()
    log.write(known, log.outcome(unknown))
    assert log.counts() == (1, 0)


def test_what_was_there_before_the_watch_is_not_spoken_of(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(log.decision())
    assert log.counts() == (0, 0)
    log.write(log.decision())
    assert log.counts() == (1, 0)
    log.store.close()


@pytest.mark.parametrize("more", [-1, 0, 1, PAGE_RECEIPTS + 1])
def test_many_receipts_are_read_in_one_step_page_by_page(log: Log, more: int) -> None:
    log.write(*(log.decision() for _ in range(PAGE_RECEIPTS + more)))
    assert log.counts() == (PAGE_RECEIPTS + more, 0)


def test_memory_is_bounded_and_what_does_not_fit_counts_as_missing(tmp_path: Path) -> None:
    log = Log(tmp_path, max_waiting=2)
    log.watch.step()
    decisions = [log.decision() for _ in range(5)]
    log.write(*decisions)
    assert log.counts() == (2, 3)
    log.write(*(log.outcome(each) for each in decisions[3:]))
    assert log.counts() == (0, 3)
    log.store.close()


def test_metrics_are_exposed_by_name(log: Log) -> None:
    log.write(log.decision())
    log.clock.now_ms += OVERDUE_MS + 1
    log.write(log.decision())
    log.counts()
    registry = CollectorRegistry()
    registry.register(log.watch)
    lines = generate_latest(registry).decode().splitlines()
    assert "signet_outcomes_missing_total 1.0" in lines
    assert "signet_outcomes_waiting 1.0" in lines


class FailingOnce:
    """A store that fails once in each of two ways, and then says that it was asked again."""

    def __init__(self, asked_again: threading.Event) -> None:
        self.errors: list[Exception] = [ReceiptStoreUnavailable("busy"), RuntimeError("broken")]
        self.asked_again = asked_again

    def latest(self, _limit: int) -> list[object]:
        if self.errors:
            raise self.errors.pop(0)
        self.asked_again.set()
        return []

    def read(self, _after_seq: int, _limit: int) -> list[object]:
        return []


def test_follows_through_failures_until_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_watch, "POLL_S", 0.001)
    asked_again, stop = threading.Event(), threading.Event()
    watch = OutcomeWatch(FailingOnce(asked_again), clock_ms=lambda: NOW_MS)  # type: ignore[arg-type]
    thread = threading.Thread(target=watch.follow, args=(stop,))
    thread.start()
    assert asked_again.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_receipts_that_were_pruned_before_they_were_seen_are_passed_over_in_one_step(log: Log) -> None:
    log.write(*[log.decision() for _ in range(3)])
    plan = PrunePlan(before_ms=1, first_seq=1, last_seq=3)
    prune(log.store, plan, now_ms=0, random=bytes(10), writer=WriterId("99999999-1111-4111-8111-111111111111"))
    log.write(log.decision())
    assert log.counts() == (1, 0)
