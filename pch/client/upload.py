"""Content that is read piece by piece, so that no more than one piece of it is ever in memory.

The signature covers the content's digest, which goes ahead of it. So a file is read twice: for the digest, and to be
sent; and once more each time it has to be sent again. Whoever knows the digest already gives it with the pieces.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, BinaryIO, Final, Self

from pch.client.errors import InvalidRequest
from pch.client.limits import MAX_UPLOAD_BYTES, UPLOAD_PIECE_BYTES
from pch.errors import BadContentDigest
from pch.httpsig.content_digest import expected_digests
from pch.httpsig.structured_field import serialise_byte_sequence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

CHANGED: Final = "the content is not what it was when it was signed"


class Upload:
    """Content of a known length and digest. Not for two requests at once when it is a file.

    `length_bytes`: of all pieces together. `digest`: the Content-Digest field that they have (RFC 9530), with sha-256.
    `pieces`: gives them from the beginning, each time it is called. Raises `InvalidRequest`.
    """

    def __init__(self, pieces: Callable[[], Iterable[bytes]], *, length_bytes: int, digest: str) -> None:
        if not 0 <= length_bytes <= MAX_UPLOAD_BYTES:
            raise InvalidRequest(f"the content is over {MAX_UPLOAD_BYTES} bytes, or of no length")
        try:
            expected_digests([digest.encode("ascii")])
        except (BadContentDigest, UnicodeEncodeError) as error:
            raise InvalidRequest("the content's digest is no Content-Digest with sha-256") from error
        self._pieces = pieces
        self.length_bytes = length_bytes
        self.digest = digest

    @classmethod
    def of_pieces(cls, pieces: Iterable[bytes], *, length_bytes: int, digest: str) -> Self:
        """Take pieces that can be had once; a request that has to send them again fails."""
        left = iter((pieces,))

        def once() -> Iterable[bytes]:
            for each in left:
                return each
            raise InvalidRequest("the content was sent once and cannot be had again")

        return cls(once, length_bytes=length_bytes, digest=digest)

    @classmethod
    def of_file(cls, file: BinaryIO) -> Self:
        """Take an open binary file, from where it stands to its end; it is read once here, for its digest.

        The file stays open and belongs to the caller. Raises `InvalidRequest` when it cannot be read twice.
        """
        try:
            seekable, start = file.seekable(), file.tell()
        except (OSError, ValueError) as error:
            raise InvalidRequest("the content is no file that can be read") from error
        if not seekable:
            raise InvalidRequest("the content is a file that cannot be read twice; give its length and digest")

        def pieces() -> Iterator[bytes]:
            file.seek(start)
            while piece := file.read(UPLOAD_PIECE_BYTES):
                yield piece

        sha256, length_bytes = hashlib.sha256(), 0
        for piece in pieces():
            if not isinstance(piece, bytes):
                raise InvalidRequest("the content is a file of text")
            sha256.update(piece)
            length_bytes += len(piece)
            if length_bytes > MAX_UPLOAD_BYTES:
                raise InvalidRequest(f"the content is over {MAX_UPLOAD_BYTES} bytes")
        digest = f"sha-256={serialise_byte_sequence(sha256.digest())}"
        return cls(pieces, length_bytes=length_bytes, digest=digest)

    def __len__(self) -> int:
        """Give the length in bytes; an upload of nothing is no content."""
        return self.length_bytes

    def with_envelope(self, envelope: bytes) -> Sending:
        """Give what is sent once: `envelope`, which may be empty, and the content."""
        return Sending(self, envelope)

    def pieces(self) -> Iterator[bytes]:
        """Give the content from its beginning. Raises `InvalidRequest` when it is longer or shorter than it was."""
        left = self.length_bytes
        for piece in self._pieces():
            left -= len(piece)
            if left < 0:
                raise InvalidRequest(CHANGED)
            if piece:
                yield piece
        if left:
            raise InvalidRequest(CHANGED)


class Sending:
    """One time that an upload goes out, for a blocking connection or for one on asyncio."""

    def __init__(self, upload: Upload, envelope: bytes) -> None:
        self._upload, self._envelope = upload, envelope

    def __len__(self) -> int:
        """Give the length in bytes."""
        return len(self._envelope) + len(self._upload)

    def __iter__(self) -> Iterator[bytes]:
        """Give the pieces."""
        if self._envelope:
            yield self._envelope
        yield from self._upload.pieces()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the pieces; each is read in a thread, so that a slow disk does not hold up the event loop."""
        pieces = iter(self)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
