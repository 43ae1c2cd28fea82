"""What stands beside the audit log and tells when one of the two was set back (I-6).

The key store counts its changes and knows which of them were not yet audited; a TPM has a counter that nobody can set
back. Both are compared with what the audit log says at start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kms.audit_record import EPOCH_DETAIL, STATE_DETAIL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_DIGITS: Final = 16
COUNTER_DETAIL: Final = "counter"
OPEN_OP: Final = "audit_open"
CONTINUED_OP: Final = "audit_continued"
RESTORED_OP: Final = "audit_restored"
"""The first record after an opening, the first of every segment but the first, and the one by which an operator
accepted a rollback: they say where everything stands."""
_STANDING_OPS: Final = frozenset({OPEN_OP, CONTINUED_OP, RESTORED_OP})


class Change(Protocol):
    """A change of the key store that may not be audited yet."""

    @property
    def epoch(self) -> int:
        """The epoch that it led to."""
        ...


class KeyState(Protocol):
    """The key store, as far as the audit log needs it; `kms.key_store.KeyStore` is one."""

    @property
    def epoch(self) -> int:
        """Count the changes ever made."""
        ...

    def state_digest(self) -> str:
        """Hash everything in it at its epoch, hex."""
        ...

    def unaudited(self) -> Sequence[Change]:
        """List the changes whose audit event is not known to be on disk."""
        ...


class RollbackCounter(Protocol):
    """A counter that only rises, such as a TPM's. Both calls may wait, and raise StoreUnavailable."""

    def read(self) -> int:
        """Give its value."""
        ...

    def increment(self) -> int:
        """Raise it by one and give the new value."""
        ...


@dataclass(slots=True)
class AuditedState:
    """What the records say of key store and counter, gathered while they are read."""

    epoch: int = 0
    digest: str = ""
    counter: int | None = None

    def add(self, op: str, detail: Mapping[str, str]) -> None:
        """Take one more record's operation and details, in their order."""
        epoch = _number(detail.get(EPOCH_DETAIL))
        if epoch is not None and (epoch >= self.epoch or op == RESTORED_OP):
            self.epoch, self.digest = epoch, detail.get(STATE_DETAIL, "")
        if op in _STANDING_OPS and (counter := _number(detail.get(COUNTER_DETAIL))) is not None:
            self.counter = counter

    def details(self) -> dict[str, str]:
        """Say all this in a record's details."""
        known = {EPOCH_DETAIL: str(self.epoch), STATE_DETAIL: self.digest}
        return known if self.counter is None else {**known, COUNTER_DETAIL: str(self.counter)}


def state_fault(audited: AuditedState, state: KeyState) -> str | None:
    """Compare the key store with what was audited of it; return the fault's reason code, None when there is none."""
    if state.epoch < audited.epoch:
        return "key_store_rolled_back"
    if state.epoch == audited.epoch and audited.digest and state.state_digest() != audited.digest:
        return "key_store_changed"
    pending = {each.epoch for each in state.unaudited()}
    newest_audited = state.epoch
    while newest_audited in pending:
        newest_audited -= 1
    return "audit_rolled_back" if newest_audited > audited.epoch else None


def counter_fault(audited: AuditedState, counter: RollbackCounter) -> str | None:
    """Compare the counter with what was audited of it; as `state_fault`.

    The record of an opening is written before the counter rises, so a crash between the two leaves it one behind.
    """
    value = counter.read()
    if audited.counter is None:  # The log is older than the counter's use.
        return None
    return None if audited.counter - 1 <= value <= audited.counter else "audit_rolled_back"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS else None
