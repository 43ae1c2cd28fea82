"""What is particular to the SQLite store: processes, crashes, lost and foreign files, locks, corruption."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sqlite3
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from extproc.nonce_store import KEEP_BEYOND_MAX_AGE_MS, SpendResult
from extproc.nonce_store import sqlite as sqlite_module
from extproc.nonce_store.sqlite import SqliteNonceStore, read_boot_id
from pch.errors import StaleChallenge, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

START_MS = 1_800_000_000_000
NOW_MS = START_MS + 1000
MAX_AGE_S = 60
TIMEOUT_S = 20.0


class Clock:
    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def nonce(number: int = 0) -> bytes:
    return number.to_bytes(45, "big")


def token(number: int = 0) -> bytes:
    return number.to_bytes(32, "big")


def build(path: Path, clock: Callable[[], int] = lambda: START_MS, **options: Any) -> SqliteNonceStore:
    return SqliteNonceStore(path, **({"max_age_s": MAX_AGE_S, "clock_ms": clock, "timeout_s": TIMEOUT_S} | options))


@contextlib.asynccontextmanager
async def running(path: Path, *arguments: Any, **options: Any) -> AsyncIterator[SqliteNonceStore]:
    store = build(path, *arguments, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nonces.sqlite3"


def count(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM spent").fetchone()[0])


async def test_the_files_are_ours_alone_whatever_the_umask(path: Path) -> None:
    previous = os.umask(0)
    try:
        async with running(path) as store:
            await store.spend(nonce(), token(), NOW_MS, NOW_MS)
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(previous)
    assert set(modes.values()) == {0o600}
    assert f"{path.name}-wal" in modes


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
async def test_a_file_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)
    async with running(path) as store:
        with pytest.raises(StoreUnavailable, match="mode 0600"):
            await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        assert "mode 0600" in str(await store.problem())
        path.chmod(0o600)
        assert await store.spend(nonce(), token(), NOW_MS, NOW_MS) is SpendResult.FRESH
        assert await store.problem() is None


def _race(path: Path, identity: int, start: Any, results: Any) -> None:
    async def spend_all() -> list[bool]:
        async with running(path) as store:
            start.wait(60)
            spends = (store.spend(nonce(n), token(identity), NOW_MS, NOW_MS) for n in range(300))
            return [result is SpendResult.FRESH for result in await asyncio.gather(*spends)]

    results.put(asyncio.run(spend_all()))


def test_of_two_processes_that_spend_the_same_nonces_exactly_one_gets_each(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(path, identity, start, results)) for identity in (1, 2)]
    for racer in racers:
        racer.start()
    won = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(60)
    assert all(first != second for first, second in zip(*won, strict=True))
    assert count(path) == 300


def _spend_until_killed(path: Path, told: Any) -> None:
    async def spend_on() -> None:
        async with running(path) as store:
            for number in range(1_000_000):
                if await store.spend(nonce(number), token(), NOW_MS, NOW_MS) is SpendResult.FRESH:
                    told.send_bytes(nonce(number))

    asyncio.run(spend_on())


async def test_a_killed_process_loses_no_spend_that_it_told(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    victim = context.Process(target=_spend_until_killed, args=(path, theirs))
    victim.start()
    theirs.close()
    spent = [mine.recv_bytes() for _ in range(50)]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with contextlib.suppress(EOFError):
        while True:
            spent.append(mine.recv_bytes())
    victim.join(60)
    async with running(path) as store:
        results = await asyncio.gather(*(store.spend(each, token(9), NOW_MS, NOW_MS) for each in spent))
    assert set(results) == {SpendResult.REPLAYED}


async def test_another_boot_makes_older_challenges_stale(path: Path) -> None:
    clock = Clock()
    async with running(path, clock, boot_id=lambda: "one") as store:
        assert await store.spend(nonce(), token(), NOW_MS, NOW_MS) is SpendResult.FRESH
    clock.now_ms = NOW_MS + 5
    async with running(path, clock, boot_id=lambda: "one") as store:
        assert await store.spend(nonce(1), token(), NOW_MS, NOW_MS) is SpendResult.FRESH
    async with running(path, clock, boot_id=lambda: "two") as store:
        for number in (0, 1, 2):
            with pytest.raises(StaleChallenge):
                await store.spend(nonce(number), token(), NOW_MS, NOW_MS)
        assert await store.spend(nonce(3), token(), NOW_MS + 5, NOW_MS + 5) is SpendResult.FRESH


async def test_a_system_that_tells_no_boot_counts_every_opening_as_new_contents(path: Path) -> None:
    clock = Clock()
    async with running(path, clock, boot_id=lambda: ""):
        pass
    clock.now_ms = NOW_MS + 1
    async with running(path, clock, boot_id=lambda: "") as store:
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(), token(), NOW_MS, NOW_MS)


async def test_a_copied_file_counts_as_new_contents(path: Path) -> None:
    clock = Clock()
    async with running(path, clock):
        pass
    copy = path.with_name("copy.sqlite3")
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o600)
    clock.now_ms = NOW_MS + 1
    async with running(copy, clock) as store:
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(), token(), NOW_MS, NOW_MS)


@pytest.mark.parametrize("leave_wal", [True, False])
async def test_a_file_removed_under_a_running_store_makes_older_challenges_stale(path: Path, leave_wal: bool) -> None:
    clock = Clock()
    async with running(path, clock) as store, running(path, clock) as other:
        assert await store.spend(nonce(), token(), NOW_MS, NOW_MS) is SpendResult.FRESH
        clock.now_ms = NOW_MS
        path.unlink()
        if not leave_wal:
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink()
        # Issued in the very millisecond in which the new contents begin: it may have been spent in the old ones.
        for each in (store, other):
            with pytest.raises(StaleChallenge):
                await each.spend(nonce(), token(9), NOW_MS, NOW_MS)
        assert await store.spend(nonce(1), token(1), NOW_MS + 1, NOW_MS + 1) is SpendResult.FRESH
        assert await other.spend(nonce(1), token(2), NOW_MS + 1, NOW_MS + 1) is SpendResult.REPLAYED
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_file_removed_during_a_commit_protects_nobody(path: Path) -> None:
    async with running(path) as store:
        await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        database, was_asked = store._database, 0
        in_place = database._file_in_place

        def vanish_after_the_commit() -> tuple[int, int] | None:
            nonlocal was_asked
            was_asked += 1
            return in_place() if was_asked == 1 else None

        database._file_in_place = vanish_after_the_commit  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable, match="replaced or removed"):
            await store.spend(nonce(1), token(), NOW_MS, NOW_MS)
        database._file_in_place = in_place  # type: ignore[method-assign]
        assert await store.spend(nonce(2), token(), NOW_MS, NOW_MS) is SpendResult.FRESH


async def test_a_locked_file_is_unavailable_in_time_and_a_spend_that_lands_late_is_retried(path: Path) -> None:
    async with running(path, timeout_s=0.2) as store:
        await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as locker:
            locker.execute("BEGIN EXCLUSIVE")
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.spend(nonce(1), token(1), NOW_MS, NOW_MS)
            assert time.monotonic() - started < 5
            locker.execute("ROLLBACK")
        for _ in range(100):
            with contextlib.suppress(StoreUnavailable):
                result = await store.spend(nonce(1), token(1), NOW_MS, NOW_MS)
                break
        assert result in {SpendResult.FRESH, SpendResult.RETRIED}
        assert await store.spend(nonce(1), token(1), NOW_MS, NOW_MS) is SpendResult.RETRIED
        assert await store.spend(nonce(0), token(9), NOW_MS, NOW_MS) is SpendResult.REPLAYED


async def test_a_commit_that_failed_after_it_was_written_is_retried_with_its_token(path: Path) -> None:
    async with running(path) as store:
        await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        database = store._database
        spend_all = database._spend_all

        def land_and_fail(connection: sqlite3.Connection, batch: Any) -> Any:
            spend_all(connection, batch)
            connection.execute("COMMIT")
            raise sqlite3.OperationalError("disk I/O error")

        database._spend_all = land_and_fail  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable, match="disk I/O error"):
            await store.spend(nonce(1), token(1), NOW_MS, NOW_MS)
        database._spend_all = spend_all  # type: ignore[method-assign]
        assert await store.spend(nonce(1), token(1), NOW_MS, NOW_MS) is SpendResult.RETRIED
        assert await store.spend(nonce(1), token(2), NOW_MS, NOW_MS) is SpendResult.REPLAYED


async def test_a_full_disk_is_unavailable_and_writes_nothing(path: Path) -> None:
    async with running(path) as store:
        await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        connection = store._database.open()
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
        fresh = 0

        async def spend_until_refused() -> None:
            nonlocal fresh
            for number in range(1, 1000):
                await store.spend(nonce(number), token(), NOW_MS, NOW_MS)
                fresh += 1

        with pytest.raises(StoreUnavailable, match="full"):
            await spend_until_refused()
        assert count(path) == fresh + 1
        assert "full" in str(store._database.problem)
        # The next connection has no such limit: there is room again, and no one has to spend to find that out.
        assert await store.problem() is None


async def test_a_file_that_cannot_be_opened_is_unavailable_until_it_can(path: Path) -> None:
    path.mkdir()
    async with running(path) as store:
        with pytest.raises(StoreUnavailable, match="must be a regular file"):
            await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        path.rmdir()
        assert await store.spend(nonce(), token(), NOW_MS, NOW_MS) is SpendResult.FRESH


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 200])
async def test_a_file_that_is_no_database_is_unavailable_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    async with running(path) as store:
        with pytest.raises(StoreUnavailable):
            await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        assert "cannot be opened" in str(await store.problem())
    assert path.read_bytes() == content


async def test_a_foreign_schema_version_is_refused(path: Path) -> None:
    async with running(path):
        pass
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE contents SET version = 99")
    async with running(path) as store:
        with pytest.raises(StoreUnavailable, match="schema version 99"):
            await store.spend(nonce(), token(), NOW_MS, NOW_MS)


async def test_expired_rows_are_dropped_and_a_clock_that_steps_back_finds_their_challenges_stale(path: Path) -> None:
    async with running(path) as store:
        await asyncio.gather(*(store.spend(nonce(n), token(), NOW_MS, NOW_MS) for n in range(20)))
        later_ms = NOW_MS + MAX_AGE_S * 1000 + KEEP_BEYOND_MAX_AGE_MS
        await store.spend(nonce(98), token(), later_ms - 1, later_ms - 1)
        assert count(path) == 21
        for number in range(100, 110):
            await store.spend(nonce(number), token(), later_ms, later_ms)
        assert count(path) == 11
        with pytest.raises(StaleChallenge):
            await store.spend(nonce(0), token(9), NOW_MS, NOW_MS + 1)


async def test_more_waiting_spends_than_the_bound_are_refused_at_once(path: Path) -> None:
    async with running(path, max_pending=4) as store:
        database, entered, go_on = store._database, threading.Event(), threading.Event()
        spend_all = database._spend_all

        def hold(connection: sqlite3.Connection, batch: Any) -> Any:
            entered.set()
            assert go_on.wait(30)
            return spend_all(connection, batch)

        database._spend_all = hold  # type: ignore[method-assign]
        held = asyncio.ensure_future(store.spend(nonce(), token(), NOW_MS, NOW_MS))
        await asyncio.to_thread(entered.wait, 30)
        tasks = [asyncio.ensure_future(store.spend(nonce(n), token(), NOW_MS, NOW_MS)) for n in range(1, 11)]
        refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [isinstance(task.exception(), StoreUnavailable) for task in refused] == [True] * 6
        go_on.set()
        results = await asyncio.gather(held, *tasks, return_exceptions=True)
        assert results.count(SpendResult.FRESH) == 5


def test_the_boot_id_is_told_or_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_boot_id() == read_boot_id()
    monkeypatch.setattr(sqlite_module, "BOOT_ID_FILE", tmp_path / "absent")
    assert read_boot_id() == ""


async def test_a_problem_is_found_and_found_over_without_anyone_spending(path: Path) -> None:
    async with running(path) as store:
        await store.spend(nonce(), token(), NOW_MS, NOW_MS)
        assert await store.problem() is None
        for each in path.parent.glob(f"{path.name}*"):
            each.rename(each.with_name(f"aside-{each.name}"))
        path.write_bytes(b"this is no database" * 100)
        path.chmod(0o600)
        assert "not a database" in str(await store.problem())
        path.unlink()
        for each in path.parent.glob("aside-*"):
            each.rename(each.with_name(each.name.removeprefix("aside-")))
        assert await store.problem() is None
        assert await store.spend(nonce(), token(2), NOW_MS, NOW_MS) is SpendResult.REPLAYED


async def test_a_lock_that_is_held_is_a_problem_until_it_is_let_go(path: Path) -> None:
    async with running(path) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert "nonce store" in str(await store.problem())
        assert await store.problem() is None


async def test_probes_and_spends_of_one_batch_get_their_own_answers(path: Path) -> None:
    async with running(path) as store:
        spend = store.spend(nonce(), token(), NOW_MS, NOW_MS)
        answers = await asyncio.gather(store.problem(), spend, store.problem())
        assert answers == [None, SpendResult.FRESH, None]
