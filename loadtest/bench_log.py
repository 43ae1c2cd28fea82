"""What the transparency log costs, beside Tessera's on the same disk in the same run.

    python loadtest/bench_log.py [--seconds 4] [--receipts 100000] [--json]

1. Receipts durable and integrated per second: writers that append (one by one through the group commit as the filter
   does, or whole batches), and one integrator, each a process. SQLite and PostgreSQL (fsync on), 1 and 4 writers.
   Tessera's POSIX driver adds entries as large, from as many processes; an add of its is durable and integrated.
2. Time to integrate: from the call to the signed head over the receipt, at a rate that neither finds hard.
3. Proofs per second; packing and verifying a day: time and peak memory.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import itertools
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from loadtest.bench_store import draft
from receipts.checkpoint_keys import FileCheckpointSigner, create_key_file
from receipts.log import LogWriter
from receipts.log_reader import LogReader
from receipts.merkle_verify import verify_inclusion
from receipts.open_store import open_store
from receipts.receipt_id import WriterId
from receipts.store import MAX_BATCH_RECEIPTS, WriterTail
from receipts.writer import ReceiptWriter
from tests.support.go_programs import build
from tests.support.postgres_server import PostgresServer

ORIGIN = "bench.example/log"
WRITERS = (1, 4)
OUTSTANDING = 1024
"""Appends (adds) that wait at once, over all writers."""
PACED_PER_S = 1000
ENTRY_BYTES = 1300
WAIT_MS = 10_000
JOIN_S = 120.0
PROOFS = 5000
TESSERA_BATCHES = (256, 1024)
"""Its default, and one that serves it better here; the better of the two counts."""


@dataclass(frozen=True)
class Written:
    """What one writer did. `samples`: (seq, when the call began), some of them. `cpu_s`: what it used for it."""

    count: int
    ended_s: float
    cpu_s: float
    samples: list[tuple[int, float]]


async def append_each(store: Any, seconds: float, tasks: int, rate: float) -> Written:
    """Append one by one from many tasks; `rate` above 0 bounds the receipts per second."""
    writer = ReceiptWriter(store, writer_id=WriterId(str(uuid.uuid4())))
    writer.start()
    samples: list[tuple[int, float]] = []
    count, deadline_s, used_s = 0, time.monotonic() + seconds, time.process_time()

    async def work() -> None:
        nonlocal count
        next_s = time.monotonic()
        if rate:  # Not all at once.
            next_s += random.random() * tasks / rate
            await asyncio.sleep(next_s - time.monotonic())
        while (now_s := time.monotonic()) < deadline_s:
            stored = await writer.append(draft(), 30.0)
            count += 1
            if rate or count % 8 == 0:
                samples.append((stored.seq, now_s))
            if rate:
                next_s += tasks / rate
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))

    await asyncio.gather(*(work() for _ in range(tasks)))
    written = Written(count, time.monotonic(), time.process_time() - used_s, samples)
    await writer.aclose(10.0)
    return written


def append_batches(store: Any, seconds: float) -> Written:
    """Append whole batches, as one transaction each."""
    tail, count, samples = WriterTail(WriterId(str(uuid.uuid4()))), 0, []
    deadline_s, used_s = time.monotonic() + seconds, time.process_time()
    while (now_s := time.monotonic()) < deadline_s:
        appended = store.append([draft() for _ in range(MAX_BATCH_RECEIPTS)], tail)
        tail, count = appended.tail, count + MAX_BATCH_RECEIPTS
        samples.append((appended.outcomes[-1].seq, now_s))
    return Written(count, time.monotonic(), time.process_time() - used_s, samples)


def write(url: str, how: str, seconds: float, tasks: int, rate: float, start: Any, results: Any) -> None:
    """Be one writer."""
    store = open_store(url, write_wait_ms=WAIT_MS)
    store.append([draft()], WriterTail(WriterId(str(uuid.uuid4()))))
    start.wait()
    if how == "batches":
        results.put(append_batches(store, seconds))
    else:
        results.put(asyncio.run(append_each(store, seconds, tasks, rate)))
    store.close()


def integrate(url: str, folder: str, start: Any, stop: Any, results: Any) -> None:
    """Be the integrator, with the settings that the admin server has; tell when each head was published."""
    store, key = open_store(url), Path(folder, "keys")
    create_key_file(key, ORIGIN, int(time.time()), os.urandom)
    writer = LogWriter(store, Path(folder, "log"), FileCheckpointSigner(key, lambda: int(time.time())), origin=ORIGIN)
    heads: list[tuple[int, float]] = []
    writer.step()
    start.wait()
    used_s = time.process_time()
    while True:
        stopping, more = stop.is_set(), writer.step()
        if stopping:
            writer.flush()
        if writer.head is not None and (not heads or writer.head.size > heads[-1][0]):
            heads.append((writer.head.size, time.monotonic()))
        if stopping:
            break
        if not more:
            time.sleep(0.05)
    results.put((heads, time.process_time() - used_s))
    writer.close()
    store.close()


def measure(url: str, folder: Path, writers: int, how: str, seconds: float, rate: float = 0.0) -> dict[str, Any]:
    """Run writers and the integrator at once."""
    context = multiprocessing.get_context("spawn")
    start, stop = context.Barrier(writers + 2), context.Event()
    written, integrated = context.Queue(), context.Queue()
    tasks = OUTSTANDING // writers
    load = [
        context.Process(target=write, args=(url, how, seconds, tasks, rate, start, written)) for _ in range(writers)
    ]
    log = context.Process(target=integrate, args=(url, str(folder), start, stop, integrated))
    for process in (*load, log):
        process.start()
    start.wait(JOIN_S)
    began_s = time.monotonic()
    done: list[Written] = [written.get(timeout=seconds + JOIN_S) for _ in load]
    stop.set()
    heads, used_s = integrated.get(timeout=JOIN_S)
    for process in (*load, log):
        process.join(JOIN_S)
    count = sum(each.count for each in done)
    took = [
        (heads[bisect.bisect_left(heads, (seq, 0.0))][1] - at_s) * 1000 for each in done for seq, at_s in each.samples
    ]
    return {
        "durable_per_s": round(count / (max(each.ended_s for each in done) - began_s)),
        "integrated_per_s": round(count / (heads[-1][1] - began_s)),
        "cpu_us_each": round((used_s + sum(each.cpu_s for each in done)) * 1e6 / count, 1),
        "p50_ms": round(statistics.median(took)),
        "p99_ms": round(sorted(took)[int(len(took) * 0.99)]),
    }


def measure_tessera(program: Path, folder: Path, writers: int, seconds: float, batch: int, rate: int) -> dict[str, Any]:
    """Run Tessera's POSIX log from as many processes."""
    folder.mkdir()
    key = subprocess.run([program, "key", ORIGIN], capture_output=True, text=True, check=True).stdout.strip()
    outstanding = OUTSTANDING // writers
    numbers = [str(each) for each in (seconds, ENTRY_BYTES, outstanding, rate, batch)]
    command = [str(program), "add", str(folder), key, *numbers]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(writers)
    ]
    outcomes = [json.loads(each.communicate(timeout=seconds + JOIN_S)[0]) for each in running]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count = sum(each["adds"] for each in outcomes)
    return {
        "durable_per_s": round(count / max(each["seconds"] for each in outcomes)),
        "integrated_per_s": round(count / max(each["published_seconds"] for each in outcomes)),
        "cpu_us_each": round(used_s * 1e6 / count, 1),
        "p50_ms": round(statistics.median(each["p50_ms"] for each in outcomes)),
        "p99_ms": round(max(each["p99_ms"] for each in outcomes)),
        "batch": batch,
    }


