#!/usr/bin/env python3
"""Run chaos experiments on a real stack: Locust in front, Toxiproxy between, the filter's metrics beside.

    python loadtest/chaos.py [NAME …] [--list] [--out var/chaos] [--json]

Each experiment is one YAML file of loadtest/experiments. It gets a stack of its own on free ports, is aborted when it
is not in its steady state before the injection, and is cleaned up whatever happens. The report has a page with
figures and a picture for each. Exit status: 0 when every hypothesis held, 1 when one did not, 2 for wrong use.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.bench_client import run_load
from loadtest.chaos_report import write_report
from loadtest.ending import end_as_by_an_interrupt
from loadtest.experiment import WELL_APP, Experiment, as_builtins, read_experiment
from loadtest.load_keys import write_keys
from loadtest.measured import Measured, Sample, read_sent, share_passed
from loadtest.toxics import Toxiproxy
from pch.keys import private_key_from_jwk
from tools.stack import Stack
from tools.stack_config import REPOSITORY, Ports, StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPERIMENTS: Final = Path(__file__).resolve().parent / "experiments"
SAMPLE_EVERY_S: Final = 0.2
LOCUST_START_S: Final = 20.0
ROUTE: Final = "app"
CAPACITY_CONNECTIONS: Final = 8
CAPACITY_REQUESTS: Final = 2_000
_MEMBERS: Final = ("phase", "errors_ratio", "slowness_ratio")
_METRIC: Final = re.compile(
    rf'^signet_breaker_({"|".join(_MEMBERS)})\{{[^}}]*route="app"[^}}]*\}} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Result:
    """One experiment's end. `wrong`: what did not hold; `aborted`: it was not in its steady state."""

    experiment: Experiment
    measured: Measured | None
    wrong: list[str]
    aborted: bool

    def as_json(self) -> dict[str, Any]:
        """Give it for `--json`."""
        figures = None if self.measured is None else self.measured.figures()
        held = not self.wrong and not self.aborted
        return {"experiment": as_builtins(self.experiment), "held": held, "wrong": self.wrong, "figures": figures}


def stack_settings(experiment: Experiment, folder: Path, ports: Ports, extra: Ports) -> StackSettings:
    """Give the stack of one experiment; `extra` are the ports that Toxiproxy listens on."""
    control = folder / "app.json"
    control.write_text(json.dumps(WELL_APP | experiment.app))
    toml: dict[str, dict[str, Any]] = {"plan.breaker": dict(experiment.breaker)} if experiment.breaker else {}
    if experiment.kms:
        toml["kms"] = {"url": f"http://127.0.0.1:{extra.kms}"}
    return StackSettings(
        folder,
        ports,
        nonce_store=experiment.nonce_store,
        app_command=("{python}", "{repository}/loadtest/tired_app.py", "--port", "{port}", "--control", str(control)),
        app_dial_port=extra.app,
        redis_dial_port=extra.redis if experiment.nonce_store == "redis" else None,
        kms=experiment.kms,
        toml=toml,
        routes=(
            {
                "name": ROUTE,
                "path": "/app/**",
                "algorithms": ["ed25519", "ml-dsa-65", "ed25519+ml-dsa-65"],
                "evidence": "optional",
            },
        ),
    )


@contextlib.contextmanager
def running(experiment: Experiment, folder: Path) -> Iterator[tuple[Stack, Toxiproxy]]:
    """Run the stack of one experiment with Toxiproxy before its app and its Redis."""
    ports, extra = Ports.free(), Ports.free()
    write_keys(folder)
    with Toxiproxy(extra.admin, folder / "toxiproxy.log") as toxiproxy:
        toxiproxy.proxy("app_path", extra.app, ports.app)
        toxiproxy.proxy("redis_path", extra.redis, ports.redis)
        toxiproxy.proxy("kms_path", extra.kms, ports.kms)
        with Stack(stack_settings(experiment, folder, ports, extra)) as stack:
            yield stack, toxiproxy


