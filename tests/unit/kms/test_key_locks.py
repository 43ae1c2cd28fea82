from __future__ import annotations

import asyncio

import pytest

from kms.key_locks import KeyLocks


async def test_one_thing_has_one_writer_and_different_things_do_not_wait() -> None:
    locks, inside = KeyLocks(), []
    gate = asyncio.Event()

    async def write(thing: str, name: str) -> None:
        async with locks.hold(thing):
            inside.append(name)
            await gate.wait()

    tasks = [asyncio.create_task(write(thing, name)) for thing, name in (("k", "1"), ("k", "2"), ("j", "3"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert inside == ["1", "3"]
    gate.set()
    await asyncio.gather(*tasks)
    assert inside == ["1", "3", "2"]
    assert len(locks) == 0


async def test_a_lock_is_free_again_after_an_error_and_after_giving_up() -> None:
    locks = KeyLocks()
    with pytest.raises(ValueError, match="x"):
        async with locks.hold("k"):
            raise ValueError("x")
    async with locks.hold("k"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), locks.hold("k"):
                pass
    assert len(locks) == 0
