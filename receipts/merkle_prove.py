"""Making Merkle proofs at any size, RFC 9162 §2.1.3.1 and §2.1.4.1, from stored nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from receipts.merkle import MAX_TREE_SIZE, fold

if TYPE_CHECKING:
    from collections.abc import Iterator


class NodeSource(Protocol):
    """Where the roots of complete subtrees come from."""

    def node(self, level: int, index: int) -> bytes:
        """Return the root (32 bytes) over the leaves from `index << level` to before `(index + 1) << level`."""


def subtree_root(nodes: NodeSource, start: int, end: int) -> bytes:
    """Compute the root over the leaves [`start`, `end`), where `start` is aligned as in RFC 9162 §2.1.1.

    With `start` 0 it is the root of the tree of `end` leaves. Reads one node for each 1 bit of `end - start`.
    Raises ValueError when `start` is not aligned, and whatever `nodes` raises.
    """
    return fold([nodes.node(level, index) for level, index in complete_subtrees(start, end)])


def complete_subtrees(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Name the complete subtrees (level, index) that make up [`start`, `end`), from the left, ever smaller.

    Raises ValueError when `start` is not a multiple of the smallest power of two that is at least
    `end - start`, or a bound is out of range.
    """
    if not 0 <= start <= end <= MAX_TREE_SIZE or (end > start and start % (1 << (end - start - 1).bit_length())):
        raise ValueError("not the bounds of a subtree")
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def prove_inclusion(nodes: NodeSource, index: int, size: int) -> list[bytes]:
    """Prove that the leaf at `index` is in the tree of `size` leaves, RFC 9162 §2.1.3.1.

    Returns hashes of 32 bytes, the leaf's sibling first. Raises ValueError unless 0 <= `index` < `size`, and
    whatever `nodes` raises.
    """
    if not 0 <= index < size <= MAX_TREE_SIZE:
        raise ValueError("the index is not below the tree size")
    siblings = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            siblings.append((middle, end))
            end = middle
        else:
            siblings.append((start, middle))
            start = middle
    return [subtree_root(nodes, *sibling) for sibling in reversed(siblings)]


def prove_consistency(nodes: NodeSource, old_size: int, size: int) -> list[bytes]:
    """Prove that the tree of `size` leaves begins with the one of `old_size`, RFC 9162 §2.1.4.1.

    Returns hashes of 32 bytes; none when the sizes are equal or `old_size` is 0. Raises ValueError unless
    0 <= `old_size` <= `size`, and whatever `nodes` raises.
    """
    if not 0 <= old_size <= size <= MAX_TREE_SIZE:
        raise ValueError("the old size is above the new one")
    if old_size in (0, size):
        return []
    parts = []
    start, end = 0, size
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            parts.append((middle, end))
            end = middle
        else:
            parts.append((start, middle))
            start = middle
    if start > 0:  # Otherwise the old tree is one node of the new one, and the verifier knows its root.
        parts.append((start, end))
    return [subtree_root(nodes, *part) for part in reversed(parts)]


def _split(width: int) -> int:
    """Return the largest power of two below `width`, which is at least 2, RFC 9162 §2.1.1."""
    return 1 << ((width - 1).bit_length() - 1)
