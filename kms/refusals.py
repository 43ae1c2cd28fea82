"""Refusals in the audit log: each one up to a rate, counts beyond it, so that a flood of them cannot fill the disk.

What is refused before it is an operation (no capability, a body that is none) is only ever counted: a caller who holds
nothing costs a line every ten seconds, whatever he sends.
"""

from __future__ import annotations

import math
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
OUTSIDE_PERIOD_S: Final = 10.0
MAX_KINDS: Final = 256
KINDS_A_RECORD: Final = 32
"""As many as a record's details have room for."""
SUMMARY_OP: Final = "refusals"


class Refusals:
    """Writes refusals. The event loop owns it. What cannot be written is counted in the next summary."""

    def __init__(self, audit: AuditLog, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._tokens = float(REFUSALS_PER_S)
        self._at_s = clock.monotonic_s()
        self._due_s = math.inf
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
            self._count(f"{op}:{error.reason}", SUMMARY_PERIOD_S)

    def count_outside(self, op: str, reason: str) -> None:
        """Count what was refused before it was an operation."""
        self._count(f"{op}:{reason}", OUTSIDE_PERIOD_S)

    async def flush(self, *, now: bool = False) -> None:
        """Write the counts when their time has come, or at once."""
        if not self._counts or not (now or self._clock.monotonic_s() >= self._due_s):
            return
        if self._audit.writable() is not None:
            return
        counts, self._counts, self._due_s = self._counts, Counter(), math.inf
        kinds = sorted(counts)
        for at in range(0, len(kinds), KINDS_A_RECORD):
            detail = {kind: str(counts.pop(kind)) for kind in kinds[at : at + KINDS_A_RECORD]}
            if not await self._append(AuditEvent(SUMMARY_OP, "ok", "", "", "", "", "", "", None, detail)):
                self._counts.update({kind: int(count) for kind, count in detail.items()})
                self._due_s = min(self._due_s, self._clock.monotonic_s() + SUMMARY_PERIOD_S)

    def _count(self, kind: str, within_s: float) -> None:
        self._counts[kind if kind in self._counts or len(self._counts) < MAX_KINDS else "other"] += 1
        self._due_s = min(self._due_s, self._clock.monotonic_s() + within_s)

    async def _append(self, event: AuditEvent) -> bool:
        try:
            await self._audit.append(event)
        except KmsError:
            return False
        return True
