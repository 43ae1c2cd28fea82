from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.facts import MAX_COUNTS
from receipts.receipt import SummaryReceipt, parse_receipt, seal
from receipts.receipt_id import WriterId, new_receipt_id
from receipts.refusals import (
    MAX_UNWRITTEN_SUMMARIES,
    OTHER_REASON,
    ROUTES_SHARE,
    RefusalLimiter,
    RefusalSummary,
)

T = 1_763_712_000_000


def flood(limiter: RefusalLimiter, number: int, *, route: str = "r", reason: str = "quota", now_ms: int = T) -> int:
    return sum(limiter.admit(route, reason, now_ms) for _ in range(number))


def test_up_to_the_limit_every_refusal_has_its_receipt() -> None:
    limiter = RefusalLimiter(200)
    assert flood(limiter, 200) == 200
    assert limiter.flush() == []


def test_past_the_limit_refusals_are_counted_by_reason() -> None:
    limiter = RefusalLimiter(3)
    assert flood(limiter, 3) == 3
    assert flood(limiter, 5) == 0
    assert flood(limiter, 2, reason="bad_signature", now_ms=T + 999) == 0
    assert limiter.due(T + 999) == []
    assert limiter.due(T + 1000) == [RefusalSummary("r", T, T + 1000, {"quota": 5, "bad_signature": 2})]
    assert limiter.due(T + 1000) == []


def test_every_second_and_every_route_begins_afresh() -> None:
    limiter = RefusalLimiter(1)
    assert [flood(limiter, 2, now_ms=T), flood(limiter, 2, route="s"), flood(limiter, 2, now_ms=T + 1000)] == [1, 1, 1]
    assert sorted(limiter.flush(), key=lambda each: (str(each.route), each.start_ms)) == [
        RefusalSummary("r", T, T + 1000, {"quota": 1}),
        RefusalSummary("r", T + 1000, T + 2000, {"quota": 1}),
        RefusalSummary("s", T, T + 1000, {"quota": 1}),
    ]


def test_refusals_without_a_route_are_a_route_of_their_own() -> None:
    limiter = RefusalLimiter(0)
    limiter.admit(None, "no_route", T)
    assert limiter.flush() == [RefusalSummary(None, T, T + 1000, {"no_route": 1})]


def test_a_clock_that_goes_back_loses_no_count() -> None:
    limiter = RefusalLimiter(1)
    assert flood(limiter, 3, now_ms=T) == 1
    assert flood(limiter, 3, now_ms=T - 5000) == 1
    assert [(each.start_ms, each.counts) for each in limiter.due(T - 9000)] == [
        (T, {"quota": 2}),
        (T - 5000, {"quota": 2}),
    ]


def test_a_summary_that_could_not_be_written_is_kept() -> None:
    limiter = RefusalLimiter(0)
    flood(limiter, 4)
    (summary,) = limiter.due(T + 1000)
    limiter.put_back(summary)
    assert limiter.due(T + 2000) == [summary]


def test_unwritten_summaries_are_bounded_and_none_is_lost() -> None:
    limiter = RefusalLimiter(0)
    seconds = MAX_UNWRITTEN_SUMMARIES + 40
    for second in range(seconds):
        flood(limiter, 2, now_ms=T + second * 1000)
    kept = limiter.flush()
    assert len(kept) == MAX_UNWRITTEN_SUMMARIES
    assert sum(each.counts["quota"] for each in kept) == 2 * seconds
    assert (kept[0].start_ms, kept[-1].end_ms) == (T, T + seconds * 1000)
    assert all(one.end_ms == two.start_ms for one, two in itertools.pairwise(kept))


def test_reasons_are_bounded_and_the_summary_stays_a_valid_receipt() -> None:
    limiter = RefusalLimiter(0)
    for number in range(MAX_COUNTS + 20):
        limiter.admit("r", f"reason_{number}", T)
    (summary,) = limiter.flush()
    assert len(summary.counts) == MAX_COUNTS
    assert summary.counts[OTHER_REASON] == 21
    draft = summary.draft(new_receipt_id(T + 1000, b"0123456789"), T + 1000)
    receipt = parse_receipt(seal(draft, WriterId("00000000-0000-4000-8000-000000000000"), 1, None))
    assert isinstance(receipt, SummaryReceipt)
    assert (receipt.route, receipt.counts, receipt.window.start_ms) == ("r", summary.counts, T)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        RefusalLimiter(-1)


events = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "admit", "due", "flush", "fail"]),
        st.sampled_from(["r", "s", None]),
        st.sampled_from(["quota", "bad_signature"]),
        st.integers(-1500, 1500),
    ),
    max_size=200,
)


@given(events, st.integers(0, 5))
def test_every_refusal_is_in_exactly_one_receipt(steps: list[tuple[str, str | None, str, int]], max_per_s: int) -> None:
    """Whatever the clock does, each refusal is told once, and a steady second never exceeds its limit."""
    limiter, now_ms = RefusalLimiter(max_per_s), T
    seen: Counter[tuple[str | None, str]] = Counter()
    told: Counter[tuple[str | None, str]] = Counter()

    def tell(summaries: list[RefusalSummary]) -> None:
        for summary in summaries:
            assert summary.start_ms < summary.end_ms
            for reason, number in summary.counts.items():
                told[summary.route, reason] += number

    run: Counter[str | None] = Counter()
    for step, route, reason, move_ms in steps:
        if (now_ms + move_ms) // 1000 != now_ms // 1000:
            run.clear()
        now_ms += move_ms
        if step == "admit":
            seen[route, reason] += 1
            if limiter.admit(route, reason, now_ms):
                told[route, reason] += 1
                run[route] += 1
                assert run[route] <= max_per_s
        elif step == "due":
            tell(limiter.due(now_ms))
        elif step == "fail":
            for summary in limiter.due(now_ms):
                limiter.put_back(summary)
        else:
            tell(limiter.flush())
            run.clear()
    tell(limiter.flush())
    assert told == seen


def test_many_routes_do_not_make_a_larger_flood() -> None:
    limiter = RefusalLimiter(3)
    admitted = [limiter.admit(f"route-{number % 10}", "missing_signature", 5_000) for number in range(100)]
    assert sum(admitted) == 3 * ROUTES_SHARE
    counted = sum(sum(summary.counts.values()) for summary in limiter.flush())
    assert counted == 100 - 3 * ROUTES_SHARE
    assert limiter.admit("route-0", "missing_signature", 6_000)
