"""The audit log: no answer without a durable record, no record lost, and a signed tree over all of them (I-2, K-G5).

Records queue for one thread, which writes all that came meanwhile with one sync and then signs the new head. A second
thread makes the durable checkpoints, so that a slow key never holds up an answer. A third reads the full segments once
more after a start. A full queue refuses; nothing is ever dropped (docs/decisions: I-2 stands above CONCURRENCY.md §3).

Ownership: `_tail` is replaced, never changed, by the commit thread; any thread reads it. `_signed_size` belongs to the
checkpoint thread. `_unsigned_since_s` is set by both, and at most one signing's time too early.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kms.audit_anchor import CONTINUED_OP
from kms.audit_event import AuditEntry, AuditEvent
from kms.audit_files import SEGMENT_RECORDS, AuditDamaged, SealedSegment
from kms.audit_head import sign_head
from kms.audit_record import AuditRecordError, encode_event
from kms.errors import Backpressure, Internal, KmsError, StoreUnavailable, Timeout
from receipts.errors import StoreError, StoreOverloaded, StoreTimeout
from receipts.group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kms.audit_check import AuditTail
    from kms.audit_head import AuditIdentity, HeadSigner
    from kms.clock import Clock
    from kms.telemetry import Telemetry

LOG: Final = logging.getLogger("kms.audit")
TICK_S: Final = 0.25
"""How often the checkpoint thread looks whether a checkpoint is due."""
RETRY_AFTER_S: Final = 1
DRAIN_S: Final = 3.0
LATE_FACTOR: Final = 2
"""So many times `checkpoint_after_s` after a record that no checkpoint covers, the service is not ready."""


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Bounds. A checkpoint is due after `checkpoint_every` records or `checkpoint_after_s` seconds with a new one."""

    queue: int = 2048
    append_s: float = 0.2
    checkpoint_s: float = 1.0
    checkpoint_every: int = 5000
    checkpoint_after_s: float = 5.0


