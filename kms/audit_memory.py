"""The audit log under amnesia: in memory, the newest records alone, gone with the process (I-11, CONFIG.md §8)."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kms.audit_files import SealedSegment

KEPT_BATCHES: Final = 16_384
KEPT_CHECKPOINTS: Final = 1024


class AuditMemory:
    """An `kms.audit_log.AuditStorage`: the tree goes on for ever, what it was made of is kept while there is room."""

    def __init__(self) -> None:
        self.batches: collections.deque[bytes] = collections.deque(maxlen=KEPT_BATCHES)
        self.checkpoints: collections.deque[bytes] = collections.deque(maxlen=KEPT_CHECKPOINTS)
        self.head = b""

    def append(self, data: bytes, at_bytes: int) -> None:
        """Keep records."""
        self.batches.append(data)

    def seal(self, number: int, sealed: SealedSegment) -> None:
        """Go on; there are no files to end."""

    def write_head(self, note: bytes, *, synced: bool = False) -> None:
        """Keep the newest head."""
        self.head = note

    def append_checkpoint(self, note: bytes) -> None:
        """Keep a checkpoint."""
        self.checkpoints.append(note)

    def close(self) -> None:
        """Forget everything."""
        self.batches.clear()
        self.checkpoints.clear()
