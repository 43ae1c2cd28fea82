"""What instances tell each other of their breakers, and what each makes of it (docs/reference/breaker.md §9).

Pure: words come in and go out as bytes, the clock as an argument; `extproc.breaker_share` carries them. A word says
durations and never times, for clocks of two machines are not compared. What comes in is untrusted: it can open a
breaker for one dwell and can close, shorten or dilute nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from extproc.breaker import BreakerState, Phase, Seen, has_evidence, trip, trips
from extproc.ewma import Ewma

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from extproc.plan import BreakerPlan

MAX_PEERS: Final = 64
MAX_WORD_BYTES: Final = 65_536
MAX_SEEN_PER_WORD: Final = 100_000
"""Outcomes of one route that one word may add: more than an instance hears between two."""
MAX_KNOWN_OPENINGS: Final = 256
"""Openings of one route that are remembered, so that none is taken over twice."""
_NONE: Final = Ewma()

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
OpeningId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


class RouteWord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One route: outcomes since the instance began, as rising counters; its opening, and what is left of the dwell."""

    samples: Count = 0
    failed: Count = 0
    slow: Count = 0
    opening: OpeningId | None = None
    left_ms: Annotated[int, msgspec.Meta(ge=0, le=86_400_000)] = 0


class PeerWord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one instance says in one round. `sequence` rises with each."""

    version: Literal[1]
    instance: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    sequence: Count
    routes: Annotated[tuple[RouteWord, ...], msgspec.Meta(max_length=1_024)]


@dataclass(slots=True)
class _Shared:
    own: RouteWord = field(default_factory=RouteWord)
    heard: Seen = field(default_factory=Seen)
    offers: dict[str, int] = field(default_factory=dict)
    known: dict[str, None] = field(default_factory=dict)
    errors: Ewma = _NONE
    slowness: Ewma = _NONE
    opening: str | None = None
    epoch: int = -1
    open_until_ms: int = 0

    def remember(self, opening: str) -> None:
        self.known[opening] = None
        if len(self.known) > MAX_KNOWN_OPENINGS:
            del self.known[next(iter(self.known))]


class BreakerPeers:
    """The shared side of one instance's breakers. Owned by one event loop.

    `realm` and `routes`, the names of the guarded ones: the same in all that share. `random_hex`: gives so many random
    bytes in hex.
    """

    def __init__(self, plan: BreakerPlan, realm: str, routes: Sequence[str], random_hex: Callable[[int], str]) -> None:
        self._plan, self._random_hex = plan, random_hex
        self._instance, self._sequence = random_hex(16), 0
        self._shared = [_Shared() for _ in routes]
        self._peers: dict[str, PeerWord] = {}
        names = msgspec.json.encode([realm, list(routes), plan], order="sorted")
        self.group: Final = hashlib.sha256(names).hexdigest()[:16]
        """Only instances of the same realm, routes and thresholds understand each other's counts."""

    @property
    def peers(self) -> int:
        """Tell how many others the last round had."""
        return len(self._peers)

    def step(self, route: int, state: BreakerState, seen: Seen, now_ms: int) -> BreakerState:
        """Give the state after what the others said; `seen` is what this instance heard since the last tick."""
        shared = self._shared[route]
        own = shared.own
        shared.own = RouteWord(own.samples + seen.samples, own.failed + seen.failed, own.slow + seen.slow)
        heard, shared.heard = shared.heard, Seen()
        offers, shared.offers = shared.offers, {}
        if state.phase is not Phase.CLOSED:
            # Whoever opens while this one is open speaks of the same trip; while half-open the own probes know better.
            for opening in offers:
                shared.remember(opening)
            if state.phase is Phase.OPEN:
                return self._note(shared, state, None)
            shared.errors = shared.slowness = _NONE
            return state
        tripped = self._trips(shared, seen, heard, now_ms)
        if self._knows_better(state, now_ms):
            return state
        for opening, until_ms in offers.items():
            if opening not in shared.known and until_ms > now_ms:
                for each in offers:
                    shared.remember(each)
                opened = trip(state, now_ms, self._plan, least_dwell_ms=until_ms - now_ms)
                return self._note(shared, opened, opening)
        if tripped:
            return self._note(shared, trip(state, now_ms, self._plan), None)
        return state

    def _knows_better(self, state: BreakerState, now_ms: int) -> bool:
        """Tell whether this instance's own outcomes say that its app is well: another's may be another one."""
        plan = self._plan
        well = state.errors.mean <= plan.clear_errors and state.slowness.mean <= plan.clear_slowness
        return well and has_evidence(state.errors, now_ms, plan)

    def _trips(self, shared: _Shared, seen: Seen, heard: Seen, now_ms: int) -> bool:
        plan = self._plan
        samples = min(1_000_000, seen.samples + heard.samples)
        failed, slow = min(samples, seen.failed + heard.failed), min(samples, seen.slow + heard.slow)
        constant_ms, gain = plan.time_constant_ms, plan.max_gain
        shared.errors = shared.errors.after(samples, failed, now_ms, time_constant_ms=constant_ms, max_gain=gain)
        shared.slowness = shared.slowness.after(samples, slow, now_ms, time_constant_ms=constant_ms, max_gain=gain)
        return trips(shared.errors, shared.slowness, now_ms, plan)

    def _note(self, shared: _Shared, state: BreakerState, opening: str | None) -> BreakerState:
        shared.errors = shared.slowness = _NONE
        shared.open_until_ms = state.since_ms + state.dwell_ms
        if state.epoch != shared.epoch:
            shared.epoch, shared.opening = state.epoch, opening or self._random_hex(8)
            shared.remember(shared.opening)
        return state

    def told(self, now_ms: int) -> bytes:
        """Give this instance's next word."""
        self._sequence += 1
        routes = tuple(self._word(shared, now_ms) for shared in self._shared)
        return msgspec.msgpack.encode(PeerWord(1, self._instance, self._sequence, routes))

    def _word(self, shared: _Shared, now_ms: int) -> RouteWord:
        own, left_ms = shared.own, shared.open_until_ms - now_ms
        if shared.opening is None or left_ms <= 0:
            return own
        return RouteWord(own.samples, own.failed, own.slow, shared.opening, min(left_ms, self._plan.max_dwell_ms))

    def hear(self, words: Sequence[bytes], now_ms: int) -> int:
        """Take in one round's words, this instance's own among them. Gives how many were not understood."""
        refused = 0
        heard: dict[str, PeerWord] = {}
        for raw in words[:MAX_PEERS]:
            try:
                word = _read(raw, len(self._shared))
            except msgspec.MsgspecError:
                refused += 1
                continue
            if word.instance != self._instance and word.instance not in heard:
                heard[word.instance] = self._take(word, now_ms)
        self._peers = heard
        return refused

    def _take(self, word: PeerWord, now_ms: int) -> PeerWord:
        before = self._peers.get(word.instance)
        if before is not None and word.sequence <= before.sequence:
            return before
        for number, (shared, now) in enumerate(zip(self._shared, word.routes, strict=True)):
            if now.opening is not None and len(shared.offers) < MAX_PEERS:
                shared.offers[now.opening] = now_ms + min(now.left_ms, self._plan.max_dwell_ms)
            # What a peer heard before it was first met is history.
            if before is not None:
                shared.heard = _plus(shared.heard, before.routes[number], now)
        return word


def _read(raw: bytes, routes: int) -> PeerWord:
    """Decode a word. Raises msgspec.MsgspecError for one that is too long, malformed, or of other routes."""
    if len(raw) > MAX_WORD_BYTES:
        raise msgspec.ValidationError("a word is too long")
    word = _DECODER.decode(raw)
    if len(word.routes) != routes:
        raise msgspec.ValidationError("a word of other routes")
    return word


_DECODER: Final = msgspec.msgpack.Decoder(PeerWord)


def _plus(heard: Seen, before: RouteWord, now: RouteWord) -> Seen:
    samples = min(MAX_SEEN_PER_WORD, max(0, now.samples - before.samples))
    failed = min(samples, max(0, now.failed - before.failed))
    slow = min(samples, max(0, now.slow - before.slow))
    return Seen(heard.samples + samples, heard.failed + failed, heard.slow + slow)
