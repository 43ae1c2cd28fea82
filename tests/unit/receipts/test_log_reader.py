from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from receipts.errors import StoreCorrupt
from receipts.log_errors import EntryUnknown
from receipts.merkle import leaf_hash
from receipts.merkle_verify import verify_consistency, verify_inclusion
from receipts.tile import ENTRIES, Tile, split_entries, split_hashes
from receipts.tlog_proof import parse_tlog_proof, verify_tlog_proof
from tests.support import merkle_reference as reference
from tests.support.log_parts import ORIGIN, LogParts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES = [0, 5, 200, 300]


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LogParts]:
    parts = LogParts(tmp_path)
    parts.settings = type(parts.settings)(max_batch_receipts=1000)
    writer = parts.writer()
    for before, size in zip([0, *SIZES], SIZES, strict=False):
        parts.add(size - before)
        writer.flush()
    yield parts
    parts.close()


def test_every_entry_is_proved_in_the_newest_head_and_in_older_ones(parts: LogParts) -> None:
    reader = parts.reader()
    leaves = [leaf_hash(raw) for raw in parts.raws()]
    heads = reader.heads.read(0, 10)
    assert [head.size for head in heads] == SIZES
    for index, leaf in enumerate(leaves):
        found = reader.prove_inclusion(index)
        assert (found.index, found.leaf, found.head) == (index, leaf, heads[-1])
        verify_inclusion(leaf, index, 300, found.proof, found.head.root)
    old = reader.prove_inclusion(3, heads[1])
    verify_inclusion(leaves[3], 3, 5, old.proof, heads[1].root)
    verify_tlog_proof(parse_tlog_proof(old.tlog_proof().data), leaves[3], parts.verifiers(), ORIGIN)
    for index, head in ((5, heads[1]), (300, None), (-1, None)):
        with pytest.raises(EntryUnknown):
            reader.prove_inclusion(index, head)


def test_any_two_sizes_are_proved_consistent(parts: LogParts) -> None:
    reader = parts.reader()
    leaves = [leaf_hash(raw) for raw in parts.raws()]
    for old_size, size in ((0, 0), (0, 300), (5, 200), (7, 123), (256, 257), (300, 300), (1, 300)):
        proof = reader.prove_consistency(old_size, size)
        verify_consistency(old_size, size, reference.mth(leaves[:old_size]), reference.mth(leaves[:size]), proof)
    for old_size, size in ((-1, 3), (4, 3), (3, 301)):
        with pytest.raises(EntryUnknown):
            reader.prove_consistency(old_size, size)


def test_every_tile_that_a_head_had_is_served(parts: LogParts) -> None:
    reader = parts.reader()
    raws = parts.raws()
    leaves = [leaf_hash(raw) for raw in raws]
    for tile in (Tile(0, 0), Tile(0, 1, 44), Tile(0, 0, 5), Tile(0, 0, 200)):
        start = tile.index * 256
        assert split_hashes(tile, reader.tile(tile)) == leaves[start : start + tile.width]
        bundle = Tile(ENTRIES, tile.index, tile.width)
        assert split_entries(bundle, reader.tile(bundle)) == raws[start : start + tile.width]
    assert reader.tile(Tile(1, 0, 1)) == reference.mth(leaves[:256])
    unknown = [
        Tile(0, 1),
        Tile(0, 1, 45),
        Tile(0, 2, 1),
        Tile(1, 0, 2),
        Tile(1, 0),
        Tile(2, 0, 1),
        Tile(ENTRIES, 1),
        Tile(0, 1, 3),
    ]
    for tile in unknown:
        with pytest.raises(EntryUnknown):
            reader.tile(tile)


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1"])
@pytest.mark.parametrize("damage", ["gone", "short", "changed"])
def test_no_proof_is_given_out_from_damaged_tiles(parts: LogParts, name: str, damage: str) -> None:
    path = parts.log_folder / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "short" else bytes([data[0] ^ 1]) + data[1:])
    reader = parts.reader()
    with pytest.raises(StoreCorrupt):
        reader.prove_inclusion(1 if name == "tile/0/000" else 299)
    with pytest.raises(StoreCorrupt):
        reader.prove_consistency(10, 290)


def test_a_damaged_tile_is_not_served_as_unknown(parts: LogParts) -> None:
    reader = parts.reader()
    (parts.log_folder / "tile/0/000").write_bytes(b"short")
    for tile in (Tile(0, 0), Tile(0, 0, 5)):
        with pytest.raises(StoreCorrupt):
            reader.tile(tile)
    (parts.log_folder / "tile/0/000").unlink()
    with pytest.raises(StoreCorrupt):
        reader.tile(Tile(0, 0))


def test_before_the_first_head_there_is_nothing(tmp_path: Path) -> None:
    parts = LogParts(tmp_path / "new")
    parts.log_folder.mkdir()
    reader = parts.reader()
    for call in (reader.head, lambda: reader.prove_inclusion(0), lambda: reader.tile(Tile(0, 0, 1))):
        with pytest.raises(EntryUnknown):
            call()
    parts.close()


def test_a_reader_follows_the_writer(parts: LogParts) -> None:
    reader = parts.reader()
    assert reader.head().size == 300
    reader.prove_inclusion(299)
    parts.close_all_writers()
    parts.add(300)
    parts.writer().flush()
    assert reader.head().size == 600
    assert reader.prove_inclusion(299).head.size == 600
    reader.prove_inclusion(599)
