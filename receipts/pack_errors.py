"""Why a pack cannot be made; every class has a stable code."""

from __future__ import annotations

from typing import ClassVar


class PackError(ValueError):
    """No pack can be made of what was asked for. Messages are fit for whoever asked."""

    code: ClassVar[str] = "pack_error"


class PackDateError(PackError):
    """The text is no date, its day has not begun, or ended before the log's first head."""

    code = "pack_date"


class PackTooLarge(PackError):
    """The day has more receipts than one pack holds."""

    code = "pack_too_large"
