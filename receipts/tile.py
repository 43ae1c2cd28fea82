"""Tiles, C2SP tlog-tiles: names, and the two encodings, hash tiles and entry bundles.

A tile holds up to 256 consecutive hashes of one level, and each full tile is one hash of the level above. An
entry bundle holds the entries of a tile of level 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receipts.merkle import HASH_BYTES, MAX_TREE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
ENTRIES: Final = -1
"""The level by which entry bundles go here; in paths it is `entries`."""

MAX_LEVEL: Final = 63
MAX_ENTRY_BYTES: Final = 0xFFFF
_LENGTH_BYTES: Final = 2
_MAX_INDEX: Final = MAX_TREE_SIZE >> TILE_HEIGHT
_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


class TileError(ValueError):
    """This is no tile: neither a name of one, nor what it would hold."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The name of a tile.

    `level`: 0 to `MAX_LEVEL`, or `ENTRIES`. `index`: within the level, from 0. `width`: hashes or entries in it,
    1 to 256; less than 256 is a partial tile. Raises TileError out of these bounds.
    """

    level: int
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        if not (ENTRIES <= self.level <= MAX_LEVEL and 0 <= self.index <= _MAX_INDEX):
            raise TileError("a tile's level or index is out of range")
        if not 1 <= self.width <= TILE_WIDTH:
            raise TileError("a tile's width is out of range")

    @property
    def is_partial(self) -> bool:
        """Whether it is narrower than 256."""
        return self.width < TILE_WIDTH

    @property
    def full(self) -> Tile:
        """The full tile in its place."""
        return Tile(self.level, self.index)

    @property
    def path(self) -> str:
        """Its path below the log's prefix: `tile/<L>/<N>` or `tile/<L>/<N>.p/<W>`."""
        level = "entries" if self.level == ENTRIES else str(self.level)
        parts = [f"{self.index % 1000:03}"]
        above = self.index // 1000
        while above:
            parts.insert(0, f"x{above % 1000:03}")
            above //= 1000
        suffix = f".p/{self.width}" if self.is_partial else ""
        return f"tile/{level}/{'/'.join(parts)}{suffix}"


def parse_tile_path(path: str) -> Tile:
    """Read the path of a tile; only the one way to write it is accepted. Raises TileError."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise TileError("not the path of a tile")
    level = ENTRIES if match["level"] == "entries" else int(match["level"])
    index = int(match["index"].replace("x", "").replace("/", ""))
    tile = Tile(level, index, int(match["width"]) if match["width"] else TILE_WIDTH)
    if tile.path != path:
        raise TileError("the path of a tile is written in another way")
    return tile


def tile_of(level: int, index: int, size: int) -> Tile:
    """Name the tile of a tree of `size` entries at this place, with its width there.

    Raises TileError when such a tree has none.
    """
    count = size >> (TILE_HEIGHT * max(level, 0))
    return Tile(level, index, min(TILE_WIDTH, count - index * TILE_WIDTH))


def tiles_of(size: int, since: int = 0) -> Iterator[Tile]:
    """Name every tile and bundle of a tree of `size` entries that the tree of `since` entries does not have.

    By level, entries first, then from the left. The partial tiles are the last of their level.
    """
    for level in range(ENTRIES, MAX_LEVEL + 1):  # Ends earlier, at the first level without a tile.
        shift = TILE_HEIGHT * max(level, 0)
        count, before = size >> shift, since >> shift
        if count == 0:
            return
        if count > before:
            for index in range(before // TILE_WIDTH, -(-count // TILE_WIDTH)):
                yield tile_of(level, index, size)


def split_hashes(tile: Tile, data: bytes) -> list[bytes]:
    """Cut a hash tile into its hashes (32 bytes each). Raises TileError unless it has exactly its width."""
    if tile.level == ENTRIES or len(data) != tile.width * HASH_BYTES:
        raise TileError("not a hash tile of this width")
    return [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """Encode entries as a bundle: each after its length in two bytes, big-endian. Raises TileError if one is too long.

    `entries`: up to `MAX_ENTRY_BYTES` each.
    """
    if any(len(entry) > MAX_ENTRY_BYTES for entry in entries):
        raise TileError(f"an entry is longer than {MAX_ENTRY_BYTES} bytes")
    return b"".join(part for entry in entries for part in (len(entry).to_bytes(_LENGTH_BYTES, "big"), entry))


def split_entries(tile: Tile, data: bytes) -> list[bytes]:
    """Cut an entry bundle into its entries. Raises TileError unless it has exactly its width and nothing after it."""
    if tile.level != ENTRIES:
        raise TileError("not an entry bundle")
    entries = []
    place = 0
    for _ in range(tile.width):
        start = place + _LENGTH_BYTES
        place = start + int.from_bytes(data[start - _LENGTH_BYTES : start], "big")
        if start > len(data) or place > len(data):
            raise TileError("the entry bundle ends early")
        entries.append(data[start:place])
    if place != len(data):
        raise TileError("the entry bundle goes on after its last entry")
    return entries


def narrow(tile: Tile, data: bytes) -> bytes:
    """Cut what the full tile holds down to what the partial `tile` in its place holds.

    Raises TileError when `data` is not that of a full tile.
    """
    if tile.level == ENTRIES:
        return encode_entries(split_entries(tile.full, data)[: tile.width])
    return b"".join(split_hashes(tile.full, data)[: tile.width])
