"""The members of a pack that are made from the log and the store, each as a stream of pieces."""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Any, Final

from receipts.canonical_json import canonical
from receipts.errors import StoreCorrupt
from receipts.merkle import leaf_hash
from receipts.merkle_prove import prove_consistency, prove_inclusion, subtree_root
from receipts.sth_store import MAX_HEADS
from receipts.store import PrunedReceipt
from receipts.tlog_proof import TlogProof

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from receipts.log_notes import Rotation
    from receipts.log_reader import LogReader
    from receipts.lookup import ReceiptLookup
    from receipts.sth import SignedTreeHead
    from receipts.sth_store import SthStore
    from receipts.store import ReceiptStore, StoredReceipt
    from receipts.tiled_tree import TileNodes

READ_RECEIPTS: Final = 500
"""Receipts read at once: about 1 MiB, at most 32."""
READ_HEADS: Final = 100


def base64_text(value: bytes) -> str:
    """Write bytes as every hash in a pack's JSON is written."""
    return binascii.b2a_base64(value, newline=False).decode()


def sth_json(
    heads: SthStore, opening: SignedTreeHead | None, last: SignedTreeHead, closing: SignedTreeHead | None
) -> Iterator[bytes]:
    """Write the heads from `opening` (or the first) to `closing` (or `last`) as an array, one on each line."""
    number = 0 if opening is None else opening.number - 1
    end = (closing or last).number
    yield b"[\n"
    while number < end:
        page = heads.read(number, min(READ_HEADS, MAX_HEADS, end - number))
        if not page:
            raise StoreCorrupt(f"head {number + 1} is missing")
        for head in page:
            yield canonical(head.entry()) + (b"\n" if head.number == end else b",\n")
        number = page[-1].number
    yield b"]\n"


def consistency_json(nodes: TileNodes, sizes: Sequence[int], head: SignedTreeHead) -> bytes:
    """Prove that the tree of `head` goes on from those of `sizes` entries."""
    proofs = [
        {
            "from": size,
            "from_root": base64_text(subtree_root(nodes, 0, size)),
            "to": head.size,
            "to_root": base64_text(head.root),
            "hashes": [base64_text(each) for each in prove_consistency(nodes, size, head.size)],
        }
        for size in sizes
    ]
    return canonical(proofs) + b"\n"


def inclusion_proof(nodes: TileNodes, index: int, head: SignedTreeHead) -> bytes:
    """Prove that the entry at `index` is in the tree of `head`, as a C2SP tlog-proof."""
    return TlogProof(index, tuple(prove_inclusion(nodes, index, head.size)), head.note).data


def rotation_lines(reader: LogReader, rotations: Sequence[Rotation], head: SignedTreeHead) -> Iterator[bytes]:
    """Show for each entry that introduced keys a head signed by the keys before, and how it leads to `head`."""
    for each in rotations:
        covering = reader.heads.covering(each.index + 1)
        if each.index >= head.size or covering is None:
            continue
        proof = reader.prove_inclusion(each.index, covering)
        line = {
            "index": each.index,
            "receipt": each.receipt,
            "head": covering.note.decode(),
            "inclusion": [base64_text(hash_) for hash_ in proof.proof],
            "consistency": [base64_text(hash_) for hash_ in reader.prove_consistency(covering.size, head.size)],
        }
        yield canonical(line) + b"\n"


class Predecessors:
    """For each writer of a pack, the receipt before its first one there: what its chain goes on from."""

    def __init__(self, lookup: ReceiptLookup, start: int) -> None:
        self._lookup, self._start = lookup, start
        self._firsts: dict[str, int] = {}
        self.pruned = 0

    def see(self, receipt: StoredReceipt) -> None:
        """Take note of a receipt of the pack, in order."""
        self._firsts.setdefault(receipt.writer, receipt.wseq)

    def lines(self, nodes: TileNodes, size: int) -> Iterator[bytes]:
        """Write the predecessors, by writer, each with its proof in the tree of `size` entries."""
        for writer, wseq in sorted(self._firsts.items()):
            if wseq == 1:
                continue
            before = self._lookup.by_writer(writer, wseq - 1, self._start + 1)
            if before is None:
                raise StoreCorrupt(f"writer {writer} has no receipt {wseq - 1} before the day")
            index = before.seq - 1
            line: dict[str, Any] = {
                "writer": writer,
                "index": index,
                "receipt": before.raw.decode() if before.raw else None,
                "leaf": base64_text(nodes.node(0, index)),
                "proof": [base64_text(each) for each in prove_inclusion(nodes, index, size)],
            }
            yield canonical(line) + b"\n"


def receipt_lines(
    store: ReceiptStore,
    nodes: TileNodes,
    start: int,
    end: int,
    firsts: Predecessors,
    progress: Callable[[int, int], None],
) -> Iterator[bytes]:
    """Write the entries from `start` to before `end`, one on each line, each checked against its leaf.

    Raises StoreCorrupt when the store has not what the log has.
    """
    index = start
    while index < end:
        page = store.read(index, min(READ_RECEIPTS, end - index))
        if not page:
            raise StoreCorrupt(f"receipt {index + 1} is missing from the store")
        lines = []
        for receipt in page:
            if receipt.seq != index + 1 or nodes.node(0, index) != _leaf(receipt):
                raise StoreCorrupt(f"receipt {index + 1} is not the one that the log has")
            firsts.see(receipt)
            if isinstance(receipt, PrunedReceipt):
                firsts.pruned += 1
            lines.append(_line(receipt))
            index += 1
        yield b"".join(lines)
        progress(index - start, end - start)


def _leaf(receipt: StoredReceipt) -> bytes:
    return receipt.leaf_hash if isinstance(receipt, PrunedReceipt) else leaf_hash(receipt.raw)


def _line(receipt: StoredReceipt) -> bytes:
    if not isinstance(receipt, PrunedReceipt):
        return receipt.raw + b"\n"
    gone = {"leaf": receipt.leaf_hash.hex(), "pruned": True, "writer": receipt.writer, "wseq": receipt.wseq}
    return canonical(gone) + b"\n"
