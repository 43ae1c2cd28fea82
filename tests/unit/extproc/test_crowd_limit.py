from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import pytest

from extproc.breaker import Phase, Seen
from extproc.breaker_bank import BreakerBank, OwnSignals
from extproc.crowd_limit import CALM_MS, GIVEN_UP_MS, HELPLESS_MS, MIN_LIMIT, CrowdLimit
from extproc.plan import BreakerPlan

DEADLINE_MS = 1_000
STEP_MS = 5


@dataclass
class App:
    """An app of so many slots and so long each, behind a bank, on a clock of its own."""

    slots: int
    service_ms: int
    plan: BreakerPlan = field(default_factory=BreakerPlan)
    now_ms: int = 1_000_000
    leak_every: int = 0

    def __post_init__(self) -> None:
        self.bank = BreakerBank(self.plan, ["a"], OwnSignals(1), now_ms=self.now_ms)
        self.free_ms = [self.now_ms] * self.slots
        self.ending: list[tuple[int, int, int | None, str]] = []
        self.took_ms: list[int] = []
        self.good = self.refused = self.late = self.opened = self.count = 0

    def run(self, per_s: float, seconds: float) -> None:
        due, end_ms, phase = 0.0, self.now_ms + int(seconds * 1000), self.bank.state("a").phase
        while self.now_ms < end_ms:
            self.now_ms += STEP_MS
            due += per_s * STEP_MS / 1000
            while due >= 1:
                due -= 1
                self._arrive()
            while self.ending and self.ending[0][0] <= self.now_ms:
                ended_ms, began_ms, probe, subject = heapq.heappop(self.ending)
                took_ms = ended_ms - began_ms
                self.took_ms.append(took_ms)
                epoch = None if probe == -1 else probe
                self.bank.ended("a", 200, took_ms * 1000, (), probe_epoch=epoch, subject=subject)
                self.good, self.late = self.good + (took_ms <= DEADLINE_MS), self.late + (took_ms > DEADLINE_MS)
            if self.now_ms % 100 == 0:
                self.bank.tick(self.now_ms)
                was, phase = phase, self.bank.state("a").phase
                self.opened += was is Phase.CLOSED and phase is Phase.OPEN

    def _arrive(self) -> None:
        self.count += 1
        subject = f"s{self.count % 9}"
        done = self.bank.choose("a", subject, self.now_ms)
        if not done.passes:
            self.refused += 1
            return
        if self.leak_every and self.count % self.leak_every == 0:
            return
        ended_ms = max(heapq.heappop(self.free_ms), self.now_ms) + self.service_ms
        heapq.heappush(self.free_ms, ended_ms)
        heapq.heappush(self.ending, (ended_ms, self.now_ms, done.epoch if done.action == "probe" else -1, subject))


