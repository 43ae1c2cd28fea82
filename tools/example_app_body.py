"""What the example app keeps of a request's body."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

MAX_LOGGED_BODY_BYTES: Final = 64 * 1024


class SeenBody:
    """A body as it arrived: hashed whole, and only its beginning kept."""

    def __init__(self) -> None:
        self.length = 0
        self._sha256 = hashlib.sha256()
        self._start = bytearray()

    def add(self, data: bytes) -> None:
        """Take in what arrived next."""
        self.length += len(data)
        self._sha256.update(data)
        self._start += data[: MAX_LOGGED_BODY_BYTES - len(self._start)]

    def as_json(self) -> dict[str, object]:
        """Give its part of the log record."""
        return {
            "body_bytes": self.length,
            "body_sha256": self._sha256.hexdigest(),
            "body_base64": base64.b64encode(self._start).decode(),
        }