class AuditStorage(Protocol):
    """Where records and heads go; `kms.audit_files.AuditFiles` says what each call promises."""

    def append(self, data: bytes, at_bytes: int) -> None:
        """Make records durable."""
        ...

    def seal(self, number: int, sealed: SealedSegment) -> None:
        """End a segment and begin the next."""
        ...

    def write_head(self, note: bytes, *, synced: bool = False) -> None:
        """Keep the newest head."""
        ...

    def append_checkpoint(self, note: bytes) -> None:
        """Make a checkpoint durable."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class ChainedAuditLog:
    """An `kms.audit_event.AuditLog`. Made by `kms.audit_open.open_audit_log`, which checks what is stored first."""

    def __init__(
        self,
        storage: AuditStorage,
        identity: AuditIdentity,
        signer: HeadSigner,
        tail: AuditTail,
        *,
        settings: AuditSettings,
        clock: Clock,
        telemetry: Telemetry,
        old_segments: Callable[[Callable[[], bool]], None] = lambda _stopped: None,
    ) -> None:
        """Make it; `old_segments` checks what was full at the start, until what it is given says to stop."""
        self._storage, self._identity, self._signer, self._tail = storage, identity, signer, tail
        self._settings, self._clock, self._telemetry = settings, clock, telemetry
        self._old_segments = old_segments
        self._signed_size = tail.tree.size
        self._signed_s = self._unsigned_since_s = clock.monotonic_s()
        self._signing_since_s: float | None = None
        self._integrity: str | None = None
        self._disk: str | None = None
        self._checkpoint: str | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._commits: GroupCommit[AuditEvent, AuditEntry] = GroupCommit(
            self._commit, name="kms-audit", max_pending_items=settings.queue
        )
        self._thread = threading.Thread(target=self._keep_checkpoints, name="kms-audit-checkpoints", daemon=True)
        self._checking = threading.Thread(target=self._check_old_segments, name="kms-audit-check", daemon=True)
        # Told of each attempt at a checkpoint, from the thread that made it: root (hex), size, success, seconds.
        self.on_checkpoint: Callable[[str, int, bool, float], None] = lambda _root, _size, _ok, _took_s: None
        self._appended = telemetry.audit_appends.labels("ok")
        self._refused = telemetry.audit_appends.labels("error")
        self._queue_depth = telemetry.queue_depth.labels("audit")

    def start(self) -> None:
        """Start the threads; once, and after any fork."""
        self._commits.start()
        self._thread.start()
        self._checking.start()

    @property
    def identity(self) -> AuditIdentity:
        """Which log this is, with its public key."""
        return self._identity

    @property
    def size(self) -> int:
        """Records that are durable."""
        return self._tail.tree.size

    async def append(self, event: AuditEvent) -> AuditEntry:
        """Return when the event is durable; see `AuditLog.append`."""
        self._check_writable()
        try:
            entry = await self._commits.submit(event, self._settings.append_s)
        except StoreError as error:
            raise self._refusal(error) from error
        finally:
            waiting = self._commits.pending_items
            self._telemetry.audit_queue_depth.set(waiting)
            self._queue_depth.set(waiting)
        return entry

    def append_now(self, event: AuditEvent) -> AuditEntry:
        """Append from a thread without an event loop; as `append`."""
        self._check_writable()
        try:
            return self._commits.submit_sync(event, self._settings.append_s)
        except StoreError as error:
            raise self._refusal(error) from error

    def writable(self) -> str | None:
        """Tell why what changes or signs must be refused now; see `AuditLog.writable`."""
        return self._integrity or self._disk

    def integrity(self) -> str | None:
        """Tell why the log is not what was left, or None; only an operator's `restore` mends that."""
        return self._integrity

    def not_ready(self) -> str | None:
        """Tell why the service is not ready: what `writable` says, or no checkpoint was made in time."""
        now_s, since_s = self._clock.monotonic_s(), self._signing_since_s
        slow = since_s is not None and now_s - since_s > self._settings.checkpoint_s
        allowed_s = LATE_FACTOR * self._settings.checkpoint_after_s
        late = self.size > self._signed_size and now_s - self._unsigned_since_s > allowed_s
        return self.writable() or self._checkpoint or ("audit_checkpoint" if slow or late else None)

    def checkpoint_age_s(self) -> float | None:
        """Tell how long ago the last checkpoint was signed, in seconds."""
        return max(0.0, self._clock.monotonic_s() - self._signed_s)

    def close(self) -> None:
        """Write what is queued, sign the last head, let go of the files. A second call does nothing."""
        if self._stop.is_set():
            return
        left = self._commits.close(DRAIN_S)
        if left:
            LOG.error("%d audit records could not be written before the end", left)
        self._stop.set()
        self._wake.set()
        self._thread.join(self._settings.checkpoint_s)
        # It ends with the segment that it reads; it uses none of the files that are let go of.
        self._checking.join(self._settings.checkpoint_s)
        if self._thread.is_alive():
            LOG.error("the last audit checkpoint was not signed in time")
            return
        self._storage.close()

    def fail(self, reason: str) -> None:
        """Refuse from now on: the log is not what was left."""
        if self._integrity is None:
            LOG.critical("the audit log is not as it was left: %s", reason)
            self._telemetry.audit_integrity_failed.inc()
        self._integrity = reason

    def _check_writable(self) -> None:
        reason = self.writable()
        if reason is not None:
            self._refused.inc()
            raise StoreUnavailable("the audit log takes no records", reason=reason, retry_after_s=RETRY_AFTER_S)

    def _refusal(self, error: StoreError) -> KmsError:
        self._refused.inc()
        if isinstance(error, StoreOverloaded):
            self._telemetry.busy_rejections.labels("audit").inc()
            return Backpressure("the audit log's queue is full", retry_after_s=RETRY_AFTER_S)
        if isinstance(error, StoreTimeout):
            self._telemetry.io_timeouts.labels("audit").inc()
            return Timeout("the audit record was not durable in time", retry_after_s=RETRY_AFTER_S)
        return StoreUnavailable("the audit log is closed", reason="audit_closed", retry_after_s=RETRY_AFTER_S)

    # The commit thread.

    def _commit(self, events: Sequence[AuditEvent]) -> Sequence[AuditEntry | Exception]:
        outcomes: list[AuditEntry | Exception] = []
        try:
            while events:
                if self._tail.is_full:
                    self._begin_segment()
                room = SEGMENT_RECORDS - self._tail.segment_tree.size
                outcomes += self._append(events[:room], self._tail.copy())
                events = events[room:]
        except StoreUnavailable:
            if self._disk is None:
                LOG.error("the audit log's disk does not serve")
            self._disk = "audit_disk"
            raise
        self._disk = None
        return outcomes

    def _append(self, events: Sequence[AuditEvent], tail: AuditTail) -> list[AuditEntry | Exception]:
        """Make events durable at `tail`, which then takes the place of `_tail`."""
        now_ms, begin_bytes = self._clock.wall_ms(), tail.segment_bytes
        lines: list[bytes] = []
        outcomes: list[AuditEntry | Exception] = []
        for event in events:
            try:
                raw = encode_event(event, tail.tree.size, tail.previous, now_ms)
            except AuditRecordError:
                outcomes.append(Internal("the event cannot be audited"))
                continue
            outcomes.append(AuditEntry(tail.tree.size, tail.add(raw).hex()))
            tail.audited.add(event.op, event.detail)
            lines.append(raw)
        if lines:
            self._storage.append(b"\n".join(lines) + b"\n", begin_bytes)
            if self._tail.tree.size <= self._signed_size:
                self._unsigned_since_s = self._clock.monotonic_s()
            self._tail = tail
            self._appended.inc(len(lines))
            if self._signer.quick:
                self._write_head(tail)
            if tail.tree.size - self._signed_size >= self._settings.checkpoint_every:
                self._wake.set()
        return outcomes

    def _begin_segment(self) -> None:
        full = self._tail
        self._storage.seal(full.segment, SealedSegment(full.segment_bytes, full.segment_tree.root()))
        tail = full.copy()
        tail.next_segment()
        # Until this record is durable the full segment is the last one: no segment begins with another.
        self._append([service_event(CONTINUED_OP, tail.audited.details())], tail)

    def _write_head(self, tail: AuditTail) -> None:
        try:
            self._storage.write_head(sign_head(self._identity, self._signer, tail.tree.size, tail.tree.root()))
        except KmsError as error:
            # The records are durable and chained; the next head covers them. Readiness tells of it.
            self._set_checkpoint_problem(error)

    # The checkpoint thread.

    def _keep_checkpoints(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(TICK_S)
            self._wake.clear()
            if self._disk is not None:
                self._try_disk()
            if self._is_due():
                self._make_checkpoint()
        if self._integrity is None and self.size > self._signed_size:
            self._make_checkpoint()

    def _is_due(self) -> bool:
        new = self.size - self._signed_size
        waited_s = self._clock.monotonic_s() - self._signed_s
        due = new >= self._settings.checkpoint_every or (new > 0 and waited_s >= self._settings.checkpoint_after_s)
        return due and self._integrity is None and not self._stop.is_set()

    def _make_checkpoint(self) -> None:
        tail, began_s = self._tail, self._clock.monotonic_s()
        self._signing_since_s = began_s
        try:
            note = sign_head(self._identity, self._signer, tail.tree.size, tail.tree.root())
            self._storage.append_checkpoint(note)
            if not self._signer.quick:
                self._storage.write_head(note)
        except KmsError as error:
            self._set_checkpoint_problem(error)
            self._signed_s = self._clock.monotonic_s()
            self._tell_checkpoint(tail, began_s, ok=False)
            return
        finally:
            self._signing_since_s = None
        self._unsigned_since_s = began_s
        self._signed_size, self._signed_s = tail.tree.size, self._clock.monotonic_s()
        if self._signed_s - began_s > self._settings.checkpoint_s:
            self._telemetry.io_timeouts.labels("checkpoint").inc()
            self._set_checkpoint_problem(Timeout("the checkpoint took longer than its deadline"))
            self._tell_checkpoint(tail, began_s, ok=False)
            return
        self._checkpoint = None
        self._telemetry.audit_checkpoints.labels("ok").inc()
        self._tell_checkpoint(tail, began_s, ok=True)

    def _tell_checkpoint(self, tail: AuditTail, began_s: float, *, ok: bool) -> None:
        self.on_checkpoint(tail.tree.root().hex(), tail.tree.size, ok, self._clock.monotonic_s() - began_s)

    def _set_checkpoint_problem(self, error: KmsError) -> None:
        self._telemetry.audit_checkpoints.labels("error").inc()
        if self._checkpoint is None:
            LOG.error("no audit checkpoint: %s", error.message)
            self._telemetry.audit_integrity_failed.inc()
        self._checkpoint = "audit_checkpoint"

    def _try_disk(self) -> None:
        """Write a record to see whether the disk serves again; nobody else may try meanwhile."""
        try:
            self._commits.submit_sync(service_event("audit_resumed", {}), self._settings.append_s)
        except (StoreError, KmsError):
            return
        LOG.warning("the audit log's disk serves again")

    # The thread that checks what is old.

    def _check_old_segments(self) -> None:
        try:
            self._old_segments(self._stop.is_set)
        except (AuditDamaged, StoreUnavailable) as error:
            self.fail(error.reason)


class RefusingAuditLog:
    """In the place of a log that is not as it was left: it takes nothing, and says why."""

    size = 0

    def __init__(self, reason: str, telemetry: Telemetry) -> None:
        self._reason = reason
        LOG.critical("the audit log is not as it was left: %s", reason)
        telemetry.audit_integrity_failed.inc()
        self._refused = telemetry.audit_appends.labels("error")

    async def append(self, event: AuditEvent) -> AuditEntry:
        """Refuse; see `AuditLog.append`."""
        return self.append_now(event)

    def append_now(self, event: AuditEvent) -> AuditEntry:
        """Refuse."""
        del event
        self._refused.inc()
        raise StoreUnavailable("the audit log takes no records", reason=self._reason, retry_after_s=RETRY_AFTER_S)

    def writable(self) -> str | None:
        """Tell why nothing may be changed or signed."""
        return self._reason

    def integrity(self) -> str | None:
        """Tell what is not as it was left."""
        return self._reason

    def not_ready(self) -> str | None:
        """Tell why the service is not ready."""
        return self._reason

    def checkpoint_age_s(self) -> float | None:
        """Tell that no checkpoint is signed any more."""
        return None

    def close(self) -> None:
        """Do nothing: no file is open."""


def service_event(op: str, detail: Mapping[str, str]) -> AuditEvent:
    """Make an event of what the service does by itself."""
    return AuditEvent(op, "ok", "", "", "", "", "", "", None, detail)
