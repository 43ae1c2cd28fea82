"""Reading the log: heads, tiles and proofs, for any thread and any process beside the writer's.

Every proof is verified against a signed head before it is given out, so damaged tiles are found here and not by
whoever trusts us.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from receipts.errors import StoreCorrupt
from receipts.log import DATABASE_NAME
from receipts.log_errors import EntryPruned, EntryUnknown
from receipts.merkle import ProofError
from receipts.merkle_prove import prove_consistency, prove_inclusion, subtree_root
from receipts.merkle_verify import verify_consistency, verify_inclusion
from receipts.sth_store import SthStore
from receipts.tile import ENTRIES, TILE_WIDTH, Tile, TileError, tile_of
from receipts.tile_store import DirectoryTileStore, TileStore, read_tile
from receipts.tiled_tree import TileCache, TileNodes, read_stored
from receipts.tlog_proof import TlogProof

if TYPE_CHECKING:
    from collections.abc import Callable

    from receipts.sth import SignedTreeHead


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That the entry at `index` has the leaf hash `leaf` in the tree of `head`."""

    index: int
    leaf: bytes
    proof: tuple[bytes, ...]
    head: SignedTreeHead

    def tlog_proof(self, extra: bytes | None = None) -> TlogProof:
        """Give it as a file that verifies offline, C2SP tlog-proof; `extra` is not authenticated."""
        return TlogProof(self.index, self.proof, self.head.note, extra)


class LogReader:
    """Reads the log in `folder`. Any thread may use it. Raises StoreError when it cannot be opened.

    `pruned_to`: the last `seq` whose payload is dropped, as `ReceiptStore.pruned_to` says.

    Every method raises LogUnavailable, ReceiptStoreUnavailable and StoreCorrupt.
    """

    def __init__(
        self, folder: Path | str, *, tiles: TileStore | None = None, pruned_to: Callable[[], int] = lambda: 0
    ) -> None:
        self._tiles = DirectoryTileStore(folder) if tiles is None else tiles
        self.heads = SthStore(Path(folder) / DATABASE_NAME)
        self._cache = TileCache()
        self._pruned_to = pruned_to

    def head(self) -> SignedTreeHead:
        """Return the newest head. Raises EntryUnknown before the first."""
        head = self.heads.last()
        if head is None:
            raise EntryUnknown("the log has no head yet")
        return head

    def prove_inclusion(self, index: int, head: SignedTreeHead | None = None) -> InclusionProof:
        """Prove the entry at `index` (from 0) in the tree of `head`, by default the newest.

        Raises EntryUnknown when that has no such entry (yet).
        """
        head = head or self.head()
        if not 0 <= index < head.size:
            raise EntryUnknown(f"a tree of {head.size} entries has none at {index}")
        nodes = self.nodes(head.size)
        leaf, proof = nodes.node(0, index), prove_inclusion(nodes, index, head.size)
        try:
            verify_inclusion(leaf, index, head.size, proof, head.root)
        except ProofError as error:
            raise StoreCorrupt(f"the tiles do not prove entry {index} in head {head.number}") from error
        return InclusionProof(index, leaf, tuple(proof), head)

    def prove_consistency(self, old_size: int, size: int) -> tuple[bytes, ...]:
        """Prove that the tree of `size` entries begins with that of `old_size`; any sizes up to the newest head's.

        Raises EntryUnknown when a size is out of range.
        """
        head = self.head()
        if not 0 <= old_size <= size <= head.size:
            raise EntryUnknown(f"the sizes are not 0 <= old <= new <= {head.size}")
        nodes = self.nodes(head.size)
        old_root, root = subtree_root(nodes, 0, old_size), subtree_root(nodes, 0, size)
        proof = prove_consistency(nodes, old_size, size)
        try:
            verify_consistency(old_size, size, old_root, root, proof)
            verify_consistency(size, head.size, root, head.root, prove_consistency(nodes, size, head.size))
        except ProofError as error:
            raise StoreCorrupt(f"the tiles do not lead from {old_size} to {size} to head {head.number}") from error
        return tuple(proof)

    def tile(self, tile: Tile) -> bytes:
        """Return a hash tile or an entry bundle of the newest tree or, where partial, of an earlier one.

        A partial one that was dropped is cut from the full one. Raises EntryUnknown when there is none there, or no
        head had it of this width; EntryPruned for a bundle of entries of which one has no payload any more.
        """
        size = self.head().size
        try:
            current = tile_of(tile.level, tile.index, size)
            if tile.width > current.width:
                raise TileError("wider than the tree")
        except TileError as error:
            raise EntryUnknown(f"a tree of {size} entries has no {tile.path}") from error
        if tile.level == ENTRIES and tile.index * TILE_WIDTH < self._pruned_to():
            raise EntryPruned(f"payloads of {tile.path} were dropped")
        if tile in (current, tile.full):
            return read_stored(self._tiles, tile.level, tile.index, size)[1]
        try:
            data = read_tile(self._tiles, tile)
        except TileError as error:
            raise StoreCorrupt(f"{tile.full.path}: {error}") from error
        if data is None:
            raise EntryUnknown(f"no head had {tile.path}")
        return data

    def nodes(self, size: int) -> TileNodes:
        """Return the tree of `size` entries as a source of nodes, with the tiles read last in memory."""
        return TileNodes(self._tiles, size, self._cache)

    def close(self) -> None:
        """Close the heads' file."""
        self.heads.close()
