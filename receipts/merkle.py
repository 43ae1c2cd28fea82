"""The Merkle tree of the log, RFC 9162 §2.1: hashing, and a tree that grows without being rebuilt.

Leaves and nodes are hashed with different prefixes, so that no leaf can pass for a node. Proofs are made in
`receipts.merkle_prove` and checked in `receipts.merkle_verify`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from receipts.receipt import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EMPTY_ROOT", "HASH_BYTES", "MAX_TREE_SIZE", "CompactTree", "ProofError", "fold", "leaf_hash", "node_hash"]

HASH_BYTES: Final = 32
NODE_PREFIX: Final = b"\x01"
MAX_TREE_SIZE: Final = 2**63 - 1
"""Leaves in a tree: what every verifier that counts in signed 64 bits can read."""

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of the tree without leaves, RFC 9162 §2.1.1."""


class ProofError(ValueError):
    """A proof does not show what it should; nothing that rests on it may be believed."""


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two sibling nodes (32 bytes each) into their parent, RFC 9162 §2.1.1: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(NODE_PREFIX + left + right).digest()


def fold(peaks: Sequence[bytes]) -> bytes:
    """Hash complete subtrees, from the left and ever smaller, into the root over all of them.

    `peaks`: 32 bytes each. Returns `EMPTY_ROOT` when there are none.
    """
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for left in reversed(peaks[:-1]):
        root = node_hash(left, root)
    return root


class CompactTree:
    """A growing tree of which only the roots of its complete subtrees are kept: one for each 1 bit of its size.

    `size`: leaves so far; `peaks`: the subtree roots from left to right, 32 bytes each. Raises ValueError
    when they are not as many, or not as long, as `size` needs.
    """

    __slots__ = ("_peaks", "_size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        if not 0 <= size <= MAX_TREE_SIZE:
            raise ValueError("tree size is out of range")
        if len(peaks) != size.bit_count() or any(len(peak) != HASH_BYTES for peak in peaks):
            raise ValueError("the peaks are not those of a tree of this size")
        self._size = size
        self._peaks = list(peaks)

    @property
    def size(self) -> int:
        """Leaves in the tree."""
        return self._size

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The roots of the complete subtrees, the largest first."""
        return tuple(self._peaks)

    def append(self, leaf: bytes) -> list[bytes]:
        """Add a leaf by its hash (32 bytes); hashes at most once for each level.

        Returns the nodes that it completed, by level: the leaf itself, then its parent if the leaf is a right
        child, and so on up. Raises ValueError when `leaf` is no hash or the tree is full.
        """
        if len(leaf) != HASH_BYTES or self._size >= MAX_TREE_SIZE:
            raise ValueError("not a leaf hash, or the tree is full")
        completed = [leaf]
        peaks, above = self._peaks, self._size
        while above & 1:
            leaf = node_hash(peaks.pop(), leaf)
            completed.append(leaf)
            above >>= 1
        peaks.append(leaf)
        self._size += 1
        return completed

    def root(self) -> bytes:
        """Compute the root over all leaves, RFC 9162 §2.1.1: 32 bytes."""
        return fold(self._peaks)

    def copy(self) -> CompactTree:
        """Return a tree that grows apart from this one."""
        return CompactTree(self._size, self._peaks)
