"""Compliance packs to verify and to tamper with: made by the real log, taken apart, and put together again."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import json
import zipfile
from typing import TYPE_CHECKING, Any, cast

from receipts.facts import PolicyFacts, request_facts
from receipts.log import LogSettings
from receipts.log_notes import LogNotes
from receipts.log_reader import LogReader
from receipts.lookup_sqlite import SqliteLookup
from receipts.pack import PackSource, plan_pack, stream_pack
from receipts.pack_zip import ZipStream
from receipts.receipt import ReceiptDraft, leaf_hash, seal
from receipts.receipt_id import ReceiptId, WriterId, new_receipt_id
from receipts.store import StoredReceipt
from receipts.verify import MANIFEST
from tests.support.log_parts import NOW_S, LogParts
from tests.support.scan_lookup import ScanLookup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from receipts.lookup import ReceiptLookup
    from receipts.store import ReceiptStore

DAY_S = 86_400
POLICY = b'{"protected":["build-robot"]}'
WRITERS = [WriterId(f"7c9e6679-7425-40de-944b-e07fc1f90a{number:02x}") for number in range(4)]
Members = dict[str, bytes]


def day(offset: int = 0) -> str:
    """The date `offset` days after the log's clock began."""
    return dt.datetime.fromtimestamp(NOW_S + offset * DAY_S, dt.UTC).date().isoformat()


def trace_id(trace: int) -> str:
    return hashlib.sha256(b"trace %d" % trace).hexdigest()[:32]


def decision(number: int, *, trace: int = 0, time_ms: int = NOW_S * 1000) -> ReceiptDraft:
    """A decision with a double, a character outside ASCII, and an id of its own."""
    return ReceiptDraft(
        kind="decision",
        id=new_receipt_id(time_ms, hashlib.sha256(b"decision %d" % number).digest()[:10]),
        time_ms=time_ms,
        trace_id=trace_id(trace),
        request=request_facts(
            method="GET", authority="api.example.com", target=f"/protected/é{number}", content="none"
        ),
        decision="deny" if number % 5 == 4 else "allow",
        reason="bad_signature" if number % 5 == 4 else "allowed",
        status=401 if number % 5 == 4 else None,
        route="protected",
        policy=PolicyFacts(hashlib.sha256(POLICY).hexdigest(), {"load": 1e-7 * (number % 3), "number": number}),
    )


class PackParts:
    """A log, and packs of it."""

    def __init__(self, folder: Path) -> None:
        self.log = LogParts(folder, settings=LogSettings(max_batch_receipts=40))
        self.writer = self.log.writer()
        self.count = 0
        self._lookup = SqliteLookup(folder / "receipts.sqlite3")

    def add(self, count: int, writer: int = 0) -> None:
        """Store decisions of one writer, integrate them."""
        name = WRITERS[writer]
        tail = self.log.store.writer_tail(name)
        now_ms = self.log.clock.now_s() * 1000
        drafts = [decision(self.count + n, trace=(self.count + n) // 3, time_ms=now_ms) for n in range(count)]
        for start in range(0, count, 200):
            tail = self.log.store.append(drafts[start : start + 200], tail).tail
        self.count += count
        self.writer.flush()

    def next_day(self) -> None:
        self.log.clock.seconds += DAY_S
        self.writer.step()

    def source(self, **changes: Any) -> PackSource:
        parts: dict[str, Any] = {
            "store": self.log.store,
            "lookup": self._lookup,
            "reader": self.log.reader(),
            "notes": LogNotes(self.log.log_folder),
            "keys": self.log.signer.verifier_keys(),
            "policy": POLICY,
        }
        return PackSource(**(parts | changes))

    def pack(self, offset: int = 0, **changes: Any) -> bytes:
        source = self.source(**changes)
        return b"".join(stream_pack(source, plan_pack(source, day(offset), self.log.clock.now_s())))

    def close(self) -> None:
        self._lookup.close()
        self.log.close()


class ListStore:
    """A store that holds whatever entries it is given: the log of an operator who cheats, with the operator's keys.

    `hides_predecessors`: packs of it show no receipt before a day's first ones.
    """

    def __init__(self, raws: Sequence[bytes], *, hides_predecessors: bool) -> None:
        self.raws = list(raws)
        self.hides_predecessors = hides_predecessors

    def read(self, after_seq: int, limit: int) -> list[StoredReceipt]:
        return [self._stored(at) for at in range(after_seq, min(after_seq + limit, len(self.raws)))]

    def latest(self, limit: int) -> list[StoredReceipt]:
        return [self._stored(at) for at in range(len(self.raws) - 1, max(-1, len(self.raws) - 1 - limit), -1)]

    def _stored(self, at: int) -> StoredReceipt:
        try:
            value = json.loads(self.raws[at])
            facts = str(value["id"]), str(value["writer"]), int(value["wseq"])
        except (ValueError, KeyError, TypeError, RecursionError):
            facts = f"none-{at}", WRITERS[0], 1
        if self.hides_predecessors:
            facts = facts[0], facts[1], 1
        return StoredReceipt(ReceiptId(facts[0]), at + 1, WriterId(facts[1]), facts[2], self.raws[at], None, None, None)


def chain(count: int, writer: int = 0, first: int = 0) -> list[bytes]:
    """Receipts of one writer, one after the other."""
    raws: list[bytes] = []
    for number in range(count):
        prev = leaf_hash(raws[-1]) if raws else None
        raws.append(seal(decision(first + number), WRITERS[writer], number + 1, prev))
    return raws


def pack_of(
    folder: Path, raws: Sequence[bytes], *, days: Sequence[int] = (), offset: int = 0, hides: bool = False
) -> bytes:
    """Make a log of these entries with true signatures, and the pack of one of its days.

    `days`: how many entries the log has at the end of each day but the last. `hides`: see `ListStore`.
    """
    parts = LogParts(folder, settings=LogSettings(max_batch_receipts=1000))
    store = ListStore([], hides_predecessors=hides)
    parts.store = cast("Any", store)
    writer = parts.writer()
    for count in (*days, len(raws)):
        store.raws[:] = raws[:count]
        writer.flush()
        parts.clock.seconds += DAY_S
        writer.step()
    shown = cast("ReceiptStore", store)
    source = PackSource(
        store=shown,
        lookup=cast("ReceiptLookup", ScanLookup(shown)),
        reader=LogReader(parts.log_folder),
        notes=LogNotes(parts.log_folder),
        keys=parts.signer.verifier_keys(),
        policy=POLICY,
    )
    data = b"".join(stream_pack(source, plan_pack(source, day(offset), parts.clock.now_s())))
    source.reader.close()
    parts.close()
    return data


def unpack(data: bytes) -> Members:
    """Take a pack apart, in order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def repack(members: Mapping[str, bytes], change: Callable[[dict[str, Any]], None] = lambda _: None) -> bytes:
    """Put a pack together with a manifest that fits its members, once `change` had its way with it."""
    stream, out = ZipStream(), []
    for name, data in members.items():
        if name != MANIFEST:
            out += list(stream.add(name, [data], large=name == "receipts.jsonl"))
    if MANIFEST in members:
        manifest = json.loads(members[MANIFEST])
        manifest["files"] = [{"name": each.name, "bytes": each.size, "sha256": each.sha256} for each in stream.files]
        change(manifest)
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        out += list(stream.add(MANIFEST, [text.encode() + b"\n"], packed=False))
    return b"".join([*out, *stream.finish()])
