from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from receipts.chain import ChainVerifier
from receipts.errors import (
    ReceiptFormatError,
    ReceiptStoreUnavailable,
    StoreClosed,
    StoreError,
    StoreOverloaded,
    StoreTimeout,
)
from receipts.receipt_id import WriterId
from receipts.store import MAX_BATCH_RECEIPTS, Appended, StoredReceipt, WriterTail
from receipts.store_sqlite import SqliteReceiptStore
from receipts.writer import ReceiptWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from receipts.receipt import ReceiptDraft

WAIT_S = 10.0


class FaultyStore:
    """A real store whose next appends fail as told: before anything is written, or after all of it is durable."""

    def __init__(self, store: SqliteReceiptStore) -> None:
        self._store = store
        self.faults: list[str] = []
        self.batches_receipts: list[int] = []
        self.waits_for: threading.Event | None = None

    def append(self, drafts: Sequence[ReceiptDraft], tail: WriterTail) -> Appended:
        self.batches_receipts.append(len(drafts))
        fault = self.faults.pop(0) if self.faults else None
        if self.waits_for is not None:
            assert self.waits_for.wait(WAIT_S)
        if fault == "not persisted":
            raise ReceiptStoreUnavailable("SQLite: SQLITE_FULL")
        appended = self._store.append(drafts, tail)
        if fault == "persisted":
            raise ReceiptStoreUnavailable("SQLite: SQLITE_IOERR_FSYNC")
        return appended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def whole(store: SqliteReceiptStore) -> list[StoredReceipt]:
    rows, chains = store.read(0, 10_000), ChainVerifier()
    for row in rows:
        chains.add(row.raw)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    return rows


def started(store: Any, writer_id: WriterId | None = None, **options: Any) -> ReceiptWriter:
    made = ReceiptWriter(store, writer_id=writer_id or WriterId(str(uuid.uuid4())), **options)
    made.start()
    return made


async def test_a_receipt_comes_back_when_another_process_could_read_it(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], tmp_path: Path, writer: WriterId
) -> None:
    made = started(store, writer)
    receipt = await made.append(make_draft(), WAIT_S)
    assert receipt.writer == writer
    other = SqliteReceiptStore(tmp_path / "receipts.sqlite3")
    assert other.get(receipt.id) == receipt
    other.close()
    assert await made.aclose(WAIT_S) == 0
    with pytest.raises(StoreClosed):
        await made.append(make_draft(), WAIT_S)


async def test_many_appends_share_commits_and_make_one_chain(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]
) -> None:
    seen = FaultyStore(store)
    made = started(seen)
    receipts = await asyncio.gather(*(made.append(make_draft(), WAIT_S) for _ in range(600)))
    assert sum(seen.batches_receipts) == 600
    assert len(seen.batches_receipts) < 60
    assert max(seen.batches_receipts) <= MAX_BATCH_RECEIPTS
    assert sorted(receipt.wseq for receipt in receipts) == list(range(1, 601))
    await made.aclose(WAIT_S)
    assert len(whole(store)) == 600


async def test_the_event_loop_runs_while_a_commit_does(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]
) -> None:
    import threading

    gate, entered = threading.Event(), threading.Event()

    class SlowStore(FaultyStore):
        def append(self, drafts: Sequence[ReceiptDraft], tail: WriterTail) -> Appended:
            entered.set()
            assert gate.wait(WAIT_S)
            return super().append(drafts, tail)

    made = started(SlowStore(store))
    task = asyncio.create_task(made.append(make_draft(), WAIT_S))
    while not entered.is_set():
        await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    assert (await task).wseq == 1
    await made.aclose(WAIT_S)


@pytest.mark.parametrize("fault", ["persisted", "not persisted"])
async def test_a_failed_commit_is_told_to_every_waiter_and_the_chain_goes_on(
    fault: str, store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]
) -> None:
    faulty = FaultyStore(store)
    made = started(faulty)
    await made.append(make_draft(), WAIT_S)
    faulty.faults = [fault]
    results = await asyncio.gather(*(made.append(make_draft(), WAIT_S) for _ in range(5)), return_exceptions=True)
    failed = sum(isinstance(result, ReceiptStoreUnavailable) for result in results)
    assert failed >= 1
    assert failed + sum(isinstance(result, StoredReceipt) for result in results) == 5
    after = await made.append(make_draft(), WAIT_S)
    rows = whole(store)
    assert rows[-1] == after
    assert len(rows) == 7 - (failed if fault == "not persisted" else 0)
    await made.aclose(WAIT_S)


