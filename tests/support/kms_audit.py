"""An audit log with everything it needs, for tests; also a program that appends until it is killed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from kms.audit_event import AuditEvent
from kms.audit_log import AuditSettings, ChainedAuditLog, RefusingAuditLog
from kms.audit_open import open_audit_log
from kms.clock import SYSTEM_CLOCK, Clock
from kms.principal import CallContext, Principal, Scope
from kms.telemetry import Telemetry
from tests.support.log_parts import NOW_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kms.audit_anchor import RollbackCounter
    from kms.key_change import AppliedChange, KeyChange
    from kms.key_record import KeyRecord
    from kms.primitive import Primitive
    from kms.providers.provider import KeyHandle

CONTEXT = CallContext(
    Principal(
        "ab" * 16, "12" * 8, frozenset({"core"}), frozenset(Scope), frozenset(), frozenset(), frozenset(), None, NOW_S
    ),
    corr_id="0198c5a0-0000-7000-8000-000000000000",
    request_id="r-1",
    path="/v1/kms/sign",
    peer="127.0.0.1:1",
    transport="http",
)


def event(op: str = "sign", **detail: str) -> AuditEvent:
    return AuditEvent(op, "ok", "", "core", "core/audit/ed25519/x#v1", "ed25519", "7f" * 32, "", CONTEXT, detail)


class WrappingProvider:
    """A provider that only wraps, as a cloud's does, under a fixed key: it is the same in every process."""

    name, attestation_class, wraps_itself, in_process = "wrapping", None, True, False
    primitives: frozenset[Primitive] = frozenset()

    def __init__(self, key: bytes = b"w" * 32) -> None:
        self._aead = ChaCha20Poly1305(key)

    def wrap(self, handle: KeyHandle, plaintext: bytes, aad: bytes) -> bytes:
        return self._aead.encrypt(bytes(12), plaintext, aad)

    def unwrap(self, handle: KeyHandle, wrapped: bytes, aad: bytes) -> bytes:
        return self._aead.decrypt(bytes(12), wrapped, aad)


@dataclass
class Change:
    epoch: int


@dataclass
class State:
    """A key store as the audit log sees it."""

    epoch: int = 0
    digest: str = "00" * 32
    pending: Sequence[Change] = ()

    def state_digest(self) -> str:
        return self.digest

    def unaudited(self) -> Sequence[Change]:
        return self.pending

    @property
    def keys(self) -> Sequence[KeyRecord]:
        return ()

    def apply_now(self, changes: Sequence[KeyChange]) -> Sequence[AppliedChange]:
        assert not changes
        return ()


@dataclass
class Counter:
    value: int = 41

    def read(self) -> int:
        return self.value

    def increment(self) -> int:
        self.value += 1
        return self.value


@dataclass
class AuditParts:
    folder: Path
    provider: object = field(default_factory=WrappingProvider)
    state: State = field(default_factory=State)
    counter: RollbackCounter | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    settings: AuditSettings = field(default_factory=lambda: AuditSettings(append_s=10, checkpoint_after_s=3600))
    clock: Clock = SYSTEM_CLOCK
    attested: bool = False

    def open(self) -> ChainedAuditLog | RefusingAuditLog:
        return open_audit_log(
            self.folder,
            self.provider,  # type: ignore[arg-type]
            telemetry=self.telemetry,
            state=self.state,
            counter=self.counter,
            settings=self.settings,
            clock=self.clock,
            attested=self.attested,
        )

    def open_whole(self) -> ChainedAuditLog:
        log = self.open()
        assert isinstance(log, ChainedAuditLog), log.integrity()
        return log

    def fault(self) -> str | None:
        """Open, say what is wrong, close."""
        log = self.open()
        log.close()
        return log.integrity()

    def value(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0


def main(folder: str) -> None:
    """Append for ever, and say after each record how many are durable."""
    log = AuditParts(Path(folder)).open_whole()
    while True:
        entry = log.append_now(event())
        sys.stdout.write(f"{entry.index} {entry.leaf_hash}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
