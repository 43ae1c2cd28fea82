"""The log's tree on tiles: growing it, going on after a restart, and reading its nodes for proofs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from receipts.errors import StoreCorrupt
from receipts.merkle import HASH_BYTES, CompactTree, leaf_hash, node_hash
from receipts.merkle_prove import complete_subtrees
from receipts.tile import (
    ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    TileError,
    encode_entries,
    split_entries,
    split_hashes,
    tile_of,
)
from receipts.tile_store import read_tile

if TYPE_CHECKING:
    from receipts.tile_store import TileStore

MAX_CACHED_TILES: Final = 512
"""Tiles whose nodes a reader keeps: at most 16 KiB of hashes each."""


class TileNodes:
    """The complete subtrees of the tree of `size` entries, read from its tiles; a `merkle_prove.NodeSource`.

    `cache` may be shared between trees of any size over the same tiles. Any thread may use it. `node` raises
    StoreCorrupt when a tile is missing or is none, LogUnavailable when it cannot be read.
    """

    def __init__(self, tiles: TileStore, size: int, cache: TileCache | None = None) -> None:
        self._tiles = tiles
        self._size = size
        self._cache = cache or TileCache()

    def node(self, level: int, index: int) -> bytes:
        """Return the root over the leaves from `index << level` to before `(index + 1) << level`, 32 bytes."""
        tile_level, above = divmod(level, TILE_HEIGHT)
        tile_index, place = divmod(index, TILE_WIDTH >> above)
        return self._rows(tile_of(tile_level, tile_index, self._size)).row(above)[place]

    def _rows(self, tile: Tile) -> TileRows:
        rows = self._cache.get(tile)
        if rows is None:
            rows = TileRows(split_hashes(*read_stored(self._tiles, tile.level, tile.index, self._size)))
            self._cache.put(tile, rows)
        return rows


class TileCache:
    """The tiles that were used last, at most `max_tiles`. Any thread may use it."""

    def __init__(self, max_tiles: int = MAX_CACHED_TILES) -> None:
        self._max_tiles = max_tiles
        self._lock = threading.Lock()
        self._rows: OrderedDict[Tile, TileRows] = OrderedDict()  # Owned by `_lock`.

    def get(self, tile: Tile) -> TileRows | None:
        """Find a tile, and count it as used."""
        with self._lock:
            rows = self._rows.get(tile)
            if rows is not None:
                self._rows.move_to_end(tile)
            return rows

    def put(self, tile: Tile, rows: TileRows) -> None:
        """Keep a tile, in place of the one longest unused."""
        with self._lock:
            self._rows[tile] = rows
            if len(self._rows) > self._max_tiles:
                self._rows.popitem(last=False)


class TileRows:
    """The hashes of a tile and, once asked for, the complete nodes above them inside it."""

    __slots__ = ("_rows",)

    def __init__(self, hashes: list[bytes]) -> None:
        self._rows: tuple[list[bytes], ...] = (hashes,)

    def row(self, above: int) -> list[bytes]:
        """Return the nodes that lie `above` levels over the tile's hashes, the complete ones alone."""
        # Two threads may compute the same row at once; either result is right, so no lock is held.
        rows = self._rows
        while len(rows) <= above:
            below = rows[-1]
            rows = (*rows, [node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)])
            self._rows = rows
        return rows[above]


def read_stored(tiles: TileStore, level: int, index: int, size: int) -> tuple[Tile, bytes]:
    """Read the tile that a tree of `size` entries has there. Raises StoreCorrupt, LogUnavailable."""
    tile = tile_of(level, index, size)
    try:
        data = read_tile(tiles, tile)
    except TileError as error:
        raise StoreCorrupt(f"{tile.full.path}: {error}") from error
    if data is None:
        raise StoreCorrupt(f"{tile.path} is missing")
    if level != ENTRIES and len(data) != tile.width * HASH_BYTES:
        raise StoreCorrupt(f"{tile.path} has the wrong length")
    return tile, data


