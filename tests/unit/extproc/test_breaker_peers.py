from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.breaker import BreakerState, Phase, Seen, advance
from extproc.breaker_bank import BreakerBank, OwnSignals
from extproc.breaker_peers import (
    MAX_KNOWN_OPENINGS,
    MAX_PEERS,
    MAX_WORD_BYTES,
    BreakerPeers,
    PeerWord,
    RouteWord,
)
from extproc.ewma import Ewma
from extproc.plan import BreakerPlan

PLAN = BreakerPlan(max_gain=0.5, min_samples=12, base_dwell_ms=1_000, max_dwell_ms=8_000, probes_needed=4)
T0_MS = 1_000_000
_ids = itertools.count(1)


def number_hex(count: int) -> str:
    return f"{next(_ids):0{2 * count}x}"


class Instances:
    """Some instances with clocks that differ by an hour each, and a round whenever it is asked for."""

    def __init__(self, count: int, plan: BreakerPlan = PLAN) -> None:
        self.passed_ms = 0
        self.peers = [BreakerPeers(plan, "r", ["a"], number_hex) for _ in range(count)]
        self.banks = [
            BreakerBank(plan, ["a"], OwnSignals(1), now_ms=self.clock(number), peers=peers)
            for number, peers in enumerate(self.peers)
        ]

    def clock(self, number: int) -> int:
        return T0_MS + number * 3_600_000 + self.passed_ms

    def share(self) -> None:
        words = [peers.told(self.clock(number)) for number, peers in enumerate(self.peers)]
        for number, peers in enumerate(self.peers):
            assert peers.hear(words, self.clock(number)) == 0

    def tick(self, milliseconds: int = 100, *, shared: bool = True) -> None:
        self.passed_ms += milliseconds
        for number, bank in enumerate(self.banks):
            bank.tick(self.clock(number))
        if shared:
            self.share()

    def hears(self, number: int, count: int, status: int = 503) -> None:
        for _ in range(count):
            self.banks[number].ended("a", status, 10, (), probe_epoch=None)

    def states(self) -> list[BreakerState]:
        return [bank.state("a") for bank in self.banks]

    def phases(self) -> list[Phase]:
        return [state.phase for state in self.states()]


def word(instance: int = 7, sequence: int = 1, **route: object) -> bytes:
    return msgspec.msgpack.encode(PeerWord(1, f"{instance:032x}", sequence, (RouteWord(**route),)))  # type: ignore[arg-type]


def test_one_opens_and_the_others_follow_for_what_is_left_of_its_dwell() -> None:
    group = Instances(3)
    for _ in range(4):
        group.hears(0, 20)
        group.tick(shared=False)
    assert group.phases() == [Phase.OPEN, Phase.CLOSED, Phase.CLOSED]
    group.share()
    group.tick()
    assert group.phases() == [Phase.OPEN] * 3
    assert [state.relapses for state in group.states()] == [1, 1, 1]
    epochs = [state.epoch for state in group.states()]
    for _ in range(5):
        group.tick()
    assert [state.epoch for state in group.states()] == epochs, "one trip is one opening"


def test_few_failures_at_each_trip_all_and_none_of_them_alone() -> None:
    together, alone = Instances(3), Instances(3)
    for _ in range(8):
        for group, shared in ((together, True), (alone, False)):
            for number in range(3):
                group.hears(number, 1)
            group.tick(500, shared=shared)
            if Phase.OPEN in together.phases():
                break
        if Phase.OPEN in together.phases():
            break
    together.tick()
    assert together.phases() == [Phase.OPEN] * 3
    assert alone.phases() == [Phase.CLOSED] * 3


def test_success_of_others_keeps_no_breaker_closed() -> None:
    group = Instances(2)
    for _ in range(4):
        group.hears(0, 20)
        group.hears(1, 2_000, 200)
        group.tick()
    group.tick()
    assert group.phases()[0] is Phase.OPEN


def test_dwell_is_never_shorter_than_the_own_nor_longer_than_the_cap() -> None:
    for relapses, left_ms, dwell_ms in ((0, 1, 1_000), (2, 1, 4_000), (0, 3_000, 3_000), (0, 86_400_000, 8_000)):
        peers = BreakerPeers(PLAN, "r", ["a"], number_hex)
        assert peers.hear([word(opening="ab" * 8, left_ms=left_ms)], T0_MS) == 0
        state = peers.step(0, BreakerState(relapses=relapses), Seen(), T0_MS)
        assert (state.phase, state.dwell_ms, state.relapses) == (Phase.OPEN, dwell_ms, relapses + 1)