def best_of_tessera(program: Path, folder: Path, writers: int, seconds: float) -> dict[str, Any]:
    """Run it with each batch size; give the better run."""
    runs = [
        measure_tessera(program, folder / f"tessera-{writers}-{batch}", writers, seconds, batch, 0)
        for batch in TESSERA_BATCHES
    ]
    return max(runs, key=lambda each: each["integrated_per_s"])


def measure_proofs(log: Path) -> dict[str, Any]:
    """Make and verify inclusion proofs of random entries of the log in `log`."""
    reader, choose = LogReader(log), random.Random(1)
    head = reader.head()
    indexes = [choose.randrange(head.size) for _ in range(PROOFS)]
    began_s = time.perf_counter()
    proofs = [reader.prove_inclusion(index, head) for index in indexes]
    made_s = time.perf_counter()
    for index, each in zip(indexes, proofs, strict=True):
        verify_inclusion(each.leaf, index, head.size, each.proof, head.root)
    verified_s = time.perf_counter()
    reader.close()
    return {
        "log_entries": head.size,
        "proofs_per_s": round(PROOFS / (made_s - began_s)),
        "verified_per_s": round(PROOFS / (verified_s - made_s)),
    }


def measure_pack(folder: Path, receipts: int) -> dict[str, Any]:
    """Pack and verify a day, each in a process of its own."""
    facts: dict[str, dict[str, Any]] = {}
    for step in ("build", "pack", "verify"):
        more = [str(receipts)] if step == "build" else []
        command = [sys.executable, "-m", "tests.support.large_pack", step, str(folder), *more]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        facts[step] = json.loads(done.stdout)
    return {
        "receipts": receipts,
        "pack_bytes": facts["pack"]["bytes"],
        **{f"{step}_s": round(facts[step]["seconds"], 2) for step in ("pack", "verify")},
        **{f"{step}_peak_mib": round(facts[step]["max_rss_mib"]) for step in ("pack", "verify")},
        "verified_per_s": round(receipts / facts["verify"]["seconds"]),
    }


