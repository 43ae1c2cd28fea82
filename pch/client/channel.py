"""What signing has to know about one connection: its binding, its unspent challenges, its server's clock."""

from __future__ import annotations

import email.utils
from dataclasses import dataclass, field

from pch.client.challenge_pool import ChallengePool


@dataclass(slots=True)
class OriginClock:
    """How far the server's clock is from ours, in seconds; shared by the connections of one origin.

    A single float is replaced at a time, so no lock is needed.
    """

    offset_s: float = 0.0

    def correct(self, date: str | None, local_s: float) -> None:
        """Learn the offset from a Date field (PCH §9).

        `local_s`: our clock at its arrival. Bad dates are ignored.
        """
        try:
            server = email.utils.parsedate_to_datetime(date or "")
        except ValueError:
            return
        if server.tzinfo is not None:
            self.offset_s = server.timestamp() - local_s

    def now_s(self, local_s: float) -> int:
        """Give the server's time, in whole seconds since the epoch."""
        return int(local_s + self.offset_s)


@dataclass(slots=True)
class Channel:
    """One connection as signing sees it. Owned by its connection, used by one thread or loop at a time.

    `binding`: the 32 exporter bytes, None without one. `unguarded`: asking for a challenge brought none. `relaxing`:
    the last offer of a challenge asked for relaxed evidence (PCH §6).
    """

    binding: bytes | None
    clock: OriginClock
    challenges: ChallengePool = field(default_factory=ChallengePool)
    unguarded: bool = False
    relaxing: bool = False