def test_opening_is_taken_over_once_and_not_when_its_dwell_is_over() -> None:
    peers = BreakerPeers(PLAN, "r", ["a"], number_hex)
    peers.hear([word(opening="ab" * 8, left_ms=500)], T0_MS)
    assert peers.step(0, BreakerState(), Seen(), T0_MS + 500).phase is Phase.CLOSED
    peers.hear([word(sequence=2, opening="cd" * 8, left_ms=500)], T0_MS)
    assert peers.step(0, BreakerState(), Seen(), T0_MS).phase is Phase.OPEN
    for sequence in range(3, 6):
        peers.hear([word(sequence=sequence, opening="cd" * 8, left_ms=500)], T0_MS)
        assert peers.step(0, BreakerState(epoch=2), Seen(), T0_MS).phase is Phase.CLOSED
    peers.hear([word(sequence=6, opening="ef" * 8, left_ms=500)], T0_MS)
    half_open = BreakerState(phase=Phase.HALF_OPEN, epoch=3)
    assert peers.step(0, half_open, Seen(), T0_MS) == half_open, "the own probes know better"
    peers.hear([word(sequence=7, opening="ef" * 8, left_ms=500)], T0_MS)
    assert peers.step(0, BreakerState(epoch=4), Seen(), T0_MS).phase is Phase.CLOSED, "nor once it has closed"


@pytest.mark.parametrize(
    ("samples", "failed", "slow", "follows"),
    [(20, 0, 0, False), (20, 2, 4, False), (20, 3, 0, True), (20, 0, 5, True), (11, 0, 0, True)],
)
def test_who_hears_enough_good_of_its_own_app_follows_nobody(
    samples: int, failed: int, slow: int, follows: bool
) -> None:
    errors, slowness = (Ewma(bad / samples, samples, T0_MS, bad) for bad in (failed, slow))
    state = BreakerState(errors=errors, slowness=slowness)
    offered, pooled = (BreakerPeers(PLAN, "r", ["a"], number_hex) for _ in range(2))
    offered.hear([word(opening="ab" * 8, left_ms=500)], T0_MS)
    assert (offered.step(0, state, Seen(), T0_MS).phase is Phase.OPEN) is follows
    pooled.hear([word()], T0_MS)
    for sequence in range(2, 6):
        pooled.hear([word(sequence=sequence, samples=100 * sequence, failed=100 * sequence)], T0_MS)
        state = pooled.step(0, state, Seen(), T0_MS + 300 * (sequence - 2))
        if state.phase is Phase.OPEN:
            break
    # Evidence that is not renewed fades: seen from 900 ms later, 20 samples are 12 and a few.
    assert (state.phase is Phase.OPEN) is follows


@pytest.mark.parametrize("well", [1, 4])
def test_one_instance_that_cannot_reach_its_app_holds_none_of_the_others_at_the_floor(well: int) -> None:
    group = Instances(well + 1)
    refused = 0
    for step in range(1_200):
        for number, bank in enumerate(group.banks):
            for each in range(5):
                subject = f"s{(5 * step + each) % 40}"
                done = bank.choose("a", subject, group.clock(number))
                refused += number > 0 and not done.passes
                if done.passes:
                    epoch = done.epoch if done.action == "probe" else None
                    status = 200 if number else 503
                    bank.ended("a", status, 5_000, (), probe_epoch=epoch, subject=subject)
        group.tick(shared=step % 3 == 0)
    assert group.states()[0].relapses > 1, "the one is not well"
    assert refused <= 0.05 * well * 6_000


def test_opening_heard_while_open_is_the_same_trip() -> None:
    peers = BreakerPeers(PLAN, "r", ["a"], number_hex)
    own = BreakerState(phase=Phase.OPEN, epoch=1, since_ms=T0_MS, dwell_ms=1_000, relapses=1)
    peers.hear([word(opening="ab" * 8, left_ms=8_000)], T0_MS)
    assert peers.step(0, own, Seen(), T0_MS) == own
    peers.hear([word(sequence=2, opening="ab" * 8, left_ms=7_000)], T0_MS)
    assert peers.step(0, BreakerState(epoch=3), Seen(), T0_MS).phase is Phase.CLOSED


GOOD: list[Any] = [1, "0" * 32, 1, [[1, 0, 0, None, 0]]]


MALFORMED: list[Any] = [
    {},
    [2, *GOOD[1:]],
    [*GOOD, 1],
    [1, "0" * 31, 1, GOOD[3]],
    [1, "0" * 32 + "\n", 1, GOOD[3]],
    [1, "0" * 32, -1, GOOD[3]],
    [1, "0" * 32, 1, []],
    [1, "0" * 32, 1, [[1, 0, 0, None, 0]] * 2],
    [1, "0" * 32, 1, [[-1, 0, 0, None, 0]]],
    [1, "0" * 32, 1, [[1.5, 0, 0, None, 0]]],
    [1, "0" * 32, 1, [[1, 0, 0, "AB" * 8, 1]]],
    [1, "0" * 32, 1, [[1, 0, 0, "ab" * 8, 86_400_001]]],
    [1, "0" * 32, 1, [[1, 0, 0, None, 0, 0]]],
]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xc1",
        b"x" * (MAX_WORD_BYTES + 1),
        *(msgspec.msgpack.encode(value) for value in MALFORMED),
    ],
)
def test_word_that_is_not_understood_is_refused_and_the_others_count(bad: bytes) -> None:
    peers = BreakerPeers(PLAN, "r", ["a"], number_hex)
    assert peers.hear([bad, msgspec.msgpack.encode(GOOD)], T0_MS) == 1
    assert peers.peers == 1


