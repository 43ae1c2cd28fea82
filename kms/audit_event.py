"""What the audit log keeps of an operation (I-2, K-G5): hashes and names, never inputs or secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms.principal import CallContext


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One operation's outcome. `detail` holds small public facts (hex digests, versions, counts) as text."""

    op: str
    result: str  # "ok", or the error's code
    reason: str  # the error's reason, "" when ok
    tenant: str
    kid: str  # raw here: the audit log is not a log file; "" where no key is meant
    alg: str
    payload_b3: str
    op_id: str
    context: CallContext | None  # None for what the service does by itself
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Where an event landed: the log's index and the hash of its bytes (RFC 9162 leaf hash, hex)."""

    index: int
    leaf_hash: str


class AuditLog(Protocol):
    """Append-only and durable: an answer leaves only after its event is on disk, and no event is ever dropped."""

    async def append(self, event: AuditEvent) -> AuditEntry:
        """Return when the event is durable.

        Raises Backpressure when the queue is full (nothing was written), StoreUnavailable when the log refuses writes
        (its integrity failed, its disk is away), Timeout past the append's deadline (it may have been written).
        """
        ...

    def writable(self) -> str | None:
        """Tell why operations that change or sign must be refused now, or None when they may go on."""
        ...
