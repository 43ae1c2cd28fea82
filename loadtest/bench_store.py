"""What a durable receipt costs in each store: receipts per second and CPU of this process, by batch and by writers.

    python loadtest/bench_store.py [--seconds 3]

PostgreSQL (a cluster of its own, fsync on, UNIX socket) and SQLite write to the same disk in the same run. CPU is that
of the writing process alone, sealing included; PostgreSQL's own is beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from receipts.facts import request_facts
from receipts.open_store import open_store
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ID_RANDOM_BYTES, WriterId, new_receipt_id
from receipts.store import WriterTail
from tests.support.postgres_server import PostgresServer

BATCHES = (1, 16, 100)
WRITERS = (1, 4)
WAIT_MS = 10_000


def draft() -> ReceiptDraft:
    """Make a decision receipt of about 1.3 KB with an idempotency key, as the filter does for each request."""
    time_ms = time.time_ns() // 1_000_000
    return ReceiptDraft(
        kind="decision",
        id=new_receipt_id(time_ms, os.urandom(ID_RANDOM_BYTES)),
        time_ms=time_ms,
        trace_id=os.urandom(16).hex(),
        request=request_facts(method="GET", authority="example.com", target="/" + "x" * 900, content="none"),
        decision="deny",
        reason="bad_signature",
        status=401,
        idempotency_key=time_ms.to_bytes(8, "big") + os.urandom(24),
    )


def write(url: str, batch: int, seconds: float, start: multiprocessing.synchronize.Barrier) -> tuple[int, float]:
    """Append for `seconds`; return receipts and CPU seconds used."""
    store = open_store(url, write_wait_ms=WAIT_MS)
    tail = WriterTail(WriterId(str(uuid.uuid4())))
    tail = store.append([draft()], tail).tail
    start.wait()
    before, deadline, count = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        tail = store.append([draft() for _ in range(batch)], tail).tail
        count += batch
    after = resource.getrusage(resource.RUSAGE_SELF)
    store.close()
    return count, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(url: str, batch: int, seconds: float, start: object, results: object) -> None:
    results.put(write(url, batch, seconds, start))  # type: ignore[attr-defined, arg-type]


def measure(url: str, batch: int, writers: int, seconds: float) -> dict[str, float]:
    """Run `writers` processes at once; give receipts per second of them all, and microseconds for each receipt."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(writers), context.Queue()
    processes = [context.Process(target=_run, args=(url, batch, seconds, start, results)) for _ in range(writers)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=seconds + 60) for _ in processes]
    for process in processes:
        process.join(30)
    count = sum(each[0] for each in outcomes)
    return {
        "receipts_per_s": round(count / seconds),
        "us_each": round(seconds * 1e6 / count, 1),
        "cpu_us_each": round(sum(each[1] for each in outcomes) * 1e6 / count, 1),
    }


def main() -> int:
    """Measure both stores and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            for writers, batch in itertools.product(WRITERS, BATCHES):
                for kind in ("sqlite", "postgresql"):
                    url = (
                        server.new_database() if kind == "postgresql" else f"sqlite:{folder}/{writers}-{batch}.sqlite3"
                    )
                    numbers = measure(url, batch, writers, arguments.seconds)
                    rows.append({"store": kind, "writers": writers, "batch": batch} | numbers)
                    if not arguments.json:
                        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        finally:
            server.stop()
    if arguments.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