def test_word_that_is_still_there_in_the_next_round_counts_once() -> None:
    peers = BreakerPeers(PLAN, "r", ["a"], number_hex)
    peers.hear([word(sequence=1)], T0_MS)
    for samples in (5, 90):
        peers.hear([word(sequence=2, samples=samples, failed=samples)], T0_MS)
    assert peers._shared[0].heard == Seen(samples=5, failed=5)
    peers.hear([word(sequence=3, samples=7, failed=9)], T0_MS)
    assert peers._shared[0].heard == Seen(samples=7, failed=7), "no more failed than there were"


def test_more_peers_than_the_bound_are_not_read() -> None:
    peers = BreakerPeers(PLAN, "r", ["a"], number_hex)
    peers.hear([word(1_000 + number) for number in range(MAX_PEERS + 5)], T0_MS)
    assert peers.peers == MAX_PEERS


def test_openings_are_remembered_to_a_bound() -> None:
    peers = BreakerPeers(PLAN, "r", ["a"], number_hex)
    state = BreakerState(phase=Phase.OPEN, epoch=1, since_ms=T0_MS, dwell_ms=1_000)
    for number in range(MAX_KNOWN_OPENINGS + 9):
        peers.hear([word(sequence=number + 1, opening=f"{number:016x}", left_ms=9)], T0_MS)
        peers.step(0, state, Seen(), T0_MS)
    assert len(peers._shared[0].known) == MAX_KNOWN_OPENINGS


def test_instances_of_another_realm_other_routes_or_thresholds_are_another_group() -> None:
    groups = {
        BreakerPeers(plan, realm, routes, number_hex).group
        for plan, realm, routes in (
            (PLAN, "r", ["a"]),
            (PLAN, "s", ["a"]),
            (PLAN, "r", ["a", "b"]),
            (BreakerPlan(), "r", ["a"]),
        )
    }
    assert len(groups) == 4


words = st.builds(
    lambda instance, sequence, samples, failed, slow, opening, left: word(
        instance,
        sequence,
        samples=samples,
        failed=failed,
        slow=slow,
        opening=opening and f"{opening:016x}",
        left_ms=left,
    ),
    st.integers(1, 3),
    st.integers(0, 50),
    *[st.integers(0, 10_000)] * 3,
    st.none() | st.integers(1, 1 << 60),
    st.integers(0, 86_400_000),
)
ticks = st.lists(
    st.tuples(st.lists(words | st.binary(max_size=40), max_size=3), st.integers(0, 30), st.integers(0, 3_000)),
    max_size=60,
)


@given(ticks)
def test_bound_on_openings_holds_whatever_the_others_say(history: list[tuple[list[bytes], int, int]]) -> None:
    plan = replace_plan(forgive_after_ms=86_400_000, max_dwell_ms=86_400_000)
    peers = BreakerPeers(plan, "r", ["a"], number_hex)
    state, now_ms, openings = BreakerState(), T0_MS, 0
    for heard, bad, passed_ms in history:
        now_ms += passed_ms
        peers.hear(heard, now_ms)
        seen = Seen(samples=30, failed=bad, probes=4)
        after = peers.step(0, advance(state, seen, now_ms, plan), seen, now_ms)
        openings += after.phase is Phase.OPEN and state.phase is not Phase.OPEN
        if state.phase is Phase.OPEN:
            # No word ends a dwell early, nor makes one longer.
            assert after.phase is not Phase.CLOSED
            assert (after.phase is Phase.OPEN and after.dwell_ms == state.dwell_ms) or (
                now_ms - state.since_ms >= state.dwell_ms
            )
        state = after
    assert openings <= 2 + math.log2(1 + (now_ms - T0_MS) / plan.base_dwell_ms)


@given(ticks)
def test_words_only_make_more_careful(history: list[tuple[list[bytes], int, int]]) -> None:
    """In one step from any state the alone one is never the more careful of the two."""
    rank = {Phase.CLOSED: 0, Phase.HALF_OPEN: 1, Phase.OPEN: 2}
    peers, state, now_ms = BreakerPeers(PLAN, "r", ["a"], number_hex), BreakerState(), T0_MS
    for heard, bad, passed_ms in history:
        now_ms += passed_ms
        peers.hear(heard, now_ms)
        seen = Seen(samples=30, failed=bad, probes=4)
        alone = advance(state, seen, now_ms, PLAN)
        state = peers.step(0, alone, seen, now_ms)
        assert rank[state.phase] >= rank[alone.phase]
        assert state == alone or (state.phase is Phase.OPEN and state.dwell_ms <= PLAN.max_dwell_ms)


def replace_plan(**changes: int) -> BreakerPlan:
    return msgspec.structs.replace(PLAN, **changes)
