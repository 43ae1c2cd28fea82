"""Reading the audit log back: what it must be before anything is added to it (IDB.md §3.6, G-7, G-13).

`check_log` reads the growing segment, and every full one that the newest signed head does not rest on entirely, and
compares roots with the signed heads; the other full segments are compared by their noted roots, which those heads cover
too. `verify_everything` believes no note and reads it all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kms.audit_anchor import AuditedState
from kms.audit_files import MAX_SEGMENTS, SEGMENT_BITS, SEGMENT_RECORDS, AuditDamaged, AuditFiles
from kms.audit_head import AuditIdentity, head_size, verify_head
from kms.audit_record import NO_PREVIOUS, AuditRecord, AuditRecordError, parse_record, record_hash
from receipts.merkle import CompactTree
from receipts.signed_note import NoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


@dataclass(slots=True)
class AuditTail:
    """Where the log ends, as far as it is whole: all that appending needs."""

    tree: CompactTree
    segment: int = 0
    segment_tree: CompactTree = field(default_factory=CompactTree)
    segment_bytes: int = 0
    previous: str = NO_PREVIOUS
    audited: AuditedState = field(default_factory=AuditedState)

    def add(self, raw: bytes) -> bytes:
        """Count one more record, without its line's end; return its leaf hash."""
        leaf = record_hash(raw)
        self.tree.append(leaf)
        self.segment_tree.append(leaf)
        self.segment_bytes += len(raw) + 1
        self.previous = leaf.hex()
        return leaf

    @property
    def is_full(self) -> bool:
        """Whether the growing segment has all its records."""
        return self.segment_tree.size >= SEGMENT_RECORDS

    def copy(self) -> AuditTail:
        """Return one that grows apart from this."""
        return AuditTail(
            self.tree.copy(),
            self.segment,
            self.segment_tree.copy(),
            self.segment_bytes,
            self.previous,
            dataclasses.replace(self.audited),
        )

    def next_segment(self) -> None:
        """Go on with an empty segment."""
        self.segment += 1
        self.segment_tree, self.segment_bytes = CompactTree(), 0


def check_log(files: AuditFiles, identity: AuditIdentity) -> AuditTail:
    """Find the log's end, having compared it with the newest signed heads. Raises AuditDamaged, StoreUnavailable."""
    count = files.segments()
    heads = _newest_heads(files, identity)
    least = min((size for size in heads if size), default=0)
    first = min(max(count - 1, 0), max(0, least - 1) >> SEGMENT_BITS)
    tail = _tail_after(files, first)
    _read_records(files, tail, range(first, count), heads)
    _compare_length(tail.tree, heads)
    return tail


def check_segment(files: AuditFiles, number: int) -> None:
    """Recompute a full segment by itself, against the root that was noted of it. Raises AuditDamaged."""
    tail = AuditTail(CompactTree())
    for raw in files.read_segment(number).split(b"\n")[:-1]:
        tail.add(raw)
    if tail.tree.root() != files.read_sealed(number).root:
        raise AuditDamaged("segment_changed", "a full segment has another root than was noted")


