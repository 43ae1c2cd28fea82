"""One body as it streams through: pure, fed with chunks, gives what may go on (docs/reference/pch.md §4 step 11, §6).

    envelope (if ordered) ─▶ content ─▶ finished
                        any ─▶ refused

What goes on is always behind what came: in `streamed` release by the last chunk, in `whole` release by everything. Only
`finish` gives the rest, and it does so when every digest holds; so upstream never has the last byte of an altered body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pch.errors import BadContentDigest, BodyTooLarge, PeerFault
from pch.httpsig.content_digest import ContentDigestCheck

if TYPE_CHECKING:
    from extproc.body_order import BodyOrder


@dataclass(frozen=True, slots=True)
class EnvelopeTaken:
    """The envelope is whole; it goes no further. `data`: exactly as many bytes as were ordered."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Released:
    """Content that may go on; more is held back."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """Every digest holds. `data`: what was held back. `sha256`: of the content. `content_bytes`: its length."""

    data: bytes
    sha256: bytes
    content_bytes: int


BodyEvent: TypeAlias = EnvelopeTaken | Released


class BodyStream:
    """See one body through. After an exception it gives nothing any more. Owned by one task."""

    def __init__(self, order: BodyOrder) -> None:
        self._order = order
        self._digest = ContentDigestCheck(order.digests)
        self._envelope = bytearray()
        self._envelope_left = order.envelope_bytes
        # One buffer: as objects, chunks of two bytes would take many times what they hold.
        self._held = bytearray()
        self._content_bytes = 0
        self._over = False

    @property
    def content_bytes(self) -> int:
        """How much of the content arrived."""
        return self._content_bytes

    @property
    def held_bytes(self) -> int:
        """How much is held back: bounded by one chunk, or by the order's limit when everything is."""
        return len(self._envelope) + len(self._held)

    def receive(self, data: bytes) -> list[BodyEvent]:
        """Take the next bytes, split wherever they were. Raises `BodyTooLarge`, `BadContentDigest`."""
        self._check_open()
        events: list[BodyEvent] = []
        if self._envelope_left:
            taken, data = data[: self._envelope_left], data[self._envelope_left :]
            self._envelope += taken
            self._envelope_left -= len(taken)
            if not self._envelope_left:
                events.append(EnvelopeTaken(bytes(self._envelope)))
                self._envelope.clear()
        if data:
            self._take_content(data)
            if self._order.release == "streamed" and self._held:
                events.append(Released(bytes(self._held)))
                self._held.clear()
            self._held += data
        return events

    def finish(self) -> Finished:
        """Settle the body at its end, and give what was held back. Raises `BadContentDigest`."""
        self._check_open()
        self._over = True
        if self._envelope_left or (self._order.envelope_bytes and not self._content_bytes):
            raise BadContentDigest("the body ended inside its envelope, or with it")
        if self._order.content_bytes is not None and self._content_bytes != self._order.content_bytes:
            raise BadContentDigest("the content is not as long as it was said to be")
        sha256 = self._digest.verify()
        data = bytes(self._held)
        self._held.clear()
        return Finished(data, sha256, self._content_bytes)

    def _take_content(self, data: bytes) -> None:
        self._content_bytes += len(data)
        try:
            if self._content_bytes > self._order.max_body_bytes:
                raise BodyTooLarge("the content is over the route's limit")
            if self._order.content_bytes is not None and self._content_bytes > self._order.content_bytes:
                raise BadContentDigest("the content is longer than it was said to be")
        except PeerFault:
            self._over = True
            self._held.clear()
            raise
        self._digest.update(data)

    def _check_open(self) -> None:
        if self._over:
            raise RuntimeError("the body is settled already")
