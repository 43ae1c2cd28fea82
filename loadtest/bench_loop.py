"""Envoy alone, Envoy with a no-op ext_authz, and Envoy with Signet: interleaved in one run, as ratios.

    python loadtest/bench_loop.py [--rounds 5] [--requests 1600] [--json]

All three run at once on one machine, and take turns; every figure is the median over the rounds. The filter's CPU is
that of its processes, from /proc. Signet verifies Ed25519, spends the nonce in SQLite and writes a durable receipt.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loadtest.bench_client import LoadResult, run_load
from pch.client.cli.terminal import read_signer
from tools.stack import Stack
from tools.stack_config import Ports, StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS: Final = (1, 16)
READY_TIMEOUT_S: Final = 30.0
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
EXT_AUTHZ: Final = "envoy.filters.http.ext_authz"
GUARD: Final = "envoy.filters.http.rbac"
"""Asks for the receipt that only Signet's answers name; the alternatives run without it."""
BODIES: Final = {"signet.body", "signet.body_length", "signet.body_in_hand"}
"""What sees large bodies through, which the alternatives do not."""
NOOP_WORKERS: Final = 2


@dataclass(frozen=True)
class Variant:
    """One edge to measure. `filter_pids`: the processes whose CPU counts as the filter's."""

    name: str
    port: int
    envoy_pid: int
    filter_pids: tuple[int, ...]


@dataclass
class Sample:
    """One run of one variant. CPU in µs per request."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    filter_cpu_us: float
    envoy_cpu_us: float


def cpu_s(pids: tuple[int, ...]) -> float:
    """Sum the CPU seconds of processes, all threads."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def children_of(pid: int) -> tuple[int, ...]:
    """List the direct children of a process."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return tuple(int(child) for child in found)


def measure(variant: Variant, signer: Any, connections: int, requests: int) -> Sample:
    """Run one load and read the CPU clocks around it."""
    filter_before, envoy_before = cpu_s(variant.filter_pids), cpu_s((variant.envoy_pid,))
    result: LoadResult = run_load(variant.port, "/protected", signer, connections, requests)
    count = len(result.latencies_s)
    if result.statuses != {200: count}:
        raise SystemExit(f"{variant.name}: not every request passed: {result.statuses}")
    return Sample(
        count / result.elapsed_s,
        result.percentile_ms(0.5),
        result.percentile_ms(0.99),
        (cpu_s(variant.filter_pids) - filter_before) / count * 1e6,
        (cpu_s((variant.envoy_pid,)) - envoy_before) / count * 1e6,
    )


def envoy_config(base: dict[str, Any], port: int, admin: int, sockets: list[str] | None) -> dict[str, Any]:
    """Derive another Envoy's configuration: without ext_authz, or with another filter's sockets."""
    config = copy.deepcopy(base)
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    listener = config["static_resources"]["listeners"][0]
    listener["address"]["socket_address"]["port_value"] = port
    http = listener["filter_chains"][0]["filters"][0]["typed_config"]
    left_out = BODIES | ({GUARD} if sockets else {GUARD, EXT_AUTHZ})
    http["http_filters"] = [each for each in http["http_filters"] if each["name"] not in left_out]
    _forget(http["route_config"], left_out)
    if sockets is None:
        return config
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] == "signet_filter":
            endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            for endpoint, path in zip(endpoints, sockets, strict=True):
                endpoint["endpoint"]["address"]["pipe"]["path"] = path
    return config


def _forget(node: Any, filters: set[str]) -> None:
    """Drop the routes' settings of filters that are not there."""
    if isinstance(node, dict):
        for name in filters:
            node.get("typed_per_filter_config", {}).pop(name, None)
        for value in list(node.values()):
            _forget(value, filters)
    elif isinstance(node, list):
        for value in node:
            _forget(value, filters)


