"""Envelopes that wait for the request that they were sent ahead of (docs/reference/pch.md §6), in every nonce store.

They come unsigned, so each bound here is one that a stranger can reach: on his own connection or, with many, in all.
"""

from __future__ import annotations

import enum
import heapq
from dataclasses import dataclass
from typing import Final

from extproc.nonce_store import RETRY_WINDOW_MS
from pch.errors import StoreUnavailable

MAX_WAITING_PER_CONNECTION: Final = 4
"""Envelopes of one connection that no request has found yet (PCH §6)."""
MAX_BYTES_PER_CONNECTION: Final = 1 << 20
"""What one connection's envelopes may take, those included that were found and wait for a retried Check."""
MAX_BYTES_IN_STORE: Final = 64 << 20
"""What all envelopes may take; past it a further one is refused (503)."""
OVERHEAD_BYTES: Final = 512
"""Counted for each envelope beside its own bytes, so that tiny ones are bounded in number too."""
PURGE_PER_KEEP: Final = 64
"""Expired envelopes dropped at most when one comes: more than come in, few enough not to stall."""
STORE_FULL: Final = "the nonce store holds as many envelopes as it may"


class KeepResult(enum.Enum):
    """What became of an envelope that was sent ahead."""

    KEPT = "kept"
    """It waits, or waited already, byte for byte the same: a retried Check."""
    SPENT = "spent"
    """Its challenge was spent."""
    TAKEN = "taken"
    """Another envelope waits under this challenge."""
    CONNECTION_FULL = "connection_full"
    """The connection has as many as it may."""


@dataclass(frozen=True, slots=True)
class Keep:
    """An envelope to keep. `connection`: 32 bytes that name it. Times are milliseconds since the epoch."""

    nonce: bytes
    connection: bytes
    envelope: bytes
    expires_ms: int
    now_ms: int

    @property
    def size_bytes(self) -> int:
        """Give what it counts for."""
        return len(self.envelope) + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Find:
    """A question for the envelope under `nonce`; it is found again for RETRY_WINDOW_MS."""

    nonce: bytes
    now_ms: int

    @property
    def found_until_ms(self) -> int:
        """Give the time after which an envelope that is found now is no longer kept."""
        return self.now_ms + RETRY_WINDOW_MS


@dataclass(slots=True)
class _Held:
    keep: Keep
    expires_ms: int
    found: bool = False


@dataclass(slots=True)
class _Connection:
    waiting: int = 0
    held_bytes: int = 0


class EnvelopeShelf:
    """The envelopes of the memory store. Owned by one event loop, like the store."""

    def __init__(self) -> None:
        self._held: dict[bytes, _Held] = {}
        self._connections: dict[bytes, _Connection] = {}
        self._held_bytes = 0
        # Times only ever get shorter, so an entry too many here is dropped when its time comes.
        self._expiries: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._held)

    def keep(self, keep: Keep, *, spent: bool) -> KeepResult:
        """Keep an envelope; see `NonceStore.keep_envelope`. `spent`: whether its nonce is."""
        self._purge(keep.now_ms)
        if spent:
            return KeepResult.SPENT
        there = self._held.get(keep.nonce)
        if there is not None:
            return KeepResult.KEPT if there.keep.envelope == keep.envelope else KeepResult.TAKEN
        mine = self._connections.get(keep.connection) or _Connection()
        if mine.waiting >= MAX_WAITING_PER_CONNECTION or mine.held_bytes + keep.size_bytes > MAX_BYTES_PER_CONNECTION:
            return KeepResult.CONNECTION_FULL
        if self._held_bytes + keep.size_bytes > MAX_BYTES_IN_STORE:
            raise StoreUnavailable(STORE_FULL)
        self._connections[keep.connection] = mine
        mine.waiting += 1
        mine.held_bytes += keep.size_bytes
        self._held_bytes += keep.size_bytes
        self._held[keep.nonce] = _Held(keep, keep.expires_ms)
        heapq.heappush(self._expiries, (keep.expires_ms, keep.nonce))
        return KeepResult.KEPT

    def find(self, find: Find) -> bytes | None:
        """Find an envelope; see `NonceStore.find_envelope`."""
        held = self._held.get(find.nonce)
        if held is None or held.expires_ms <= find.now_ms:
            return None
        if not held.found:
            held.found = True
            self._connections[held.keep.connection].waiting -= 1
            held.expires_ms = min(held.expires_ms, find.found_until_ms)
            heapq.heappush(self._expiries, (held.expires_ms, find.nonce))
        return held.keep.envelope

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        self._connections.clear()
        self._expiries.clear()
        self._held_bytes = 0

    def _purge(self, now_ms: int) -> None:
        for _ in range(PURGE_PER_KEEP):
            if not self._expiries or self._expiries[0][0] > now_ms:
                return
            _, nonce = heapq.heappop(self._expiries)
            held = self._held.get(nonce)
            if held is None or held.expires_ms > now_ms:
                continue
            del self._held[nonce]
            mine = self._connections[held.keep.connection]
            mine.waiting -= not held.found
            mine.held_bytes -= held.keep.size_bytes
            self._held_bytes -= held.keep.size_bytes
            if not mine.held_bytes:
                del self._connections[held.keep.connection]
