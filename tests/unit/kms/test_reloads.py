"""Reloads come one after the other, and a flood of them is one more."""

from __future__ import annotations

import asyncio

from kms.reloads import Reloads


async def test_one_follows_however_many_were_asked_for_meanwhile() -> None:
    began, gate = 0, asyncio.Event()

    async def work() -> None:
        nonlocal began
        began += 1
        await gate.wait()

    reloads = Reloads(work)
    reloads.ask()
    await asyncio.sleep(0)
    for _ in range(100):
        reloads.ask()
    assert began == 1, "one at a time"
    gate.set()
    while began < 2:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert began == 2, "one more for all of them"
    reloads.ask()
    await asyncio.sleep(0)
    assert began == 3
    await reloads.stop()


async def test_what_is_under_way_ends_with_the_service_and_without_one_there_is_nothing_to_end() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    reloads = Reloads(work)
    await reloads.stop()
    reloads.ask()
    await asyncio.sleep(0)
    await reloads.stop()
    assert ended.is_set()
