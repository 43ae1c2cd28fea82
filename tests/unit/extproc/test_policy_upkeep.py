"""A policy that is elsewhere: read again while it is in force, and let go of once it was replaced; on a real OPA."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc import policy_upkeep
from extproc.policy_upkeep import PolicyUpkeep
from policy.opa import OpaPolicy
from policy.route_data import policy_data
from policy.wasm import WasmPolicy
from tests.support.opa_parts import opa_server
from tests.unit.policy.test_engines import ASKED, COMPILED, ROUTES

REGO = Path(__file__).resolve().parents[3] / "policy/shield.rego"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with opa_server(REGO) as (found, _):
        yield found


def remote(port: int) -> OpaPolicy:
    return OpaPolicy("127.0.0.1", port, timeout_s=5.0)


async def test_a_change_on_the_server_is_in_the_digest_after_a_tick(port: int) -> None:
    policy = remote(port)
    upkeep = PolicyUpkeep(lambda: policy)
    await upkeep.tick()
    before = policy.digest
    assert not (await policy.evaluate(ASKED)).allow
    await policy._client.update_or_create_data(json.loads(policy_data(ROUTES))["signet"], "signet")
    await upkeep.tick()
    assert policy.digest != before
    assert (await policy.evaluate(ASKED)).allow
    await upkeep.close()
    assert policy._client is None


async def test_a_replaced_policy_answers_those_under_way_and_is_let_go_of(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_upkeep, "RETIRE_AFTER_S", 0.05)
    old, new = remote(port), remote(port)
    await old.refresh()
    upkeep = PolicyUpkeep(lambda: new)
    upkeep.retire(old)
    await old.evaluate(ASKED)
    async with asyncio.timeout(10):
        while old._client is not None:
            await asyncio.sleep(0.01)
    await upkeep.close()


async def test_the_end_waits_for_no_replaced_policy(port: int) -> None:
    old, new = remote(port), remote(port)
    await old.refresh()
    await new.refresh()
    upkeep = PolicyUpkeep(lambda: new)
    upkeep.retire(old)
    async with asyncio.timeout(5):
        await upkeep.close()
    assert (old._client, new._client) == (None, None)


async def test_a_server_that_is_away_is_told_once_until_it_is_back(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = remote(free.getsockname()[1])
        policies = [away, away, remote(port), away]
        current = iter(policies)
        upkeep = PolicyUpkeep(lambda: next(current))
        with caplog.at_level(logging.ERROR):
            for expected in (1, 1, 1, 2):
                await upkeep.tick()
                assert len(caplog.records) == expected
    for each in policies:
        await each.close()


async def test_a_policy_in_this_process_needs_nothing() -> None:
    policy = WasmPolicy(COMPILED.read_bytes(), b"{}")
    digest = policy.digest
    upkeep = PolicyUpkeep(lambda: policy)
    await upkeep.tick()
    upkeep.retire(policy)
    await upkeep.close()
    assert policy.digest == digest
