"""Rotations, fences and states among signatures: every interleaving leaves whole versions that only grow (G-4, I-5)."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import Conflict
from kms.kid import parse_kid
from kms.messages import ChangeKeyStateRequest, RotateKeyRequest
from tests.support.kms_core import Bench, running_core
from tests.support.kms_providers import StagedProvider

Step = tuple[str, int]
# What runs at once, in the order in which it begins, each after so many turns of the event loop.
steps = st.lists(
    st.tuples(st.sampled_from(["sign", "sign", "sign", "rotate", "fence", "disable", "enable"]), st.integers(0, 6)),
    min_size=2,
    max_size=12,
)


async def perform(bench: Bench, name: str, verb: str, turns: int) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    if verb == "sign":
        return await bench.sign(name)
    if verb == "rotate":
        return await bench.call("rotate", RotateKeyRequest(kid=name))
    if verb == "fence":
        newest = bench.store.keys.find(parse_kid(name + "#v1").name).newest.number
        return await bench.call("enable", ChangeKeyStateRequest(kid=name, min_version=newest))
    return await bench.call(verb, ChangeKeyStateRequest(kid=name))


async def check(plan: list[Step], *, in_process: bool) -> None:
    async with running_core(provider=StagedProvider(in_process=in_process)) as bench:
        name = (await bench.create("hybrid")).partition("#")[0]
        heads: list[tuple[int, int]] = []

        async def watch() -> None:
            while True:
                record = bench.store.keys.find(parse_kid(name + "#v1").name)
                heads.append((record.newest.number, record.min_version))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        outcomes = await asyncio.gather(
            *(perform(bench, name, verb, turns) for verb, turns in plan), return_exceptions=True
        )
        watching.cancel()
        failures = [each for each in outcomes if isinstance(each, BaseException)]
        # A key that is disabled or fenced at that moment says so; nothing else goes wrong.
        assert all(isinstance(each, Conflict) for each in failures), failures
        assert heads == sorted(heads)
        assert all(fence <= head for head, fence in heads)
        rotated = [each for each in outcomes if hasattr(each, "previous")]
        numbers = sorted(parse_kid(each.kid).version for each in rotated)
        assert numbers == list(range(2, len(rotated) + 2))
        assert all(parse_kid(each.previous).version + 1 == parse_kid(each.kid).version for each in rotated)
        await _check_signatures(bench, [each for each in outcomes if hasattr(each, "sigs")])
        epochs = [int(event.detail["epoch"]) for event in bench.audit.events if "epoch" in event.detail]
        assert sorted(epochs) == list(range(1, bench.store.epoch + 1))


async def _check_signatures(bench: Bench, signed: list[Any]) -> None:
    for each in signed:
        kid = parse_kid(each.kid)
        record = bench.store.keys.find(kid.name)
        assert kid.version <= record.newest.number
        if kid.version >= record.min_version:
            verified = await bench.verify(each.sigs, each.kid)
            assert (verified.ok, verified.details.checked) == (True, ["ed25519", "ml-dsa"])


@settings(max_examples=25, deadline=None)
@given(plan=steps)
async def test_no_interleaving_on_the_loop_tears_a_version(plan: list[Step]) -> None:
    await check(plan, in_process=True)


@settings(max_examples=15, deadline=None)
@given(plan=steps)
async def test_no_interleaving_with_threads_tears_a_version(plan: list[Step]) -> None:
    await check(plan, in_process=False)
