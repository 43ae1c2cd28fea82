"""The bus: bounded, oldest dropped first and counted, in its own time, on a real Redis."""

import asyncio
import io
import json

import pytest
from redis.asyncio import Redis

from kms.clock import SYSTEM_CLOCK
from kms.config_sections import KmsConfig
from kms.config_values import ConfigError
from kms.events import MAX_CANCELS, MAX_QUEUED_EVENTS, PUBLISHED, EventBus
from kms.logs import LogWriter
from kms.notices import Notices
from kms.telemetry import Telemetry
from tests.support.redis_server import redis_server

TIMEOUT_S = 10.0


def bus_on(url, telemetry=None, on_config=lambda: None, on_shutdown=lambda: None):
    return EventBus(url, telemetry or Telemetry(), on_config, on_shutdown)


def lagged(telemetry):
    return telemetry.registry.get_sample_value("bus_lagged_total")


async def read(subscription, count):
    """Read so many events from the bus."""
    found = []
    async with asyncio.timeout(TIMEOUT_S):
        while len(found) < count:
            message = await subscription.get_message(timeout=1.0)
            if message is not None:
                found.append((message["channel"].decode(), json.loads(message["data"])))
    return found


@pytest.fixture(scope="module")
def url():
    with redis_server() as found:
        yield found


async def test_past_the_bound_the_oldest_go_and_are_counted(url):
    telemetry = Telemetry()
    bus = bus_on(url, telemetry)
    for number in range(MAX_QUEUED_EVENTS + 7):
        bus.publish("kms.config.updated", {"version": number})
    assert lagged(telemetry) == 7
    async with Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe("kms.config.updated")
        await subscription.get_message(timeout=1.0)
        bus.start()
        seen = await read(subscription, MAX_QUEUED_EVENTS)
        await bus.stop()
    assert [payload["version"] for _, payload in seen] == list(range(7, MAX_QUEUED_EVENTS + 7))
    assert lagged(telemetry) == 7


async def test_all_six_are_published_with_the_documents_members(url):
    async with Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.psubscribe("kms.*")
        await subscription.get_message(timeout=1.0)
        bus = bus_on(url)
        log = LogWriter(io.StringIO(), SYSTEM_CLOCK.wall_ms)
        notices = Notices(bus, None, SYSTEM_CLOCK, log)
        bus.start()
        notices.health(ok=True)
        notices.attestation("tpm", "tpm-2.0", True)
        notices.attestation("tpm", None, False)
        notices.config(KmsConfig())
        await asyncio.to_thread(notices.checkpoint, "ab" * 32, 5, True, 0.01)
        seen = await read(subscription, 6)
        await bus.stop()
        log.close()
    assert seen == [
        ("kms.health", {"service": "ron-kms", "ok": True}),
        ("kms.attestation.status", {"backend": "tpm", "ok": True, "class": "tpm-2.0"}),
        ("kms.attestation.status", {"backend": "tpm", "ok": False}),
        ("kms.config.updated", {"version": 1}),
        ("kms.policy.hint", {"pq_mode": "and", "rollout_percent": 100}),
        ("kms.audit.checkpoint", {"head": "ab" * 32, "index": 5, "ok": True}),
    ]
    assert {topic for topic, _ in seen} | {"kms.ready"} == PUBLISHED


async def test_a_flood_of_config_updated_makes_few_reloads_and_other_topics_none(url):
    reloads, ends = [], asyncio.Event()
    bus = bus_on(url, None, lambda: reloads.append(1), ends.set)
    bus.start()
    async with Redis.from_url(url) as client:
        async with asyncio.timeout(TIMEOUT_S):
            while await client.publish("config.updated", "x") == 0:
                await asyncio.sleep(0.01)
        for _ in range(500):
            await client.publish("config.updated", "x")
            await client.publish("kms.health", "{}")
        await client.publish("bus.shutdown", "")
        async with asyncio.timeout(TIMEOUT_S):
            await ends.wait()
    await bus.stop()
    assert 1 <= len(reloads) <= 4


async def test_after_an_outage_of_the_bus_events_flow_again(tmp_path_factory):
    telemetry = Telemetry()
    path = tmp_path_factory.mktemp("b") / "r.sock"
    bus = bus_on(f"unix://{path}", telemetry)
    bus.start()
    bus.publish("kms.health", {"ok": True})
    async with asyncio.timeout(TIMEOUT_S):
        while not telemetry.registry.get_sample_value("backoff_retries_total", {"op": "bus"}):
            await asyncio.sleep(0.01)
    with redis_server(path) as url:
        async with Redis.from_url(url) as client, client.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe("kms.health", "kms.ready")
            await subscription.get_message(timeout=1.0)
            bus.publish("kms.ready", {"ready": True})
            assert ("kms.ready", {"ready": True}) in await read(subscription, 2)
        await bus.stop()
    assert lagged(telemetry) == 0


@pytest.mark.parametrize(("swallowed", "left"), [(1, 0), (2, 0), (MAX_CANCELS + 5, 1)])
async def test_a_client_that_swallows_its_cancelling_does_not_hold_up_the_end(monkeypatch, swallowed, left):
    """The end is bounded either way: by another cancelling, or by leaving the task behind."""
    bus, times = bus_on("redis://127.0.0.1:1"), []

    async def deaf(_client):
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                times.append(1)
                if len(times) > swallowed:
                    raise

    monkeypatch.setattr(bus, "_listen", deaf)
    bus.start()
    await asyncio.sleep(0)
    tasks = [task for task in asyncio.all_tasks() if task.get_name() == "kms-bus-listen"]
    async with asyncio.timeout(TIMEOUT_S):
        await bus.stop()
    assert sum(not task.done() for task in tasks) == left
    assert len(times) == min(swallowed + 1, MAX_CANCELS)
    while not tasks[0].done():
        tasks[0].cancel()
        await asyncio.sleep(0)


async def test_without_a_url_nothing_is_kept_and_nothing_runs():
    telemetry = Telemetry()
    bus = bus_on("", telemetry)
    bus.start()
    for _ in range(MAX_QUEUED_EVENTS * 2):
        bus.publish("kms.health", {"ok": True})
    bus.publish_from_thread("kms.health", {"ok": True})
    await bus.stop()
    assert lagged(telemetry) == 0
    assert len(asyncio.all_tasks()) == 1


async def test_what_the_bus_never_took_is_counted_at_the_end(tmp_path):
    telemetry = Telemetry()
    bus = bus_on(f"unix://{tmp_path}/none", telemetry)
    bus.start()
    bus.publish("kms.health", {"ok": True})
    await bus.stop()
    bus.publish_from_thread("kms.health", {"ok": False})
    assert lagged(telemetry) == 1


@pytest.mark.parametrize("topic", ["config.updated", "bus.shutdown", "kms.other", ""])
async def test_no_other_topic_is_published(topic):
    with pytest.raises(ValueError, match="no such event"):
        bus_on("").publish(topic, {})


@pytest.mark.parametrize("bad", ["http://user:hunter2@host", "redis", "unix"])
async def test_a_url_that_is_none_is_refused_and_not_quoted(bad):
    with pytest.raises(ConfigError) as refused:
        bus_on(bad)
    assert "hunter2" not in str(refused.value)
