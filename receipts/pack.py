"""Compliance packs: one UTC day of the log as a zip that verifies offline (docs/reference/pack.md).

`plan_pack` decides what is in it and raises what can be wrong with the question; `stream_pack` then writes it
from its first byte to its last, in memory that does not grow with the day.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receipts.canonical_json import canonical
from receipts.checkpoint import parse_checkpoint
from receipts.checkpoint_jwks import verifier_jwks
from receipts.log_errors import EntryUnknown
from receipts.log_notes import Handout, LogNotes
from receipts.merkle import EMPTY_ROOT
from receipts.pack_cbom import cbom
from receipts.pack_errors import PackDateError, PackTooLarge
from receipts.pack_parts import (
    Predecessors,
    base64_text,
    consistency_json,
    inclusion_proof,
    receipt_lines,
    rotation_lines,
    sth_json,
)
from receipts.pack_readme import readme
from receipts.pack_zip import ZipStream
from receipts.signed_note import parse_note
from receipts.tile import tile_of
from receipts.verify import (
    DAY_S,
    FORMAT,
    MANIFEST,
    MAX_RECEIPTS,
    PREDECESSORS,
    RECEIPTS,
    sample_indexes,
    sample_name,
    tile_name,
    tile_places,
)
from receipts.verify import __file__ as verifier_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from receipts.log_reader import LogReader
    from receipts.lookup import ReceiptLookup
    from receipts.signed_note import VerifierKey
    from receipts.sth import SignedTreeHead
    from receipts.store import ReceiptStore

MAX_POLICY_BYTES: Final = 64 * 1024 * 1024
DEFAULT_REQUEST_ALGORITHMS: Final = ("ed25519", "ecdsa-p256-sha256")


@dataclass(frozen=True, slots=True)
class PackSource:
    """What a pack is made from.

    `keys`: every key that may have signed a head. `policy`: the policy bundle in force; receipts carry its SHA-256
    as `policy.digest`. `request_algorithms`: what requests may be signed with, for the bill of materials.
    """

    store: ReceiptStore
    lookup: ReceiptLookup
    reader: LogReader
    notes: LogNotes
    keys: tuple[VerifierKey, ...]
    policy: bytes
    request_algorithms: tuple[str, ...] = DEFAULT_REQUEST_ALGORITHMS


@dataclass(frozen=True, slots=True)
class PackPlan:
    """What is in a pack: the entries from `start` to before `head.size`.

    `opening`: the last head before the day; `head`: the day's last, the pack's checkpoint; `closing`: the first head
    after the day, which shows that the day is complete.
    """

    date: str
    origin: str
    opening: SignedTreeHead | None
    head: SignedTreeHead
    closing: SignedTreeHead | None
    created_s: int

    @property
    def start(self) -> int:
        """The first entry's index."""
        return 0 if self.opening is None else self.opening.size

    @property
    def end(self) -> int:
        """The index after the last entry's."""
        return self.head.size

    @property
    def complete(self) -> bool:
        """Whether no entry can come to this day any more."""
        return self.closing is not None


def parse_day(text: str) -> int:
    """Read a date as YYYY-MM-DD; return the day's first second, POSIX. Raises PackDateError."""
    try:
        day = dt.date.fromisoformat(text)
    except ValueError as error:
        raise PackDateError("the date is not one in the form YYYY-MM-DD") from error
    if day.isoformat() != text or day.year < 1970:
        raise PackDateError("the date is not one in the form YYYY-MM-DD")
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp())


def plan_pack(source: PackSource, date: str, now_s: int) -> PackPlan:
    """Find the heads between which the UTC day `date` lies; `now_s`: POSIX seconds.

    An entry belongs to the day in which the first head that has it was signed. Raises PackDateError, PackTooLarge,
    StoreError.
    """
    day_s = parse_day(date)
    if day_s > now_s:
        raise PackDateError(f"{date} has not begun yet")
    heads = source.reader.heads
    head = heads.at_or_before(day_s + DAY_S - 1)
    if head is None:
        first = heads.read(0, 1)
        if not first:
            raise EntryUnknown("the log has no head yet")
        began = dt.datetime.fromtimestamp(first[0].time_s, dt.UTC).date()
        raise PackDateError(f"the log began on {began}, after {date}")
    opening = heads.at_or_before(day_s - 1)
    after = heads.read(head.number, 1)
    plan = PackPlan(
        date=date,
        origin=parse_checkpoint(parse_note(head.note).text).origin,
        opening=opening,
        head=head,
        closing=after[0] if after else None,
        created_s=now_s,
    )
    if plan.end - plan.start > MAX_RECEIPTS:
        raise PackTooLarge(f"the day has {plan.end - plan.start} receipts, a pack holds {MAX_RECEIPTS}")
    return plan


