from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.merkle import MAX_TREE_SIZE
from receipts.tile import (
    ENTRIES,
    MAX_ENTRY_BYTES,
    Tile,
    TileError,
    encode_entries,
    narrow,
    parse_tile_path,
    split_entries,
    split_hashes,
    tile_of,
    tiles_of,
)

PATHS = {
    "tile/0/000": Tile(0, 0),
    "tile/1/999": Tile(1, 999),
    "tile/0/x001/000": Tile(0, 1000),
    "tile/0/x001/x234/067": Tile(0, 1_234_067),
    "tile/0/x001/x234/067.p/1": Tile(0, 1_234_067, 1),
    "tile/63/000.p/255": Tile(63, 0, 255),
    "tile/entries/x273/012.p/112": Tile(ENTRIES, 273_012, 112),
    "tile/0/x036/x028/x797/x018/x963/967": Tile(0, MAX_TREE_SIZE >> 8),
}


@pytest.mark.parametrize(("path", "tile"), PATHS.items())
def test_a_tile_and_its_path_are_one_to_one(path: str, tile: Tile) -> None:
    assert tile.path == path
    assert parse_tile_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0",
        "tile/0/",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/x000/001",
        "tile/0/000/001",
        "tile/0/x001/x001",
        "tile/00/000",
        "tile/01/000",
        "tile/64/000",
        "tile/100/000",
        "tile/-1/000",
        "tile/8/0/000",
        "tile/data/000",
        "tile/Entries/000",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/999",
        "tile/0/000.p/01",
        "tile/0/000.p/1/",
        "tile/0/000/",
        "/tile/0/000",
        "tile/0/000\n",
        "tile/0/../000",
        "tile/0/x00a/000",
        "tile/0/٠٠٠",
        "tile/0/x036/x028/x797/x018/x963/968",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
        "tile/0/x001/x001/x001/x001/x001/x001/x001/001",
        "checkpoint",
    ],
)
def test_any_other_way_to_write_a_path_is_refused(path: str) -> None:
    with pytest.raises(TileError):
        parse_tile_path(path)


@settings(deadline=None)
@given(st.integers(ENTRIES, 63), st.integers(0, MAX_TREE_SIZE >> 8), st.integers(1, 256))
def test_every_tile_survives_its_path(level: int, index: int, width: int) -> None:
    tile = Tile(level, index, width)
    assert parse_tile_path(tile.path) == tile
    assert tile.full == Tile(level, index)
    assert tile.is_partial == (width < 256)


@settings(deadline=None)
@given(st.text(alphabet="tile/0123x.pentris", max_size=30))
def test_a_path_that_is_accepted_is_written_the_same(path: str) -> None:
    try:
        tile = parse_tile_path(path)
    except TileError:
        return
    assert tile.path == path


@pytest.mark.parametrize(
    ("level", "index", "width"), [(-2, 0, 1), (64, 0, 1), (0, -1, 1), (0, MAX_TREE_SIZE, 1), (0, 0, 0), (0, 0, 257)]
)
def test_a_tile_out_of_bounds_is_refused(level: int, index: int, width: int) -> None:
    with pytest.raises(TileError):
        Tile(level, index, width)


def test_a_tree_of_70000_entries_has_the_tiles_of_the_specification() -> None:
    tiles = list(tiles_of(70_000))
    assert sum(tile.level == 0 and not tile.is_partial for tile in tiles) == 273
    assert sum(tile.level == ENTRIES and not tile.is_partial for tile in tiles) == 273
    assert [tile for tile in tiles if tile.level > 0 or tile.is_partial] == [
        Tile(ENTRIES, 273, 112),
        Tile(0, 273, 112),
        Tile(1, 0),
        Tile(1, 1, 17),
        Tile(2, 0, 1),
    ]


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        (0, []),
        (1, [Tile(ENTRIES, 0, 1), Tile(0, 0, 1)]),
        (256, [Tile(ENTRIES, 0), Tile(0, 0), Tile(1, 0, 1)]),
    ],
)
def test_small_trees(size: int, tiles: list[Tile]) -> None:
    assert list(tiles_of(size)) == tiles


@settings(deadline=None)
@given(since=st.integers(0, 200_000), more=st.integers(0, 2_000))
def test_growth_names_the_tiles_that_are_new(since: int, more: int) -> None:
    new = set(tiles_of(since + more, since))
    assert new == set(tiles_of(since + more)) - set(tiles_of(since))


def test_a_tree_has_no_tile_beyond_its_end() -> None:
    assert tile_of(0, 1, 300) == Tile(0, 1, 44)
    for level, index, size in [(0, 2, 300), (1, 0, 255), (ENTRIES, 0, 0), (0, -1, 300)]:
        with pytest.raises(TileError):
            tile_of(level, index, size)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=256))
def test_a_bundle_gives_back_its_entries_and_fails_cut_or_lengthened(entries: list[bytes]) -> None:
    tile = Tile(ENTRIES, 0, len(entries))
    data = encode_entries(entries)
    assert split_entries(tile, data) == entries
    wrong = [data[:-1], data + b"\0", data[:1]]
    for other in wrong:
        with pytest.raises(TileError):
            split_entries(tile, other)
    if len(entries) < 256:
        with pytest.raises(TileError):
            split_entries(Tile(ENTRIES, 0, len(entries) + 1), data)
    if len(entries) > 1:
        with pytest.raises(TileError):
            split_entries(Tile(ENTRIES, 0, len(entries) - 1), data)


def test_the_length_of_an_entry_is_two_bytes() -> None:
    assert encode_entries([b"ab", b""]) == b"\0\2ab\0\0"
    longest = bytes(MAX_ENTRY_BYTES)
    assert split_entries(Tile(ENTRIES, 0, 1), encode_entries([longest])) == [longest]
    with pytest.raises(TileError, match="longer"):
        encode_entries([longest + b"\0"])


def test_a_hash_tile_has_exactly_its_width() -> None:
    hashes = [bytes([number]) * 32 for number in range(3)]
    data = b"".join(hashes)
    assert split_hashes(Tile(0, 0, 3), data) == hashes
    for tile, other in [
        (Tile(0, 0, 2), data),
        (Tile(0, 0, 4), data),
        (Tile(0, 0, 3), data[:-1]),
        (Tile(0, 0, 3), data + b"\0"),
        (Tile(ENTRIES, 0, 3), data),
    ]:
        with pytest.raises(TileError):
            split_hashes(tile, other)
    with pytest.raises(TileError):
        split_entries(Tile(0, 0, 1), b"\0\0")


def test_a_full_tile_is_cut_to_a_partial_one() -> None:
    hashes = [bytes([number]) * 32 for number in range(256)]
    assert narrow(Tile(0, 9, 3), b"".join(hashes)) == b"".join(hashes[:3])
    assert narrow(Tile(ENTRIES, 9, 3), encode_entries(hashes)) == encode_entries(hashes[:3])
    for tile in (Tile(0, 9, 3), Tile(ENTRIES, 9, 3)):
        with pytest.raises(TileError):
            narrow(tile, b"".join(hashes[:255]))
