"""What an experiment concludes from what it measured; the measuring itself is `make chaos`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from loadtest.chaos import EXPERIMENTS, sample_of
from loadtest.experiment import Expectation, read_experiment
from loadtest.measured import Measured, Sample, Sent, read_sent

INJECTED_S, HEALED_S = 10.0, 20.0
END_S = 40


def sent(
    start_s: float, end_s: float, *, status: int = 200, ms: float = 50.0, reason: str = "", name: str = "classical"
) -> list[Sent]:
    return [Sent(start_s + 0.1 * n, name, ms, status, reason) for n in range(round((end_s - start_s) * 10))]


def measured(during: list[Sent], after: list[Sent], phases: str = "c", extra: tuple[Sent, ...] = ()) -> Measured:
    """Make a run; `phases` are those of its first seconds, and the last one stays to the end."""
    values = {"c": 0.0, "h": 1.0, "o": 2.0}
    seen = phases.ljust(END_S, phases[-1]) if phases else ""
    samples = [Sample(float(at_s), values[phase], 0.0, 0.0) for at_s, phase in enumerate(seen)]
    return Measured([*sent(0.0, INJECTED_S), *during, *after, *extra], samples, INJECTED_S, HEALED_S)


GOOD = measured(sent(10.1, 20), sent(20.1, 40))
SHED = sent(10.1, 20, status=503, reason="breaker_open")


def test_a_run_in_which_nothing_happened_keeps_what_is_expected_of_it() -> None:
    assert GOOD.judge(Expectation(success_during_min=0.99, flaps_max=0)) == []
    assert GOOD.recovery_s() == 0.0


@pytest.mark.parametrize(
    ("run", "expect", "wrong"),
    [
        (GOOD, Expectation(opens_min=1), "openings: 0.000, expected at least 1"),
        (GOOD, Expectation(passed_during_max=0.1), "passed during: 1.000"),
        (GOOD, Expectation(reasons_during=["breaker_open"]), "no request was refused with breaker_open"),
        (measured(SHED, sent(20.1, 40)), Expectation(success_during_min=0.5), "success during: 0.000"),
        (measured(SHED, sent(20.1, 40, status=503)), Expectation(), "recovery in s: inf"),
        (measured(SHED, sent(20.1, 40, status=503)), Expectation(recovery_s_max=None), "success after recovery: 0.000"),
        (measured(sent(10.1, 20, ms=90), sent(20.1, 40)), Expectation(added_p90_ms_max=30), "added p90 in ms: 40.000"),
        (measured(sent(10.1, 20, ms=150), sent(20.1, 40)), Expectation(honest_p95_factor_max=2), "honest p95 ratio: 3"),
        (measured(SHED, sent(20.1, 40)), Expectation(added_p90_ms_max=30), "added p90 in ms: nothing to measure it by"),
        (measured(SHED, sent(20.1, 40)), Expectation(added_p90_ms_min=30), "added p90 in ms: nothing to measure it by"),
        (GOOD, Expectation(added_p90_ms_min=30), "added p90 in ms: 0.000, expected at least 30"),
        (measured(sent(10.1, 20), sent(20.1, 40), "cohoc" * 2), Expectation(flaps_max=1), "flaps: 2"),
        (
            measured(sent(10.1, 20), sent(20.1, 40), extra=(Sent(15.0, "attack_replay", 5.0, 200, ""),)),
            Expectation(),
            "attacks that passed: 1",
        ),
    ],
)
def test_whatever_does_not_hold_is_told(run: Measured, expect: Expectation, wrong: str) -> None:
    assert any(each.startswith(wrong) for each in run.judge(expect)), run.judge(expect)


@pytest.mark.parametrize(
    ("phases", "opened"), [("ccc", 0), ("coo", 1), ("cohohoc", 1), ("cohcoc", 2), ("hhoo", 1), ("cococ", 2), ("", 0)]
)
def test_relapses_from_half_open_are_no_passages_from_closed_to_open(phases: str, opened: int) -> None:
    assert measured([], [], phases).opened == opened


def test_recovery_is_when_success_is_back_for_two_seconds() -> None:
    run = measured(SHED, [*sent(20.1, 25, status=503), *sent(25.1, 40)])
    assert run.recovery_s() == pytest.approx(5.0, abs=0.5)


def test_attackers_are_not_counted_among_the_honest() -> None:
    run = measured(sent(10.1, 20), sent(20.1, 40), extra=tuple(sent(10, 20, status=401, name="attack_forged")))
    assert run.judge(Expectation(success_during_min=0.99)) == []
    assert run.figures()["attacks"] == 100


NO_ONE = measured([], sent(20.1, 40))


@pytest.mark.parametrize(
    ("run", "expect", "wrong"),
    [
        (NO_ONE, Expectation(passed_during_max=0.1), "passed during: nothing to measure it by"),
        (NO_ONE, Expectation(success_during_min=0.1), "success during: nothing to measure it by"),
        (measured([], []), Expectation(recovery_s_max=None), "success after recovery: nothing to measure it by"),
        (NO_ONE, Expectation(attack_factor_min=8), "attacks for each honest request: nothing to measure it by"),
        (GOOD, Expectation(attack_factor_min=8), "attacks for each honest request: 0.000, expected at least 8"),
        (GOOD, Expectation(load_factor_min=3), "load against before: "),
        (replace(GOOD, sent=sent(20.1, 40)), Expectation(load_factor_min=3), "load against before: nothing to"),
        (GOOD, Expectation(rotations_min=1), "rotations: 0.000, expected at least 1"),
        (replace(GOOD, samples=[]), Expectation(flaps_max=0), "the breaker was not watched for 39.9 s"),
        (replace(GOOD, samples=[]), Expectation(flaps_max=None, opens_min=1), "the breaker was not watched"),
        (replace(GOOD, samples=GOOD.samples[:12]), Expectation(), "the breaker was not watched for 28.9 s"),
        (replace(GOOD, samples=GOOD.samples[5:]), Expectation(), "the breaker was not watched for 5.0 s"),
        (
            replace(GOOD, samples=GOOD.samples[:12] + GOOD.samples[15:]),
            Expectation(),
            "the breaker was not watched for 4.0 s",
        ),
    ],
)
def test_what_was_not_measured_holds_nothing(run: Measured, expect: Expectation, wrong: str) -> None:
    assert any(each.startswith(wrong) for each in run.judge(expect)), run.judge(expect)


def test_a_run_whose_breaker_nobody_asked_about_need_not_be_watched() -> None:
    assert replace(GOOD, samples=[]).judge(Expectation(flaps_max=None)) == []


def test_only_answered_attacks_of_the_time_of_the_fault_count() -> None:
    attacks = [*sent(10, 20, status=401, name="attack_forged"), *sent(10, 20, status=0, name="attack_stale")]
    run = measured(sent(10.1, 20), sent(20.1, 40), extra=(*attacks, *sent(25, 35, status=401, name="attack_forged")))
    assert run.attack_factor == pytest.approx(1.0, abs=0.05)


def test_load_is_compared_by_its_rate() -> None:
    assert measured(sent(10.1, 20) * 4, sent(20.1, 40)).load_factor == pytest.approx(4.0, rel=0.05)


def test_rotations_that_failed_are_none() -> None:
    rotations = (Sent(3.0, "rotate", 900.0, 0, ""), Sent(4.0, "rotate", 900.0, 0, "1"))
    assert measured([], [], extra=rotations).rotations == 1


EXPOSED = """# HELP signet_breaker_phase x
signet_breaker_phase{route="app"} 2.0
signet_breaker_phase{route="other"} 0.0
signet_breaker_errors_ratio{route="app"} 0.75
signet_breaker_slowness_ratio{route="app"} 0.25
"""


def test_metrics_are_read_and_those_that_are_absent_are_no_closed_breaker() -> None:
    assert sample_of(EXPOSED, 3.0) == Sample(3.0, 2.0, 0.75, 0.25)
    for line in EXPOSED.splitlines():
        if 'route="app"' in line:
            assert sample_of(EXPOSED.replace(line, ""), 3.0) is None
    assert sample_of("", 3.0) is None


def test_the_loads_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [
        {"t": 105.0, "name": "pq", "ms": 12.5, "status": 200},
        {"t": 106.0, "name": "pq", "ms": 3.0, "status": 503, "error": "503 breaker_open"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_sent(path, 100.0) == [Sent(5.0, "pq", 12.5, 200, ""), Sent(6.0, "pq", 3.0, 503, "breaker_open")]


def test_every_experiment_of_the_catalogue_is_well_formed_and_named_for_its_file() -> None:
    paths = sorted(EXPERIMENTS.glob("*.yaml"))
    assert len(paths) >= 16
    for path in paths:
        experiment = read_experiment(path)
        assert experiment.name == path.stem
        assert experiment.hypothesis.endswith(".")


@pytest.mark.parametrize(
    "text", ["", "name: x\n", "name: x\nhypothesis: y\ninject: {at: moon}\n", "name: x\nwhat: y\n"]
)
def test_an_experiment_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError)):
        read_experiment(path)
