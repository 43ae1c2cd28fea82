from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.errors import StoreCorrupt
from receipts.merkle import leaf_hash
from receipts.merkle_prove import prove_consistency, prove_inclusion, subtree_root
from receipts.merkle_verify import verify_consistency, verify_inclusion
from receipts.tile import ENTRIES, Tile, split_entries, split_hashes, tiles_of
from receipts.tile_store import read_tile
from receipts.tiled_tree import TileCache, TiledTree, TileNodes, read_stored
from tests.support import merkle_reference as reference
from tests.support.memory_tiles import MemoryTiles

if TYPE_CHECKING:
    from collections.abc import Sequence


ENTRIES_OF = [b"entry %d" % number for number in range(70_000)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES_OF]


def grown(sizes: Sequence[int]) -> tuple[MemoryTiles, TiledTree]:
    """A tree that was written out at each of these sizes."""
    tiles, tree = MemoryTiles(), TiledTree()
    for size in sizes:
        for entry in ENTRIES_OF[tree.size : size]:
            tree.append(entry)
        tiles.write(tree.take())
    return tiles, tree


@pytest.fixture(scope="module")
def large() -> MemoryTiles:
    """The specification's example: three levels of tiles."""
    return grown([1, 300, 65_536, 70_000])[0]


def test_the_tiles_of_every_written_size_hold_what_the_definition_says() -> None:
    sizes = [1, 2, 255, 256, 257, 300, 511, 512, 513, 700, 1000]
    tiles, _ = grown(sizes)
    assert set(tiles.tiles) == {tile for size in sizes for tile in tiles_of(size)}
    for tile, data in tiles.tiles.items():
        start, width = tile.index * 256, 256 ** max(tile.level, 0)
        if tile.level == ENTRIES:
            assert split_entries(tile, data) == ENTRIES_OF[start : start + tile.width]
        else:
            assert split_hashes(tile, data) == [
                reference.mth(LEAVES[at * width : (at + 1) * width]) for at in range(start, start + tile.width)
            ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1500), min_size=1, max_size=6).map(sorted), st.integers(0, 300))
def test_a_loaded_tree_goes_on_as_if_it_had_never_stopped(sizes: list[int], more: int) -> None:
    tiles, tree = grown(sizes)
    loaded = TiledTree.load(tiles, sizes[-1])
    assert (loaded.size, loaded.root()) == (tree.size, tree.root())
    assert loaded.take() == []
    for entry in ENTRIES_OF[sizes[-1] : sizes[-1] + more]:
        tree.append(entry)
        loaded.append(entry)
    assert loaded.take() == tree.take()
    assert loaded.root() == reference.mth(LEAVES[: sizes[-1] + more])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_proof_from_tiles_verifies_at_any_size(large: MemoryTiles, data: st.DataObject) -> None:
    # Also of sizes that were never written out: their hashes are in wider tiles.
    sizes = st.one_of(st.integers(1, 600), st.sampled_from([65_535, 65_536, 65_537, 69_999, 70_000]))
    size = data.draw(sizes)
    old_size, index = data.draw(st.integers(0, size)), data.draw(st.integers(0, size - 1))
    nodes = TileNodes(large, 70_000)
    root = subtree_root(nodes, 0, size)
    verify_inclusion(LEAVES[index], index, size, prove_inclusion(nodes, index, size), root)
    proof = prove_consistency(nodes, old_size, size)
    verify_consistency(old_size, size, subtree_root(nodes, 0, old_size), root, proof)
    if size <= 600:
        assert root == reference.mth(LEAVES[:size])
        assert proof == (reference.subproof(old_size, LEAVES[:size]) if old_size else [])


def test_old_sizes_are_proved_when_their_partial_tiles_are_gone() -> None:
    tiles, _ = grown([3, 100, 256])
    for level in (ENTRIES, 0):
        tiles.drop_partial(Tile(level, 0))
    nodes = TileNodes(tiles, 100)
    assert subtree_root(nodes, 0, 100) == reference.mth(LEAVES[:100])
    assert TiledTree.load(tiles, 100).root() == reference.mth(LEAVES[:100])


def test_a_reader_keeps_the_tiles_that_it_used_last() -> None:
    tiles, _ = grown([256 * 4])
    nodes = TileNodes(tiles, 256 * 4, TileCache(max_tiles=2))
    for index in (0, 0, 1, 0):
        nodes.node(0, index * 256)
    assert tiles.reads == 2
    nodes.node(0, 256 * 2)
    nodes.node(0, 0)
    assert tiles.reads == 3
    nodes.node(0, 256)
    assert tiles.reads == 4


@pytest.mark.parametrize("tile", [Tile(0, 1, 44), Tile(1, 0, 1), Tile(ENTRIES, 1, 44)])
@pytest.mark.parametrize("change", ["gone", "short", "long"])
def test_a_damaged_edge_is_not_gone_on_from(tile: Tile, change: str) -> None:
    tiles, _ = grown([300])
    data = tiles.tiles.pop(tile)
    if change != "gone":
        tiles.tiles[tile] = data[:-1] if change == "short" else data + b"\0"
    with pytest.raises(StoreCorrupt, match=tile.path if change == "gone" else "tile"):
        TiledTree.load(tiles, 300)


def test_a_bundle_whose_entries_were_changed_is_not_gone_on_from() -> None:
    tiles, _ = grown([300])
    tile = Tile(ENTRIES, 1, 44)
    tiles.tiles[tile] = tiles.tiles[tile].replace(b"entry 260", b"entry 999")
    with pytest.raises(StoreCorrupt, match="does not hold the entries of its hashes"):
        TiledTree.load(tiles, 300)


def test_a_changed_hash_on_the_edge_changes_the_root() -> None:
    tiles, tree = grown([300])
    tile = Tile(1, 0, 1)
    tiles.tiles[tile] = bytes(32)
    assert TiledTree.load(tiles, 300).root() != tree.root()


def test_a_full_tile_of_the_wrong_length_is_corrupt_when_a_partial_one_is_cut_from_it() -> None:
    tiles, _ = grown([256])
    assert read_tile(tiles, Tile(0, 0, 9)) is not None
    tiles.tiles[Tile(0, 0)] = b"short"
    with pytest.raises(StoreCorrupt):
        read_stored(tiles, 0, 0, 9)
    with pytest.raises(StoreCorrupt):
        read_stored(tiles, 0, 0, 256)