def verify_everything(
    files: AuditFiles, identity: AuditIdentity, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Recompute the whole log and compare every signed head with it; return how many records there are.

    Heads of earlier epochs are of rollbacks that were accepted; the records tell of them. Raises AuditDamaged.
    """
    heads = _newest_heads(files, identity)
    checkpoints = _Checkpoints(identity, files.read_checkpoints())
    tail = _tail_after(files, 0)
    count = files.segments()
    for number in range(count):
        checkpoints.add_up_to((number + 1) << SEGMENT_BITS, heads)
        noted = files.read_sealed(number) if number < count - 1 else None
        root = _read_records(files, tail, range(number, number + 1), heads, last=number == count - 1)
        if noted is not None and noted.root != root:
            raise AuditDamaged("segment_changed", "a full segment has another root than was noted")
        # What was compared is let go of, but for the newest: there are more checkpoints than memory has room for.
        heads = {size: signed for size, signed in heads.items() if size >= tail.tree.size}
        progress(tail.tree.size)
    checkpoints.add_up_to(MAX_SEGMENTS << SEGMENT_BITS, heads)
    _compare_length(tail.tree, heads)
    return tail.tree.size


class _Checkpoints:
    """The signed checkpoints beside the records that they are of: both are read once, in one order."""

    def __init__(self, identity: AuditIdentity, notes: Iterator[bytes]) -> None:
        self._heads = (_sized(identity, note) for note in notes)
        self._next = next(self._heads, None)

    def add_up_to(self, size: int, heads: dict[int, bytes]) -> None:
        """Add the roots of the checkpoints up to that of `size` records. Raises AuditDamaged."""
        while self._next is not None and self._next[0] <= size:
            former, self._next = self._next, next(self._heads, None)
            if heads.setdefault(*former) != former[1]:
                raise AuditDamaged("checkpoint", "two signed heads of one size contradict each other")
            if self._next is not None and self._next[0] < former[0]:
                raise AuditDamaged("checkpoint", "the signed checkpoints are not in their order")


def readable_tail(files: AuditFiles, seen: Callable[[AuditRecord], None] = lambda _: None) -> AuditTail:
    """Find how far the records are whole, whatever was signed: what an accepted rollback goes on from.

    `seen` gets each of these records.
    """
    tail = AuditTail(CompactTree())
    for number in range(MAX_SEGMENTS):
        try:
            data = files.read_segment(number)
        except AuditDamaged:
            break
        if tail.is_full:
            tail.next_segment()
        try:
            _read_segment(data, tail, {}, last=True, seen=seen)
        except AuditDamaged:
            break
        if not tail.is_full:
            break
    return tail


def _newest_heads(files: AuditFiles, identity: AuditIdentity) -> dict[int, bytes]:
    """Give the roots that must come out, by size: those of the newest head and of the newest checkpoint."""
    found: dict[int, bytes] = {}
    verified = []
    for note in files.read_heads():
        try:
            verified.append(verify_head(identity, note))
        except NoteError:
            continue  # The other slot is whole: this one was being written when the machine stopped.
    if not verified:
        raise AuditDamaged("head", "the newest signed head is gone or does not verify")
    newest = max(verified, key=lambda head: head.size)
    found[newest.size] = newest.root
    checkpoint = files.newest_checkpoint()
    if checkpoint is None:
        raise AuditDamaged("checkpoint", "the signed checkpoints are gone")
    size, root = _sized(identity, checkpoint)
    if found.setdefault(size, root) != root:
        raise AuditDamaged("checkpoint", "two signed heads of one size contradict each other")
    return found


def _sized(identity: AuditIdentity, note: bytes) -> tuple[int, bytes]:
    try:
        head = verify_head(identity, note)
    except NoteError as error:
        raise AuditDamaged("checkpoint", f"the checkpoint of size {head_size(note)} does not verify") from error
    return head.size, head.root


def _tail_after(files: AuditFiles, segments: int) -> AuditTail:
    """Begin after so many full segments, taking their roots as they were noted."""
    above = CompactTree()
    for number in range(segments):
        above.append(files.read_sealed(number).root)
    # The roots of equal full subtrees make the same peaks as their leaves.
    tail = AuditTail(CompactTree(segments << SEGMENT_BITS, above.peaks), segment=segments)
    if segments:
        # What older records say of the key store, the first record of every later segment says again.
        last = files.read_segment(segments - 1).rstrip(b"\n").rpartition(b"\n")[2]
        tail.previous = record_hash(last).hex()
    return tail


def _read_records(
    files: AuditFiles, tail: AuditTail, numbers: Sequence[int], heads: Mapping[int, bytes], *, last: bool = True
) -> bytes:
    """Read segments in order, compare roots where `heads` says; return the root over the last one read."""
    _compare(tail.tree, heads)
    for number in numbers:
        if tail.is_full:
            tail.next_segment()
        _read_segment(files.read_segment(number), tail, heads, last=last and number == numbers[-1])
    return tail.segment_tree.root()


def _compare_length(tree: CompactTree, heads: Mapping[int, bytes]) -> None:
    signed = max(heads, default=0)
    if signed > tree.size:
        raise AuditDamaged("truncated", f"{signed} records were signed, {tree.size} are there")


def _read_segment(
    data: bytes,
    tail: AuditTail,
    heads: Mapping[int, bytes],
    *,
    last: bool,
    seen: Callable[[AuditRecord], None] = lambda _: None,
) -> None:
    lines = data.split(b"\n")
    # What follows the last line's end was being written when the machine stopped; it was never answered.
    if lines.pop() and not last:
        raise AuditDamaged("segment_changed", "a full segment ends in the middle of a record")
    for raw in lines:
        record = _parse(raw)
        if record.seq != tail.tree.size or record.prev != tail.previous:
            raise AuditDamaged("chain", f"record {tail.tree.size} does not follow the one before")
        tail.add(raw)
        tail.audited.add(record.op, record.detail)
        seen(record)
        _compare(tail.tree, heads)
    if not last and not tail.is_full:
        raise AuditDamaged("segment_changed", "a full segment lacks records")


def _compare(tree: CompactTree, heads: Mapping[int, bytes]) -> None:
    signed = heads.get(tree.size)
    if signed is not None and signed != tree.root():
        raise AuditDamaged("root", f"the first {tree.size} records lead to another root than was signed")


def _parse(raw: bytes) -> AuditRecord:
    try:
        return parse_record(raw)
    except AuditRecordError as error:
        raise AuditDamaged("record", "a record is not as it was written") from error
