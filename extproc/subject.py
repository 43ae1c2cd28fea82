"""Subject names: who a key belongs to. They travel in `x-signet-subject`, receipts and log lines."""

from __future__ import annotations

import re
from typing import Final, NewType

Subject = NewType("Subject", str)

_SUBJECT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+/-]{0,127}")


def check_subject(text: str) -> Subject:
    """Accept a subject: 1 to 128 ASCII characters that are safe in a header field. Raises ValueError."""
    if not _SUBJECT.fullmatch(text):
        raise ValueError("must be a subject: 1 to 128 of A-Z a-z 0-9 . _ @ : + / -, starting with a letter or digit")
    return Subject(text)
