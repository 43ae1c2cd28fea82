"""A large day in three processes, so that each one's memory can be measured: build a store, pack it, verify the pack.

`python -m tests.support.large_pack build|pack|verify FOLDER [RECEIPTS]` prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from receipts import verify
from receipts.log import LogSettings
from receipts.log_notes import LogNotes
from receipts.lookup_sqlite import SqliteLookup
from receipts.pack import PackSource, plan_pack, write_pack
from receipts.receipt import leaf_hash
from tests.support.log_parts import NOW_S, LogParts
from tests.support.pack_parts import DAY_S, POLICY, day

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITERS: Final = [str(uuid.UUID(int=number, version=4)) for number in range(4)]
_EXAMPLE: Final = Path(__file__).resolve().parents[1] / "vectors/receipts/decision.json"
_INSERT: Final = """
    INSERT INTO receipts (seq, id, writer, wseq, time_ms, kind, trace_id, decision, reason, leaf_hash, raw)
    VALUES (?, ?, ?, ?, ?, 'decision', ?, 'allow', 'allowed', ?, ?)
"""


def build(folder: Path, count: int) -> dict[str, Any]:
    """Make a store of `count` receipts like the documented example, and the log of a finished day."""
    parts = LogParts(folder, settings=LogSettings())
    connection = sqlite3.connect(folder / "receipts.sqlite3")
    connection.execute("PRAGMA synchronous = OFF")
    with connection:
        connection.executemany(_INSERT, _rows(count))
    connection.close()
    writer = parts.writer()
    writer.flush()
    parts.clock.seconds += DAY_S
    writer.step()
    parts.close()
    return {"receipts": count}


def _rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Every digest differs, so that nothing packs better than it would in earnest."""
    encode = msgspec.json.Encoder(order="sorted").encode
    receipt = json.loads(_EXAMPLE.read_bytes())
    proof, signature = receipt["proof"], receipt["proof"]["signatures"][0]
    tails: dict[str, tuple[int, str | None]] = {}
    for number in range(count):
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        writer = WRITERS[number % len(WRITERS)]
        wseq, prev = tails.get(writer, (0, None))
        proof.update(challenge_sha256=digest, binding_sha256=digest[::-1], spend_key=None)
        signature.update(base_sha256=digest[8:] + digest[:8], signature_sha256=digest[::-1])
        receipt.update(
            id=f"019aa56d-{digest[:4]}-7{digest[4:7]}-8{digest[7:10]}-{number:012x}",
            time_ms=NOW_S * 1000 + number,
            trace_id=digest[:32],
            writer=writer,
            wseq=wseq + 1,
            prev=prev,
        )
        raw = encode(receipt)
        leaf = leaf_hash(raw)
        tails[writer] = wseq + 1, leaf.hex()
        yield number + 1, receipt["id"], writer, wseq + 1, receipt["time_ms"], receipt["trace_id"], leaf, raw


def pack(folder: Path) -> dict[str, Any]:
    """Pack the day."""
    parts = LogParts(folder)
    source = PackSource(
        store=parts.store,
        lookup=SqliteLookup(folder / "receipts.sqlite3"),
        reader=parts.reader(),
        notes=LogNotes(parts.log_folder),
        keys=parts.signer.verifier_keys(),
        policy=POLICY,
    )
    size = write_pack(source, plan_pack(source, day(0), NOW_S + DAY_S), folder / "pack.zip")
    parts.close()
    return {"bytes": size}


def check(folder: Path) -> dict[str, Any]:
    """Verify the pack."""
    return {"receipts": verify.verify_file(folder / "pack.zip").receipts}


def peak_rss_mib() -> float:
    """Give this program's own peak. The kernel's ru_maxrss would count what the parent held when it forked."""
    found = re.search(r"VmHWM:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Run one step and print what it took: seconds of wall and processor, MiB of memory at the most."""
    step, folder = sys.argv[1], Path(sys.argv[2])
    begun, used = time.perf_counter(), time.process_time()
    facts = build(folder, int(sys.argv[3])) if step == "build" else {"pack": pack, "verify": check}[step](folder)
    facts["seconds"] = time.perf_counter() - begun
    facts["processor_seconds"] = time.process_time() - used
    facts["max_rss_mib"] = peak_rss_mib()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
