"""Checkpoints, C2SP tlog-checkpoint: tree heads as the text of signed notes, and who signs them."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from receipts.log_errors import LogForked, LogUnavailable
from receipts.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE
from receipts.signed_note import (
    ED25519,
    MAX_NAME_BYTES,
    ML_DSA_44,
    NoteFormatError,
    NoteSignature,
    NoteVerifier,
    SignedNote,
    VerifiedSignature,
    VerifierKey,
    decode_base64,
    parse_note,
    verify_note,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

HEAD_SIGNATURE_TYPES: Final = frozenset({ED25519, ML_DSA_44})
"""Every head of this log has a signature of each of these types."""

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_HEAD_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a checkpoint states: the log's origin, its size in entries, and the root over them (32 bytes)."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A tree head that its log signed; made by `verify_checkpoint` alone.

    `time_s`: the earliest time that a cosignature states, POSIX seconds; None without one.
    """

    head: TreeHead
    note: bytes
    signatures: tuple[VerifiedSignature, ...]
    time_s: int | None


@dataclass(frozen=True, slots=True)
class HeadRequest:
    """A head to be signed, and the proof that it goes on from the last one.

    `consistency`: from `old` to `new`, as `merkle_prove.prove_consistency` makes it. `not_before_s`: POSIX
    seconds; the time stated must not be earlier, even when the signer's clock went back.
    """

    old: TreeHead
    new: TreeHead
    consistency: tuple[bytes, ...]
    not_before_s: int


class SignerBehind(LogUnavailable):
    """The signer last signed a head of `size`, not the one that the request goes on from; prove from there."""

    code = "signer_behind"

    def __init__(self, size: int) -> None:
        super().__init__(f"the signer goes on from size {size}")
        self.size = size


class SignerRefused(LogForked):
    """The signer found that the new head does not go on from the last one that it signed."""

    code = "signer_refused"


class CheckpointSigner(Protocol):
    """Holds the log's keys. Calls block.

    It signs a head only after verifying that it goes on from the last one; a signer with a memory of its own
    judges by that. What it signed may never have been stored by the log, which died: the log then proves from
    the size that SignerBehind names.
    """

    def sign(self, request: HeadRequest) -> tuple[NoteSignature, ...]:
        """Sign a head with every key in force: one line of each of `HEAD_SIGNATURE_TYPES` for each.

        Raises SignerBehind, SignerRefused, LogUnavailable.
        """

    def verifier_keys(self) -> tuple[VerifierKey, ...]:
        """Return every key that may have signed a head of this log, retired ones too. Raises LogUnavailable."""

    def confirm(self, note: SignedNote) -> None:
        """Take note that this head is durable: if two sets of keys signed it, the older one may retire.

        It may do so only when the log has an entry, below this head, that names the newer one: see
        `receipts.checkpoint_keys`. Raises LogUnavailable.
        """


def compose_checkpoint(head: TreeHead) -> bytes:
    """Write a head as a checkpoint's text, C2SP tlog-checkpoint. Raises NoteFormatError when it is no head."""
    root = binascii.b2a_base64(head.root, newline=False).decode()
    text = f"{head.origin}\n{head.size}\n{root}\n".encode(errors="surrogatepass")
    if parse_checkpoint(text) != head:
        raise NoteFormatError("not a tree head")
    return text


def parse_checkpoint(text: bytes) -> TreeHead:
    """Read a checkpoint's text, C2SP tlog-checkpoint.

    Extension lines are refused: an ML-DSA-44 cosignature would not cover them. Raises NoteFormatError.
    """
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise NoteFormatError("the checkpoint is not UTF-8") from error
    if len(lines) != _HEAD_LINES + 1 or lines.pop():
        raise NoteFormatError("the checkpoint has not exactly three lines")
    origin, size_text, root_text = lines
    if not 1 <= len(origin.encode()) <= MAX_NAME_BYTES or min(origin) < " ":
        raise NoteFormatError(f"the origin is empty, longer than {MAX_NAME_BYTES} bytes, or not text")
    if not _SIZE.fullmatch(size_text) or int(size_text) > MAX_TREE_SIZE:
        raise NoteFormatError("the tree size is not a number in range")
    root = decode_base64(root_text.encode())
    if len(root) != HASH_BYTES:
        raise NoteFormatError(f"the root is not {HASH_BYTES} bytes")
    head = TreeHead(origin, int(size_text), root)
    if head.size == 0 and head.root != EMPTY_ROOT:
        raise NoteFormatError("the root is not that of the empty tree")
    return head


def verify_checkpoint(
    data: bytes,
    verifiers: Iterable[NoteVerifier],
    origin: str,
    *,
    wanted_types: Collection[int] = HEAD_SIGNATURE_TYPES,
) -> VerifiedCheckpoint:
    """Verify a signed checkpoint of the log `origin`.

    `wanted_types`: signature types that must each verify once at least; by default those of this log. Raises
    NoteError.
    """
    note = parse_note(data)
    head = parse_checkpoint(note.text)
    if head.origin != origin:
        raise NoteFormatError("the checkpoint is that of another log")
    verified = verify_note(note, verifiers, wanted_types=wanted_types)
    times = [each.time_s for each in verified.signatures if each.time_s is not None]
    return VerifiedCheckpoint(head, data, verified.signatures, min(times, default=None))
