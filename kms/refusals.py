"""Refusals in the audit log: each one up to a rate, counts beyond it, so that a flood of them cannot fill the disk."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from kms.audit_event import AuditEvent
from kms.errors import Backpressure, KmsError

if TYPE_CHECKING:
    from kms.audit_event import AuditLog
    from kms.clock import Clock
    from kms.principal import CallContext

REFUSALS_PER_S: Final = 50
# One summary a second at most; it holds counts by operation and reason, which are few.
SUMMARY_PERIOD_S: Final = 1.0
MAX_KINDS: Final = 256
SUMMARY_OP: Final = "refusals"


class Refusals:
    """Writes refusals. The event loop owns it. What cannot be written is counted in the next summary."""

    def __init__(self, audit: AuditLog, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._tokens = float(REFUSALS_PER_S)
        self._at_s = clock.monotonic_s()
        self._summed_s = self._at_s
        self._counts: Counter[str] = Counter()

    async def record(
        self,
        op: str,
        error: KmsError,
        context: CallContext | None,
        *,
        tenant: str,
        kid: str,
        payload_b3: str,
        op_id: str,
    ) -> None:
        """Write one refusal, or count it. Never raises KmsError: the caller hears of the refusal itself.

        One for want of room is only counted: it is answered at once, and does not wait for a disk (P-6).
        """
        now_s = self._clock.monotonic_s()
        self._tokens = min(REFUSALS_PER_S, self._tokens + (now_s - self._at_s) * REFUSALS_PER_S)
        self._at_s = now_s
        written = False
        if not isinstance(error, Backpressure) and self._tokens >= 1 and self._audit.writable() is None:
            self._tokens -= 1
            event = AuditEvent(op, error.code.value, error.reason, tenant, kid, "", payload_b3, op_id, context)
            written = await self._append(event)
        if not written:
            self._count(f"{op}:{error.reason}")

    async def flush(self, *, now: bool = False) -> None:
        """Write the counts when their time has come, or at once."""
        now_s = self._clock.monotonic_s()
        if not self._counts or not (now or now_s - self._summed_s >= SUMMARY_PERIOD_S):
            return
        self._summed_s = now_s
        if self._audit.writable() is not None:
            return
        counts, self._counts = self._counts, Counter()
        detail = {kind: str(count) for kind, count in sorted(counts.items())}
        if not await self._append(AuditEvent(SUMMARY_OP, "ok", "", "", "", "", "", "", None, detail)):
            self._counts.update(counts)

    def _count(self, kind: str) -> None:
        self._counts[kind if kind in self._counts or len(self._counts) < MAX_KINDS else "other"] += 1

    async def _append(self, event: AuditEvent) -> bool:
        try:
            await self._audit.append(event)
        except KmsError:
            return False
        return True
