"""Outcomes become receipts: once each, of known decisions, through failures, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from extproc import outcome_recorder
from extproc.outcome_recorder import MAX_BATCH_OUTCOMES, MAX_FAILED_LOOKUPS, NoObserver
from receipts.chain import ChainVerifier
from receipts.errors import (
    ReceiptFormatError,
    ReceiptStoreUnavailable,
    ReceiptTooLarge,
    StoreCorrupt,
    StoreError,
    StoreTimeout,
)
from receipts.facts import PolicyFacts, WindowFacts
from receipts.prune import PrunePlan, prune
from receipts.receipt import LogEventReceipt, OutcomeReceipt, Receipt, ReceiptDraft, parse_receipt
from receipts.receipt_id import ReceiptId, WriterId, new_receipt_id
from tests.support.filter_parts import NOW_MS
from tests.support.outcome_parts import OutcomeParts, end_of

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_recorder, "RETRY_AFTER_S", 0.001)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[OutcomeParts]:
    async with OutcomeParts(tmp_path) as made:
        yield made


def stored(parts: OutcomeParts) -> list[Receipt]:
    return [parse_receipt(each.raw) for each in parts.store.read(0, 10_000) if each.raw]


def outcomes(parts: OutcomeParts) -> list[OutcomeReceipt]:
    return [each for each in stored(parts) if isinstance(each, OutcomeReceipt)]


def events(parts: OutcomeParts) -> list[LogEventReceipt]:
    return [each for each in stored(parts) if isinstance(each, LogEventReceipt)]


async def test_outcome_refers_to_its_decision_and_shares_its_trace(parts: OutcomeParts) -> None:
    decision = await parts.decide(trace_id=TRACE_ID)
    parts.clock.now_ms = NOW_MS + 40
    parts.recorder.take(end_of(decision, 503, ("upstream_overflow",)))
    await parts.settled()
    (receipt,) = outcomes(parts)
    assert (receipt.refers_to, receipt.trace_id, receipt.time_ms) == (decision, TRACE_ID, NOW_MS + 40)
    assert (receipt.outcome.status, receipt.outcome.flags) == (503, ("upstream_overflow",))
    assert parts.heard.ends == [("protected", 503, 900, ("upstream_overflow",), None)]
    assert parts.count("written") == 1
    assert parts.registry.get_sample_value("signet_outcome_delay_seconds_sum") == 0.04


@pytest.mark.parametrize(("answered", "heard"), [(True, 503), (False, None)])
async def test_what_the_edge_answers_is_in_the_receipt_and_is_no_word_of_the_app(
    parts: OutcomeParts, answered: bool, heard: int | None
) -> None:
    decision = await parts.decide()
    parts.recorder.take(end_of(decision, 503, answered=answered))
    await parts.settled()
    (receipt,) = outcomes(parts)
    assert receipt.outcome.status == 503
    assert [end[1] for end in parts.heard.ends] == [heard]


@pytest.mark.parametrize(
    ("stress", "probe_epoch"),
    [
        ({"action": "probe", "epoch": 7}, 7),
        ({"action": "attempt", "epoch": 7}, None),
        (None, None),
    ],
)
async def test_the_end_of_a_probe_is_heard_as_that_of_its_phase(
    parts: OutcomeParts, stress: dict[str, object] | None, probe_epoch: int | None
) -> None:
    asked = {"v": 2, "subject": "alice"} if stress is None else {"v": 2, "subject": "alice", "stress": stress}
    decision = await parts.decide(policy=PolicyFacts("0" * 64, asked))
    parts.recorder.take(end_of(decision))
    await parts.settled()
    assert [end[-1] for end in parts.heard.ends] == [probe_epoch]
    assert parts.heard.subjects == ["alice"]


async def test_many_are_written_in_order_and_the_chain_holds(parts: OutcomeParts) -> None:
    decisions = await asyncio.gather(*(parts.decide() for _ in range(3 * MAX_BATCH_OUTCOMES + 1)))
    for each in decisions:
        parts.recorder.take(end_of(each))
    await parts.settled()
    assert [each.refers_to for each in outcomes(parts)] == decisions
    verifier = ChainVerifier()
    for receipt in parts.store.read(0, 10_000):
        verifier.add(receipt.raw)


async def test_entry_that_comes_twice_is_one_receipt_and_heard_once(parts: OutcomeParts) -> None:
    decision = await parts.decide()
    parts.recorder.take(end_of(decision))
    parts.recorder.take(end_of(decision))
    await parts.settled()
    parts.recorder.take(end_of(decision, 500))
    await parts.settled()
    assert [each.outcome.status for each in outcomes(parts)] == [200]
    assert len(parts.heard.ends) == 1
    assert (parts.count("written"), parts.count("duplicate")) == (1, 2)


async def summary(parts: OutcomeParts) -> ReceiptId:
    draft = ReceiptDraft(
        kind="summary",
        id=new_receipt_id(NOW_MS, parts.random(10)),
        time_ms=NOW_MS,
        route=None,
        window=WindowFacts(1, 2),
        counts={"no_route": 1},
    )
    return (await parts.writer.append(draft, 5)).id


async def outcome_id(parts: OutcomeParts) -> ReceiptId:
    parts.recorder.take(end_of(await parts.decide()))
    await parts.settled()
    parts.heard.ends.clear()
    return ReceiptId(outcomes(parts)[0].id)


@pytest.mark.parametrize("forged", ["absent", "refused", "summary", "outcome"])
async def test_id_under_which_nothing_was_allowed_leaves_no_trace(parts: OutcomeParts, forged: str) -> None:
    if forged == "absent":
        decision = new_receipt_id(NOW_MS, parts.random(10))
    elif forged == "refused":
        decision = await parts.decide("deny")
    elif forged == "summary":
        decision = await summary(parts)
    else:
        decision = await outcome_id(parts)
    before = len(stored(parts))
    parts.recorder.take(end_of(decision))
    await parts.settled()
    assert len(stored(parts)) == before
    assert parts.heard.ends == []
    assert parts.count("unmatched", cause="unknown_decision") == 1


async def test_forged_id_does_not_hold_up_the_others(parts: OutcomeParts) -> None:
    decisions = [await parts.decide() for _ in range(2)]
    for each in (decisions[0], new_receipt_id(NOW_MS, parts.random(10)), decisions[1]):
        parts.recorder.take(end_of(each))
    await parts.settled()
    assert [each.refers_to for each in outcomes(parts)] == decisions


@pytest.mark.parametrize("error", [ReceiptStoreUnavailable("full"), StoreTimeout("late"), StoreError("other")])
async def test_what_the_store_does_not_take_is_tried_again_in_order(parts: OutcomeParts, error: StoreError) -> None:
    failures = iter([error] * 5)

    def trouble(_draft: ReceiptDraft) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure

    decisions = [await parts.decide() for _ in range(3)]
    parts.writer.trouble = trouble
    for each in decisions:
        parts.recorder.take(end_of(each))
    await parts.settled()
    assert sorted(each.refers_to for each in outcomes(parts)) == sorted(decisions)
    assert len(parts.heard.ends) == parts.count("written") == 3


async def test_receipt_that_became_durable_unnoticed_is_not_written_again_and_is_heard(parts: OutcomeParts) -> None:
    failures = iter([StoreTimeout("late")])
    decision = await parts.decide()
    parts.writer.trouble = lambda _draft: next(failures, None)
    parts.recorder.take(end_of(decision))
    await parts.settled()
    assert len(outcomes(parts)) == 1
    assert len(parts.heard.ends) == parts.count("written") == 1
    assert parts.count("duplicate") == 0


async def test_store_that_cannot_be_read_is_asked_again(parts: OutcomeParts, monkeypatch: pytest.MonkeyPatch) -> None:
    decision = await parts.decide()
    failures: list[Exception] = [ReceiptStoreUnavailable("busy"), RuntimeError("broken")]
    get = parts.store.get

    def failing(receipt_id: ReceiptId) -> object:
        if failures:
            raise failures.pop(0)
        return get(receipt_id)

    monkeypatch.setattr(parts.store, "get", failing)
    parts.recorder.take(end_of(decision))
    await parts.settled()
    assert len(outcomes(parts)) == 1


@pytest.mark.parametrize("error", [ReceiptTooLarge("big"), ReceiptFormatError("odd"), RuntimeError("broken")])
async def test_what_can_never_be_written_is_dropped_and_told(parts: OutcomeParts, error: Exception) -> None:
    first, second = await parts.decide(), await parts.decide()

    def trouble(draft: ReceiptDraft) -> None:
        if draft.refers_to == first:
            raise error

    parts.writer.trouble = trouble
    for each in (first, second):
        parts.recorder.take(end_of(each))
    await parts.settled()
    await parts.recorder.tell_dropped()
    assert [each.refers_to for each in outcomes(parts)] == [second]
    assert parts.count("dropped", cause="unrecordable") == 1
    assert events(parts)[0].event.facts == {"causes": {"unrecordable": 1}, "count": 1}


@pytest.mark.parametrize("bound", [1, 5, MAX_BATCH_OUTCOMES + 2])
async def test_full_queue_drops_counts_and_tells_how_many(tmp_path: Path, bound: int) -> None:
    async with OutcomeParts(tmp_path, max_pending=bound) as parts:
        decisions = await asyncio.gather(*(parts.decide() for _ in range(bound + 7)))
        parts.writer.go_on.clear()
        parts.recorder.take(end_of(decisions[0]))
        await asyncio.wait_for(parts.writer.entered.wait(), 10)
        # What is being written counts too: the bound is on everything that is held.
        for each in decisions[1:]:
            parts.recorder.take(end_of(each))
        assert parts.recorder.pending_outcomes == bound
        assert parts.count("dropped", cause="queue_full") == 7
        parts.writer.go_on.set()
        await parts.settled()
        await parts.recorder.tell_dropped()
        await parts.recorder.tell_dropped()
        assert [each.refers_to for each in outcomes(parts)] == decisions[:bound]
        assert [(each.event.name, each.event.facts) for each in events(parts)] == [
            ("outcomes_dropped", {"causes": {"queue_full": 7}, "count": 7})
        ]


async def test_number_dropped_is_kept_until_it_can_be_told(tmp_path: Path) -> None:
    async with OutcomeParts(tmp_path, max_pending=1) as parts:
        decision = await parts.decide()
        parts.writer.trouble = refuse_events
        for _ in range(3):
            parts.recorder.take(end_of(decision))
        await parts.settled()
        await parts.recorder.tell_dropped()
        assert events(parts) == []
        parts.writer.trouble = lambda _draft: None
        parts.writer.go_on.clear()
        telling = asyncio.create_task(parts.recorder.tell_dropped())
        await asyncio.sleep(0)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        parts.writer.go_on.set()
        await parts.recorder.tell_dropped()
        assert [each.event.facts["count"] for each in events(parts)] == [2]


def refuse_events(draft: ReceiptDraft) -> None:
    if draft.kind == "log_event":
        raise ReceiptStoreUnavailable("full")


async def test_drain_writes_what_is_left_also_what_was_in_hand(parts: OutcomeParts) -> None:
    decisions = await asyncio.gather(*(parts.decide() for _ in range(2 * MAX_BATCH_OUTCOMES)))
    parts.writer.go_on.clear()
    parts.recorder.take(end_of(decisions[0]))
    await asyncio.wait_for(parts.writer.entered.wait(), 10)
    for each in decisions[1:]:
        parts.recorder.take(end_of(each))
    await parts.stop()
    parts.writer.go_on.set()
    assert parts.recorder.pending_outcomes == len(decisions)
    await parts.recorder.drain(10)
    assert [each.refers_to for each in outcomes(parts)] == decisions
    assert len(parts.heard.ends) == len(decisions)


async def test_drain_gives_up_in_time_and_counts_what_it_left(parts: OutcomeParts) -> None:
    decisions = [await parts.decide() for _ in range(3)]
    await parts.stop()
    for each in decisions:
        parts.recorder.take(end_of(each))

    def trouble(draft: ReceiptDraft) -> None:
        if draft.kind == "outcome":
            raise ReceiptStoreUnavailable("full")

    parts.writer.trouble = trouble
    await parts.recorder.drain(0.05)
    assert parts.recorder.pending_outcomes == 0
    assert parts.count("dropped", cause="shutdown") == 3
    assert events(parts)[0].event.facts == {"causes": {"shutdown": 3}, "count": 3}


def test_no_one_has_to_listen() -> None:
    NoObserver().ended("protected", 200, 1, (), probe_epoch=None)


@pytest.mark.parametrize(
    ("decided", "counted", "labels"),
    [
        ("allow", "dropped", {"cause": "unrecordable"}),
        ("deny", "unmatched", {"cause": "unknown_decision"}),
    ],
)
async def test_a_pruned_decision_is_counted_and_holds_up_no_other(
    parts: OutcomeParts, decided: str, counted: str, labels: dict[str, str]
) -> None:
    gone = await parts.decide(decided)
    plan = PrunePlan(before_ms=1, first_seq=1, last_seq=1)
    writer = WriterId("99999999-1111-4111-8111-111111111111")
    await asyncio.to_thread(prune, parts.store, plan, now_ms=0, random=bytes(10), writer=writer)
    stays = await parts.decide()
    for each in (gone, stays):
        parts.recorder.take(end_of(each))
    await parts.settled()
    assert [each.refers_to for each in outcomes(parts)] == [stays]
    assert parts.count(counted, **labels) == 1
    assert len(parts.heard.ends) == 1


@pytest.mark.parametrize("error", [StoreCorrupt("a changed byte"), RuntimeError("broken")])
async def test_a_decision_that_can_never_be_read_is_lost_after_some_tries_and_holds_up_no_other(
    parts: OutcomeParts, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bad, good = await parts.decide(), await parts.decide()
    get, tries = parts.store.get, 0

    def failing(receipt_id: ReceiptId) -> object:
        nonlocal tries
        if receipt_id == bad:
            tries += 1
            raise error
        return get(receipt_id)

    monkeypatch.setattr(parts.store, "get", failing)
    for each in (bad, good):
        parts.recorder.take(end_of(each))
    await parts.until(lambda: parts.count("written") == 1)
    await parts.settled()
    assert (tries, parts.count("dropped", cause="unrecordable")) == (MAX_FAILED_LOOKUPS, 1)


async def test_an_observer_that_fails_costs_no_receipt_and_is_told_once(
    parts: OutcomeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def failing(route: str, *_: object, **__: object) -> None:
        heard.append(route)
        raise RuntimeError("as told")

    monkeypatch.setattr(parts.heard, "ended", failing)
    for each in [await parts.decide(), await parts.decide()]:
        parts.recorder.take(end_of(each))
    await parts.settled()
    assert (len(outcomes(parts)), len(heard)) == (2, 2)
