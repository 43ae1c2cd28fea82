"""What the audit log says of the logs that `tlog` keys sign, for a key store that was put back (docs/guides/kms.md).

A key store of the past remembers an older head than the last one signed: its keys would sign a fork. The records say
which heads were signed, so an accepted rollback brings the memory forward again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from kms.audit_anchor import KeyState
from kms.errors import KmsError
from kms.key_change import KeyChange
from kms.key_record import KeyState as StateOfKey
from kms.key_record import LastHead
from kms.kid import parse_kid
from kms.primitive import TLOG_PURPOSE
from receipts.checkpoint import TreeHead, compose_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kms.audit_record import AuditRecord
    from kms.key_change import AppliedChange
    from kms.key_record import KeyRecord
    from kms.kid import KeyName

CHECKPOINT_OP: Final = "checkpoint"
TLOG_RESTORED_OP: Final = "tlog_restored"
TLOG_DISABLED_OP: Final = "tlog_disabled"
_MS: Final = 1000


class RestorableState(KeyState, Protocol):
    """The key store while nothing else uses it; `kms.key_store.KeyStore` is one until it is started."""

    @property
    def keys(self) -> Iterable[KeyRecord]:
        """List the keys."""
        ...

    def apply_now(self, changes: Sequence[KeyChange]) -> Sequence[AppliedChange]:
        """Make changes durable, all or none. Raises KmsError."""
        ...


class AuditedHeads:
    """The largest tree head that each `tlog` key signed, gathered while the records are read. One entry a key."""

    def __init__(self) -> None:
        self._heads: dict[KeyName, LastHead] = {}

    def add(self, record: AuditRecord) -> None:
        """Take one more record, in their order. One that says nothing of a head is passed over."""
        if record.op != CHECKPOINT_OP or record.result != "ok":
            return
        try:
            name = parse_kid(record.kid).name
            size, root = int(record.detail["size"]), bytes.fromhex(record.detail["root"])
            head = LastHead(record.detail["origin"], size, root, record.ts_ms // _MS)
            compose_checkpoint(TreeHead(head.origin, head.size, head.root))
        except (KmsError, KeyError, ValueError):
            # A change whose request died has no head: none was answered.
            return
        known = self._heads.get(name)
        if known is None or head.size >= known.size:
            self._heads[name] = head

    def changes(self, keys: Iterable[KeyRecord], *, believed: bool) -> list[KeyChange]:
        """Make the changes that `keys` lack: a key that is behind goes on from the newest head.

        One that contradicts what was signed is disabled; so is one that is behind where the records are not
        `believed`, since they are not those that were signed.
        """
        changes = []
        for former in keys:
            head = self._heads.get(former.name)
            if head is None or former.name.purpose != TLOG_PURPOSE or former.state is StateOfKey.DESTROYED:
                continue
            last = former.last_head or LastHead(head.origin, -1, b"", 0)
            if last == replace(head, time_s=last.time_s) or (last.origin == head.origin and last.size > head.size):
                continue
            if believed and last.origin == head.origin and last.size < head.size:
                verb, record = (
                    TLOG_RESTORED_OP,
                    replace(former, last_head=replace(head, time_s=max(head.time_s, last.time_s))),
                )
            elif former.state is StateOfKey.ENABLED:
                verb, record = TLOG_DISABLED_OP, former.changed(StateOfKey.DISABLED, None)
            else:
                continue
            changes.append(KeyChange(former, record, verb, str(former.newest_kid), "", "", b"", b"", None))
        return changes
