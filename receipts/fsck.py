"""Verifying a whole store and its log again from the first receipt, trusting nothing that was computed before.

1. Receipts: every one parses, `seq` has no gap, and each writer's chain is whole.
2. Tree: the hash of every receipt is in its tile, every bundle holds the receipts, and every tile of the newest
   head is what comes out.
3. Heads: each is signed, goes on from the one before, and has the root of the tree at its size; the published
   checkpoint is the newest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from receipts.chain import ChainBroken, ChainVerifier
from receipts.errors import ReceiptFormatError, StoreCorrupt
from receipts.log_errors import LogForked
from receipts.merkle import ProofError
from receipts.signed_note import NoteError, NoteVerifier
from receipts.sth import HeadChainBroken, HeadChainVerifier, SignedTreeHead
from receipts.sth_store import MAX_HEADS, SthStore
from receipts.store import PrunedReceipt
from receipts.tile import TileError
from receipts.tile_store import TileStore, read_tile
from receipts.tiled_tree import TiledTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from receipts.store import ReceiptStore, StoredReceipt

READ_RECEIPTS: Final = 256
TAKE_AFTER_RECEIPTS: Final = 4096
"""Receipts between two looks at the tiles that they filled."""


@dataclass(frozen=True, slots=True)
class FsckReport:
    """What was found to be whole.

    `integrated`: receipts below the newest head; the others wait for the next. `pruned`: receipts whose payload was
    dropped; of these only the hash was checked.
    """

    receipts: int
    integrated: int
    pruned: int
    writers: int
    heads: int
    last_head: SignedTreeHead | None


def check_log(
    store: ReceiptStore,
    tiles: TileStore,
    heads: SthStore,
    *,
    origin: str,
    verifiers: Sequence[NoteVerifier],
    progress: Callable[[int], None] = lambda _: None,
) -> FsckReport:
    """Verify everything, in memory that does not grow with the number of receipts or heads.

    `progress` is told how many receipts are done. What is added meanwhile may or may not be looked at. Raises
    StoreCorrupt that names the first fault, LogUnavailable, ReceiptStoreUnavailable.
    """
    last = heads.last()  # First, so that every receipt below it is there to be read.
    published = tiles.read_checkpoint()
    check = _Check(tiles, _verified_heads(heads, last, origin, verifiers), 0 if last is None else last.size)
    for receipt in _receipts(store):
        check.add(receipt)
        if check.tree.size % TAKE_AFTER_RECEIPTS == 0:
            progress(check.tree.size)
    check.finish()
    if published != (None if last is None else last.note):
        raise StoreCorrupt("the published checkpoint is not the newest head")
    progress(check.count)
    return FsckReport(
        receipts=check.count,
        integrated=0 if last is None else last.size,
        pruned=check.pruned,
        writers=len(check.chains.writers),
        heads=0 if last is None else last.number,
        last_head=last,
    )


class _Check:
    """The tree as it is computed again, compared with heads and tiles on the way."""

    def __init__(self, tiles: TileStore, heads: Iterator[SignedTreeHead], size: int) -> None:
        self.tree = TiledTree()
        self.chains = ChainVerifier()
        self.count = 0
        self.pruned = 0
        self._tiles = tiles
        self._size = size
        self._heads = heads
        self._next = next(heads, None)
        self._compare_heads()

    def add(self, receipt: StoredReceipt) -> None:
        if receipt.seq != self.count + 1:
            raise StoreCorrupt(f"receipt {self.count + 1} is missing")
        self._follow_chain(receipt)
        self.count += 1
        if self.count > self._size:
            return
        if isinstance(receipt, PrunedReceipt):
            self.pruned += 1
            self.tree.append_pruned(receipt.leaf_hash)
        else:
            self.tree.append(receipt.raw)
        self._compare_heads()
        if self.count == self._size or self.count % TAKE_AFTER_RECEIPTS == 0:
            self._compare_tiles(partial=self.count == self._size)

    def _follow_chain(self, receipt: StoredReceipt) -> None:
        try:
            if isinstance(receipt, PrunedReceipt):
                self.chains.add_pruned(receipt.writer, receipt.wseq, receipt.leaf_hash)
                return
            parsed = self.chains.add(receipt.raw)
        except (ReceiptFormatError, ChainBroken) as error:
            raise StoreCorrupt(f"receipt {receipt.seq}: {error}") from error
        if (parsed.id, parsed.writer, parsed.wseq) != (receipt.id, receipt.writer, receipt.wseq):
            raise StoreCorrupt(f"receipt {receipt.seq} is stored under what it does not say")

    def finish(self) -> None:
        if self.tree.size < self._size or self._next is not None:
            raise LogForked(f"a head of {self._size} entries is stored, but only {self.count} receipts")

    def _compare_heads(self) -> None:
        while self._next is not None and self._next.size == self.tree.size:
            if self._next.root != self.tree.root():
                raise LogForked(f"head {self._next.number} has another root than the receipts up to it")
            self._next = next(self._heads, None)

    def _compare_tiles(self, *, partial: bool) -> None:
        for tile, data in self.tree.take(partial=partial):
            try:
                stored = read_tile(self._tiles, tile)
            except TileError as error:
                raise StoreCorrupt(f"{tile.full.path}: {error}") from error
            if stored != data:
                raise StoreCorrupt(f"{tile.path} is missing, or not what the receipts make it")


def _receipts(store: ReceiptStore) -> Iterator[StoredReceipt]:
    after = 0
    while receipts := store.read(after, READ_RECEIPTS):
        yield from receipts
        after = receipts[-1].seq


def _verified_heads(
    heads: SthStore, last: SignedTreeHead | None, origin: str, verifiers: Sequence[NoteVerifier]
) -> Iterator[SignedTreeHead]:
    chain = HeadChainVerifier(origin, verifiers)
    after = 0
    while last is not None and after < last.number:
        page = heads.read(after, min(MAX_HEADS, last.number - after))
        if not page:
            raise StoreCorrupt(f"head {after + 1} is missing")
        for head in page:
            try:
                chain.add(head)
            except (HeadChainBroken, NoteError, ProofError) as error:
                raise StoreCorrupt(f"head {head.number}: {error}") from error
            yield head
        after = page[-1].number
