"""A small file that is read again when it changes: looked at, at most once in `LOOK_EVERY_S`, when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from kms.private_file import FileStamp, PrivateFileError, read_private, stamp_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

LOOK_EVERY_S: Final = 1.0
"""A change counts after this long: well inside the five seconds that a revocation may take."""


class WatchedFile(Generic[T]):
    """What `parse` makes of the file at `path`. One thread owns an object.

    `parse` gets the bytes, raises PrivateFileError, and gets None when there is no file. `monotonic_s` never goes back.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes | None], T], max_bytes: int, monotonic_s: Callable[[], float]
    ) -> None:
        """Read the file. Raises PrivateFileError."""
        self._path, self._parse, self._max_bytes, self._monotonic_s = path, parse, max_bytes, monotonic_s
        self._looked_s = monotonic_s()
        self._seen: FileStamp | None = None
        self.problem: str | None = None
        """Why the file as it is now is not what `value` holds; None when it is."""
        self.value: T = self._read()
        """What the file held when it could last be used."""

    def refresh(self) -> None:
        """Look at the file if that is due; a change that cannot be used keeps `value` and sets `problem`."""
        now_s = self._monotonic_s()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self.reload()

    def reload(self) -> None:
        """Look at the file now."""
        stamp = stamp_of(self._path)
        if stamp == self._seen and (stamp is None or stamp.settled) and self.problem is None:
            return
        try:
            self.value = self._read()
            self.problem = None
        except PrivateFileError as error:
            self.problem = str(error)

    def _read(self) -> T:
        stamp = stamp_of(self._path)
        try:
            content = read_private(self._path, self._max_bytes)
        except FileNotFoundError:
            content = None
        value = self._parse(content)
        self._seen = stamp
        return value
