"""Signed tree heads: each one a checkpoint note, chained to the one before it.

In `sth.json` a head is an object of `note` (text), `size`, `root` (base64, as in the note), `time` (POSIX seconds,
as the cosignature states it), `prev` (lower hex of `note_hash` of the note before; null for the first) and
`consistency` (base64 hashes from the size before to this one). Everything but the note follows from the notes and
the tree: verifiers recompute it.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from receipts.checkpoint import TreeHead, VerifiedCheckpoint, verify_checkpoint
from receipts.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE, ProofError
from receipts.merkle_verify import verify_consistency
from receipts.signed_note import MAX_NOTE_BYTES, NoteFormatError, NoteVerifier, decode_base64

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CONSISTENCY_HASHES: Final = 64

_Hash = Annotated[str, Meta(min_length=44, max_length=44)]


class HeadChainBroken(ValueError):
    """A tree head is missing, was changed, or contradicts another one or its own note."""


@dataclass(frozen=True, slots=True)
class SignedTreeHead:
    """One head as stored. `number`: from 1 without a gap. `prev` and `consistency` refer to the head before it."""

    number: int
    note: bytes
    size: int
    root: bytes
    time_s: int
    prev: bytes | None
    consistency: tuple[bytes, ...]

    def entry(self) -> dict[str, Any]:
        """Give the head as the object that `sth.json` lists."""
        return {
            "note": self.note.decode(),
            "size": self.size,
            "root": _base64(self.root),
            "time": self.time_s,
            "prev": None if self.prev is None else self.prev.hex(),
            "consistency": [_base64(each) for each in self.consistency],
        }


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    note: Annotated[str, Meta(max_length=MAX_NOTE_BYTES)]
    size: Annotated[int, Meta(ge=0, le=MAX_TREE_SIZE)]
    root: _Hash
    time: Annotated[int, Meta(ge=0, le=MAX_TREE_SIZE)]
    prev: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None
    consistency: Annotated[tuple[_Hash, ...], Meta(max_length=MAX_CONSISTENCY_HASHES)]


def note_hash(note: bytes) -> bytes:
    """Hash a head's note for the `prev` of the next: SHA-256, 32 bytes."""
    return hashlib.sha256(note).digest()


def parse_sth_entry(entry: object, number: int) -> SignedTreeHead:
    """Read an object of `sth.json`; `number` is its place there, from 1. Verifies nothing.

    Raises HeadChainBroken when it has not exactly the members and types of a head.
    """
    try:
        checked = msgspec.convert(entry, _Entry)
        return SignedTreeHead(
            number=number,
            note=checked.note.encode(),
            size=checked.size,
            root=_decoded(checked.root),
            time_s=checked.time,
            prev=None if checked.prev is None else bytes.fromhex(checked.prev),
            consistency=tuple(_decoded(each) for each in checked.consistency),
        )
    except (msgspec.MsgspecError, NoteFormatError, UnicodeEncodeError) as error:
        raise HeadChainBroken(f"head {number} has not the form of one") from error


class HeadChainVerifier:
    """Checks heads in order: signatures, sizes, times, `prev` and consistency.

    `after`: a head that is trusted already, from which the first one must go on; without it, the first must be
    the log's first.
    """

    def __init__(self, origin: str, verifiers: Sequence[NoteVerifier], after: SignedTreeHead | None = None) -> None:
        self._origin = origin
        self._verifiers = verifiers
        self._last = after

    def add(self, head: SignedTreeHead) -> VerifiedCheckpoint:
        """Check that `head` is the next one, and return its checkpoint.

        Raises HeadChainBroken, NoteError, merkle.ProofError.
        """
        checkpoint = verify_head(head, self._origin, self._verifiers)
        last = self._last
        number, size, root, time_s = (0, 0, EMPTY_ROOT, 0) if last is None else _facts(last)
        prev = None if last is None else note_hash(last.note)
        if head.number != number + 1 or head.prev != prev:
            raise HeadChainBroken(f"head {head.number} does not follow head {number}")
        if head.time_s < time_s:
            raise HeadChainBroken(f"head {head.number} is earlier than the one before it")
        try:
            verify_consistency(size, head.size, root, head.root, head.consistency)
        except ProofError as error:
            raise HeadChainBroken(f"head {head.number} does not go on from head {number}: {error}") from error
        self._last = head
        return checkpoint


def verify_head(head: SignedTreeHead, origin: str, verifiers: Sequence[NoteVerifier]) -> VerifiedCheckpoint:
    """Check one head by itself: its note's signatures, and that it says what its note says.

    Raises HeadChainBroken, NoteError.
    """
    checkpoint = verify_checkpoint(head.note, verifiers, origin)
    same_root = hmac.compare_digest(head.root, checkpoint.head.root)
    if not same_root or (head.size, head.time_s) != (checkpoint.head.size, checkpoint.time_s):
        raise HeadChainBroken(f"head {head.number} does not say what its note says")
    return checkpoint


def tree_head(head: SignedTreeHead | None, origin: str) -> TreeHead:
    """Give the tree head that a signed one states; without one, that of the empty tree."""
    return TreeHead(origin, 0, EMPTY_ROOT) if head is None else TreeHead(origin, head.size, head.root)


def _facts(head: SignedTreeHead) -> tuple[int, int, bytes, int]:
    return head.number, head.size, head.root, head.time_s


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


def _decoded(text: str) -> bytes:
    value = decode_base64(text.encode())
    if len(value) != HASH_BYTES:
        raise NoteFormatError("not a hash")
    return value
