"""Checking Merkle proofs, RFC 9162 §2.1.3.2 and §2.1.4.2, and the same for subtrees.

A subtree [start, end) is what a tree over those leaves alone would be, where `start` is a multiple of the
smallest power of two that is at least `end - start` (draft-ietf-plants-merkle-tree-certs §4). A consistency
proof is the case of `start` 0.

The sizes alone decide how long a proof is and on which side each of its hashes goes. So every check first
lays that down, compares lengths, and only then hashes.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from receipts.merkle import EMPTY_ROOT, HASH_BYTES, MAX_TREE_SIZE, ProofError, node_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEFT_OF_BOTH: Final = 0  # The sibling lies left, inside the subtree: it belongs to either root.
_LEFT_OF_TREE: Final = 1  # The sibling lies left, outside the subtree.
_RIGHT: Final = 2  # The sibling lies right, so after the subtree's end.


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the tree of `size` leaves with this root has `leaf` at `index`, RFC 9162 §2.1.3.2.

    `leaf`: leaf hash, 32 bytes. `index`: from 0. `proof`: 32 bytes each, the leaf's sibling first. Raises
    ProofError.
    """
    _check_hashes((leaf, root, *proof))
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise ProofError("the index is not below the tree size")
    sides = _inclusion_sides(index, size)
    if len(proof) != len(sides):
        raise ProofError(f"the proof has {len(proof)} hashes, {len(sides)} are needed")
    for sibling, is_left in zip(proof, sides, strict=True):
        leaf = node_hash(sibling, leaf) if is_left else node_hash(leaf, sibling)
    _check_equal(leaf, root)


def verify_consistency(old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """Check that a tree of `size` leaves begins with one of `old_size`, RFC 9162 §2.1.4.2.

    `old_root`, `root`: 32 bytes. The empty tree begins every other: its proof is empty. Raises ProofError.
    """
    if old_size == 0:
        _check_hashes((old_root, root))
        if not 0 <= size <= MAX_TREE_SIZE or proof or (size == 0 and not hmac.compare_digest(root, EMPTY_ROOT)):
            raise ProofError("the proof is not that of the empty tree")
        _check_equal(old_root, EMPTY_ROOT)
        return
    verify_subtree_consistency(0, old_size, size, old_root, root, proof)


def verify_subtree_inclusion(
    leaf: bytes, index: int, start: int, end: int, proof: Sequence[bytes], subtree_root: bytes
) -> None:
    """Check that the subtree [`start`, `end`) has `leaf` (its hash) at the tree's `index`. Raises ProofError."""
    _check_subtree(start, end)
    verify_inclusion(leaf, index - start, end - start, proof, subtree_root)


def verify_subtree_consistency(
    start: int, end: int, size: int, subtree_root: bytes, root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the subtree [`start`, `end`) is part of the tree of `size` leaves. Raises ProofError.

    `subtree_root`, `root`, each of `proof`: 32 bytes. An empty subtree is part of every tree, whose root is
    then not looked at.
    """
    _check_subtree(start, end)
    if not end <= size <= MAX_TREE_SIZE:
        raise ProofError("the subtree ends after the tree")
    if start == end:
        if proof:
            raise ProofError("the proof of an empty subtree is not empty")
        _check_equal(subtree_root, EMPTY_ROOT)
        return
    _check_hashes((subtree_root, root, *proof))
    is_node, sides = _consistency_sides(start, end, size)
    needed = len(sides) + (0 if is_node else 1)
    if len(proof) != needed:
        raise ProofError(f"the proof has {len(proof)} hashes, {needed} are needed")
    # A subtree that is a node of the tree is its own start; otherwise the proof begins with the last one in it.
    inner = outer = subtree_root if is_node else proof[0]
    for sibling, side in zip(proof if is_node else proof[1:], sides, strict=True):
        if side == _LEFT_OF_BOTH:
            inner = node_hash(sibling, inner)
        outer = node_hash(outer, sibling) if side == _RIGHT else node_hash(sibling, outer)
    _check_equal(inner, subtree_root)
    _check_equal(outer, root)


def _inclusion_sides(index: int, size: int) -> list[bool]:
    """Say for each hash of an inclusion proof whether it is a left sibling, RFC 9162 §2.1.3.2."""
    sides = []
    node, last = index, size - 1
    while last:
        if node & 1 or node == last:
            sides.append(True)
            # A node without a right sibling is carried up to where it becomes a right child itself.
            while not node & 1:
                node, last = node >> 1, last >> 1
        else:
            sides.append(False)
        node, last = node >> 1, last >> 1
    return sides


def _consistency_sides(start: int, end: int, size: int) -> tuple[bool, list[int]]:
    """Lay down a consistency proof: is the subtree one node of the tree, and where does each hash go?

    RFC 9162 §2.1.4.2, with `first` as the leftmost node of the subtree: 0 there.
    """
    first, node, last = start, end - 1, size - 1
    while first != node and (node == last or node & 1):
        first, node, last = first >> 1, node >> 1, last >> 1
    is_node = first == node
    sides = []
    while last:
        if node & 1 or node == last:
            while not node & 1:
                first, node, last = first >> 1, node >> 1, last >> 1
            sides.append(_LEFT_OF_BOTH if first < node else _LEFT_OF_TREE)
        else:
            sides.append(_RIGHT)
        first, node, last = first >> 1, node >> 1, last >> 1
    return is_node, sides


def _check_subtree(start: int, end: int) -> None:
    if not 0 <= start <= end <= MAX_TREE_SIZE:
        raise ProofError("the subtree's bounds are out of range")
    if end > start and start % (1 << (end - start - 1).bit_length()):
        raise ProofError("the subtree does not start at a multiple of its width")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(each) != HASH_BYTES for each in hashes):
        raise ProofError(f"a hash is not {HASH_BYTES} bytes")


def _check_equal(computed: bytes, expected: bytes) -> None:
    if not hmac.compare_digest(computed, expected):
        raise ProofError("the proof leads to another root")
