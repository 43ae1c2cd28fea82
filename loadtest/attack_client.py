"""Signed requests with one thing wrong: what an attacker with a stolen or broken proof would send."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Final

from loadtest.bench_client import LoadConnection

if TYPE_CHECKING:
    from pch.algorithms import Signer

MISMATCH: Final = "mismatch"
ATTACKS: Final = (MISMATCH, "replay", "forged", "stale")
_REASON: Final = re.compile(rb"\r\npch-reason: ([^\r]*)", re.IGNORECASE)
REUSE_S: Final = 30.0
"""Half of a challenge's age: what is sent is refused for what is wrong with it, not for being old."""


class AttackConnection(LoadConnection):
    """A connection whose requests must all be refused.

    What an attacker sends again and again is signed once: the load is on the filter, not on the machine that sends it.
    """

    def __init__(self, port: int, path: str, signer: Signer) -> None:
        super().__init__(port, path, signer)
        self._made: dict[str, tuple[bytes, float]] = {}

    @property
    def reason(self) -> str:
        """Why the last request was refused, as the filter told it; empty when it did not."""
        found = _REASON.search(self._answer)
        return found[1].decode("latin-1") if found else ""

    def attack(self, kind: str) -> int:
        """Send one attack of `kind`; returns the status."""
        made, made_s = self._made.get(kind, (b"", 0.0))
        if not made or time.monotonic() - made_s > REUSE_S:
            made = self._make(kind)
            self._made[kind] = (made, time.monotonic())
        return self._exchange(made)

    def _make(self, kind: str) -> bytes:
        if kind == MISMATCH:
            # A proof made on another connection: its binding is that of no one here.
            true, self._binding = self._binding, os.urandom(32)
            try:
                return self.make("GET", self._path, b"")
            finally:
                self._binding = true
        if kind == "stale":
            self._challenge = None
        made = self.make("GET", self._path, b"")
        if kind == "replay":
            # The first one was honest; what counts is that the same bytes do not pass again.
            self._exchange(made)
        if kind == "forged":
            made = made.replace(b'"@method" "@authority"', b'"@authority" "@method"', 1)
        return made
