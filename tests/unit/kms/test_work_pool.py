"""Threads in turn: fair between tenants, bounded when work hangs, reached by a shutdown (I-17, G-4)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import pytest

from kms.work_pool import WorkPool


class Works:
    """Work that ends when the test says so, and notes the order in which it began."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.release = threading.Event()

    def named(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.began.append(name)
            if not self.release.wait(5):
                raise TimeoutError
            return name

        return work


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_tenants_get_threads_in_turn_whatever_each_has_waiting() -> None:
    pool, works = WorkPool(1), Works()
    flood = [asyncio.create_task(pool.run("flood", works.named(f"flood{number}"))) for number in range(4)]
    await until(lambda: pool.waiting == 3)
    small = [asyncio.create_task(pool.run(name, works.named(name))) for name in ("a", "b")]
    await until(lambda: pool.waiting == 5)
    works.release.set()
    await asyncio.gather(*flood, *small)
    assert works.began == ["flood0", "flood1", "a", "b", "flood2", "flood3"]
    assert pool.waiting == 0
    pool.close()


async def test_work_that_was_given_up_keeps_its_thread_until_it_ends() -> None:
    pool, works = WorkPool(1), Works()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await pool.run("core", works.named("hangs"))
    waiting = asyncio.create_task(pool.run("core", works.named("next")))
    await asyncio.sleep(0)
    assert (works.began, pool.waiting) == (["hangs"], 1)
    works.release.set()
    assert await waiting == "next"
    pool.close()


async def test_who_gives_up_waiting_is_passed_over() -> None:
    pool, works = WorkPool(1), Works()
    first = asyncio.create_task(pool.run("a", works.named("first")))
    given_up = asyncio.create_task(pool.run("b", works.named("given up")))
    last = asyncio.create_task(pool.run("c", works.named("last")))
    await until(lambda: pool.waiting == 2)
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    assert pool.waiting == 1
    works.release.set()
    assert [await first, await last] == ["first", "last"]
    assert works.began == ["first", "last"]
    pool.close()


async def test_a_turn_that_comes_in_the_moment_of_giving_up_is_passed_on() -> None:
    pool = WorkPool(1)
    await pool._turn("holder")
    given_up, last = asyncio.create_task(pool._turn("a")), asyncio.create_task(pool._turn("b"))
    await asyncio.sleep(0)
    pool._release()
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    await asyncio.wait_for(last, 1)
    pool._release()
    assert pool._free == 1
    pool.close()


async def test_errors_reach_who_asked_and_free_the_thread() -> None:
    pool = WorkPool(1)

    def fails() -> None:
        raise ValueError("x")

    for _ in range(3):
        with pytest.raises(ValueError, match="x"):
            await pool.run("core", fails)
    assert pool._free == 1
    pool.close()
    with pytest.raises(RuntimeError):
        await pool.run("core", fails)
    assert pool._free == 1


async def test_no_more_threads_work_than_there_are() -> None:
    pool, lock = WorkPool(3), threading.Lock()
    now, most = 0, 0

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        with lock:
            now -= 1

    await asyncio.gather(*(pool.run(str(number % 5), work) for number in range(60)))
    assert 1 <= most <= 3
    assert pool._free == 3
    pool.close()
