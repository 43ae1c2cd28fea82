"""The replay guard of a single process: a dictionary. It forgets everything at a restart, and says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from extproc.nonce_store import (
    EVERY_CHALLENGE_STALE,
    KEEP_BEYOND_MAX_AGE_MS,
    SKEW_MS,
    SpendResult,
    retry_or_replay,
)
from extproc.nonce_store.envelopes import EnvelopeShelf, Find
from pch.errors import StaleChallenge, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.nonce_store.envelopes import Keep, KeepResult

DEFAULT_MAX_ENTRIES: Final = 1_000_000
PURGE_PER_SPEND: Final = 16
"""Expired entries dropped by one spend at the most: more than come in, few enough not to stall."""


class MemoryNonceStore:
    """A nonce store in this process. Owned by one event loop: a spend never waits, so each is atomic."""

    def __init__(self, *, max_age_s: int, clock_ms: Callable[[], int], max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        """`max_entries`: nonces kept at once; when it is reached, spends fail until some expire."""
        self._keep_ms = max_age_s * 1000 + KEEP_BEYOND_MAX_AGE_MS
        self._max_entries = max_entries
        self._clock_ms = clock_ms
        self._since_ms = clock_ms()
        # In the order of spending, which is that of expiry as long as the clock does not step back.
        self._spent: dict[bytes, tuple[bytes, int]] = {}
        self._problem: str | None = None
        self._envelopes = EnvelopeShelf()

    def __len__(self) -> int:
        return len(self._spent)

    async def start(self) -> None:
        """Do nothing; the store is ready."""

    async def spend(self, nonce: bytes, token: bytes, issued_ms: int, now_ms: int) -> SpendResult:
        """Spend `nonce`; see `NonceStore`."""
        if issued_ms < self._since_ms:
            raise StaleChallenge("the challenge is older than the nonce store's contents")
        self._purge(now_ms)
        first = self._spent.get(nonce)
        if first is not None:
            return retry_or_replay(*first, token, now_ms)
        if len(self._spent) >= self._max_entries:
            self._problem = f"the memory nonce store holds {self._max_entries} entries"
            raise StoreUnavailable(self._problem)
        self._problem = None
        self._spent[nonce] = (token, now_ms)
        return SpendResult.FRESH

    async def keep_envelope(self, keep: Keep) -> KeepResult:
        """Keep an envelope; see `NonceStore`."""
        return self._envelopes.keep(keep, spent=keep.nonce in self._spent)

    async def find_envelope(self, nonce: bytes, now_ms: int) -> bytes | None:
        """Find an envelope; see `NonceStore`."""
        return self._envelopes.find(Find(nonce, now_ms))

    async def problem(self) -> str | None:
        """Say whether the store was full at the last spend, or the clock ran ahead before."""
        if self._problem is None and self._clock_ms() < self._since_ms:
            return EVERY_CHALLENGE_STALE
        return self._problem

    async def close(self) -> None:
        """Forget everything."""
        self._spent.clear()
        self._envelopes.clear()

    def _purge(self, now_ms: int) -> None:
        horizon_ms = now_ms - self._keep_ms
        for _ in range(PURGE_PER_SPEND):
            oldest = next(iter(self._spent), None)
            if oldest is None or self._spent[oldest][1] > horizon_ms:
                return
            del self._spent[oldest]
            # If the clock steps back now, challenges whose spending was just forgotten would be young
            # enough again.
            self._since_ms = max(self._since_ms, horizon_ms + SKEW_MS + 1)
