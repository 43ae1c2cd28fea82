"""The replay guard: one contract, three stores (docs/reference/pch.md §2, §4 step 9)."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from extproc.nonce_store.envelopes import Keep, KeepResult

RETRY_WINDOW_MS: Final = 10_000
"""How long after its first spend the same nonce with the same token is a retried Check."""
KEEP_BEYOND_MAX_AGE_MS: Final = 4_000
"""How much longer than max-age a spent nonce is kept: twice the skew that the protocol tolerates."""
SKEW_MS: Final = 2_000
"""How far the clocks of two verifiers may differ (PCH §3)."""
TOKEN_BYTES: Final = 32
EVERY_CHALLENGE_STALE: Final = "nonce store: its contents are new, and every challenge is still stale"
"""The problem while the contents begin later than now."""


class SpendResult(enum.Enum):
    """What became of a spend."""

    FRESH = "fresh"
    """Nobody spent this nonce before."""
    RETRIED = "retried"
    """The same nonce and token within `RETRY_WINDOW_MS`: the same request, asked about once more."""
    REPLAYED = "replayed"
    """The nonce was spent under another token, or too long ago."""


class NonceStore(Protocol):
    """Spends each nonce once, across all verifiers that share a sealing key.

    Promises of every store:
    - Of several spends of one nonce with different tokens, at whatever moment and from whatever
    process, exactly one
      is FRESH.
    - A spent nonce is kept for max-age + 4 s. Nothing that is still needed is dropped to make room.
    - A store that lost contents refuses the challenges issued before that as stale, so none of them
    passes twice.
    - A spend that was not answered in time may have been done; repeating it with its token gives RETRIED.
    """

    async def start(self) -> None:
        """Get ready. A dependency that is down is no error here: spends fail until it is up."""
        ...

    async def spend(self, nonce: bytes, token: bytes, issued_ms: int, now_ms: int) -> SpendResult:
        """Spend `nonce`, PCH §4 step 9.

        `nonce`: the decoded challenge. `token`: 32 bytes that name the request. `issued_ms`: when the
        challenge was issued. `now_ms`: wall-clock time. Raises `StoreUnavailable` when it cannot be
        told, and `StaleChallenge` when the challenge is older than the store's contents.
        """
        ...

    async def keep_envelope(self, keep: Keep) -> KeepResult:
        """Keep an envelope for the request that will sign its challenge, PCH §6, within the bounds of `envelopes`.

        One under each challenge; the same one again is kept already. What a store lost is not found, and its
        challenge is stale. Raises `StoreUnavailable`, also when all envelopes together take too much.
        """
        ...

    async def find_envelope(self, nonce: bytes, now_ms: int) -> bytes | None:
        """Find the envelope under `nonce`; None when none waits. It then makes room for another one of its connection
        and stays RETRY_WINDOW_MS, for a retried Check. Raises `StoreUnavailable`."""
        ...

    async def problem(self) -> str | None:
        """Say why spends would fail now; None when they would not."""
        ...

    async def close(self) -> None:
        """Let go of everything. Spends that wait are finished or refused."""
        ...


def retry_or_replay(first_token: bytes, first_ms: int, token: bytes, now_ms: int) -> SpendResult:
    """Judge a nonce that was spent before."""
    if token == first_token and now_ms - first_ms <= RETRY_WINDOW_MS:
        return SpendResult.RETRIED
    return SpendResult.REPLAYED
