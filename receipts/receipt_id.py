"""Receipt ids: UUID version 7, RFC 9562 §5.7."""

from __future__ import annotations

import re
from typing import Final, NewType

ReceiptId = NewType("ReceiptId", str)
"""A UUIDv7 in lower-case 8-4-4-4-12 form."""

WriterId = NewType("WriterId", str)
"""A UUID in lower-case 8-4-4-4-12 form, fresh for every start of a process that writes."""

ID_RANDOM_BYTES: Final = 10
RECEIPT_ID_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z"
WRITER_ID_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z"

_RECEIPT_ID: Final = re.compile(RECEIPT_ID_PATTERN)
_MAX_TIME_MS: Final = 2**48 - 1


def is_receipt_id(text: str) -> bool:
    """Tell whether `text` has the form of a receipt id."""
    return _RECEIPT_ID.match(text) is not None


def new_receipt_id(time_ms: int, random: bytes) -> ReceiptId:
    """Build a UUIDv7, RFC 9562 §5.7.

    `time_ms`: milliseconds since the epoch, below 2^48. `random`: `ID_RANDOM_BYTES` fresh random bytes, of
    which 74 bits are used. Raises ValueError when either is out of range.
    """
    if not 0 <= time_ms <= _MAX_TIME_MS:
        raise ValueError("time_ms is outside 48 bits")
    if len(random) != ID_RANDOM_BYTES:
        raise ValueError(f"random is not {ID_RANDOM_BYTES} bytes")
    stamp = f"{time_ms:012x}"
    noise = random.hex()
    variant = "89ab"[random[1] & 3]
    return ReceiptId(f"{stamp[:8]}-{stamp[8:]}-7{noise[:3]}-{variant}{noise[4:7]}-{noise[7:19]}")
