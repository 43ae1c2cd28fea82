"""The answer to one request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pch.client.errors import HttpStatusError, PeerFault

if TYPE_CHECKING:
    from pch.client.challenge import ChallengeText


@dataclass(frozen=True, slots=True)
class Headers:
    """Field lines as received: lower-case name and raw value, in order."""

    lines: tuple[tuple[str, bytes], ...]

    def all(self, name: str) -> list[bytes]:
        """Give every raw value of the field `name`, in order; empty if absent."""
        wanted = name.lower()
        return [value for field, value in self.lines if field == wanted]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Give the field's lines joined with ", " (RFC 9110 §5.3), read as Latin-1, or `default`."""
        values = self.all(name)
        return b", ".join(values).decode("latin-1") if values else default

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.all(name))


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer.

    `reason`: PCH-Reason of a refusal. `receipt_id`: PCH-Receipt. `challenges`: the fresh challenges that came
    with it, already in the connection's pool. `signed`: whether the request it answers carried a proof.
    `sends`: how many times the request went out to get it, 1 in a steady state. `http_version`: `1.1` or `2`.
    """

    status: int
    headers: Headers
    content: bytes
    url: str
    http_version: str
    receipt_id: str | None
    reason: str | None
    challenges: tuple[ChallengeText, ...]
    signed: bool
    sends: int

    @property
    def text(self) -> str:
        """Give the content as UTF-8, with replacement characters for what is not."""
        return self.content.decode("utf-8", errors="replace")

    @property
    def retry_after_s(self) -> int | None:
        """Give Retry-After in seconds (RFC 9110 §10.2.3); None when absent or a date."""
        value = (self.headers.get("retry-after") or "").strip()
        return int(value) if value.isascii() and value.isdigit() and len(value) <= 9 else None

    def json(self) -> Any:
        """Parse the content as JSON. Raises `PeerFault` when it is not."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise PeerFault("the answer's content is not JSON") from error

    def raise_for_status(self) -> Response:
        """Give the answer itself back below 400. Raises `HttpStatusError` otherwise."""
        if self.status >= 400:
            told = f" ({self.reason})" if self.reason else ""
            raise HttpStatusError(f"the server answered {self.status}{told}", self)
        return self