@contextlib.contextmanager
def process(argv: list[str], log: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process and end it afterwards."""
    with log.open("wb") as output:
        started = subprocess.Popen(argv, stdout=output, stderr=output, env={**os.environ, **environ})
        try:
            yield started
        finally:
            started.terminate()
            started.wait(10)


def wait_ready(port: int, signer: Any, log: Path) -> None:
    """Wait until the edge on `port` answers."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            run_load(port, "/protected", signer, 1, 1)
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise SystemExit(f"no answer on port {port}: {error}; see {log}") from error
            time.sleep(0.1)
        else:
            return


@contextlib.contextmanager
def variants(folder: Path, stack: Stack, signer: Any) -> Iterator[list[Variant]]:
    """Start the two other Envoys and the no-op filter beside the stack."""
    state = stack.state
    base = json.loads(Path(state["envoy_config"]).read_text())
    environ = dict(
        line.split("=", 1)
        for line in Path(f"/proc/{state['pids']['envoy']}/environ").read_text().split("\0")
        if "=" in line
    )
    sockets = [str(folder / f"noop-{index}.sock") for index in range(NOOP_WORKERS)]
    envoy = str(Path(f"/proc/{state['pids']['envoy']}/exe").readlink())
    with contextlib.ExitStack() as running:
        noop = [
            running.enter_context(
                process([sys.executable, str(Path(__file__).with_name("noop_authz.py")), path], Path(f"{path}.log"), {})
            )
            for path in sockets
        ]
        found = []
        for name, used in (("envoy alone", None), ("no-op ext_authz", sockets)):
            ports = Ports.free()
            path, log = folder / f"{ports.https}.json", folder / f"{ports.https}.log"
            path.write_text(json.dumps(envoy_config(base, ports.https, ports.envoy_admin, used)))
            command = [envoy, "-c", str(path), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
            started = running.enter_context(process(command, log, environ))
            wait_ready(ports.https, signer, log)
            pids = tuple(each.pid for each in noop) if used else ()
            found.append(Variant(name, ports.https, started.pid, pids))
        found.append(
            Variant("signet", state["ports"]["https"], state["pids"]["envoy"], children_of(state["pids"]["filter"]))
        )
        yield found


def median(samples: list[Sample]) -> Sample:
    """Take the median of each figure."""
    names = Sample.__dataclass_fields__
    return Sample(**{name: statistics.median(getattr(each, name) for each in samples) for name in names})


def report(results: dict[int, dict[str, Sample]]) -> str:
    """Write the table and the ratios."""
    lines = []
    for connections, by_name in results.items():
        lines.append(f"\n{connections} connection(s)")
        lines.append(f"{'':18}{'req/s':>8}{'p50 ms':>9}{'p99 ms':>9}{'filter µs':>11}{'envoy µs':>10}")
        for name, each in by_name.items():
            lines.append(
                f"{name:18}{each.requests_per_s:8.0f}{each.p50_ms:9.2f}{each.p99_ms:9.2f}"
                f"{each.filter_cpu_us:11.0f}{each.envoy_cpu_us:10.0f}"
            )
        alone, noop, signet = by_name["envoy alone"], by_name["no-op ext_authz"], by_name["signet"]
        lines.append(
            f"added by signet over envoy alone: p50 {signet.p50_ms - alone.p50_ms:+.2f} ms,"
            f" p99 {signet.p99_ms - alone.p99_ms:+.2f} ms"
        )
        lines.append(
            f"signet / no-op: filter CPU {signet.filter_cpu_us / noop.filter_cpu_us:.2f} (target 2.00),"
            f" req/s {signet.requests_per_s / noop.requests_per_s:.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1600, help="per variant, connection count and round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    samples: dict[int, dict[str, list[Sample]]] = {count: {} for count in CONNECTIONS}
    with tempfile.TemporaryDirectory(prefix="signet-bench-") as name:
        folder = Path(name)
        with Stack(StackSettings(var=folder / "stack", ports=Ports.free())) as stack:
            signer = read_signer(stack.state["demo_key"])
            with variants(folder, stack, signer) as running:
                for turn in range(options.rounds):
                    for connections in CONNECTIONS:
                        for variant in running:
                            print(f"\rround {turn + 1}/{options.rounds}: {variant.name:18}", end="", file=sys.stderr)
                            sample = measure(variant, signer, connections, options.requests)
                            samples[connections].setdefault(variant.name, []).append(sample)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    results = {count: {name: median(each) for name, each in by.items()} for count, by in samples.items()}
    if options.json:
        print(json.dumps({count: {n: vars(s) for n, s in by.items()} for count, by in results.items()}, indent=2))
    else:
        machine = platform.processor() or platform.machine()
        print(f"{machine}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
