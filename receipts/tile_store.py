"""Where tiles and the checkpoint lie: a small protocol, and a folder that any web server could serve."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from receipts.durable_file import replace_unsynced, sync
from receipts.log_errors import LogUnavailable
from receipts.tile import Tile, narrow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKPOINT_PATH: Final = "checkpoint"
_FOLDER_MODE: Final = 0o700


class TileStore(Protocol):
    """Named immutable tiles and one mutable checkpoint, C2SP tlog-tiles. Calls block.

    Durability: what `write` and `publish` were given survives the death of the process and of the machine once
    they return. Atomicity: a reader sees a file whole or not at all. Concurrency: one writer, any number of
    readers in any process.
    """

    def read(self, tile: Tile) -> bytes | None:
        """Return what the tile holds, None when it is not there. Raises LogUnavailable."""

    def write(self, tiles: Sequence[tuple[Tile, bytes]]) -> None:
        """Store tiles, over what lies there. Raises LogUnavailable; any of them may then be stored or not."""

    def drop_partial(self, tile: Tile) -> None:
        """Drop every partial tile in the place of `tile`, which is there in full. Raises LogUnavailable."""

    def drop(self, tile: Tile) -> None:
        """Drop a tile for good, if it is there. Raises LogUnavailable."""

    def read_checkpoint(self) -> bytes | None:
        """Return the published checkpoint, None when there was none yet. Raises LogUnavailable."""

    def publish(self, checkpoint: bytes) -> None:
        """Replace the published checkpoint. Raises LogUnavailable; it may then be replaced or not."""


def read_tile(tiles: TileStore, tile: Tile) -> bytes | None:
    """Read a tile; a partial one that was dropped is cut from the full one.

    Returns None when it is not there. Raises LogUnavailable, TileError when the full tile is not one.
    """
    data = tiles.read(tile)
    if data is None and tile.is_partial:
        whole = tiles.read(tile.full)
        return None if whole is None else narrow(tile, whole)
    return data


class DirectoryTileStore:
    """A TileStore in the folder `root`, made private when absent, with the paths of C2SP tlog-tiles."""

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root)

    def read(self, tile: Tile) -> bytes | None:
        """Read a tile; see `TileStore.read`."""
        return self._read(tile.path)

    def write(self, tiles: Sequence[tuple[Tile, bytes]]) -> None:
        """Store tiles; see `TileStore.write`."""
        with _typed_errors():
            self._write([(tile.path, data) for tile, data in tiles])

    def drop_partial(self, tile: Tile) -> None:
        """Remove the folder of partial tiles; see `TileStore.drop_partial`."""
        with _typed_errors(), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._root / f"{tile.full.path}.p")

    def drop(self, tile: Tile) -> None:
        """Remove a tile's file; see `TileStore.drop`."""
        path = self._root / tile.path
        with _typed_errors():
            if path.exists():
                path.unlink(missing_ok=True)
                sync(path.parent)

    def read_checkpoint(self) -> bytes | None:
        """Read the checkpoint; see `TileStore.read_checkpoint`."""
        return self._read(CHECKPOINT_PATH)

    def publish(self, checkpoint: bytes) -> None:
        """Replace the checkpoint; see `TileStore.publish`."""
        with _typed_errors():
            self._write([(CHECKPOINT_PATH, checkpoint)])

    def _read(self, path: str) -> bytes | None:
        with _typed_errors():
            try:
                return (self._root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _write(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write each file beside its place, sync it, move it there, and at last sync the folders that changed."""
        changed: set[Path] = set()
        for name, data in files:
            path = self._root / name
            self._make_folder(path.parent, changed)
            replace_unsynced(path, data)
            changed.add(path.parent)
        for folder in sorted(changed):
            sync(folder)

    def _make_folder(self, folder: Path, changed: set[Path]) -> None:
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_folder(folder.parent, changed)
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True, parents=folder == self._root)
        changed.add(folder.parent)


@contextlib.contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LogUnavailable(f"tiles: {type(error).__name__} {error.errno}") from error