def show(title: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Print one line, where --json does not print. CPU is that of writers and integrator; PostgreSQL's is beside it."""
    sys.stderr.write(f"{title:<38}" + "  ".join(f"{name} {value}" for name, value in numbers.items()) + "\n")
    return numbers


def main() -> int:
    """Measure everything and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--receipts", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    program = build("bench_tessera", Path(__file__).with_name("bench_tessera"))
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="signet-") as name:
        folder, server = Path(name), PostgresServer(Path(name))
        server.start()

        def url_of(kind: str, case: str) -> tuple[str, Path]:
            (folder / case).mkdir()
            return (server.new_database() if kind == "postgresql" else f"sqlite:{folder}/{case}/store"), folder / case

        try:
            for writers in WRITERS:
                theirs = best_of_tessera(program, folder, writers, arguments.seconds)
                report[f"tessera {writers}"] = show(f"Tessera, {writers} writers", theirs)
                for kind, how in itertools.product(("sqlite", "postgresql"), ("each", "batches")):
                    url, place = url_of(kind, f"{kind}-{writers}-{how}")
                    ours = measure(url, place, writers, how, arguments.seconds)
                    ours["ratio"] = round(ours["integrated_per_s"] / theirs["integrated_per_s"], 2)
                    report[f"{kind} {writers} {how}"] = show(f"{kind}, {writers} writers, {how}", ours)
            paced = measure_tessera(program, folder / "paced", 1, arguments.seconds, 256, PACED_PER_S)
            report["tessera paced"] = show(f"Tessera at {PACED_PER_S}/s", paced)
            for kind in ("sqlite", "postgresql"):
                url, place = url_of(kind, f"{kind}-paced")
                ours = measure(url, place, 1, "each", arguments.seconds, PACED_PER_S)
                report[f"{kind} paced"] = show(f"{kind} at {PACED_PER_S}/s", ours)
            report["proofs"] = show("inclusion proofs", measure_proofs(folder / "sqlite-1-batches/log"))
        finally:
            server.stop()
        report["pack"] = show("a day", measure_pack(folder / "day", arguments.receipts))
    if arguments.json:
        print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
