from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from kms import keeper
from tests.support.kms_core import running_core
from tests.support.kms_providers import StagedProvider


async def test_a_probe_that_hangs_is_an_outage_and_is_not_started_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "PROBE_TIMEOUT_S", 0.01)
    provider, release, probes = StagedProvider(), threading.Event(), 0

    def check() -> None:
        nonlocal probes
        probes += 1
        release.wait(5)

    monkeypatch.setattr(provider, "check", check)
    async with running_core(provider=provider) as bench:
        for _ in range(3):
            await bench.core.keeper.beat()
            assert bench.core.services.custody.outage_ms("staged") is not None
        assert probes == 1
        release.set()
        async with asyncio.timeout(5):
            while bench.core.services.custody.outage_ms("staged") is not None:
                await bench.core.keeper.beat()
        assert probes >= 1


async def test_every_provider_is_asked_and_one_that_is_away_is_so_alone() -> None:
    here, away = StagedProvider("here"), StagedProvider("away")
    away.away = True
    async with running_core(provider=here, others=(away,)) as bench:
        await bench.core.keeper.beat()
        custody = bench.core.services.custody
        assert custody.outage_ms("here") is None
        assert custody.outage_ms("away") is not None


async def test_a_full_provider_is_not_away() -> None:
    provider = StagedProvider()

    async with running_core(provider=provider) as bench:
        provider.fails_with_key_limit = True
        with pytest.raises(Exception, match="as many keys"):
            await bench.create()
        assert bench.core.services.custody.outage_ms("staged") is None


async def test_stopping_twice_does_nothing(tmp_path: Any) -> None:
    async with running_core(started=True) as bench:
        await bench.core.keeper.stop()
        await bench.core.keeper.stop()


async def test_a_fault_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "PERIOD_S", 0)
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        await bench.create()
        settle, faults = bench.core.dispatcher.settle, 0

        async def fails_twice(*, at_start: bool = False) -> None:
            nonlocal faults
            faults += 1
            if faults in (2, 3):
                raise RuntimeError("x")
            await settle(at_start=at_start)

        monkeypatch.setattr(bench.core.dispatcher, "settle", fails_twice)
        await bench.core.start()
        async with asyncio.timeout(5):
            while faults < 5:
                await asyncio.sleep(0.001)
        assert bench.metric("tasks_aborted_total", kind="keeper") == 2
