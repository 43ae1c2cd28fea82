"""Readiness: nine keys that must all hold, and what fails closed when one does not (OBSERVABILITY.md §2).

The keys are looked at by one task at an interval and by nobody else: a request to `/readyz` reads the last result, so
that it is as cheap as it is often asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEYS: Final = (
    "config_loaded",
    "listener_bound",
    "backend_ready",
    "attestation_ready",
    "audit_ready",
    "checkpoint_recent",
    "rng_ok",
    "clock_ok",
    "verify_cache_ok",
)
RETRY_AFTER_S: Final = 5
# Without these signing is refused and verifying goes on (I-18, I-19): they are named as degraded as well.
VERIFY_GOES_ON: Final = frozenset({"backend_ready", "attestation_ready"})


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at one key found. `degraded`: it holds, but an operator should know."""

    ok: bool
    degraded: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the payload tells beside the keys."""

    backend: str
    pq_mode: str
    audit_last_checkpoint_age_s: int | None


class ReadyPayload(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/readyz`."""

    ready: bool
    missing: list[str]
    degraded: list[str]
    retry_after: int
    snapshot: Snapshot


class Readiness:
    """The last look at every key. One event loop owns it.

    `probes`: one for each of KEYS, quick and synchronous; one that raises counts as not holding. `snapshot`: gives the
    rest of the payload. `on_flip`: is told when readiness changes.
    """

    def __init__(
        self,
        probes: Mapping[str, Callable[[], Look]],
        snapshot: Callable[[], Snapshot],
        on_flip: Callable[[ReadyPayload], None],
    ) -> None:
        if tuple(sorted(probes)) != tuple(sorted(KEYS)):
            raise ValueError("a probe is needed for each key of readiness, and for no other")
        self._probes, self._snapshot, self._on_flip = probes, snapshot, on_flip
        self._payload: ReadyPayload | None = None

    def look(self) -> ReadyPayload:
        """Look at every key now, and tell when readiness flipped."""
        missing: list[str] = []
        degraded: list[str] = []
        for key in KEYS:
            try:
                found = self._probes[key]()
            except Exception:  # noqa: BLE001 - a key that cannot be looked at does not hold
                found = Look(ok=False)
            if not found.ok:
                missing.append(key)
            if found.degraded or (not found.ok and key in VERIFY_GOES_ON):
                degraded.append(key)
        payload = ReadyPayload(
            ready=not missing,
            missing=missing,
            degraded=degraded,
            retry_after=0 if not missing else RETRY_AFTER_S,
            snapshot=self._snapshot(),
        )
        former, self._payload = self._payload, payload
        if former is None or former.ready != payload.ready or former.missing != payload.missing:
            self._on_flip(payload)
        return payload

    @property
    def payload(self) -> ReadyPayload:
        """Give what the last look found."""
        return self._payload if self._payload is not None else self.look()


class ClockProbe:
    """Compares the wall clock's steps with the monotonic clock's: a jump beyond the tolerance shows for one period.

    `wall_ms`, `monotonic_s`: the two clocks; `tolerance_ms`: gives the tolerance in force.
    """

    def __init__(
        self,
        wall_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
        tolerance_ms: Callable[[], int],
        hold_s: float = 30.0,
    ) -> None:
        self._wall_ms, self._monotonic_s, self._tolerance_ms, self._hold_s = wall_ms, monotonic_s, tolerance_ms, hold_s
        self._last = (wall_ms(), monotonic_s())
        self._bad_until_s = float("-inf")

    def __call__(self) -> Look:
        """Look at both clocks."""
        wall_ms, now_s = self._wall_ms(), self._monotonic_s()
        stepped_ms = (wall_ms - self._last[0]) - (now_s - self._last[1]) * 1000
        if now_s < self._last[1]:
            return Look(ok=False)
        self._last = (wall_ms, now_s)
        if abs(stepped_ms) > self._tolerance_ms():
            self._bad_until_s = now_s + self._hold_s
        return Look(ok=now_s >= self._bad_until_s)


def rng_probe(random: Callable[[int], bytes]) -> Callable[[], Look]:
    """Make the probe of the system's random source: two reads give 32 bytes each and are not the same (I-10)."""

    def look() -> Look:
        first, second = random(32), random(32)
        return Look(ok=len(first) == len(second) == 32 and first != second)

    return look
