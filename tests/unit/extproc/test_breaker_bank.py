from __future__ import annotations

from pathlib import Path

import pytest

from extproc.breaker import Phase
from extproc.breaker_bank import UPSTREAM_FAILURE_FLAGS, BreakerBank, OwnSignals
from extproc.plan import BreakerPlan
from extproc.priority import Priority
from extproc.probe_budget import lane_of
from extproc.signal_board import SignalBoard
from extproc.stress_action import Action

PLAN = BreakerPlan(
    max_gain=0.5,
    min_samples=5,
    base_dwell_ms=1_000,
    probes_needed=4,
    probes_may_fail=1,
    max_probes_in_flight=4,
    probe_timeout_ms=2_000,
    floor_share=0.1,
)
ROUTES = ["a", "b"]


class Host:
    """The banks of some workers on one board, with one clock."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.now_ms = 1_000_000
        boards = [SignalBoard(folder, ROUTES, index, workers) for index in range(workers)]
        self.banks = [BreakerBank(PLAN, ROUTES, board, now_ms=self.now_ms) for board in boards]

    def tick(self, milliseconds: int = 100) -> None:
        self.now_ms += milliseconds
        for bank in self.banks:
            bank.tick(self.now_ms)

    def hears(
        self, worker: int, count: int, status: int | None = 200, app_us: int | None = 10, route: str = "a"
    ) -> None:
        for _ in range(count):
            self.banks[worker].ended(route, status, app_us, (), probe_epoch=None)

    def trip(self) -> None:
        for _ in range(3):
            self.hears(0, 10, 503)
            self.tick()

    def phases(self, route: str = "a") -> list[Phase]:
        return [bank.state(route).phase for bank in self.banks]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_what_one_worker_hears_opens_the_breaker_of_all_and_of_no_other_route(host: Host) -> None:
    host.trip()
    assert host.phases() == [Phase.OPEN, Phase.OPEN]
    assert host.phases("b") == [Phase.CLOSED, Phase.CLOSED]


def test_good_outcomes_of_one_worker_weigh_against_the_bad_ones_of_another(host: Host) -> None:
    for _ in range(10):
        host.hears(0, 10, 503)
        host.hears(1, 90)
        host.tick()
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]


@pytest.mark.parametrize(
    ("status", "app_us", "flags", "opens"),
    [
        (500, 10, (), True),
        (504, None, (), True),
        (499, 10, (), False),
        (401, 10, (), False),
        (None, None, ("upstream_connection_failure",), True),
        (None, 2_000_000, ("downstream_remote_reset",), True),
        (None, 10, ("downstream_remote_reset",), False),
        (None, None, ("downstream_connection_termination",), False),
        (200, 1_000_000, (), True),
        (200, 999_999, (), False),
        (200, None, (), False),
        # The edge's timeout covers the client's reading: an app that answered in time has no part in it.
        (200, 10, ("upstream_request_timeout",), False),
        (200, 10, ("upstream_request_timeout", "downstream_remote_reset"), False),
        (404, 999_999, ("upstream_request_timeout",), False),
        (200, 1_000_000, ("upstream_request_timeout",), True),
        (200, None, ("upstream_request_timeout",), True),
        (503, 10, ("upstream_request_timeout",), True),
        (None, 10, ("upstream_request_timeout",), True),
        (200, 10, ("upstream_request_timeout", "upstream_remote_reset"), True),
    ],
)
def test_only_what_the_app_did_counts(
    host: Host, status: int | None, app_us: int | None, flags: tuple[str, ...], opens: bool
) -> None:
    for _ in range(10):
        for _ in range(10):
            host.banks[0].ended("a", status, app_us, flags, probe_epoch=None)
        host.tick(50)
    assert (host.phases()[0] is not Phase.CLOSED) is opens


@pytest.mark.parametrize("flag", sorted(UPSTREAM_FAILURE_FLAGS))
def test_each_flag_of_an_upstream_failure_counts(host: Host, flag: str) -> None:
    for _ in range(3):
        for _ in range(10):
            host.banks[1].ended("a", None, None, (flag,), probe_epoch=None)
        host.tick()
    assert host.phases() == [Phase.OPEN, Phase.OPEN]


def test_what_the_app_was_never_asked_is_no_sign_of_its_health(host: Host) -> None:
    for _ in range(10):
        for _ in range(6):
            host.banks[0].ended("a", 503, 10, (), probe_epoch=None)
        for _ in range(60):
            host.banks[1].ended("a", None, None, (), probe_epoch=None)
        host.tick(50)
    assert host.phases() == [Phase.OPEN, Phase.OPEN]


def to_half_open(host: Host) -> int:
    host.trip()
    host.tick(1_000)
    assert host.phases() == [Phase.HALF_OPEN, Phase.HALF_OPEN]
    return host.banks[0].state("a").epoch


def apart(epoch: int, count: int) -> list[str]:
    """Name subjects none of which is in the lane of another."""
    found: dict[int, str] = {}
    for number in range(10_000):
        found.setdefault(lane_of(f"s{number}", epoch), f"s{number}")
    return list(found.values())[:count]


def probes(host: Host, subject: str, worker: int = 0) -> bool:
    return host.banks[worker].choose("a", subject, host.now_ms).action is Action.PROBE


def probed(host: Host, subject: str, epoch: int, status: int = 200, worker: int = 0) -> None:
    """Send one probe, and hear of its end in the other worker."""
    assert probes(host, subject, worker)
    host.banks[1 - worker].ended("a", status, 10, (), probe_epoch=epoch, subject=subject)


def test_probes_that_two_workers_send_close_it_together(host: Host) -> None:
    epoch = to_half_open(host)
    for bank in host.banks:
        for _ in range(2):
            assert bank.choose("a", "s", host.now_ms).action is Action.PROBE
            bank.ended("a", 200, 10, (), probe_epoch=epoch, subject="s")
    host.tick()
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]


@pytest.mark.parametrize("flags", [(), ("downstream_remote_reset",), ("downstream_connection_termination",)])
@pytest.mark.parametrize("hearer", [0, 1])
def test_probes_that_clients_give_up_neither_open_it_nor_use_the_probes_up(
    host: Host, flags: tuple[str, ...], hearer: int
) -> None:
    epoch = to_half_open(host)
    for _ in range(50):
        assert host.banks[0].choose("a", "s", host.now_ms).action is Action.PROBE
        host.banks[hearer].ended("a", None, None, flags, probe_epoch=epoch, subject="s")
    host.tick(PLAN.probe_timeout_ms + 100)
    host.tick(PLAN.probe_timeout_ms + 100)
    assert host.phases() == [Phase.HALF_OPEN, Phase.HALF_OPEN]
    for _ in range(PLAN.probes_needed):
        assert host.banks[1].choose("a", "s", host.now_ms).action is Action.PROBE
        host.banks[hearer].ended("a", 200, 10, (), probe_epoch=epoch, subject="s")
    host.tick()
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]


def test_probes_of_another_phase_and_routes_that_are_not_there_give_nothing_back(host: Host) -> None:
    epoch = to_half_open(host)
    bank = host.banks[0]
    *subjects, other = apart(epoch, PLAN.max_probes_in_flight + 1)
    for subject in subjects:
        assert probes(host, subject)
    bank.withdrawn("a", probe_epoch=epoch - 1, subject=subjects[0])
    bank.withdrawn("a", probe_epoch=None, subject=subjects[0])
    bank.withdrawn("elsewhere", probe_epoch=epoch, subject=subjects[0])
    assert not probes(host, other)
    assert not probes(host, subjects[0])
    bank.withdrawn("a", probe_epoch=epoch, subject=subjects[0])
    assert probes(host, subjects[0])


def test_probes_that_fail_open_it_again_for_twice_as_long(host: Host) -> None:
    epoch = to_half_open(host)
    for _ in range(2):
        assert host.banks[0].choose("a", "s", host.now_ms).action is Action.PROBE
        host.banks[0].ended("a", 503, 10, (), probe_epoch=epoch, subject="s")
    host.tick()
    assert host.phases() == [Phase.OPEN, Phase.OPEN]
    assert host.banks[1].state("a").dwell_ms == 2_000


def test_probes_of_which_nothing_is_heard_open_it_again(host: Host) -> None:
    for subject in apart(to_half_open(host), 2):
        assert probes(host, subject, worker=1)
    host.tick()
    host.tick(2_000)
    host.tick()
    assert host.phases() == [Phase.OPEN, Phase.OPEN]


def test_a_probe_that_one_worker_sent_may_be_heard_of_by_another(host: Host) -> None:
    epoch = to_half_open(host)
    sender, hearer = host.banks
    for _ in range(4):
        assert sender.choose("a", "s", host.now_ms).action is Action.PROBE
        hearer.ended("a", 200, 10, (), probe_epoch=epoch, subject="s")
    host.tick()
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]


def test_probes_are_bounded_at_once_over_all_workers(host: Host) -> None:
    epoch = to_half_open(host)
    subjects = apart(epoch, 12)
    sent = [probes(host, subject, worker=number % 2) for number, subject in enumerate(subjects[:10])]
    assert sent == [True] * 4 + [False] * 6
    for subject in subjects[:4]:
        host.banks[0].ended("a", 200, 10, (), probe_epoch=epoch, subject=subject)
    # Four are needed and four were told of: no further one is sent.
    assert not probes(host, subjects[11])


def test_one_subject_that_holds_its_probes_open_keeps_no_breaker_from_closing(host: Host) -> None:
    epoch = to_half_open(host)
    evil, other = apart(epoch, 2)
    assert probes(host, evil)
    for worker in (0, 1):
        assert not probes(host, evil, worker), "one is out already, whichever worker is asked"
    for number in range(PLAN.probes_needed):
        probed(host, other, epoch, worker=number % 2)
    host.tick()
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]


def test_probes_held_open_are_given_up_and_are_no_failures_where_others_were_answered(host: Host) -> None:
    epoch = to_half_open(host)
    other, *evil = apart(epoch, 1 + PLAN.max_probes_in_flight)
    probed(host, other, epoch)
    for _ in range(3):
        for subject in evil:
            assert probes(host, subject)
        assert not probes(host, other)
        host.tick()
        host.tick(PLAN.probe_timeout_ms)
        assert host.phases() == [Phase.HALF_OPEN, Phase.HALF_OPEN]
    for _ in range(PLAN.probes_needed - 1):
        probed(host, other, epoch, worker=1)
    host.tick()
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]


def test_a_lone_subject_whose_probe_was_lost_may_send_another(host: Host) -> None:
    epoch = to_half_open(host)
    probed(host, "s", epoch)
    assert probes(host, "s")
    host.tick()
    assert not probes(host, "s", worker=1)
    host.tick(PLAN.probe_timeout_ms)
    probed(host, "s", epoch, worker=1)


def test_what_its_client_has_still_to_send_is_no_probe_while_others_come(host: Host) -> None:
    epoch = to_half_open(host)
    bank, (one, other) = host.banks[0], apart(epoch, 2)
    for _ in range(5):
        assert bank.choose("a", one, host.now_ms, ends_soon=False).action is not Action.PROBE
    probed(host, other, epoch)
    host.tick(PLAN.probe_timeout_ms - 100)
    assert bank.choose("a", one, host.now_ms, ends_soon=False).action is not Action.PROBE
    # But where nobody else comes it would be half-open for ever.
    host.tick(PLAN.probe_timeout_ms)
    assert bank.choose("a", one, host.now_ms, ends_soon=False).action is Action.PROBE


def test_a_probe_heard_of_before_its_phase_counts_and_frees_its_subject(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.trip()
    early, late = host.banks
    host.now_ms += 1_000
    early.tick(host.now_ms)
    assert host.phases() == [Phase.HALF_OPEN, Phase.OPEN]
    epoch = early.state("a").epoch
    for _ in range(PLAN.probes_needed):
        assert probes(host, "s")
        late.ended("a", 200, 10, (), probe_epoch=epoch, subject="s")
    host.tick()
    assert host.phases()[0] is Phase.CLOSED


def test_after_the_clock_was_set_back_an_app_that_fails_still_opens_it(host: Host) -> None:
    host.hears(0, 10)
    host.tick()
    host.now_ms -= 900_000
    host.tick()
    for _ in range(30):
        if Phase.OPEN not in host.phases():
            host.hears(0, 10, 503)
            host.tick()
    assert host.phases() == [Phase.OPEN, Phase.OPEN]
    host.now_ms -= 90_000
    host.tick()
    host.tick(4_000)
    assert host.phases() == [Phase.HALF_OPEN, Phase.HALF_OPEN]


def test_a_probe_of_an_older_phase_decides_nothing(host: Host) -> None:
    epoch = to_half_open(host)
    for _ in range(10):
        host.banks[0].ended("a", 200, 10, (), probe_epoch=epoch - 1, subject="s")
        host.banks[0].ended("a", 200, 10, (), probe_epoch=None)
    host.tick()
    assert host.phases() == [Phase.HALF_OPEN, Phase.HALF_OPEN]


def test_a_worker_that_comes_later_takes_over_the_state_and_none_of_the_history(host: Host, tmp_path: Path) -> None:
    host.trip()
    late = BreakerBank(PLAN, ROUTES, SignalBoard(tmp_path, ROUTES, 1, 2), now_ms=host.now_ms)
    assert late.state("a").phase is Phase.CLOSED
    late.tick(host.now_ms)
    assert late.state("a").phase is Phase.OPEN
    assert late.state("a").errors.weight == 0


def test_while_open_the_floor_passes_and_policy_may_raise_it(host: Host) -> None:
    host.trip()
    bank = host.banks[0]
    assert [bank.choose("a", "s", host.now_ms).passes for _ in range(20)].count(True) in {2, 3, 4}
    assert [bank.choose("a", "s", host.now_ms, floor_share=0.5).passes for _ in range(20)].count(True) >= 10
    assert [bank.choose("a", "s", host.now_ms, floor_share=0.01).passes for _ in range(20)].count(True) in {2, 3, 4}


@pytest.mark.parametrize("priority", list(Priority))
@pytest.mark.parametrize("shares", [(0.1,), (0.1, 0.2), (0.3, 0.1, 0.2)])
def test_a_floor_that_differs_by_request_is_a_floor(host: Host, priority: Priority, shares: tuple[float, ...]) -> None:
    host.trip()
    asked = [shares[number % len(shares)] for number in range(900)]
    passed = sum(
        host.banks[0].choose("a", f"s{number % 7}", host.now_ms + number, floor_share=share, priority=priority).passes
        for number, share in enumerate(asked)
    )
    assert int(sum(asked)) - 1 <= passed <= 2 * sum(asked) + 4


def test_headers_are_trimmed_while_it_is_slow_and_while_it_is_not_closed(host: Host) -> None:
    assert not host.banks[0].is_relaxing("a")
    for _ in range(12):
        host.hears(0, 60)
        host.hears(0, 40, app_us=2_000_000)
        host.tick(1_000)
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]
    assert host.banks[1].is_relaxing("a")
    assert host.banks[1].choose("a", "s", host.now_ms).action is Action.RELAX_HEADER_BUDGET
    for _ in range(12):
        host.hears(0, 100)
        host.tick(1_000)
    assert not host.banks[1].is_relaxing("a")


def test_a_route_without_a_breaker_is_always_attempted(host: Host) -> None:
    bank = host.banks[0]
    bank.ended("other", 503, None, (), probe_epoch=None)
    assert bank.choose("other", "s", 0).action is Action.ATTEMPT
    assert bank.state("other").phase is Phase.CLOSED
    assert not bank.is_relaxing("other")


def test_a_worker_alone_needs_no_board() -> None:
    bank = BreakerBank(PLAN, ROUTES, OwnSignals(2), now_ms=0)
    for tick in range(1, 4):
        for _ in range(10):
            bank.ended("b", 503, 10, (), probe_epoch=None)
        bank.tick(tick * 100)
    assert bank.state("b").phase is Phase.OPEN


def test_counters_that_fall_back_are_taken_for_no_news(host: Host) -> None:
    """Another worker's file may be replaced under us; what cannot be is not believed."""
    host.hears(0, 100)
    host.tick()
    host.banks[0]._signals._words[0] = 0  # type: ignore[attr-defined]
    host.tick()
    assert host.phases() == [Phase.CLOSED, Phase.CLOSED]
