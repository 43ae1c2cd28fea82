"""Ids of requests: the caller's or a fresh correlation id, and our own request id (API.md appendix B, I-16)."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

UUID_CHARS: Final = 36
_VERSION_7: Final = 0x7 << 76
_VARIANT: Final = 0x2 << 62
_MASK_12: Final = (1 << 12) - 1
_MASK_62: Final = (1 << 62) - 1


def uuid7(now_ms: int, random: Callable[[int], bytes] = os.urandom) -> str:
    """Make a UUIDv7 (RFC 9562 §5.7). `now_ms`: milliseconds since the epoch; `random`: gives n random bytes."""
    noise = int.from_bytes(random(10), "big")
    value = (now_ms & ((1 << 48) - 1)) << 80 | _VERSION_7 | (noise >> 62 & _MASK_12) << 64 | _VARIANT | noise & _MASK_62
    return str(uuid.UUID(int=value))


def accepted_corr_id(text: str | None) -> str | None:
    """Give the caller's correlation id in its canonical form when it is a UUID of any version; otherwise None.

    Nothing else is echoed or logged: a correlation id never carries a caller's own text (I-16).
    """
    if text is None or len(text) != UUID_CHARS:
        return None
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return None
    canonical = str(parsed)
    return canonical if canonical == text.lower() else None


class IdSource:
    """Makes the ids of one process. `wall_ms`: the clock of UUIDv7."""

    def __init__(self, wall_ms: Callable[[], int], random: Callable[[int], bytes] = os.urandom) -> None:
        self._wall_ms = wall_ms
        self._random = random

    def corr_id(self, offered: str | None, mode: str = "uuidv7") -> str:
        """Take the offered correlation id when it is a UUID, or make one of the configured version."""
        accepted = accepted_corr_id(offered)
        if accepted is not None:
            return accepted
        if mode == "uuidv4":
            return str(uuid.UUID(bytes=self._random(16), version=4))
        return uuid7(self._wall_ms(), self._random)

    def request_id(self) -> str:
        """Make the id by which logs know this request."""
        return "r-" + self._random(8).hex()
