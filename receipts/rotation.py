"""Rotating the log's keys: the entry that names the new ones, and remembering it for packs.

`receipts.checkpoint_keys` says why a rotation needs an entry of the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from receipts.checkpoint import CheckpointSigner
from receipts.checkpoint_keys import keys_event
from receipts.log_notes import Rotation
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import new_receipt_id
from receipts.store import StoredReceipt, WriterTail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from receipts.log_notes import LogNotes
    from receipts.receipt_id import WriterId
    from receipts.signed_note import VerifierKey
    from receipts.store import ReceiptStore


class RotatingSigner(CheckpointSigner, Protocol):
    """A signer whose keys can be replaced; `receipts.checkpoint_keys` says in which steps."""

    def prepare_rotation(self, random_bytes: Callable[[int], bytes]) -> tuple[VerifierKey, ...]:
        """Make new keys that sign nothing yet. Raises KeyFileError, LogUnavailable."""

    def introduce(self, keys: Sequence[VerifierKey], tree_size: int) -> None:
        """Put them in force, which the log names in its first `tree_size` entries. Raises KeyFileError."""

    def rotation_due(self, max_key_age_s: int) -> bool:
        """Say whether the newest keys in force are older than that. Raises LogUnavailable."""


def rotate_keys(
    store: ReceiptStore,
    notes: LogNotes,
    signer: RotatingSigner,
    *,
    writer: WriterId,
    now_ms: int,
    random_bytes: Callable[[int], bytes],
) -> int:
    """Make new keys, store the entry that names them, and put them in force; return the entry's log index.

    `writer`: a fresh id, for this one entry. From the next head on both sets sign, until one of them has the entry.
    When this dies half-way, calling it again finishes. Raises StoreError, KeyFileError.
    """
    keys = signer.prepare_rotation(random_bytes)
    draft = ReceiptDraft(
        kind="log_event", id=new_receipt_id(now_ms, random_bytes(10)), time_ms=now_ms, event=keys_event(keys)
    )
    outcome = store.append([draft], WriterTail(writer)).outcomes[0]
    if not isinstance(outcome, StoredReceipt):
        raise outcome
    # Remembered with its bytes: its payload may be pruned, and trust in the new keys still rests on it.
    notes.add_rotation(Rotation(outcome.seq - 1, outcome.raw.decode()))
    signer.introduce(keys, outcome.seq)
    return outcome.seq - 1
