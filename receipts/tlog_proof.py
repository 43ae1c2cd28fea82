"""Offline proofs, C2SP tlog-proof: an index, an inclusion proof, and the checkpoint that it leads to."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receipts.checkpoint import HEAD_SIGNATURE_TYPES, VerifiedCheckpoint, verify_checkpoint
from receipts.merkle import HASH_BYTES, MAX_TREE_SIZE
from receipts.merkle_verify import verify_inclusion
from receipts.signed_note import MAX_NOTE_BYTES, NoteError, NoteVerifier, decode_base64

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

HEADER: Final = b"c2sp.org/tlog-proof@v1"
MAX_PROOF_HASHES: Final = 63
"""An inclusion proof in a tree of `MAX_TREE_SIZE` leaves."""
MAX_EXTRA_BYTES: Final = 64 * 1024
MAX_TLOG_PROOF_BYTES: Final = MAX_NOTE_BYTES + 2 * MAX_EXTRA_BYTES

_INDEX: Final = re.compile(rb"index (0|[1-9][0-9]{0,18})")
_EXTRA_START: Final = b"extra "


class TlogProofError(ValueError):
    """The bytes are not a tlog-proof."""


@dataclass(frozen=True, slots=True)
class TlogProof:
    """A proof as parsed: nothing in it is verified.

    `index`: of the entry in the log, from 0. `proof`: hashes of 32 bytes, the leaf's sibling first.
    `checkpoint`: a signed note. `extra`: anything but nothing; no signature covers it.
    """

    index: int
    proof: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes | None = None

    @property
    def data(self) -> bytes:
        """The proof as it is stored in a `.tlog-proof` file."""
        lines = [HEADER]
        if self.extra:
            lines.append(_EXTRA_START + binascii.b2a_base64(self.extra, newline=False))
        lines.append(b"index %d" % self.index)
        lines += [binascii.b2a_base64(each, newline=False) for each in self.proof]
        return b"\n".join((*lines, b"", self.checkpoint))


def parse_tlog_proof(data: bytes) -> TlogProof:
    """Read a proof, C2SP tlog-proof; verifies nothing. Raises TlogProofError; the checkpoint is not looked at."""
    if len(data) > MAX_TLOG_PROOF_BYTES:
        raise TlogProofError(f"the proof is longer than {MAX_TLOG_PROOF_BYTES} bytes")
    head, separator, checkpoint = data.partition(b"\n\n")
    lines = head.split(b"\n", MAX_PROOF_HASHES + 3)
    if not separator or lines.pop(0) != HEADER:
        raise TlogProofError("not a tlog-proof of version 1")
    extra = None
    if lines and lines[0].startswith(_EXTRA_START):
        extra = _decode(lines.pop(0).removeprefix(_EXTRA_START))
        if not 1 <= len(extra) <= MAX_EXTRA_BYTES:
            raise TlogProofError(f"extra is empty or longer than {MAX_EXTRA_BYTES} bytes")
    match = _INDEX.fullmatch(lines.pop(0)) if lines else None
    if match is None or int(match[1]) >= MAX_TREE_SIZE:
        raise TlogProofError("the index is missing or out of range")
    if len(lines) > MAX_PROOF_HASHES:
        raise TlogProofError(f"more than {MAX_PROOF_HASHES} hashes")
    proof = tuple(_decode(line) for line in lines)
    if any(len(each) != HASH_BYTES for each in proof):
        raise TlogProofError(f"a hash is not {HASH_BYTES} bytes")
    return TlogProof(int(match[1]), proof, checkpoint, extra)


def verify_tlog_proof(
    proof: TlogProof,
    leaf: bytes,
    verifiers: Iterable[NoteVerifier],
    origin: str,
    *,
    wanted_types: Collection[int] = HEAD_SIGNATURE_TYPES,
) -> VerifiedCheckpoint:
    """Verify that the log `origin` has the entry with this leaf hash (32 bytes) at the index that the proof names.

    `wanted_types`: as in `verify_checkpoint`, whose result is returned. Raises NoteError, merkle.ProofError.
    """
    checkpoint = verify_checkpoint(proof.checkpoint, verifiers, origin, wanted_types=wanted_types)
    verify_inclusion(leaf, proof.index, checkpoint.head.size, proof.proof, checkpoint.head.root)
    return checkpoint


def _decode(encoded: bytes) -> bytes:
    try:
        return decode_base64(encoded)
    except NoteError as error:
        raise TlogProofError("a line is not canonical base64") from error
