"""The optional bus: kms.* events published over Redis, and two that are listened to (INTEROP.md §3).

Nothing secret is on it, and nothing depends on it: what the bus does not take is dropped, oldest first, and counted.
Who may publish on the bus can make the service read its configuration again and end it; nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.config_values import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kms.telemetry import Telemetry

LOG: Final = logging.getLogger("kms.events")
MAX_QUEUED_EVENTS: Final = 1024
TIMEOUT_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
CANCEL_TIMEOUT_S: Final = 0.25
MAX_CANCELS: Final = 4
"""A second at most for the tasks' end: the service's own end never waits for the bus."""
RELOAD_PERIOD_S: Final = 1.0
"""A flood of `config.updated` makes one reload in this time at most."""
CONFIG_UPDATED: Final = "config.updated"
SHUTDOWN: Final = "bus.shutdown"
PUBLISHED: Final = frozenset(
    {
        *("kms.health", "kms.ready", "kms.audit.checkpoint", "kms.attestation.status", "kms.config.updated"),
        "kms.policy.hint",
    }
)


class EventBus:
    """Two tasks with a connection each. One event loop owns it; without a URL it does nothing.

    `on_config_updated`, `on_shutdown`: called on the loop for the two events that are listened to.
    """

    def __init__(
        self, url: str, telemetry: Telemetry, on_config_updated: Callable[[], None], on_shutdown: Callable[[], None]
    ) -> None:
        self._url = url
        self._connect = _connector(url) if url else None
        self._lagged = telemetry.bus_lagged
        self._retries = telemetry.backoff_retries.labels("bus")
        self._on_config_updated, self._on_shutdown = on_config_updated, on_shutdown
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._came, self._sent = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def publish(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Queue an event; never waits and never raises for the bus's sake."""
        if topic not in PUBLISHED:
            raise ValueError(f"no such event: {topic}")
        if self._connect is None:
            return
        if len(self._waiting) >= MAX_QUEUED_EVENTS:
            self._waiting.popleft()
            self._lagged.inc()
        self._waiting.append((topic, msgspec.json.encode(payload)))
        self._came.set()

    def publish_from_thread(self, topic: str, payload: Mapping[str, Any]) -> None:
        """Queue an event from another thread; one that comes after the end is dropped."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.publish, topic, payload)

    def start(self) -> None:
        """Start both tasks; once."""
        self._loop = asyncio.get_running_loop()
        if self._connect is not None:
            self._tasks = [
                asyncio.create_task(self._keep(self._send), name="kms-bus-send"),
                asyncio.create_task(self._keep(self._listen), name="kms-bus-listen"),
            ]

    async def stop(self) -> None:
        """Send what is queued within a second, then end within another."""
        if self._tasks and self._waiting:
            self._sent.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sent.wait(), TIMEOUT_S)
        self._lagged.inc(len(self._waiting))
        self._waiting.clear()
        self._loop = None
        pending = set(self._tasks)
        for _ in range(MAX_CANCELS):
            # More than once: a client that closes its connection may take the cancelling for that one's end.
            for task in pending:
                task.cancel()
            if pending:
                _, pending = await asyncio.wait(pending, timeout=CANCEL_TIMEOUT_S)
        if pending:
            LOG.warning("the bus does not end")
        self._tasks.clear()

    async def _keep(self, work: Callable[[Any], Awaitable[None]]) -> None:
        """Do the work on one connection after the other, with a pause between them that grows."""
        assert self._connect is not None
        pause_s = FIRST_PAUSE_S
        while True:
            client = self._connect()
            began_s = asyncio.get_running_loop().time()
            try:
                await work(client)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the bus, the service goes on
                LOG.info("the bus is away: %s", type(error).__name__)
            finally:
                with contextlib.suppress(Exception):
                    await client.aclose()
            if asyncio.get_running_loop().time() - began_s > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            self._retries.inc()
            await asyncio.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311 - jitter
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _send(self, client: Any) -> None:
        while True:
            while self._waiting:
                event = self._waiting[0]
                await client.publish(*event)
                # While it was sent, the oldest may have been dropped for newer ones.
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()
            self._sent.set()
            self._came.clear()
            await self._came.wait()

    async def _listen(self, client: Any) -> None:
        loop = asyncio.get_running_loop()
        wanted, reloaded_s = False, float("-inf")
        async with client.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(CONFIG_UPDATED, SHUTDOWN)
            while True:
                message = await subscription.get_message(timeout=RELOAD_PERIOD_S / 2)
                topic = None if message is None else message["channel"].decode()
                if topic == SHUTDOWN:
                    self._on_shutdown()
                wanted = wanted or topic == CONFIG_UPDATED
                if wanted and loop.time() - reloaded_s >= RELOAD_PERIOD_S:
                    wanted, reloaded_s = False, loop.time()
                    self._on_config_updated()


def _connector(url: str) -> Callable[[], Any]:
    """Make what opens a client with every wait bounded. Raises ConfigError."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    def connect() -> Any:
        return Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    try:
        connect()
    except ValueError:
        # The URL may hold a password: it is not quoted.
        raise ConfigError("bus.redis_url: not a Redis URL") from None
    return connect