@contextlib.contextmanager
def load(
    experiment: Experiment, stack: Stack, folder: Path, out: Path, users: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Locust against the stack; ends it with the block."""
    total_s = experiment.before_s + experiment.during_s + experiment.after_s
    environ = {
        **os.environ,
        "SIGNET_LOAD_KEYS": str(folder / "load_keys.json"),
        "SIGNET_LOAD_CA": str(stack.files.tls / "ca.pem"),
        "SIGNET_LOAD_CONFIG": str(stack.files.toml),
        "SIGNET_LOAD_EVENTS": str(folder / "events.jsonl"),
        "SIGNET_LOAD_MIX": experiment.load.mix.format(users=users),
        "SIGNET_LOAD_ATTACKS": ",".join(experiment.load.attacks),
        "SIGNET_LOAD_RATE": str(experiment.load.rate),
        "SIGNET_LOAD_USERS": str(users),
        "SIGNET_LOAD_SECONDS": str(total_s),
        "SIGNET_LOAD_SHAPE": experiment.load.shape,
    }
    host = f"https://127.0.0.1:{stack.settings.ports.https}"
    prefix = out / experiment.name
    command = [sys.executable, "-m", "locust", "-f", str(REPOSITORY / "loadtest/locustfile.py"), "--headless"]
    command += ["--host", host, "--csv", str(prefix), "--html", f"{prefix}_locust.html", "--only-summary"]
    with (out / f"{experiment.name}_locust.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, cwd=REPOSITORY)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def users_of(experiment: Experiment, stack: Stack, folder: Path) -> int:
    """Give how many users there are; measures what the stack can do where the experiment goes by that."""
    share = experiment.load.capacity_share
    if share is None:
        return experiment.load.users
    signer = private_key_from_jwk(json.loads((folder / "load_keys.json").read_text())["classical"][0])
    done = run_load(stack.settings.ports.https, "/app/x", signer, CAPACITY_CONNECTIONS, CAPACITY_REQUESTS)
    per_s = sum(done.statuses.values()) / done.elapsed_s
    users = max(1, round(per_s * share / experiment.load.rate))
    print(
        f"    capacity {per_s:.0f} requests/s: {users} users of {experiment.load.rate:g}/s", file=sys.stderr, flush=True
    )
    return users


def sample(port: int, at_s: float) -> Sample | None:
    """Read the breaker's metrics once; None when the admin process does not answer, or does not tell them."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return sample_of(text, at_s)


def sample_of(text: str, at_s: float) -> Sample | None:
    """Read the breaker's metrics of an exposition; None when one is not there: nothing is not a closed breaker."""
    values = {name: float(value) for name, value in _METRIC.findall(text)}
    if len(values) < len(_MEMBERS):
        return None
    return Sample(at_s, *(values[name] for name in _MEMBERS))


def inject(experiment: Experiment, stack: Stack, toxiproxy: Toxiproxy, folder: Path) -> None:
    """Break what the experiment breaks."""
    injection = experiment.inject
    if injection.at in {"app_path", "redis_path", "kms_path"}:
        toxiproxy.inject(injection.at, injection.kind, injection.attributes)
    elif injection.at == "app":
        (folder / "app.json").write_text(json.dumps(WELL_APP | experiment.app | injection.app))
    elif injection.at == "worker":
        status = json.loads((stack.files.run / "signet-0.status.json").read_text())
        os.kill(int(status["pid"]), signal.SIGKILL)


def unnoticed(experiment: Experiment, stack: Stack) -> list[str]:
    """Say so where the fault is one that no request feels, and the filter did not tell of it: was it there at all?"""
    if experiment.inject.at != "kms_path":
        return []
    status = json.loads((stack.files.run / "signet-0.status.json").read_text())
    return (
        [] if "sealing" in status.get("degraded", {}) else ["the filter did not notice that its key service was away"]
    )


def heal(experiment: Experiment, toxiproxy: Toxiproxy, folder: Path) -> None:
    """Take back what `inject` did; a killed worker comes back by itself."""
    toxiproxy.heal()
    (folder / "app.json").write_text(json.dumps(WELL_APP | experiment.app))


def run(experiment: Experiment, out: Path) -> Result:
    """Run one experiment from start to clean-up."""
    with tempfile.TemporaryDirectory(prefix="signet-chaos-") as name:
        folder = Path(name)
        with running(experiment, folder) as (stack, toxiproxy):
            try:
                return _observe(experiment, stack, toxiproxy, folder, out)
            finally:
                heal(experiment, toxiproxy, folder)


def _observe(experiment: Experiment, stack: Stack, toxiproxy: Toxiproxy, folder: Path, out: Path) -> Result:
    events, samples = folder / "events.jsonl", list[Sample]()
    users = users_of(experiment, stack, folder)
    with load(experiment, stack, folder, out, users) as process:
        until = time.monotonic() + LOCUST_START_S
        while not (events.exists() and events.stat().st_size):
            if process.poll() is not None or time.monotonic() > until:
                return Result(experiment, None, ["the load did not start"], aborted=True)
            time.sleep(0.05)
        start_s = time.time()

        def watch(until_s: float) -> None:
            while (at_s := time.time() - start_s) < until_s:
                if (seen := sample(stack.settings.ports.admin, at_s)) is not None:
                    samples.append(seen)
                time.sleep(SAMPLE_EVERY_S)

        watch(experiment.before_s)
        steady = Measured(read_sent(events, start_s), samples, time.time() - start_s, time.time() - start_s)
        if share_passed(steady.before) < experiment.abort_below:
            why = f"aborted: {share_passed(steady.before):.3f} passed before anything was broken"
            return Result(experiment, steady, [why], aborted=True)
        injected_s = time.time() - start_s
        inject(experiment, stack, toxiproxy, folder)
        watch(injected_s + experiment.during_s)
        problems = unnoticed(experiment, stack)
        healed_s = time.time() - start_s
        heal(experiment, toxiproxy, folder)
        watch(healed_s + experiment.after_s)
    measured = Measured(read_sent(events, start_s), samples, injected_s, healed_s, problems)
    return Result(experiment, measured, measured.judge(experiment.expect), aborted=False)


def main() -> int:
    """Run what was asked for and tell how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="experiments; all when none is named")
    parser.add_argument("--list", action="store_true", help="name the experiments and end")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "var/chaos", help="folder of the report")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    options = parser.parse_args()
    known = {path.stem: path for path in sorted(EXPERIMENTS.glob("*.yaml"))}
    if unknown := [name for name in options.names if name not in known]:
        print(f"chaos: no experiment is called {', '.join(unknown)}", file=sys.stderr)
        return 2
    chosen = [read_experiment(known[name]) for name in options.names or known]
    if options.list:
        for each in chosen:
            print(f"{each.name:24}{each.hypothesis}")
        return 0
    end_as_by_an_interrupt()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for number, each in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {each.name}: {each.hypothesis}", file=sys.stderr, flush=True)
        try:
            result = run(each, options.out)
        except Exception as error:  # noqa: BLE001  whatever it was, it did not hold, and the others are run all the same
            result = Result(each, None, [f"could not be run: {type(error).__name__}: {error}"], aborted=True)
        results.append(result)
        verdict = "held" if not result.wrong else "; ".join(result.wrong)
        print(f"    {verdict}", file=sys.stderr, flush=True)
    report = write_report(results, options.out)
    if options.json:
        print(json.dumps([result.as_json() for result in results], indent=2))
    else:
        print(f"chaos: {sum(not result.wrong for result in results)} of {len(results)} hypotheses held; {report}")
    return 1 if any(result.wrong for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
