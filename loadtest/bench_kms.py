"""What the key service does: latency, throughput, CPU, fairness, drift. Audit on, file provider, one machine.

    python loadtest/bench_kms.py [--seconds 2] [--gate] [--store-baseline]

The service's own rate limit of 500 a second is raised, or it would be what is measured. Latencies are of one caller
that waits for each answer; throughput is of 16 connections in a closed loop, on the same cores as their clients.
Drift compares p95 with loadtest/baselines/kms.json after dividing both by the time of the same raw work on the same
machine, so that the ratio tells of the program and not of the machine. `--gate` ends with 1 when a target or the
documents' drift limit is missed (PERFORMANCE.md §1.1, §5).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from loadtest.kms_load import Call, GrpcLine, HttpLine, Latencies, alone, closed_loop, prepare, shared, timed
from loadtest.kms_targets import MAX_SKEW, TARGETS_MS, drifts, missed_targets, raw_ratios, skew
from tests.support.kms_service import DIGEST, KmsProcess

BASELINE = Path(__file__).parent / "baselines" / "kms.json"
PACE_PER_S = 150
CONNECTIONS = 16
SETTINGS = {
    "SIGN_RATE_LIMIT": "1000000",
    "PQ_PRODUCE_HYBRID": "0",
    "PQ_VERIFY_MODE": "or",
    "DEADLINE_AUDIT_APPEND": "2s",
}


def calls_of(service: KmsProcess, token: str, tenant: str = "core") -> dict[str, list[Call]]:
    """Make keys and prepare every request of the bench."""

    def create(alg: str) -> str:
        body = {"tenant": tenant, "purpose": "bench", "alg": alg}
        return str(service.ask("POST", "/v1/kms/keys", body, token=token).json["kid"])

    def ask(op: str, body: dict[str, Any]) -> Any:
        answer = service.ask("POST", f"/v1/kms/{op}", body, token=token)
        if answer.status != 200:
            raise SystemExit(f"{op}: {answer.body!r}")
        return answer.json

    keys = {alg: create(alg) for alg in ("ed25519", "ml-dsa", "hybrid", "x25519")}
    found: dict[str, list[Call]] = {}
    for alg in ("ed25519", "ml-dsa", "hybrid"):
        body = {"kid_or_set": {"kid": keys[alg]}, "payload_b3": DIGEST, "policy": {"produce_hybrid": alg == "hybrid"}}
        found[f"sign {alg}"] = [prepare("sign", body, token)]
    verifying = []
    for kid in (keys["ed25519"], create("ed25519")):
        signed = ask("sign", {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST, "policy": {"produce_hybrid": False}})
        body = {"payload_b3": DIGEST, "sigs": signed["sigs"][:1], "policy": {"mode": "or"}, "kid_or_set": {"kid": kid}}
        verifying.append(prepare("verify", body, token))
    found["verify hit"], found["verify miss"] = verifying[:1], verifying
    plaintext = base64.b64encode(os.urandom(32)).decode()
    wrapped = ask("wrap", {"kid": keys["x25519"], "plaintext_key_b64": plaintext})["wrapped_b64"]
    found["wrap"] = [prepare("wrap", {"kid": keys["x25519"], "plaintext_key_b64": plaintext}, token)]
    found["unwrap"] = [prepare("unwrap", {"kid": keys["x25519"], "wrapped_b64": wrapped}, token)]
    found["mix 70/20/10"] = found["sign ed25519"] * 7 + found["verify hit"] * 2 + found["wrap"]
    return found


def row(name: str, found: Latencies, target_ms: float | None) -> str:
    """Write one line of the table."""
    verdict = "" if target_ms is None else f"   target {target_ms:4.1f} {'ok' if found.p95 <= target_ms else 'MISSED'}"
    return f"  {name:14} p50 {found.p50:6.2f}  p95 {found.p95:6.2f}  p99 {found.p99:6.2f} ms{verdict}"


async def measure(service: KmsProcess, miss_service: KmsProcess, seconds: float) -> tuple[dict[str, float], list[str]]:
    """Run everything; give p95 by name and what was missed."""
    token, miss_token = service.token(), miss_service.token()
    calls, miss_calls = calls_of(service, token), calls_of(miss_service, miss_token)
    p95: dict[str, float] = {}
    for kind in ("http", "grpc"):
        sys.stdout.write(f"one caller, one request after the other, over {kind}\n")
        for name in calls:
            here, its_token = (miss_service, miss_token) if name == "verify miss" else (service, token)
            address = here.address(kind)
            line = await (HttpLine(address) if kind == "http" else GrpcLine(address, its_token)).open()
            found = await alone(line, (miss_calls if here is miss_service else calls)[name], seconds)
            await line.close()
            p95[f"{kind} {name}"] = found.p95
            sys.stdout.write(row(name, found, TARGETS_MS.get(name)) + "\n")
        lines = [
            await (HttpLine(service.address(kind)) if kind == "http" else GrpcLine(service.address(kind), token)).open()
            for _ in range(CONNECTIONS)
        ]
        sys.stdout.write(f"{CONNECTIONS} connections in a closed loop over {kind}\n")
        for name in calls:
            if name == "verify miss":
                continue
            found = await closed_loop(lines, calls[name], seconds, service.service_pid)
            rates = f"{found.per_s:7.0f} ops/s  {found.per_cpu_s:7.0f} ops per CPU-second"
            sys.stdout.write(f"  {name:14} {rates}  p95 {found.p95:6.2f} ms\n")
        for line in lines:
            await line.close()
    return p95, missed_targets(p95) + await fairness(service, seconds)


async def fairness(service: KmsProcess, seconds: float) -> list[str]:
    """Two tenants at 80/20: the p95 of neither is more than twice the other's (I-17)."""
    streams = []
    for tenant, rate in (("core", 0.8), ("side", 0.2)):
        token = service.token(tenant=tenant)
        call = calls_of(service, token, tenant)["sign ed25519"]
        streams += [(await HttpLine(service.address("http")).open(), call, PACE_PER_S * rate / 2) for _ in range(2)]
    found = await shared(streams, seconds * 2)
    heavy, light = max(found[0].p95, found[1].p95), max(found[2].p95, found[3].p95)
    found_skew = skew(heavy, light)
    sys.stdout.write(
        f"two tenants at 80/20: p95 {heavy:.2f} and {light:.2f} ms, skew {found_skew:.2f} (at most {MAX_SKEW})\n"
    )
    for line, _, _ in streams:
        await line.close()
    return [] if found_skew <= MAX_SKEW else [f"tenants' p95 skew {found_skew:.2f} > {MAX_SKEW}"]


