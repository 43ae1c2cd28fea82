"""What the log remembers beside its heads, in small files in its folder.

`packs.json`: the packs handed out, so that the next one is proved to go on from them. `rotations.json`: the entries
that introduced keys, so that packs can show them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Meta

from receipts.durable_file import FILE_MODE, replace_synced
from receipts.errors import StoreCorrupt
from receipts.log_errors import LogUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKS_NAME: Final = "packs.json"
ROTATIONS_NAME: Final = "rotations.json"
MAX_HANDOUTS: Final = 64
"""Packs remembered: the next one has a consistency proof from each of them."""
MAX_ROTATIONS: Final = 256
MAX_FILE_BYTES: Final = 2 * 1024 * 1024

T = TypeVar("T")


class Handout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pack that was handed out whole: its UTC day, and the size and root (lower hex) of its checkpoint."""

    date: str
    size: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    root: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the log that introduced keys: its index and its bytes."""

    index: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    receipt: Annotated[str, Meta(max_length=65_535)]


class _ListFile(Generic[T]):
    """A list in a JSON file, replaced whole, by one process at a time."""

    def __init__(self, path: Path, item: Any, max_items: int) -> None:
        self._path, self._max_items = path, max_items
        self._decoder: msgspec.json.Decoder[tuple[T, ...]] = msgspec.json.Decoder(tuple[item, ...])

    def read(self) -> tuple[T, ...]:
        with _typed_errors(self._path.name):
            try:
                data = self._path.read_bytes()
            except FileNotFoundError:
                return ()
        try:
            if len(data) > MAX_FILE_BYTES:
                raise StoreCorrupt(f"{self._path.name} is too long")
            return self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"{self._path.name} has not its form") from error

    def add(self, item: T) -> None:
        """Put `item` at the end, once, and drop the first ones past the bound."""
        with self._locked():
            items = [*(each for each in self.read() if each != item), item][-self._max_items :]
            replace_synced(self._path, msgspec.json.encode(items))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with _typed_errors(self._path.name):
            path = self._path.with_name(f"{self._path.name}.lock")
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)


@contextlib.contextmanager
def _typed_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LogUnavailable(f"{name}: {type(error).__name__} {error.errno}") from error


class LogNotes:
    """The notes of the log in `folder`. Any process may use them. Every call raises LogUnavailable, StoreCorrupt."""

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        self._packs: _ListFile[Handout] = _ListFile(folder / PACKS_NAME, Handout, MAX_HANDOUTS)
        self._rotations: _ListFile[Rotation] = _ListFile(folder / ROTATIONS_NAME, Rotation, MAX_ROTATIONS)

    def handouts(self) -> tuple[Handout, ...]:
        """Return the last packs that were handed out, the newest last."""
        return self._packs.read()

    def add_handout(self, handout: Handout) -> None:
        """Remember a pack durably as the last one."""
        self._packs.add(handout)

    def rotations(self) -> tuple[Rotation, ...]:
        """Return the entries that introduced keys, the newest last."""
        return self._rotations.read()

    def add_rotation(self, rotation: Rotation) -> None:
        """Remember durably an entry that introduces keys."""
        self._rotations.add(rotation)
