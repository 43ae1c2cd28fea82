from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.errors import StoreClosed, StoreOverloaded, StoreTimeout
from receipts.group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Sequence

WAIT_S = 5.0


class Committer:
    """A commit function that a test can hold: it doubles numbers and keeps the batches it got."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return [ValueError("odd one") if item == 13 else item * 2 for item in items]

    async def hold(self, commits: GroupCommit[int, int]) -> asyncio.Task[int]:
        """Start a commit of the item 0 and wait until it is inside."""
        self.gate.clear()
        self.entered.clear()
        task = asyncio.create_task(commits.submit(0, WAIT_S))
        await asyncio.to_thread(self.entered.wait, WAIT_S)
        return task


def started(committer: Committer, **options: int) -> GroupCommit[int, int]:
    commits: GroupCommit[int, int] = GroupCommit(committer, name="test", **options)  # type: ignore[arg-type]
    commits.start()
    return commits


async def settle(commits: GroupCommit[int, int], pending: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while commits.pending_items != pending:
            await asyncio.sleep(0)


async def test_results_go_to_their_own_waiters() -> None:
    commits = started(Committer())
    assert await asyncio.gather(*(commits.submit(n, WAIT_S) for n in range(10))) == [n * 2 for n in range(10)]
    assert await commits.aclose(WAIT_S) == 0


async def test_what_queues_during_a_commit_goes_into_the_next() -> None:
    committer = Committer()
    commits = started(committer)
    first = await committer.hold(commits)
    rest = [asyncio.create_task(commits.submit(n, WAIT_S)) for n in range(1, 6)]
    await settle(commits, 5)
    committer.gate.set()
    assert await asyncio.gather(first, *rest) == [0, 2, 4, 6, 8, 10]
    assert committer.batches == [[0], [1, 2, 3, 4, 5]]
    assert len(committer.threads) == 1
    await commits.aclose(WAIT_S)


async def test_a_batch_never_exceeds_its_bound() -> None:
    committer = Committer()
    commits = started(committer, max_batch_items=3)
    first = await committer.hold(commits)
    rest = [asyncio.create_task(commits.submit(n, WAIT_S)) for n in range(1, 8)]
    await settle(commits, 7)
    committer.gate.set()
    await asyncio.gather(first, *rest)
    assert [len(batch) for batch in committer.batches] == [1, 3, 3, 1]
    await commits.aclose(WAIT_S)


async def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    committer = Committer()
    commits = started(committer, max_pending_items=2)
    first = await committer.hold(commits)
    rest = [asyncio.create_task(commits.submit(n, WAIT_S)) for n in (1, 2)]
    await settle(commits, 2)
    with pytest.raises(StoreOverloaded):
        await commits.submit(3, WAIT_S)
    with pytest.raises(StoreOverloaded):
        commits.submit_sync(3, WAIT_S)
    committer.gate.set()
    assert await asyncio.gather(first, *rest) == [0, 2, 4]
    assert committer.batches == [[0], [1, 2]]
    await commits.aclose(WAIT_S)


async def test_one_items_error_is_its_own() -> None:
    commits = started(Committer())
    results = await asyncio.gather(*(commits.submit(n, WAIT_S) for n in (12, 13, 14)), return_exceptions=True)
    assert results[0] == 24
    assert isinstance(results[1], ValueError)
    assert results[2] == 28
    await commits.aclose(WAIT_S)


@pytest.mark.parametrize("error", [OSError(28, "full"), RuntimeError("x"), StopIteration("y")], ids=repr)
async def test_an_error_of_the_commit_reaches_every_waiter_and_the_next_batch_works(error: Exception) -> None:
    committer = Committer()
    commits = started(committer)
    first = await committer.hold(commits)
    rest = [asyncio.create_task(commits.submit(n, WAIT_S)) for n in (1, 2)]
    await settle(commits, 2)
    committer.error = error
    committer.gate.set()
    for task in (first, *rest):
        # A StopIteration cannot leave a coroutine as itself.
        with pytest.raises((type(error), RuntimeError)):
            await task
    assert len(committer.batches) == 2
    committer.error = None
    assert await commits.submit(4, WAIT_S) == 8
    await commits.aclose(WAIT_S)


@pytest.mark.parametrize("answers", [[], [1, 2]])
async def test_a_wrong_number_of_results_fails_the_batch(answers: list[int]) -> None:
    commits: GroupCommit[int, int] = GroupCommit(lambda _: answers, name="test")
    commits.start()
    with pytest.raises(RuntimeError, match="results for 1 items"):
        await commits.submit(1, WAIT_S)
    await commits.aclose(WAIT_S)


async def test_an_item_given_up_before_its_batch_is_never_committed() -> None:
    committer = Committer()
    commits = started(committer)
    first = await committer.hold(commits)
    cancelled = asyncio.create_task(commits.submit(1, WAIT_S))
    kept = asyncio.create_task(commits.submit(2, WAIT_S))
    await settle(commits, 2)
    with pytest.raises(StoreTimeout):
        await commits.submit(3, 0.0)
    with pytest.raises(StoreTimeout):
        await asyncio.to_thread(commits.submit_sync, 4, 0.0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    committer.gate.set()
    assert await asyncio.gather(first, kept) == [0, 4]
    assert committer.batches == [[0], [2]]
    await commits.aclose(WAIT_S)


async def test_an_item_given_up_inside_its_commit_harms_nobody() -> None:
    committer = Committer()
    commits = started(committer)
    first = await committer.hold(commits)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    committer.gate.set()
    assert await commits.submit(5, WAIT_S) == 10
    await commits.aclose(WAIT_S)


async def test_a_batch_of_abandoned_items_is_not_committed() -> None:
    committer = Committer()
    commits = started(committer, max_batch_items=1)
    first = await committer.hold(commits)
    with pytest.raises(StoreTimeout):
        await commits.submit(1, 0.0)
    committer.gate.set()
    assert await first == 0
    assert await commits.submit(2, WAIT_S) == 4
    assert committer.batches == [[0], [2]]
    await commits.aclose(WAIT_S)


async def test_threads_and_several_loops_share_one_queue() -> None:
    commits = started(Committer())
    other_loop = asyncio.to_thread(asyncio.run, commits.submit(3, WAIT_S))
    thread = asyncio.to_thread(commits.submit_sync, 2, WAIT_S)
    assert await asyncio.gather(commits.submit(1, WAIT_S), thread, other_loop) == [2, 4, 6]
    await commits.aclose(WAIT_S)


def test_a_sync_caller_gets_the_error_of_its_item() -> None:
    commits = started(Committer())
    with pytest.raises(ValueError, match="odd one"):
        commits.submit_sync(13, WAIT_S)
    assert commits.close(WAIT_S) == 0


def test_a_result_for_a_loop_that_is_gone_is_dropped() -> None:
    committer = Committer()
    commits = started(committer)

    async def leave() -> None:
        (await committer.hold(commits)).cancel()

    asyncio.run(leave())
    committer.gate.set()
    assert commits.submit_sync(2, WAIT_S) == 4
    commits.close(WAIT_S)


async def test_close_commits_what_is_queued_and_takes_nothing_new() -> None:
    committer = Committer()
    ended: list[int] = []
    commits: GroupCommit[int, int] = GroupCommit(
        committer, name="test", on_close=lambda: ended.append(threading.get_ident())
    )
    commits.start()
    first = await committer.hold(commits)
    second = asyncio.create_task(commits.submit(1, WAIT_S))
    await settle(commits, 1)
    closing = asyncio.create_task(commits.aclose(WAIT_S))
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                extra = asyncio.create_task(commits.submit(2, WAIT_S))
                await asyncio.sleep(0)
                if extra.done():
                    extra.result()
            except StoreClosed:
                break
    committer.gate.set()
    assert await asyncio.gather(first, second) == [0, 2]
    assert await closing == 0
    assert set(ended) == committer.threads
    assert await commits.aclose(WAIT_S) == 0
    with pytest.raises(StoreClosed):
        await commits.submit(1, WAIT_S)


async def test_close_gives_up_on_a_commit_that_hangs() -> None:
    committer = Committer()
    commits = started(committer)
    inside = await committer.hold(commits)
    queued = asyncio.create_task(commits.submit(1, WAIT_S))
    waiting = asyncio.create_task(asyncio.to_thread(commits.submit_sync, 2, WAIT_S))
    await settle(commits, 2)
    assert await commits.aclose(0.0) == 3
    for task in (inside, queued, waiting):
        with pytest.raises(StoreClosed):
            await task
    committer.gate.set()
    assert await commits.aclose(WAIT_S) == 0
    assert committer.batches == [[0]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_nobody_waits_for_a_dead_thread() -> None:
    committer = Committer()
    commits = started(committer)
    inside = await committer.hold(commits)
    queued = asyncio.create_task(commits.submit(1, WAIT_S))
    await settle(commits, 1)
    committer.error = SystemExit(1)
    committer.gate.set()
    for task in (inside, queued):
        with pytest.raises(StoreClosed):
            await task
    with pytest.raises(StoreClosed):
        await commits.submit(2, WAIT_S)
    assert await commits.aclose(WAIT_S) == 0


def test_it_runs_only_between_start_and_close() -> None:
    commits: GroupCommit[int, int] = GroupCommit(Committer(), name="test")
    with pytest.raises(StoreClosed):
        commits.submit_sync(1, WAIT_S)
    assert commits.close(WAIT_S) == 0
    again = started(Committer())
    with pytest.raises(RuntimeError, match="already started"):
        again.start()
    again.close(WAIT_S)


@pytest.mark.parametrize("options", [{"max_batch_items": 0}, {"max_pending_items": 0}])
def test_empty_bounds_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        GroupCommit(Committer(), name="test", **options)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=60), st.integers(1, 7))
def test_every_item_is_committed_once_and_in_order(items: list[int], max_batch_items: int) -> None:
    committer = Committer()
    commits = started(committer, max_batch_items=max_batch_items)

    async def run() -> list[int | BaseException]:
        return await asyncio.gather(*(commits.submit(n, WAIT_S) for n in items), return_exceptions=True)

    results = asyncio.run(run())
    commits.close(WAIT_S)
    assert [item for batch in committer.batches for item in batch] == items
    assert all(len(batch) <= max_batch_items for batch in committer.batches)
    for item, result in zip(items, results, strict=True):
        assert isinstance(result, ValueError) if item == 13 else result == item * 2
