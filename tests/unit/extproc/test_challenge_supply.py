"""How many challenges an answer carries follows what the connection lately used at once."""

from __future__ import annotations

from extproc import challenge_supply
from extproc.challenge_supply import ChallengeSupply
from extproc.plan import Plan, plan_digest
from tests.support.filter_parts import SetClock

PLAN = Plan()


def test_one_request_at_a_time_gets_one() -> None:
    supply = ChallengeSupply(PLAN, SetClock())
    for _ in range(5):
        supply.begin(b"c")
        assert supply.wanted(b"c") == 1
        supply.end(b"c")


def test_peak_is_given_up_to_the_maximum_and_forgotten_after_the_window() -> None:
    clock = SetClock()
    supply = ChallengeSupply(PLAN, clock)
    for _ in range(3):
        supply.begin(b"c")
    assert supply.wanted(b"c") == 3
    for _ in range(20):
        supply.begin(b"c")
    assert supply.wanted(b"c") == PLAN.max_challenges_per_answer
    for _ in range(23):
        supply.end(b"c")
    clock.now_ms += PLAN.concurrency_window_s * 1000 + 1
    supply.begin(b"c")
    assert supply.wanted(b"c") == 1


def test_connections_do_not_share_and_unknown_ones_get_one() -> None:
    supply = ChallengeSupply(PLAN, SetClock())
    supply.begin(b"c")
    supply.begin(b"c")
    assert supply.wanted(b"d") == 1
    supply.end(b"d")


def test_memory_is_bounded() -> None:
    supply = ChallengeSupply(PLAN, SetClock())
    for number in range(challenge_supply.MAX_CONNECTIONS + 10):
        supply.begin(number.to_bytes(4, "big"))
    assert len(supply._connections) == challenge_supply.MAX_CONNECTIONS


def test_plan_digest_follows_every_value() -> None:
    assert plan_digest(PLAN) == plan_digest(Plan())
    assert plan_digest(PLAN) != plan_digest(Plan(max_challenges_per_answer=7))
