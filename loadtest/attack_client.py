"""Signed requests with one thing wrong: what an attacker with a stolen or broken proof would send."""

from __future__ import annotations

import os
from typing import Final

from loadtest.bench_client import LoadConnection

ATTACKS: Final = ("mismatch", "replay", "forged", "stale")


class AttackConnection(LoadConnection):
    """A connection whose requests must all be refused."""

    def attack(self, kind: str) -> int:
        """Send one attack of `kind`; returns the status."""
        if kind == "mismatch":
            # A proof made on another connection: its binding is that of no one here.
            true, self._binding = self._binding, os.urandom(32)
            try:
                return self.signed()
            finally:
                self._binding = true
        if kind == "stale":
            self._challenge = b"A" * 60
            return self.signed()
        if kind == "forged":
            return self._send_altered()
        request = self.make("GET", self._path, b"")
        self._exchange(request)
        # The first one was honest; what counts is that the same bytes do not pass again.
        return self._exchange(request)

    def _send_altered(self) -> int:
        made = self.make("GET", self._path, b"")
        return self._exchange(made.replace(b'"@method" "@authority"', b'"@authority" "@method"', 1))
