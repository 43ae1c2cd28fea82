"""A zip that is written from its first byte to its last, and handed on while it grows.

`zipfile` writes to a sink that cannot seek, so sizes follow the data. The last line of the file, its zip comment,
is the SHA-256 of every byte before it: whatever changed anywhere is found.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receipts.verify import TRAILER_BYTES, TRAILER_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DRAIN_BYTES: Final = 128 * 1024
"""Packed bytes that wait before they are handed on."""
COMPRESS_LEVEL: Final = 3
"""Receipts pack about as small as at 6, in half the time."""
_EARLIEST: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A member as the manifest lists it: size in bytes, SHA-256 in lower hex."""

    name: str
    size: int
    sha256: str


class _Sink:
    """What zipfile writes to: no seeking, no telling."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.waiting_bytes = 0

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        self.waiting_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: `take` empties it."""

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self.waiting_bytes = 0
        return data


class ZipStream:
    """Writes members one after the other; each call yields the bytes that are ready to be handed on."""

    def __init__(self) -> None:
        self._sink = _Sink()
        self._digest = hashlib.sha256()
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESS_LEVEL)  # type: ignore[call-overload]
        self.files: list[PackedFile] = []

    def add(self, name: str, pieces: Iterable[bytes], *, packed: bool = True, large: bool = False) -> Iterator[bytes]:
        """Write a member from `pieces`; `packed`: deflate it, `large`: it may be over 2 GiB."""
        info = zipfile.ZipInfo(name, _EARLIEST)
        info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        info.create_system = 3
        info.external_attr = _MODE << 16
        digest, size = hashlib.sha256(), 0
        with self._zip.open(info, "w", force_zip64=large) as member:
            for piece in pieces:
                member.write(piece)
                digest.update(piece)
                size += len(piece)
                if self._sink.waiting_bytes >= DRAIN_BYTES:
                    yield self._take()
        self.files.append(PackedFile(name, size, digest.hexdigest()))
        if self._sink.waiting_bytes >= DRAIN_BYTES:
            yield self._take()

    def finish(self) -> Iterator[bytes]:
        """Write the directory and the digest of the file."""
        self._zip.comment = bytes(TRAILER_BYTES)
        self._zip.close()
        data = self._sink.take()[:-TRAILER_BYTES]
        self._digest.update(data)
        yield data + TRAILER_PREFIX + self._digest.hexdigest().encode()

    def _take(self) -> bytes:
        data = self._sink.take()
        self._digest.update(data)
        return data
