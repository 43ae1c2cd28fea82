"""Challenges are spent once, newest first, and not past their age."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pch.client.challenge import ChallengeText
from pch.client.challenge_pool import ChallengePool
from pch.client.limits import MAX_CHALLENGES_PER_CONNECTION


def challenges(*numbers: int) -> list[ChallengeText]:
    return [ChallengeText(f"{number:060d}") for number in numbers]


def test_newest_is_taken_first_and_only_once() -> None:
    pool = ChallengePool()
    pool.add(challenges(1, 2), 0.0)
    pool.add(challenges(2, 3), 1.0)
    assert [pool.take(2.0) for _ in range(4)] == [*reversed(challenges(1, 2, 3)), None]


def test_oldest_makes_room() -> None:
    pool = ChallengePool()
    pool.add(challenges(*range(10)), 0.0)
    assert len(pool) == MAX_CHALLENGES_PER_CONNECTION
    assert [pool.take(0.0) for _ in range(9)] == [*reversed(challenges(*range(2, 10))), None]


def test_challenge_is_not_used_near_its_age() -> None:
    pool = ChallengePool()
    pool.max_age_s = 10
    pool.add(challenges(1), 100.0)
    assert pool.take(109.0) is None
    pool.add(challenges(2), 100.0)
    assert pool.take(108.9) == challenges(2)[0]


def test_cleared_pool_is_empty() -> None:
    pool = ChallengePool()
    pool.add(challenges(1), 0.0)
    pool.clear()
    assert pool.take(0.0) is None


class PoolMachine(RuleBasedStateMachine):
    """Whatever the order of adding, waiting and taking: bounded, never twice, never too old."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ChallengePool()
        self.now_s = 0.0
        self.born: dict[ChallengeText, float] = {}
        self.taken: set[ChallengeText] = set()

    @rule(count=st.integers(1, 8))
    def add(self, count: int) -> None:
        fresh = challenges(*range(len(self.born), len(self.born) + count))
        self.pool.add(fresh, self.now_s)
        self.born |= dict.fromkeys(fresh, self.now_s)

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def take(self) -> None:
        challenge = self.pool.take(self.now_s)
        if challenge is not None:
            assert challenge not in self.taken
            assert self.now_s - self.born[challenge] < self.pool.max_age_s
            self.taken.add(challenge)

    @invariant()
    def bounded(self) -> None:
        assert len(self.pool) <= MAX_CHALLENGES_PER_CONNECTION


TestPoolMachine = PoolMachine.TestCase