def where_time_goes(service: KmsProcess, memory: KmsProcess) -> None:
    """Split a signature's time: the client's view, the request, the operation, and the audit log's disk."""

    def mean_ms(name: str, labels: str) -> float:
        count = service.metric(f"{name}_count{{{labels}}}")
        return service.metric(f"{name}_sum{{{labels}}}") / count * 1000 if count else 0.0

    async def run() -> tuple[float, float]:
        results = []
        for each in (service, memory):
            line = await HttpLine(each.address("http")).open()
            call = calls_of(each, each.token())["sign ed25519"]
            results.append((await alone(line, call, 2.0)).p50)
            await line.close()
        return results[0], results[1]

    on_disk, in_memory = asyncio.run(run())
    request = mean_ms("request_latency_seconds", 'method="POST",route="/v1/kms/sign"')
    operation = mean_ms("kms_latency_seconds", 'alg="ed25519",op="sign"')
    sys.stdout.write(
        f"where it goes, sign ed25519: p50 {on_disk:.2f} ms with the audit log on disk, {in_memory:.2f} in memory: "
        f"{on_disk - in_memory:.2f} ms are fsync.\n  mean over the whole run, load included: request {request:.2f} ms, "
        f"operation in it {operation:.2f} ms (ed25519 alone)\n"
    )


def raw_work_ms(folder: Path) -> float:
    """Time what every signature needs whatever the program: 20 Ed25519 signatures and one fsync."""
    key, path = Ed25519PrivateKey.generate(), folder / "raw"

    def work() -> None:
        for _ in range(20):
            key.sign(b"x" * 32)
        with path.open("ab") as file:
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())

    return timed(work, 101) * 1000


def disk_line(folder: Path) -> str:
    """Tell what one durable write costs here: no answer of an audited operation can come sooner."""
    path = folder / "disk"

    def work() -> None:
        with path.open("ab") as file:
            file.write(b"x" * 512)
            file.flush()
            os.fdatasync(file.fileno())

    taken_ms = sorted(timed(work, 1) * 1000 for _ in range(200))
    load = os.getloadavg()[0]
    return f"this disk: fdatasync p50 {taken_ms[99]:.2f}, p95 {taken_ms[189]:.2f} ms; load of the machine {load:.1f}"


def drift(p95: dict[str, float], raw_ms: float, *, store: bool) -> list[str]:
    """Compare with the stored baseline; give what drifted past its limit."""
    ratios = raw_ratios(p95, raw_ms)
    if store:
        BASELINE.parent.mkdir(exist_ok=True)
        BASELINE.write_text(json.dumps({"raw_work_ms": round(raw_ms, 3), "p95_over_raw_work": ratios}, indent=1) + "\n")
        sys.stdout.write(f"baseline stored in {BASELINE.name}\n")
        return []
    found = drifts(ratios, json.loads(BASELINE.read_text())["p95_over_raw_work"])
    sys.stdout.write("drift against the baseline (ratio of p95 over raw work)\n")
    for each in found:
        verdict = "" if each.limit is None else "  DRIFTED" if each.beyond else "  ok"
        sys.stdout.write(f"  {each}{verdict}\n")
    return [str(each) for each in found if each.beyond]


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--store-baseline", action="store_true")
    args = parser.parse_args()
    sys.stdout.write("key service: file provider, audit on disk; rate limit raised from 500/s to 1000000/s\n")
    folders = [tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) for _ in range(3)]
    memory = {"BACKEND": "inmem", "AMNESIA": "1"}
    services = [
        KmsProcess(Path(folder.name), SETTINGS | extra)
        for folder, extra in zip(folders, ({}, {"VERIFY_CACHE_MAX": "1"}, memory), strict=True)
    ]
    sys.stdout.write(disk_line(Path(folders[0].name)) + "\n")
    try:
        for service in services:
            service.start()
        p95, missed = asyncio.run(measure(services[0], services[1], args.seconds))
        where_time_goes(services[0], services[2])
        raw_ms = raw_work_ms(Path(folders[0].name))
        sys.stdout.write(disk_line(Path(folders[0].name)) + "\n")
        missed += drift(p95, raw_ms, store=args.store_baseline)
    finally:
        for service in services:
            service.stop()
        for folder in folders:
            folder.cleanup()
    for line in missed:
        sys.stdout.write(f"missed: {line}\n")
    return 1 if missed and args.gate else 0


if __name__ == "__main__":
    sys.exit(main())
