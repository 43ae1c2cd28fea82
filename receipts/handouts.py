"""The packs that were handed out, in a small file in the log's folder: the next one is proved to go on from them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from receipts.errors import StoreCorrupt
from receipts.log_errors import LogUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_NAME: Final = "packs.json"
MAX_HANDOUTS: Final = 64
"""Packs remembered: the next one has a consistency proof from each of them."""
MAX_FILE_BYTES: Final = 64 * 1024
_FILE_MODE: Final = 0o600


class Handout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pack that was handed out whole: its UTC day, and the size and root (lower hex) of its checkpoint."""

    date: str
    size: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    root: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Handouts:
    """The packs handed out of the log in `folder`, oldest first. Any process may add one."""

    def __init__(self, folder: Path | str) -> None:
        self._path = Path(folder) / FILE_NAME

    def read(self) -> tuple[Handout, ...]:
        """Return the last `MAX_HANDOUTS`. Raises LogUnavailable, StoreCorrupt."""
        with _typed_errors():
            try:
                data = self._path.read_bytes()
            except FileNotFoundError:
                return ()
        try:
            if len(data) > MAX_FILE_BYTES:
                raise StoreCorrupt(f"{FILE_NAME} is too long")
            return msgspec.json.decode(data, type=tuple[Handout, ...])
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{FILE_NAME} is not a list of packs") from error

    def add(self, handout: Handout) -> None:
        """Remember a pack, durably, as the last one. Raises LogUnavailable, StoreCorrupt."""
        with self._locked():
            kept = [each for each in self.read() if (each.size, each.root) != (handout.size, handout.root)]
            data = msgspec.json.encode([*kept, handout][-MAX_HANDOUTS:])
            unfinished = self._path.with_name(f"{FILE_NAME}.tmp")
            flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(unfinished, flags, _FILE_MODE), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with _typed_errors():
            path = self._path.with_name(f"{FILE_NAME}.lock")
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LogUnavailable(f"{FILE_NAME}: {type(error).__name__} {error.errno}") from error