class TiledTree:
    """The growing tree together with the right edge of its tiles. One thread owns it.

    Appending keeps full tiles for `take`, which also gives the partial tiles of the size reached: so memory
    holds what was appended since the last `take`, and at most 256 entries more.
    """

    def __init__(self) -> None:
        self._tree = CompactTree()
        self._edge: dict[int, list[bytes]] = {}  # By level, the hashes (or entries) of the tile not yet full.
        self._full: list[tuple[Tile, bytes]] = []
        self._grown: set[int] = set()  # Levels whose edge changed since the last `take`.
        self._pruned: set[int] = set()  # Bundles of which an entry is gone.

    @property
    def size(self) -> int:
        """Entries in the tree."""
        return self._tree.size

    def root(self) -> bytes:
        """Compute the root, 32 bytes."""
        return self._tree.root()

    def append(self, entry: bytes) -> None:
        """Add an entry of up to `tile.MAX_ENTRY_BYTES`."""
        self._append(entry, leaf_hash(entry))

    def append_pruned(self, leaf: bytes) -> None:
        """Add an entry of which only the leaf hash (32 bytes) is left; `take` does not give its bundle."""
        self._pruned.add(self._tree.size // TILE_WIDTH)
        self._append(b"", leaf)

    def _append(self, entry: bytes, leaf: bytes) -> None:
        index = self._tree.size
        self._add(ENTRIES, index, entry)
        for level, node in enumerate(self._tree.append(leaf)[::TILE_HEIGHT]):
            self._add(level, index >> (TILE_HEIGHT * level), node)

    def take(self, *, partial: bool = True) -> list[tuple[Tile, bytes]]:
        """Give every tile that is new since the last time: full ones, then the partial ones of this size.

        `partial`: with False only the full ones; the others stay to be given.
        """
        new, self._full = self._full, []
        if partial:
            new += [
                (tile_of(level, self._count(level) // TILE_WIDTH, self.size), _encode(level, self._edge[level]))
                for level in sorted(self._grown)
                if self._edge[level]
            ]
            self._grown.clear()
        return [each for each in new if each[0].level != ENTRIES or each[0].index not in self._pruned]

    def _count(self, level: int) -> int:
        return self.size >> (TILE_HEIGHT * max(level, 0))

    def _add(self, level: int, index: int, item: bytes) -> None:
        edge = self._edge.setdefault(level, [])
        edge.append(item)
        self._grown.add(level)
        if len(edge) == TILE_WIDTH:
            self._full.append((Tile(level, index // TILE_WIDTH), _encode(level, edge)))
            self._edge[level] = []

    @classmethod
    def load(cls, tiles: TileStore, size: int) -> TiledTree:
        """Go on from the stored tiles of the tree of `size` entries.

        Reads its right edge alone: every hash read counts in the root, so comparing that with a signed one
        vouches for them; the entries of the last bundle are compared here. Raises StoreCorrupt, LogUnavailable.
        """
        tree = cls()
        nodes = TileNodes(tiles, size)
        tree._tree = CompactTree(size, [nodes.node(*subtree) for subtree in complete_subtrees(0, size)])
        level = 0
        while size >> (TILE_HEIGHT * level):
            index, width = divmod(tree._count(level), TILE_WIDTH)
            tree._edge[level] = split_hashes(*read_stored(tiles, level, index, size)) if width else []
            level += 1
        index, width = divmod(size, TILE_WIDTH)
        if width:
            tile, data = read_stored(tiles, ENTRIES, index, size)
            try:
                tree._edge[ENTRIES] = split_entries(tile, data)
            except TileError as error:
                raise StoreCorrupt(f"{tile.path}: {error}") from error
            if [leaf_hash(entry) for entry in tree._edge[ENTRIES]] != tree._edge[0]:
                raise StoreCorrupt(f"{tile.path} does not hold the entries of its hashes")
        return tree


def _encode(level: int, items: list[bytes]) -> bytes:
    return encode_entries(items) if level == ENTRIES else b"".join(items)
