"""What a store can raise, by cause; every class has a stable code for logs and metrics."""

from __future__ import annotations

from typing import ClassVar


class StoreError(Exception):
    """Nothing may be answered on the strength of this write or read."""

    code: ClassVar[str] = "store_error"


class ReceiptStoreUnavailable(StoreError):
    """Disk full, read-only, I/O error, lock held too long: nothing was written or read for sure."""

    code = "store_unavailable"


class StoreOverloaded(StoreError):
    """The queue in front of the store is full; the item was not queued."""

    code = "store_overloaded"


class StoreTimeout(StoreError):
    """The caller's time ran out. An item already being committed may still become durable."""

    code = "store_timeout"


class StoreClosed(StoreError):
    """The store's thread does not run: not started, closed, or dead."""

    code = "store_closed"


class StoreCorrupt(StoreError):
    """What is stored contradicts itself: a broken chain, a changed byte, a foreign schema."""

    code = "store_corrupt"


class ReceiptTooLarge(StoreError):
    """The receipt's bytes would exceed `MAX_RECEIPT_BYTES`; it was not written."""

    code = "receipt_too_large"


class StoreUrlError(StoreError):
    """The URL names no receipt store. Messages never quote it: it may hold a password."""

    code = "store_url"


class ReceiptFormatError(ValueError):
    """The bytes are not a canonical receipt of a known version. Messages name the field, never its value."""