def stream_pack(
    source: PackSource, plan: PackPlan, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> Iterator[bytes]:
    """Write the pack, piece by piece; remember it as handed out once the last piece was taken.

    `progress` is told receipts done and all. Raises StoreError in the middle when the store or the log fails; the
    zip then has no end, and no verifier takes it.
    """
    zip_ = ZipStream()
    yield from _leading_members(source, plan, zip_)
    nodes = source.reader.nodes(plan.end)
    for place in tile_places(plan.start, plan.end):
        tile = tile_of(*place[:2], plan.end)
        yield from zip_.add(tile_name(*place), [source.reader.tile(tile)], packed=False)
    for index in sample_indexes(plan.start, plan.end, plan.head.root):
        yield from zip_.add(sample_name(index), [inclusion_proof(nodes, index, plan.head)])
    firsts = Predecessors(source.lookup, plan.start)
    yield from zip_.add(
        RECEIPTS, receipt_lines(source.store, nodes, plan.start, plan.end, firsts, progress), large=True
    )
    yield from zip_.add(PREDECESSORS, firsts.lines(nodes, plan.end))
    yield from zip_.add(MANIFEST, [_manifest(plan, zip_, firsts.pruned, _last_handout(source, plan))], packed=False)
    yield from zip_.finish()
    source.notes.add_handout(Handout(plan.date, plan.end, plan.head.root.hex()))


def write_pack(
    source: PackSource, plan: PackPlan, path: Path, progress: Callable[[int, int], None] = lambda _done, _all: None
) -> int:
    """Write the pack to `path`, which appears only once it is whole; return its size in bytes.

    Raises OSError, and what `stream_pack` raises.
    """
    unfinished = path.with_name(f"{path.name}.part")
    size = 0
    try:
        with unfinished.open("wb") as file:
            for piece in stream_pack(source, plan, progress):
                size += file.write(piece)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return size


def _leading_members(source: PackSource, plan: PackPlan, zip_: ZipStream) -> Iterator[bytes]:
    head, keys = plan.head, source.keys
    signed_by = {(line.name, line.key_id) for line in parse_note(head.note).signatures}
    signing = [key for key in keys if (key.name, key.key_id) in signed_by]
    serial = hashlib.sha256(f"{plan.origin}\n{plan.date}\n".encode() + head.root).digest()
    bill = cbom(
        plan.origin,
        keys,
        signing,
        request_algorithms=source.request_algorithms,
        policy=source.policy,
        made_s=plan.head.time_s,
        serial=serial,
    )
    policy = hashlib.sha256(source.policy).hexdigest()
    text = readme(plan.date, plan.origin, complete=plan.complete)
    for name, data in (
        ("README", text.encode()),
        ("verify.py", _verifier()),
        ("checkpoint", head.note),
        ("keys/jwks.json", canonical(verifier_jwks(keys)) + b"\n"),
        ("keys/verifier-keys.txt", "".join(f"{key.text}\n" for key in keys).encode()),
    ):
        yield from zip_.add(name, [data])
    yield from zip_.add("keys/rotations.jsonl", rotation_lines(source.reader, source.notes.rotations(), head))
    yield from zip_.add("policy/bundle", [source.policy])
    yield from zip_.add("policy/digest", [f"{policy}\n".encode()])
    yield from zip_.add("cbom.json", [bill])
    yield from zip_.add("sth.json", sth_json(source.reader.heads, plan.opening, head, plan.closing), large=True)
    proofs = consistency_json(source.reader.nodes(plan.end), _joined_sizes(source, plan), head)
    yield from zip_.add("proofs/consistency.json", [proofs])


def _joined_sizes(source: PackSource, plan: PackPlan) -> Sequence[int]:
    """Name the sizes that a consistency proof leads from: the day's start and the packs handed out."""
    sizes = {each.size for each in source.notes.handouts() if each.size < plan.end}
    return sorted(sizes | ({plan.start} if 0 < plan.start < plan.end else set()))


def _last_handout(source: PackSource, plan: PackPlan) -> Handout | None:
    """Find the pack handed out last that this one goes on from."""
    earlier = [each for each in source.notes.handouts() if each.size <= plan.end]
    return earlier[-1] if earlier else None


def _manifest(plan: PackPlan, zip_: ZipStream, pruned: int, last: Handout | None) -> bytes:
    since = None if last is None else {"size": last.size, "root": base64_text(bytes.fromhex(last.root))}
    manifest = {
        "format": FORMAT,
        "origin": plan.origin,
        "date": plan.date,
        "complete": plan.complete,
        "created_s": plan.created_s,
        "start": plan.start,
        "end": plan.end,
        "root": base64_text(plan.head.root if plan.end else EMPTY_ROOT),
        "receipts": plan.end - plan.start,
        "pruned": pruned,
        "since": since,
        "files": [{"name": each.name, "bytes": each.size, "sha256": each.sha256} for each in zip_.files],
    }
    return canonical(manifest) + b"\n"


def _verifier() -> bytes:
    from pathlib import Path

    return Path(verifier_path).read_bytes()
