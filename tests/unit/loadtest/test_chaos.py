"""How the catalogue is run: what did not hold shows in the exit status, and what was broken is healed."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest import chaos
from loadtest.chaos import EXPERIMENTS, Result, main, run, stack_settings, unnoticed
from loadtest.experiment import Experiment, read_experiment
from loadtest.measured import Measured, Sample, Sent
from tools.stack import Stack
from tools.stack_config import Ports, StackError, StackSettings

SEEN = Measured(
    [Sent(0.1 * n, "classical", 5.0, 200, "") for n in range(300)], [Sample(1.0, 0.0, 0.0, 0.0)], 10.0, 20.0
)


def experiment(name: str) -> Experiment:
    return read_experiment(EXPERIMENTS / f"{name}.yaml")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Have experiments end as this says, by name, instead of being run."""
    ends: dict[str, Any] = {}

    def run_none(chosen: Experiment, _: Path) -> Result:
        end = ends.get(chosen.name, [])
        if isinstance(end, Exception):
            raise end
        return Result(chosen, SEEN, end, aborted=False)

    monkeypatch.setattr(chaos, "run", run_none)
    monkeypatch.setattr(chaos, "end_as_by_an_interrupt", lambda: None)
    names = ("app_down", "app_reset")
    monkeypatch.setattr(sys, "argv", ["chaos.py", *names, "--out", str(tmp_path / "out")])
    return ends


@pytest.mark.parametrize(
    ("ends", "status", "held"),
    [
        ({}, 0, [True, True]),
        ({"app_reset": ["flaps: 2"]}, 1, [True, False]),
        ({"app_down": StackError("envoy was not ready")}, 1, [False, True]),
        ({"app_down": OSError("no room")}, 1, [False, True]),
        ({"app_down": KeyError("pid")}, 1, [False, True]),
    ],
)
def test_the_exit_status_and_the_report_tell_what_did_not_hold(
    ended: dict[str, Any], ends: dict[str, Any], status: int, held: list[bool], tmp_path: Path
) -> None:
    ended.update(ends)
    assert main() == status
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["held"] for each in told] == held
    assert (tmp_path / "out" / "report.md").read_text().count("did not hold") == held.count(False)
    assert (tmp_path / "out" / "app_reset.png").stat().st_size > 10_000


def test_an_experiment_that_does_not_exist_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["chaos.py", "moon"])
    assert main() == 2


@pytest.mark.parametrize("error", [RuntimeError("the load broke"), KeyboardInterrupt()])
def test_what_was_broken_is_healed_whatever_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    steps = []

    @contextlib.contextmanager
    def running(*_: object) -> Iterator[tuple[str, str]]:
        try:
            yield "stack", "toxiproxy"
        finally:
            steps.append("ended")

    def observe(*_: object) -> Result:
        raise error

    monkeypatch.setattr(chaos, "running", running)
    monkeypatch.setattr(chaos, "_observe", observe)
    monkeypatch.setattr(chaos, "heal", lambda *_: steps.append("healed"))
    with pytest.raises(type(error)):
        run(experiment("app_down"), tmp_path)
    assert steps == ["healed", "ended"]


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXPERIMENTS.glob("*.yaml"))])
def test_what_an_experiment_breaks_is_in_the_requests_way(name: str, tmp_path: Path) -> None:
    """A toxic on a path that nobody takes would leave everything well, and every hypothesis of that true."""
    chosen, ports, extra = experiment(name), Ports.free(), Ports.free()
    settings = stack_settings(chosen, tmp_path, ports, extra)
    assert settings.app_dial_port == extra.app
    if chosen.inject.at == "redis_path":
        assert (settings.nonce_store, settings.redis_dial_port) == ("redis", extra.redis)
    if chosen.inject.at == "kms_path":
        assert settings.kms
        assert settings.toml["kms"]["url"] == f"http://127.0.0.1:{extra.kms}"


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("kms_down", {"degraded": {"sealing": "away"}}, 0),
        ("kms_down", {"problems": {}}, 1),
        ("kms_latency", {"degraded": {}}, 1),
        ("app_down", {}, 0),
    ],
)
def test_a_fault_that_no_request_feels_must_be_noticed_by_the_filter(
    name: str, status: dict[str, Any], told: int, tmp_path: Path
) -> None:
    stack = Stack(StackSettings(tmp_path, Ports()))
    stack.files.run.mkdir()
    (stack.files.run / "signet-0.status.json").write_text(json.dumps(status))
    assert len(unnoticed(experiment(name), stack)) == told


def test_every_shape_and_every_kind_of_fault_is_in_the_catalogue() -> None:
    experiments = [read_experiment(path) for path in EXPERIMENTS.glob("*.yaml")]
    text = (EXPERIMENTS.parent / "locustfile.py").read_text()
    shapes = set(re.findall(r'^    "([a-z_]+)": \(\(|^    "([a-z_]+)": tuple', text, re.MULTILINE))
    assert {one or other for one, other in shapes} == {each.load.shape for each in experiments}
    toxics = {"latency", "bandwidth", "slicer", "timeout", "reset_peer", "down"}
    assert toxics == {each.inject.kind for each in experiments} - {""}
    assert {each.inject.at for each in experiments} >= {"app_path", "redis_path", "kms_path", "worker", "app"}


def test_experiments_whose_load_is_the_fault_expect_that_load() -> None:
    """They inject nothing: without attackers, or rotations, honest requests pass as ever."""
    for path in EXPERIMENTS.glob("*.yaml"):
        chosen = read_experiment(path)
        if "attacker" in chosen.load.mix:
            assert (chosen.expect.attack_factor_min or 0) >= (8 if chosen.load.shape == "attackers" else 3)
        if chosen.load.shape in {"burst", "ramp"}:
            assert (chosen.expect.load_factor_min or 0) > 1
        if "rotate" in chosen.load.mix:
            assert (chosen.expect.rotations_min or 0) >= 5
