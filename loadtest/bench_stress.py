#!/usr/bin/env python3
"""What breaker and policy cost per request, and the goodput of an app at twice its capacity beside Envoy's filters.

    python loadtest/bench_stress.py [--rounds 1] [--capacity 40] [--seconds 30] [--no-goodput] [--json]

Exit status: 0 when our goodput is at least that of the better of adaptive_concurrency and admission_control, within
the noise of one part in fifty, and the breaker did not flap; 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from extproc.breaker_bank import BreakerBank
from extproc.plan import BreakerPlan
from extproc.quota import Quota
from extproc.signal_board import SignalBoard
from loadtest.goodput import WAYS, Load, goodput
from policy.evaluator import PolicyInput, PolicyVerdict
from policy.opa import OpaPolicy
from policy.route_data import RoutePolicyData, policy_data
from policy.wasm import WasmPolicy
from tests.support.opa_parts import opa_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLICY: Final = Path(__file__).resolve().parent.parent / "policy"
ROUNDS: Final = 7
REQUESTS: Final = 2_000
OPA_REQUESTS: Final = 200
NOISE: Final = 0.98
OURS: Final = "Signet"
OTHERS: Final = ("adaptive_concurrency", "admission_control")
ROUTE: Final = RoutePolicyData(
    binding="tls-exporter", subjects=(), algorithms=("ed25519",), mode="and", evidence="none", fallback_classic=False
)
ASKED: Final = PolicyInput(
    time_ms=1_790_000_000_000,
    route="app",
    method="GET",
    authority="app.example",
    path="/app/x",
    subject="alice",
    key_ids=("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",),
    algorithms=("ed25519",),
    binding="tls-exporter",
    mode="and",
    evidence=False,
    body_bytes=0,
)


class NoPolicy:
    """What a call costs that asks nobody."""

    async def evaluate(self, _: PolicyInput) -> PolicyVerdict:
        """Allow."""
        return PolicyVerdict(allow=True, rule="none")


async def policy_us(evaluate: Callable[[PolicyInput], Awaitable[PolicyVerdict]], requests: int) -> float:
    """Give wall µs of one evaluation, one after another. Raises RuntimeError when one does not allow."""
    began_s = time.perf_counter()
    for _ in range(requests):
        if not (await evaluate(ASKED)).allow:
            raise RuntimeError("the policy refused")
    return (time.perf_counter() - began_s) * 1e6 / requests


async def policy_costs() -> dict[str, float]:
    """Give the median cost of one question to each engine, in turns."""
    found: dict[str, list[float]] = {}
    data = policy_data({"app": ROUTE})
    with tempfile.TemporaryDirectory(prefix="signet-bench-") as folder:
        routes = Path(folder) / "data.json"
        routes.write_bytes(data)
        with opa_server(POLICY / "shield.rego", routes) as (port, _):
            opa = OpaPolicy("127.0.0.1", port, timeout_s=5.0)
            wasm = WasmPolicy((POLICY / "compiled/shield.wasm").read_bytes(), data)
            engines = (
                ("no policy", NoPolicy(), REQUESTS),
                ("wasm", wasm, REQUESTS),
                ("OPA server", opa, OPA_REQUESTS),
            )
            try:
                for number in range(ROUNDS + 1):
                    for name, engine, requests in engines:
                        cost = await policy_us(engine.evaluate, requests)
                        if number:  # the first round warms up
                            found.setdefault(name, []).append(cost)
            finally:
                await opa.close()
    return {name: statistics.median(costs) for name, costs in found.items()}


def breaker_costs() -> dict[str, float]:
    """Give the median CPU µs of what the breaker does for one request, on a board of two workers."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="signet-bench-") as folder:
        for number in range(ROUNDS + 1):
            for name, cost in _breaker_round(Path(folder), number).items():
                if number:
                    found.setdefault(name, []).append(cost)
    return {name: statistics.median(costs) for name, costs in found.items()}


def _breaker_round(folder: Path, number: int) -> dict[str, float]:
    plan, now_ms = BreakerPlan(max_gain=1.0), 1_790_000_000_000
    board = SignalBoard(folder, [f"app-{number}", "other"], 0, 2)
    bank = BreakerBank(plan, ["app", "other"], board, now_ms=now_ms)
    quota = Quota(1e6, 1_000_000)

    def decide() -> None:
        quota.take("alice", now_ms)
        bank.choose("app", "alice", now_ms)

    costs = {"choose and quota, closed": _cpu_us(decide)}
    costs["an outcome"] = _cpu_us(lambda: bank.ended("app", 200, 1_000, (), probe_epoch=None))
    costs["a tick of two routes (ten a second)"] = _cpu_us(lambda: bank.tick(now_ms))
    for tick in range(1, 20):
        for _ in range(20):
            bank.ended("app", 503, 1_000, (), probe_epoch=None)
        bank.tick(now_ms + tick * 50)
    costs["choose and quota, open"] = _cpu_us(decide)
    board.close()
    return costs


def _cpu_us(call: Callable[[], object]) -> float:
    began_s = time.process_time()
    for _ in range(REQUESTS):
        call()
    return (time.process_time() - began_s) * 1e6 / REQUESTS


def goodputs(load: Load, rounds: int) -> dict[str, dict[str, float]]:
    """Run every way to shed in turn; give the medians, flaps as the most of any round."""
    rows: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            rows.setdefault(way.name, []).append(goodput(way, load))
            print(f"  {way.name}: {rows[way.name][-1]}", file=sys.stderr, flush=True)
    figures = {
        name: {key: statistics.median(row[key] for row in each) for key in each[0]} for name, each in rows.items()
    }
    for name, each in rows.items():
        figures[name]["flaps"] = max(row["flaps"] for row in each)
    return figures


def verdict(figures: dict[str, dict[str, float]]) -> tuple[float, bool]:
    """Give our goodput over that of the better of Envoy's two, and whether the target is met.

    Where neither of the two let anything through there is nothing to be better than.
    """
    best = max(figures[name]["goodput_per_s"] for name in OTHERS)
    ratio = figures[OURS]["goodput_per_s"] / best if best else float("nan")
    return ratio, ratio >= NOISE and figures[OURS]["flaps"] == 0


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="of the goodput runs")
    parser.add_argument("--capacity", type=float, default=40.0, help="requests per second that the app can do")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the overload")
    parser.add_argument("--no-goodput", action="store_true", help="costs alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    costs = {"policy_wall_us": asyncio.run(policy_costs()), "breaker_cpu_us": breaker_costs()}
    figures = {}
    if not options.no_goodput:
        figures = goodputs(Load(options.capacity, during_s=options.seconds), options.rounds)
    ratio, met = verdict(figures) if figures else (float("nan"), True)
    if options.json:
        told = None if math.isnan(ratio) else ratio
        print(json.dumps({**costs, "goodput": figures, "ratio": told, "met": met}, indent=2))
        return 0 if met else 1
    for title, each in costs.items():
        print(title)
        for name, cost in each.items():
            print(f"  {name:38} {cost:8.1f}")
    if figures:
        print(f"goodput at twice {options.capacity:g}/s")
        for name, row in figures.items():
            of_ours = row["goodput_per_s"] / (figures[OURS]["goodput_per_s"] or 1)
            print(f"  {name:22} {of_ours:5.2f} of ours  " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
        print(f"  ours / the better of Envoy's two: {ratio:.2f}, {'the target is met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
