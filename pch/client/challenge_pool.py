"""The unspent challenges of one connection (PCH §2: good for one connection, one use, and max-age)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from pch.client.limits import DEFAULT_MAX_AGE_S, MAX_CHALLENGES_PER_CONNECTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pch.client.challenge import ChallengeText

EXPIRY_MARGIN: Final = 0.1
"""The part of max-age that is given up, since a challenge is older than its arrival and travels back."""


class ChallengePool:
    """Hold at most 8 challenges, newest first. Owned by one connection; the owner serialises access."""

    def __init__(self) -> None:
        self.max_age_s = DEFAULT_MAX_AGE_S
        self._held: deque[tuple[float, ChallengeText]] = deque(maxlen=MAX_CHALLENGES_PER_CONNECTION)

    def __len__(self) -> int:
        return len(self._held)

    def add(self, challenges: Sequence[ChallengeText], now_s: float) -> None:
        """Keep fresh challenges; the oldest ones make room. `now_s`: monotonic seconds at their arrival."""
        expires_s = now_s + self.max_age_s * (1 - EXPIRY_MARGIN)
        held = {challenge for _, challenge in self._held}
        self._held.extend((expires_s, challenge) for challenge in challenges if challenge not in held)

    def take(self, now_s: float) -> ChallengeText | None:
        """Give the newest unexpired challenge, never to be given again; None when there is none."""
        if not self._held:
            return None
        expires_s, challenge = self._held.pop()
        if expires_s <= now_s:
            self._held.clear()
            return None
        return challenge

    def clear(self) -> None:
        """Forget everything, after the verifier called one of them stale."""
        self._held.clear()
