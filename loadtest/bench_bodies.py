"""Bodies of 4 KiB, 1 MiB and 64 MiB through Envoy alone and through Envoy with Signet: MB/s, and the filter's memory.

    python loadtest/bench_bodies.py [--rounds 5] [--json]

Both edges run at once on one machine and take turns; every figure is the median over the rounds. One connection,
HTTP/1.1 over TLS, signed with a Content-Length. 4 KiB goes with the Check, the larger ones stream through ext_proc,
and `held` is 1 MiB on a route where upstream sees nothing before the verdict. Growth is from what a
worker had resident before the first body of its size to the most that it had until after the last.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.bench_client import LoadConnection
from loadtest.bench_loop import READY_TIMEOUT_S, Variant, children_of, cpu_s, envoy_config, process, wait_ready
from pch.client.cli.terminal import read_signer
from tools.stack import Stack
from tools.stack_config import DEMO_ROUTES, Ports, StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pch.algorithms import Signer

MIB: Final = 1 << 20
HELD_ROUTE: Final = {"name": "held", "path": "/held/**", "guard": "pch", "max_body_bytes": 2 * MIB}
TARGET_GROWTH_MIB: Final = 8


@dataclass(frozen=True)
class Load:
    """What one turn sends: `count` bodies of `body_bytes` to `path`."""

    name: str
    path: str
    body_bytes: int
    count: int


LOADS: Final = (
    Load("4 KiB", "/uploads/b", 4096, 150),
    # Before those of 1 MiB, so that its growth is from a worker that has seen nothing large.
    Load("64 MiB", "/uploads/b", 64 * MIB, 3),
    Load("1 MiB", "/uploads/b", MIB, 40),
    Load("1 MiB held", "/held/b", MIB, 40),
)


@dataclass
class Sample:
    """One turn of one variant. `filter_cpu_ms`: per body."""

    mb_per_s: float
    filter_cpu_ms: float


class BodyConnection(LoadConnection):
    """One connection that sends signed bodies one after another."""

    def send(self, path: str, body: bytes) -> None:
        """Send one body. Raises SystemExit when it does not pass."""
        status = self.signed_body(path, body)
        if status != 200:
            raise SystemExit(f"{path}: a body of {len(body)} bytes got {status}")


def forget_peak(pids: tuple[int, ...]) -> None:
    """Make what each process has resident now its peak: that of its start would hide what comes."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pids: tuple[int, ...]) -> list[float]:
    """Give the most memory that each process had resident since its peak was forgotten."""
    return [
        int(line.split()[1]) / 1024
        for pid in pids
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]


def measure(variant: Variant, signer: Signer, load: Load, body: bytes) -> Sample:
    """Send one load and read the clocks around it."""
    connection = BodyConnection(variant.port, load.path, signer)
    connection.prime()
    cpu_before, started_s = cpu_s(variant.filter_pids), time.perf_counter()
    for _ in range(load.count):
        connection.send(load.path, body)
    elapsed_s = time.perf_counter() - started_s
    connection.close()
    cpu_ms = (cpu_s(variant.filter_pids) - cpu_before) * 1000 / load.count
    return Sample(load.count * load.body_bytes / elapsed_s / 1e6, cpu_ms)


def variants(folder: Path, stack: Stack, signer: Signer) -> Iterator[list[Variant]]:
    """Start a second Envoy without Signet beside the stack."""
    state = stack.state
    base = json.loads(Path(state["envoy_config"]).read_text())
    environ = dict(
        line.split("=", 1)
        for line in Path(f"/proc/{state['pids']['envoy']}/environ").read_text().split("\0")
        if "=" in line
    )
    ports = Ports.free()
    path, log = folder / "alone.json", folder / "alone.log"
    path.write_text(json.dumps(envoy_config(base, ports.https, ports.envoy_admin, None)))
    binary = str(Path(f"/proc/{state['pids']['envoy']}/exe").readlink())
    command = [binary, "-c", str(path), "--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"]
    with process(command, log, environ) as started:
        wait_ready(ports.https, signer, log)
        yield [
            Variant("envoy alone", ports.https, started.pid, ()),
            Variant("signet", state["ports"]["https"], state["pids"]["envoy"], children_of(state["pids"]["filter"])),
        ]


def run(rounds: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Measure every load on both edges; gives the figures by load."""
    settings = StackSettings(var=folder / "stack", ports=Ports.free(), routes=(HELD_ROUTE, *DEMO_ROUTES))
    results: dict[str, dict[str, Any]] = {}
    with Stack(settings) as stack:
        stack.stop_part("app")
        sink = [sys.executable, str(Path(__file__).with_name("sink_app.py")), str(settings.ports.app)]
        signer = read_signer(stack.state["demo_key"])
        with process(sink, folder / "sink.log", {}):
            wait_listening(settings.ports.app)
            for running in variants(folder, stack, signer):
                for load in LOADS:
                    results[load.name] = measure_load(running, signer, load, rounds)
    return results


def wait_listening(port: int) -> None:
    """Wait until someone listens on `port`."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), READY_TIMEOUT_S).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return


def measure_load(running: list[Variant], signer: Signer, load: Load, rounds: int) -> dict[str, Any]:
    """Take turns with one load; gives the medians and the filter's growth."""
    body = os.urandom(load.body_bytes)
    samples: dict[str, list[Sample]] = {variant.name: [] for variant in running}
    pids = running[-1].filter_pids
    forget_peak(pids)
    before = peak_mib(pids)
    for turn in range(rounds):
        for variant in running:
            print(f"\r{load.name}, round {turn + 1}/{rounds}: {variant.name:14}", end="", file=sys.stderr)
            samples[variant.name].append(measure(variant, signer, load, body))
    alone, signet = (
        {name: statistics.median(getattr(each, name) for each in samples[variant.name]) for name in vars(Sample(0, 0))}
        for variant in running
    )
    growth = max(most - least for most, least in zip(peak_mib(pids), before, strict=True))
    return {
        "alone_mb_per_s": alone["mb_per_s"],
        "signet_mb_per_s": signet["mb_per_s"],
        "filter_cpu_ms": signet["filter_cpu_ms"],
        "filter_growth_mib": growth,
        "filter_peak_mib": max(peak_mib(pids)),
    }


def report(results: dict[str, dict[str, Any]]) -> str:
    """Write the table."""
    names = ("alone MB/s", "signet MB/s", "ratio", "filter ms", "growth MiB", "peak MiB")
    lines = [" " * 12 + "".join(f"{name:>12}" for name in names)]
    for name, each in results.items():
        lines.append(
            f"{name:12}{each['alone_mb_per_s']:12.1f}{each['signet_mb_per_s']:12.1f}"
            f"{each['signet_mb_per_s'] / each['alone_mb_per_s']:12.2f}{each['filter_cpu_ms']:12.1f}"
            f"{each['filter_growth_mib']:12.1f}{each['filter_peak_mib']:12.1f}"
        )
    growth = results["64 MiB"]["filter_growth_mib"]
    lines.append(f"64 MiB streamed: the filter grew by {growth:.1f} MiB (target {TARGET_GROWTH_MIB})")
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="signet-bench-") as name:
        results = run(options.rounds, Path(name))
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
