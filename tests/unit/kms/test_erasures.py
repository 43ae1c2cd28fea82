"""What is left to erase is tried again, now and then, one key after the other."""

from __future__ import annotations

import asyncio

from kms.erasures import RETRY_S, Erasures
from kms.kid import KeyName
from tests.support.kms_core import HandClock
from tests.support.kms_records import name_of


async def settled(erasures: Erasures) -> None:
    async with asyncio.timeout(5):
        while erasures.under_way:
            await asyncio.sleep(0)


async def test_what_could_not_be_erased_is_left_and_tried_again_later() -> None:
    hand, asked = HandClock(), []
    erasures = Erasures(hand.clock)
    there: set[KeyName] = {name_of(1)}

    async def erase(name: KeyName) -> bool:
        asked.append(name)
        return name in there

    erasures.look(erase)
    assert not erasures.under_way, "there is nothing to do"
    for number in (1, 2, 2):
        erasures.add(name_of(number))
    erasures.look(erase)
    await settled(erasures)
    assert (asked, len(erasures)) == ([name_of(1), name_of(2)], 1)
    erasures.look(erase)
    assert not erasures.under_way, "it was tried a moment ago"
    hand.now_s += RETRY_S
    there.add(name_of(2))
    erasures.look(erase)
    await settled(erasures)
    assert (asked[2:], len(erasures)) == ([name_of(2)], 0)


async def test_one_that_hangs_is_not_begun_twice_and_ends_with_the_service() -> None:
    hand, begun = HandClock(), 0
    erasures = Erasures(hand.clock)
    erasures.add(name_of(1))

    async def hangs(_name: KeyName) -> bool:
        nonlocal begun
        begun += 1
        await asyncio.Event().wait()
        return True

    await erasures.stop()
    for _ in range(3):
        erasures.look(hangs)
        await asyncio.sleep(0)
        hand.now_s += RETRY_S
    assert begun == 1
    await erasures.stop()
    assert (erasures.under_way, len(erasures)) == (False, 1)
