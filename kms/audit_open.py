"""Opening the audit log: begin it, go on after checking it, or refuse to write (IDB.md §3.6, I-6)."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import TYPE_CHECKING

from kms.audit_anchor import COUNTER_DETAIL, OPEN_OP, counter_fault, state_fault
from kms.audit_check import AuditTail, check_log, check_segment
from kms.audit_files import AuditDamaged, AuditFiles
from kms.audit_head import AuditIdentity, HeadSigner, new_identity, open_signer, sign_head
from kms.audit_log import AuditSettings, ChainedAuditLog, RefusingAuditLog, service_event
from kms.audit_memory import AuditMemory
from kms.audit_record import EPOCH_DETAIL, STATE_DETAIL
from kms.clock import SYSTEM_CLOCK
from kms.errors import StoreUnavailable
from kms.providers.provider import KeyHandle
from receipts.checkpoint import TreeHead, compose_checkpoint
from receipts.merkle import CompactTree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kms.audit_anchor import AuditedState, KeyState, RollbackCounter
    from kms.clock import Clock
    from kms.providers.provider import Provider
    from kms.telemetry import Telemetry


def open_audit_log(
    folder: Path | None,
    provider: Provider,
    *,
    telemetry: Telemetry,
    state: KeyState | None,
    counter: RollbackCounter | None = None,
    settings: AuditSettings | None = None,
    clock: Clock = SYSTEM_CLOCK,
    random_bytes: Callable[[int], bytes] = os.urandom,
    attested: bool = False,
) -> ChainedAuditLog | RefusingAuditLog:
    """Open the log in `folder` (None: in memory) and start its threads.

    `state`: the key store, `counter`: a TPM's counter where there is one; both are compared with what was audited. When
    anything is not as it was left, the log that is returned takes no records, and `integrity` says why. `attested`: the
    provider shows where the audit key is, for the head at this opening (CONFIG.md `audit.sealing`). Raises
    StoreUnavailable when the disk does not serve, another process writes this log, or the provider is away or shows
    nothing.
    """
    make = functools.partial(ChainedAuditLog, settings=settings or AuditSettings(), clock=clock, telemetry=telemetry)
    if folder is None:
        fresh = new_identity(provider, random_bytes)
        log = make(AuditMemory(), fresh, open_signer(fresh, provider), AuditTail(CompactTree()))
        log.start()
        return log
    files = AuditFiles(folder)
    files.lock()
    try:
        identity, tail, fault = look(files, provider, state, counter, random_bytes)
        if identity is None or fault is not None:
            files.close()
            return RefusingAuditLog(fault or "identity", telemetry)
        files.open_for_append(tail.segment, tail.segment_bytes)
        old_segments = functools.partial(_check_old, files, tail.segment)
        log = make(files, identity, open_signer(identity, provider), tail, old_segments=old_segments)
    except BaseException:
        files.close()
        raise
    log.start()
    try:
        detail = standing(tail.audited, state, counter)
        if attested:
            detail |= attest(files, identity, provider, tail)
        log.append_now(service_event(OPEN_OP, detail))
        if counter is not None:
            counter.increment()
    except StoreUnavailable:
        # Unless a full segment turned out to be changed meanwhile: then the log refuses, and says why.
        if log.integrity() is None:
            log.close()
            raise
    except BaseException:
        log.close()
        raise
    return log


def look(
    files: AuditFiles,
    provider: Provider,
    state: KeyState | None,
    counter: RollbackCounter | None,
    random_bytes: Callable[[int], bytes],
) -> tuple[AuditIdentity | None, AuditTail, str | None]:
    """Check the log, or begin it where there is none. Returns the fault's reason code last, None when it is whole."""
    identity = None
    try:
        identity = files.read_identity()
        if identity is None:
            identity = _begin(files, provider, random_bytes)
        tail = check_log(files, identity)
    except AuditDamaged as damage:
        return identity, AuditTail(CompactTree()), damage.reason
    fault = None if state is None else state_fault(tail.audited, state)
    return identity, tail, fault or (None if counter is None else counter_fault(tail.audited, counter))


def standing(audited: AuditedState, state: KeyState | None, counter: RollbackCounter | None) -> dict[str, str]:
    """Say in a record's details where key store and counter stand; the counter as it will be after the next rise."""
    detail = audited.details()
    if state is not None:
        detail |= {EPOCH_DETAIL: str(state.epoch), STATE_DETAIL: state.state_digest()}
    if counter is not None:
        detail[COUNTER_DETAIL] = str(counter.read() + 1)
    return detail


def attest(files: AuditFiles, identity: AuditIdentity, provider: Provider, tail: AuditTail) -> dict[str, str]:
    """Keep fresh evidence of the audit key, bound to the head at this opening; give what the record says of it.

    The nonce is the SHA-256 of the head's text. Raises StoreUnavailable.
    """
    text = compose_checkpoint(TreeHead(identity.origin, tail.tree.size, tail.tree.root()))
    nonce = hashlib.sha256(text).digest()
    shown = provider.attest(KeyHandle(identity.key_handle), nonce) if identity.key_handle else None
    if shown is None:
        raise StoreUnavailable("the provider shows nothing of the audit key", reason="audit_attestation")
    files.write_attestation(shown.class_, nonce, shown.evidence)
    return {"attestation": shown.class_, "evidence_sha256": hashlib.sha256(shown.evidence).hexdigest()}


def sign_now(files: AuditFiles, identity: AuditIdentity, signer: HeadSigner, tail: AuditTail) -> None:
    """Sign the head of what is durable, as checkpoint and as newest head."""
    note = sign_head(identity, signer, tail.tree.size, tail.tree.root())
    files.append_checkpoint(note)
    files.write_head(note, synced=True)


def _begin(files: AuditFiles, provider: Provider, random_bytes: Callable[[int], bytes]) -> AuditIdentity:
    """Make an empty log; its identity comes last, so that a crash before leaves nothing begun."""
    if not files.is_empty():
        raise AuditDamaged("identity", "there are records, and nothing says of which log")
    files.forget_heads()
    identity = new_identity(provider, random_bytes)
    files.open_for_append(0, 0)
    sign_now(files, identity, open_signer(identity, provider), AuditTail(CompactTree()))
    files.write_identity(identity)
    return identity


def _check_old(files: AuditFiles, segments: int, stopped: Callable[[], bool]) -> None:
    for number in range(segments):
        if stopped():
            return
        check_segment(files, number)
