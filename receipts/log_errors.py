"""What the log can raise beside the errors of a store; every class has a stable code."""

from __future__ import annotations

from receipts.errors import StoreCorrupt, StoreError


class LogUnavailable(StoreError):
    """Disk full, I/O error, signer out of reach: nothing new was published, and trying again may help."""

    code = "log_unavailable"


class LogBusy(StoreError):
    """Another process integrates into this log; a log has one writer."""

    code = "log_busy"


class LogForked(StoreCorrupt):
    """What is stored leads to another tree than one that was signed: a receipt is missing or was changed.

    Nothing may be signed until it is known why.
    """

    code = "log_forked"


class EntryUnknown(StoreError):
    """The log has no entry, head or tile there; it may have one later."""

    code = "entry_unknown"


class EntryPruned(StoreError):
    """The payloads of these entries were dropped; their hashes are still in the tree."""

    code = "entry_pruned"