@pytest.mark.parametrize(("slots", "service_ms"), [(2, 50), (8, 200), (1, 25), (16, 40)])
@pytest.mark.parametrize("times", [1.3, 2.0, 5.0])
def test_an_app_asked_for_too_much_goes_on_at_its_capacity(slots: int, service_ms: int, times: float) -> None:
    app = App(slots, service_ms)
    capacity = slots * 1000 / service_ms
    app.run(0.5 * capacity, 5)
    assert app.refused == 0
    app.good = 0
    app.run(times * capacity, 40)
    # Five times as much at once fills the queue before anything is late: the breaker may open, once.
    assert app.good >= (0.93 if times < 5 else 0.83) * capacity * 40
    assert app.opened <= (times >= 5)
    settled = sorted(app.took_ms[len(app.took_ms) // 2 :])
    assert settled[len(settled) // 2] <= 1.5 * app.plan.crowd_ms
    # And as soon as less comes everyone passes again.
    app.run(0.5 * capacity, 5)
    app.refused = 0
    app.run(0.5 * capacity, 5)
    assert app.refused == 0
    assert app.bank.crowd_limit("a") is None


def test_without_a_limit_the_same_app_does_almost_everything_in_vain() -> None:
    app = App(2, 50, BreakerPlan(crowd_ms=86_400_000, trip_errors=1.0, trip_slowness=1.0, slow_ms=86_400_000))
    app.run(80, 40)
    assert app.good < 0.1 * 40 * 40


def test_an_app_that_is_slow_but_keeps_up_is_left_alone() -> None:
    app = App(1_000, 400)
    for per_s in (10, 50, 100, 40, 100):
        app.run(per_s, 5)
    assert app.refused <= 0.05 * app.count
    assert app.opened == 0


def test_ends_that_nobody_tells_of_do_not_use_up_the_limit() -> None:
    app = App(2, 50, leak_every=20)
    app.run(80, 60)
    assert app.good >= 0.85 * 40 * 60


def hold(app: App, count: int) -> None:
    """Let so many requests be with their clients for ever."""
    app.bank._signals.add(0, Seen(admitted=count))


def trip_and_close(app: App, held_while_open: int) -> None:
    while app.bank.state("a").phase is not Phase.OPEN:
        app.now_ms += 100
        app.bank._signals.add(0, Seen(admitted=10))
        for _ in range(10):
            app.bank.ended("a", 200, 2_000_000, (), probe_epoch=None)
        app.bank.tick(app.now_ms)
    hold(app, held_while_open)
    app.run(100, 20)


@pytest.mark.parametrize("service_ms", [20, 200, 400])
@pytest.mark.parametrize(("before", "while_open"), [(0, 0), (3, 0), (61, 0), (0, 3), (0, 6), (0, 61)])
def test_requests_that_their_clients_hold_open_pin_no_limit(service_ms: int, before: int, while_open: int) -> None:
    app = App(1_000, service_ms)
    app.run(100, 10)
    hold(app, before)
    trip_and_close(app, while_open)
    app.count = app.refused = 0
    app.run(100, 30)
    assert app.bank.state("a").phase is Phase.CLOSED
    assert app.bank.crowd_limit("a") is None
    assert app.refused == 0


@pytest.mark.parametrize("service_ms", [50, 150, 250])
@pytest.mark.parametrize("held", [30, 100])
def test_one_subject_with_slow_and_held_requests_shuts_the_others_out_for_seconds_at_most(
    service_ms: int, held: int
) -> None:
    app = App(1_000, service_ms)
    app.run(100, 20)
    slow: list[int] = []
    for _ in range(12):
        hold(app, held // 12)
        slow += [app.now_ms + 900 for _ in range(5) if app.bank.choose("a", "evil", app.now_ms).passes]
        app.run(100, 0.05)
    while slow:
        app.run(100, 0.05)
        for _ in [each for each in slow if each <= app.now_ms]:
            app.bank.ended("a", 200, 900_000, (), probe_epoch=None)
        slow = [each for each in slow if each > app.now_ms]
    app.run(100, 5)
    app.count = app.refused = 0
    app.run(100, 20)
    assert app.refused <= 0.02 * app.count


@dataclass
class Churned(App):
    """The same, and a subject most of whose requests never reach it."""

    churn: int = 0
    given_up: bool = False

    def _arrive(self) -> None:
        super()._arrive()
        for _ in range(self.churn):
            done = self.bank.choose("a", "evil", self.now_ms)
            epoch = done.epoch if done.action == "probe" else None
            if done.passes and self.given_up:
                self.bank.ended("a", None, None, ("downstream_remote_reset",), probe_epoch=epoch, subject="evil")
            elif done.passes:
                self.bank.withdrawn("a", probe_epoch=epoch, subject="evil")


@pytest.mark.parametrize("given_up", [False, True])
@pytest.mark.parametrize("churn", [2, 5])
def test_requests_that_go_nowhere_disarm_no_limit(churn: int, given_up: bool) -> None:
    app = Churned(2, 50, churn=churn, given_up=given_up)
    app.run(20, 5)
    app.good = app.opened = 0
    app.run(80, 40)
    assert app.good >= 0.85 * 40 * 40
    assert app.opened == 0


def given(limit: CrowdLimit) -> int | None:
    return limit.limit


def sums(limit: CrowdLimit, now_ms: int, totals: Seen, seconds: float, admitted: int, ended: int, took_ms: int) -> Seen:
    """Let so many a second be admitted and end."""
    for _ in range(int(seconds * 10)):
        now_ms += 100
        totals = Seen(
            samples=totals.samples + ended // 10,
            took_ms=totals.took_ms + ended // 10 * took_ms,
            admitted=totals.admitted + admitted // 10,
            ended=totals.ended + ended // 10,
        )
        limit.tick(totals, now_ms)
    return totals


@pytest.mark.parametrize(
    ("admitted", "ended", "took_ms", "limited"),
    [
        (100, 50, 300, True),
        (100, 50, 299, False),
        (100, 100, 900, False),
        (50, 100, 900, False),
        (100, 0, 0, False),
    ],
)
def test_a_limit_begins_when_more_comes_than_goes_and_what_goes_was_late(
    admitted: int, ended: int, took_ms: int, limited: bool
) -> None:
    limit = CrowdLimit(300, 1_000)
    totals = sums(limit, 0, Seen(), 1.0, admitted, ended, took_ms)
    assert (given(limit) is not None) is limited
    assert limit.admits(totals) is not limited


def test_a_limit_that_does_not_help_is_given_up_for_a_while() -> None:
    limit = CrowdLimit(300, 1_000)
    totals = sums(limit, 0, Seen(), 1.0, 100, 10, 400)
    assert given(limit) == MIN_LIMIT
    seconds = HELPLESS_MS / 1000 + 0.2
    totals = sums(limit, 1_000, totals, seconds, 20, 10, 400)
    assert given(limit) is None
    totals = sums(limit, 4_000, totals, 5, 100, 10, 400)
    assert given(limit) is None
    sums(limit, 4_000 + GIVEN_UP_MS, totals, 1, 100, 10, 400)
    assert given(limit) is not None


def test_after_a_breaker_closed_it_starts_small_and_is_lifted_when_calm() -> None:
    limit = CrowdLimit(300, 1_000)
    limit.begin(0)
    assert given(limit) == MIN_LIMIT
    sums(limit, 0, Seen(), CALM_MS / 1000 + 0.2, 100, 100, 10)
    assert given(limit) is None


def test_counters_that_fall_back_begin_the_account_anew() -> None:
    limit = CrowdLimit(300, 1_000)
    sums(limit, 0, Seen(), 1.0, 100, 50, 400)
    limit.tick(Seen(), 1_100)
    assert limit.admits(Seen())
    limit.tick(Seen(admitted=2), 1_200)
    assert limit.admits(Seen(admitted=2))


def test_what_was_out_before_the_account_began_is_never_counted() -> None:
    limit = CrowdLimit(300, 1_000, Seen(admitted=1_000, ended=900))
    limit.begin(0)
    assert limit.admits(Seen(admitted=1_000 + MIN_LIMIT - 1, ended=900))
    assert not limit.admits(Seen(admitted=1_000 + MIN_LIMIT, ended=900))


def test_a_limit_that_refuses_while_nothing_is_late_rises_until_it_does_not() -> None:
    limit = CrowdLimit(300, 1_000)
    limit.begin(0)
    held = Seen(admitted=10)
    for step in range(1, 40):
        limit.tick(held, step * 100)
        if limit.admits(held):
            return
    raise AssertionError("it refuses for ever")


def test_a_clock_that_was_set_back_leaves_no_window_behind_and_no_limit_given_up() -> None:
    limit = CrowdLimit(300, 1_000)
    totals = sums(limit, 10_000_000, Seen(), 1.0, 100, 10, 400)
    totals = sums(limit, 10_001_000, totals, HELPLESS_MS / 1000 + 0.2, 20, 10, 400)
    assert given(limit) is None
    totals = sums(limit, 6_000_000, totals, 1.0, 100, 100, 10)
    assert len(limit._window) <= 8
    totals = sums(limit, 6_001_000, totals, GIVEN_UP_MS / 1000, 100, 100, 10)
    sums(limit, 6_001_000 + GIVEN_UP_MS, totals, 1.0, 100, 50, 400)
    assert given(limit) is not None
