from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from receipts.tile import Tile


class MemoryTiles:
    """A TileStore in memory."""

    def __init__(self) -> None:
        self.tiles: dict[Tile, bytes] = {}
        self.checkpoint: bytes | None = None
        self.reads = 0

    def read(self, tile: Tile) -> bytes | None:
        self.reads += 1
        return self.tiles.get(tile)

    def write(self, tiles: Sequence[tuple[Tile, bytes]]) -> None:
        self.tiles.update(tiles)

    def drop_partial(self, tile: Tile) -> None:
        self.tiles = {
            name: data
            for name, data in self.tiles.items()
            if not name.is_partial or (name.level, name.index) != (tile.level, tile.index)
        }

    def drop(self, tile: Tile) -> None:
        self.tiles.pop(tile, None)

    def read_checkpoint(self) -> bytes | None:
        return self.checkpoint

    def publish(self, checkpoint: bytes) -> None:
        self.checkpoint = checkpoint