async def test_a_retry_after_a_failure_that_persisted_gets_the_stored_decision(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]
) -> None:
    faulty = FaultyStore(store)
    faulty.faults = ["persisted"]
    made = started(faulty)
    with pytest.raises(ReceiptStoreUnavailable):
        await made.append(make_draft(idempotency_key=b"k" * 32), WAIT_S)
    again = await made.append(make_draft(idempotency_key=b"k" * 32), WAIT_S)
    assert again.duplicate
    assert (again.wseq, len(whole(store))) == (1, 1)
    await made.aclose(WAIT_S)


async def test_a_tail_that_cannot_be_read_fails_the_batch_and_is_read_again(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]
) -> None:
    class Blind(FaultyStore):
        blind = True

        def writer_tail(self, writer: WriterId) -> WriterTail:
            if self.blind:
                raise ReceiptStoreUnavailable("SQLite: SQLITE_IOERR")
            return self._store.writer_tail(writer)

    blind = Blind(store)
    made = started(blind)
    with pytest.raises(ReceiptStoreUnavailable):
        await made.append(make_draft(), WAIT_S)
    blind.blind = False
    assert (await made.append(make_draft(), WAIT_S)).wseq == 1
    await made.aclose(WAIT_S)


async def test_one_bad_draft_fails_alone(store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]) -> None:
    made = started(store)
    results = await asyncio.gather(
        *(made.append(make_draft(reason=reason), WAIT_S) for reason in ("allowed", "BAD", "allowed")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [StoredReceipt, ReceiptFormatError, StoredReceipt]
    await made.aclose(WAIT_S)
    assert len(whole(store)) == 2


async def test_concurrent_retries_of_one_request_share_one_receipt(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], tmp_path: Path
) -> None:
    other_store = SqliteReceiptStore(tmp_path / "receipts.sqlite3", busy_timeout_ms=5000)
    writers = [started(store), started(other_store)]
    results = await asyncio.gather(
        *(writers[n % 2].append(make_draft(idempotency_key=b"k" * 32), WAIT_S) for n in range(20))
    )
    assert len({result.id for result in results}) == 1
    assert sorted(result.duplicate for result in results) == [False] + [True] * 19
    for made in writers:
        await made.aclose(WAIT_S)
    other_store.close()
    assert len(whole(store)) == 1


async def test_two_writers_of_one_id_never_fork_the_chain(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], tmp_path: Path, writer: WriterId
) -> None:
    """A mistake (a fork after the start) costs refusals, never a chain that does not verify."""
    other_store = SqliteReceiptStore(tmp_path / "receipts.sqlite3", busy_timeout_ms=5000)
    writers = [started(store, writer), started(other_store, writer)]
    results: list[StoredReceipt | BaseException] = []
    for number in range(20):
        results += await asyncio.gather(writers[number % 2].append(make_draft(), WAIT_S), return_exceptions=True)
    assert {type(result) for result in results} == {StoredReceipt, ReceiptStoreUnavailable}
    for made in writers:
        await made.aclose(WAIT_S)
    other_store.close()
    assert len(whole(store)) == sum(isinstance(result, StoredReceipt) for result in results)


async def test_queue_and_time_are_bounded(store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]) -> None:
    made = started(store, max_pending_receipts=3)
    results = await asyncio.gather(*(made.append(make_draft(), WAIT_S) for _ in range(50)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert refused
    assert {type(error) for error in refused} == {StoreOverloaded}
    with pytest.raises(StoreTimeout):
        await made.append(make_draft(), 0.0)
    await made.aclose(WAIT_S)
    assert 50 - len(refused) <= len(whole(store)) <= 51 - len(refused)


async def test_while_the_store_fails_nobody_waits_for_long(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft]
) -> None:
    faulty, goes_on = FaultyStore(store), threading.Event()
    made = started(faulty, failing_timeout_s=0.0)
    await made.append(make_draft(), WAIT_S)
    faulty.faults = ["not persisted"]
    with pytest.raises(ReceiptStoreUnavailable):
        await made.append(make_draft(), WAIT_S)
    faulty.waits_for = goes_on
    with pytest.raises(StoreTimeout):
        await made.append(make_draft(), WAIT_S)
    goes_on.set()
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(StoreTimeout):
                await made.append(make_draft(), WAIT_S)
                break
    for _ in range(5):
        await made.append(make_draft(), WAIT_S)
    await made.aclose(WAIT_S)
    assert len(whole(store)) >= 7


def test_a_batch_larger_than_the_stores_is_refused(store: SqliteReceiptStore) -> None:
    with pytest.raises(ValueError, match="max_batch_receipts"):
        ReceiptWriter(store, writer_id=WriterId("x"), max_batch_receipts=MAX_BATCH_RECEIPTS + 1)


def test_every_store_error_has_a_code_of_its_own() -> None:
    classes = [StoreError, *StoreError.__subclasses__()]
    assert len({error.code for error in classes}) == len(classes) >= 8
