"""Carries breakers' words between instances over Redis (docs/reference/breaker.md §9), off every request's path.

Each instance holds one of `MAX_PEERS` keys, which expires when its instance is gone; a round reads all of them, each to
its bound, and writes one. So neither the number of peers nor the bytes depend on what is in Redis.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from extproc.breaker_peers import MAX_PEERS, MAX_WORD_BYTES
from extproc.nonce_store.redis import open_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.breaker_peers import BreakerPeers
    from extproc.stress_desk import StressTelemetry

LOG: Final = logging.getLogger("signet.breaker")
TIMEOUT_S: Final = 1.0
"""For one round, connecting and all."""
MAX_BACK_OFF_MS: Final = 5_000
TTL_INTERVALS: Final = 8
MIN_TTL_MS: Final = 2_000


class BreakerShare:
    """One worker's task. `peers`: what is shared now; None shares nothing. Owned by one event loop."""

    def __init__(
        self,
        url: str,
        peers: Callable[[], BreakerPeers | None],
        telemetry: StressTelemetry,
        *,
        interval_ms: int,
        now_ms: Callable[[], int],
        random_below: Callable[[int], int],
    ) -> None:
        self._url, self._peers, self._telemetry = url, peers, telemetry
        self._interval_ms, self._now_ms, self._random_below = interval_ms, now_ms, random_below
        self._ttl_ms = max(MIN_TTL_MS, TTL_INTERVALS * interval_ms)
        self._connection: Any = None
        self._served: BreakerPeers | None = None
        self._slot: int | None = None
        self._last = b""
        self._failures = 0
        self._full = False

    async def run(self) -> None:
        """Share until cancelled. Whatever Redis does or a word holds, this instance goes on and tries again."""
        try:
            while True:
                pause_ms = await self._round_or_pause_ms()
                await asyncio.sleep(pause_ms / 1000)
        finally:
            self._drop()

    async def _round_or_pause_ms(self) -> int:
        try:
            peers = self._peers()
            if peers is None:
                return self._interval_ms
            async with asyncio.timeout(TIMEOUT_S):
                await self._round(peers)
        except Exception as error:  # noqa: BLE001  a task that ended would end the sharing and say nothing
            self._drop()
            self._telemetry.share_up.set(0)
            self._telemetry.share_peers.set(0)
            if not self._failures:
                LOG.error("breakers are not shared, each instance goes on alone: %s", type(error).__name__)
            self._failures += 1
            pause_ms = min(MAX_BACK_OFF_MS, self._interval_ms << min(self._failures, 16))
            return pause_ms // 2 + self._random_below(pause_ms // 2 + 1)
        if self._failures:
            LOG.warning("breakers are shared again, after %d tries", self._failures)
        self._failures = 0
        self._telemetry.share_up.set(1)
        self._telemetry.share_peers.set(peers.peers)
        return self._interval_ms

    async def _round(self, peers: BreakerPeers) -> None:
        if self._connection is None:
            self._connection = open_connection(self._url, TIMEOUT_S)
            await self._connection.connect()
        if peers is not self._served:
            self._served, self._slot = peers, None
        keys = [f"signet:breaker:{peers.group}:{number}" for number in range(MAX_PEERS)]
        # One byte more than a word may have, so that a longer one is refused and not cut to fit.
        words = await self._ask([("GETRANGE", key, 0, MAX_WORD_BYTES) for key in keys])
        refused = peers.hear([word for word in words if word], self._now_ms())
        if refused:
            self._telemetry.share_refused.inc(refused)
        mine = self._slot is not None and words[self._slot] == self._last
        if not mine:
            free = [number for number, word in enumerate(words) if not word]
            self._slot = free[self._random_below(len(free))] if free else None
        if self._slot is None:
            if not self._full:
                LOG.error("breakers hear the other instances and are not heard: there are %d already", MAX_PEERS)
            self._full = True
            return
        self._full, self._last = False, peers.told(self._now_ms())
        (done,) = await self._ask([("SET", keys[self._slot], self._last, "PX", self._ttl_ms, "XX" if mine else "NX")])
        if done is None:
            self._slot = None

    async def _ask(self, commands: list[tuple[str | bytes | int, ...]]) -> list[Any]:
        connection = self._connection
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await connection.read_response() for _ in commands]

    def _drop(self) -> None:
        # Late answers must not be taken for those of the next round.
        if self._connection is not None:
            self._connection._close()
            self._connection = None
