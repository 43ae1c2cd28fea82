"""Accepting a rolled back or damaged audit log: an operator's decision, with which a new epoch begins (G-13)."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from kms.audit_anchor import RESTORED_OP
from kms.audit_check import readable_tail
from kms.audit_files import AuditDamaged, AuditFiles, SealedSegment
from kms.audit_head import head_size, new_identity, open_signer
from kms.audit_log import service_event
from kms.audit_open import look, sign_now, standing
from kms.audit_record import encode_event
from kms.audit_tlog import AuditedHeads
from kms.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kms.audit_anchor import RollbackCounter
    from kms.audit_tlog import RestorableState
    from kms.clock import Clock
    from kms.providers.provider import Provider


def restore(
    folder: Path,
    provider: Provider,
    *,
    state: RestorableState | None,
    counter: RollbackCounter | None = None,
    clock: Clock = SYSTEM_CLOCK,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> dict[str, str]:
    """Keep the records that are whole, audit what was found, and begin a new epoch of signed heads.

    Nothing is deleted: what does not belong to the log any more is renamed. `tlog` keys go on from the newest head that
    was signed with them, or are disabled where that cannot be told. Returns what was audited. Raises
    StoreUnavailable; AuditDamaged with the reason `whole` when there is nothing to accept.
    """
    files = AuditFiles(folder)
    files.lock()
    try:
        identity, tail, fault = look(files, provider, state, counter, random_bytes)
        if fault is None:
            raise AuditDamaged("whole", "the audit log is as it was left: there is nothing to accept")
        signed = _signed_size(files)
        heads = AuditedHeads()
        left, tail = tail.tree, readable_tail(files, heads.add)
        believed = (left.size, left.root()) == (tail.tree.size, tail.tree.root())
        if identity is None:
            identity = new_identity(provider, random_bytes)
        identity = msgspec.structs.replace(identity, epoch=identity.epoch + 1)
        signer = open_signer(identity, provider)
        files.set_aside_after(tail.segment, tail.segment_bytes)
        files.open_for_append(tail.segment, tail.segment_bytes)
        # From here on nothing is signed before this ends: after a crash the heads are missing, and it is run again.
        changed = [] if state is None else state.apply_now(heads.changes(state.keys, believed=believed))
        detail = standing(tail.audited, state, counter)
        detail |= {verb: str(count) for verb, count in Counter(each.verb for each in changed).items()}
        detail |= {"fault": fault, "signed_size": signed, "kept_size": str(tail.tree.size)}
        detail["log_epoch"] = str(identity.epoch)
        if tail.is_full:
            files.seal(tail.segment, SealedSegment(tail.segment_bytes, tail.segment_tree.root()))
            tail.next_segment()
        raw = encode_event(service_event(RESTORED_OP, detail), tail.tree.size, tail.previous, clock.wall_ms())
        files.append(raw + b"\n", tail.segment_bytes)
        tail.add(raw)
        sign_now(files, identity, signer, tail)
        files.write_identity(identity)
    finally:
        files.close()
    return detail


def _signed_size(files: AuditFiles) -> str:
    """Say how many records the newest head speaks of, believing it for once."""
    try:
        sizes = (head_size(note) for note in itertools.chain(files.read_heads(), files.read_checkpoints()))
        return str(max((size for size in sizes if size is not None), default="unknown"))
    except AuditDamaged:
        return "unknown"
