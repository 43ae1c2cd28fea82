"""Compare edge A with Envoy's own TLS on the same Envoy binary, interleaved: `python loadtest/bench_edge.py [--json]`.

Two Envoys with one worker each, alike but for the transport socket (and the exporter filter that belongs to edge A),
take turns under wrk (HTTP/1.1 keep-alive) and h2load (HTTP/2). The CPU time is the Envoy process's own, from
/proc/PID/stat.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.edge_certificates import CertificateFiles, write_certificate
from tests.e2e.edge_envoy import (
    EnvoyProcess,
    bootstrap,
    build_module,
    listener,
    module_socket,
    native_socket,
    start_envoy,
)

EDGES = ("native", "edge")
Report = dict[str, list[dict[str, float]]]
WRK_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
H2_REQUESTS_PER_SECOND_GUESS = 8000
HANDSHAKES = 400
CONNECT_TIMEOUT_S = 60  # on a busy machine a handshake may wait long for its turn
LOADS = (("h1", 1), ("h1", 16), ("h2", 1), ("h2", 16), ("handshake", 0))


@dataclass(frozen=True, slots=True)
class Sample:
    """One round: requests per second, latencies in ms, and Envoy's CPU time per request."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def _wrk(port: int, connections: int, seconds: float) -> tuple[int, float, float, float]:
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        f"https://127.0.0.1:{port}/",
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    latency = {}
    for percentile in ("50%", "99%"):
        value, unit = re.search(rf"{percentile}\s+([0-9.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
        latency[percentile] = float(value) * WRK_UNITS_MS[unit]
    requests = int(re.search(r"(\d+) requests in", text).group(1))  # type: ignore[union-attr]
    rate = float(re.search(r"Requests/sec:\s+([0-9.]+)", text).group(1))  # type: ignore[union-attr]
    if (failed := re.search(r"Socket errors:.*|Non-2xx.*", text)) is not None:
        raise RuntimeError(failed.group(0))
    return requests, rate, latency["50%"], latency["99%"]


def _h2load(port: int, connections: int, requests: int, *extra: str) -> tuple[int, float, float, float]:
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        command = ["h2load", f"-c{connections}", "-m1", "-t1", f"-n{requests}", f"--log-file={log.name}", *extra]
        text = subprocess.run(
            [*command, f"https://127.0.0.1:{port}/"], check=True, capture_output=True, text=True
        ).stdout
        times_us = sorted(int(line.split("\t")[2]) for line in log if "\t200\t" in line)
    if len(times_us) != requests:
        raise RuntimeError(f"{requests - len(times_us)} of {requests} requests failed")
    rate = float(re.search(r"([0-9.]+) req/s", text).group(1))  # type: ignore[union-attr]
    return requests, rate, times_us[len(times_us) // 2] / 1000, times_us[int(len(times_us) * 0.99)] / 1000


def _round(envoy: EnvoyProcess, load: str, connections: int, seconds: float) -> Sample:
    port = next(iter(envoy.ports.values()))
    before = envoy.cpu_seconds()
    if load == "h1":
        requests, rate, p50, p99 = _wrk(port, connections, seconds)
    elif load == "h2":
        requests, rate, p50, p99 = _h2load(port, connections, int(H2_REQUESTS_PER_SECOND_GUESS * seconds))
    else:
        # As many connections as requests: the cost of one is almost all handshake.
        requests, rate, p50, p99 = _h2load(port, HANDSHAKES, HANDSHAKES, "--h1", "--rate=200", "--rate-period=1")
    return Sample(rate, p50, p99, (envoy.cpu_seconds() - before) / requests * 1e6)


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _compare(envoys: dict[str, EnvoyProcess], load: str, connections: int, rounds: int, seconds: float) -> Report:
    """Let both edges take turns; the ratio is the median over the rounds of edge A's figure to native's beside it."""
    rows: Report = {name: [] for name in (*EDGES, "ratio")}
    for index in range(rounds + 1):
        pair = {}
        for name in EDGES if index % 2 else reversed(EDGES):
            pair[name] = asdict(_round(envoys[name], load, connections, seconds))
        if index:  # the first round warms up
            for name in EDGES:
                rows[name].append(pair[name])
            rows["ratio"].append({key: pair["edge"][key] / pair["native"][key] for key in pair["edge"]})
    return rows


def _start(folder: Path, name: str, modules: Path, files: CertificateFiles) -> EnvoyProcess:
    if name == "edge":
        one = listener(
            name, module_socket(files.certificate, files.key), echo=False, connect_timeout_s=CONNECT_TIMEOUT_S
        )
    else:
        one = listener(
            name,
            native_socket(files.certificate, files.key),
            binding=False,
            echo=False,
            connect_timeout_s=CONNECT_TIMEOUT_S,
        )
    return start_envoy(folder / name, bootstrap([one]), modules=modules, workers=1, debug=False)


def run(rounds: int, seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """Run every load in turn on both edges; return the medians and the ratios of edge A to native."""
    for tool in ("wrk", "h2load"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not installed")
    report: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = write_certificate(Path(folder))
        modules = build_module()
        envoys: dict[str, EnvoyProcess] = {}
        try:
            for name in EDGES:
                envoys[name] = _start(Path(folder), name, modules, files)
            for load, connections in LOADS:
                rows = _compare(envoys, load, connections, rounds, seconds)
                title = f"{load} x{connections}" if connections else load
                report[title] = {name: _medians(rows[name]) for name in rows}
        finally:
            for envoy in envoys.values():
                envoy.stop()
    return report


def main() -> int:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = run(arguments.rounds, arguments.seconds)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{'load':<10} {'edge':<8} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'Envoy CPU µs/request':>21}")
    for load, row in report.items():
        for name in (*EDGES, "ratio"):
            cells = row[name]
            print(
                f"{load:<10} {name:<8} {cells['requests_per_s']:>9.2f} {cells['p50_ms']:>8.3f} "
                f"{cells['p99_ms']:>8.3f} {cells['cpu_us']:>21.2f}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
