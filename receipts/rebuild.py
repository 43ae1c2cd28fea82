"""Writing tiles of the log again that were lost or damaged, from the receipts that they were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receipts.errors import StoreCorrupt
from receipts.log_errors import LogForked
from receipts.merkle import CompactTree, leaf_hash
from receipts.store import PrunedReceipt
from receipts.tile import TileError
from receipts.tile_store import TileStore, read_tile
from receipts.tiled_tree import TiledTree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from receipts.sth import SignedTreeHead
    from receipts.store import ReceiptStore, StoredReceipt

READ_RECEIPTS: Final = 256
TAKE_AFTER_RECEIPTS: Final = 4096
"""Receipts between two looks at the tiles that they filled."""


def rebuild_tiles(store: ReceiptStore, tiles: TileStore, head: SignedTreeHead) -> int:
    """Write every tile of the tree of `head`, a verified one, that is not what the receipts make it; return how many.

    Writes nothing unless the receipts lead to that head. Entry bundles of pruned payloads cannot come back. Raises
    LogForked, StoreCorrupt, LogUnavailable, ReceiptStoreUnavailable.
    """
    compact = CompactTree()
    for receipt in _receipts(store, head.size):
        compact.append(receipt.leaf_hash if isinstance(receipt, PrunedReceipt) else leaf_hash(receipt.raw))
    if (compact.size, compact.root()) != (head.size, head.root):
        raise LogForked(f"the receipts do not lead to head {head.number}")
    tree, written = TiledTree(), 0
    for receipt in _receipts(store, head.size):
        if isinstance(receipt, PrunedReceipt):
            tree.append_pruned(receipt.leaf_hash)
        else:
            tree.append(receipt.raw)
        if tree.size % TAKE_AFTER_RECEIPTS == 0:
            written += _mend(tiles, tree, partial=False)
    return written + _mend(tiles, tree, partial=True)


def _receipts(store: ReceiptStore, size: int) -> Iterator[StoredReceipt]:
    """Read the first `size` receipts."""
    seq = 0
    while seq < size and (page := store.read(seq, min(READ_RECEIPTS, size - seq))):
        for receipt in page:
            seq += 1
            if receipt.seq != seq:
                raise StoreCorrupt(f"receipt {seq} is missing from the store")
            yield receipt


def _mend(tiles: TileStore, tree: TiledTree, *, partial: bool) -> int:
    mended = 0
    for tile, data in tree.take(partial=partial):
        try:
            stored = read_tile(tiles, tile)
        except TileError:  # What lies in the place of the full tile is none: only a partial one is wanted there.
            stored = tiles.read(tile)
            tiles.drop(tile.full)
        if stored != data:
            tiles.write([(tile, data)])
            mended += 1
    return mended
