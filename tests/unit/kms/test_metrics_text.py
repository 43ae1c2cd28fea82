"""The text of /metrics is fresh, shared, and never takes the event loop or more than its part of the processor."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Counter

from kms import metrics_text
from kms.metrics_text import MetricsText
from kms.monitoring import Monitoring
from kms.readiness import KEYS, Look, Readiness, Snapshot
from kms.telemetry import Telemetry

TIMEOUT_S = 10.0


@pytest.fixture(autouse=True)
def _restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_text, "REST_FACTOR", 0)


class Held:
    """Writes texts that a test lets go of, one by one, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.threads = 0, set[int]()
        self._go = threading.Semaphore(0)
        monkeypatch.setattr(metrics_text, "generate_latest", self.write)

    def write(self, _registry: object) -> bytes:
        self.begun += 1
        self.threads.add(threading.get_ident())
        assert self._go.acquire(timeout=TIMEOUT_S)
        return b"%d" % self.begun

    def let_go(self) -> None:
        self._go.release()

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while self.begun < count:
                await asyncio.sleep(0.001)


async def test_who_asks_meanwhile_shares_the_next_text_and_gets_no_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    held, text = Held(monkeypatch), MetricsText(CollectorRegistry())
    first = asyncio.create_task(text.get())
    await held.until_begun(1)
    others = [asyncio.create_task(text.get()) for _ in range(50)]
    await asyncio.sleep(0)
    held.let_go()
    assert await first == b"1"
    await held.until_begun(2)
    held.let_go()
    assert await asyncio.gather(*others) == [b"2"] * 50
    assert held.begun == 2
    assert threading.get_ident() not in held.threads, "the event loop writes nothing"


async def test_who_goes_away_takes_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    held, text = Held(monkeypatch), MetricsText(CollectorRegistry())
    gone, stays = asyncio.create_task(text.get()), asyncio.create_task(text.get())
    await held.until_begun(1)
    gone.cancel()
    held.let_go()
    assert await stays == b"1"


async def test_after_a_text_comes_a_rest_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, slept, sleep = 100.0, [], asyncio.sleep

    def write(_registry: object) -> bytes:
        nonlocal now_s
        now_s += 0.02
        return b"text"

    async def noted(delay_s: float) -> None:
        slept.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(metrics_text, "REST_FACTOR", 4)
    monkeypatch.setattr(metrics_text, "generate_latest", write)
    monkeypatch.setattr(metrics_text.asyncio, "sleep", noted)
    monkeypatch.setattr(metrics_text.asyncio, "get_running_loop", lambda: SimpleNamespace(time=lambda: now_s))
    text = MetricsText(CollectorRegistry())
    for _ in range(2):
        assert await text.get() == b"text"
    assert slept == [0.0, pytest.approx(4 * 0.02)]


async def test_a_fault_is_told_and_the_next_text_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    Counter("asked", "Asked", registry=registry).inc()
    text = MetricsText(registry)
    with monkeypatch.context() as patch:
        patch.setattr(metrics_text, "generate_latest", lambda _registry: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await text.get()
    assert b"asked_total 1.0" in await text.get()


async def test_the_port_serves_it() -> None:
    telemetry, sent = Telemetry(), []
    snapshot = Snapshot(backend="file", pq_mode="and", audit_last_checkpoint_age_s=None)
    ready = Readiness(dict.fromkeys(KEYS, lambda: Look(ok=True)), lambda: snapshot, lambda _: None)

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    app = Monitoring(telemetry, ready)
    telemetry.auth_failures.inc()
    for path, method in (("/metrics", "GET"), ("/metrics", "POST"), ("/nowhere", "GET")):
        await app({"path": path, "method": method}, None, send)  # type: ignore[arg-type]
    assert [message["status"] for message in sent[::2]] == [200, 405, 404]
    assert b"\nauth_failures_total 1.0\n" in sent[1]["body"]  # type: ignore[operator]
