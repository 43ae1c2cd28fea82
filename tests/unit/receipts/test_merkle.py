from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.merkle import EMPTY_ROOT, MAX_TREE_SIZE, CompactTree, fold, leaf_hash, node_hash
from tests.support import merkle_reference as reference

LEAVES = [reference.leaf(number) for number in range(300)]


def test_leaves_and_nodes_are_hashed_with_different_prefixes() -> None:
    assert leaf_hash(b"") == hashlib.sha256(b"\x00").digest()
    assert leaf_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    left, right = leaf_hash(b"l"), leaf_hash(b"r")
    assert node_hash(left, right) == hashlib.sha256(b"\x01" + left + right).digest()
    assert node_hash(left, right) != leaf_hash(left + right)
    assert node_hash(left, right) != node_hash(right, left)


def test_the_empty_tree_has_the_hash_of_nothing_as_root() -> None:
    assert hashlib.sha256(b"").digest() == EMPTY_ROOT
    assert CompactTree().root() == fold([]) == EMPTY_ROOT


def test_every_size_has_the_root_of_the_definition() -> None:
    tree = CompactTree()
    for size, leaf in enumerate(LEAVES, start=1):
        tree.append(leaf)
        assert tree.size == size
        assert tree.root() == reference.mth(LEAVES[:size])
        assert len(tree.peaks) == size.bit_count()


def test_append_returns_the_nodes_it_completed_and_no_others() -> None:
    tree = CompactTree()
    nodes = {}
    for index, leaf in enumerate(LEAVES):
        for level, node in enumerate(tree.append(leaf)):
            nodes[level, index >> level] = node
    assert nodes == {
        (level, index): reference.mth(LEAVES[index << level : (index + 1) << level])
        for level in range(9)
        for index in range(len(LEAVES) >> level)
    }


@settings(deadline=None)
@given(size=st.integers(0, 300), more=st.integers(0, 60))
def test_a_tree_goes_on_from_its_peaks(size: int, more: int) -> None:
    tree = CompactTree()
    for leaf in LEAVES[:size]:
        tree.append(leaf)
    resumed = CompactTree(tree.size, tree.peaks)
    apart = tree.copy()
    for leaf in LEAVES[size : size + more]:
        resumed.append(leaf)
    assert resumed.root() == reference.mth(LEAVES[: size + more])
    assert apart.size == size
    assert apart.root() == reference.mth(LEAVES[:size])


def test_appending_hashes_once_for_each_level_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = 0

    def counted(left: bytes, right: bytes) -> bytes:
        nonlocal hashes
        hashes += 1
        return node_hash(left, right)

    monkeypatch.setattr("receipts.merkle.node_hash", counted)
    size = 2**40 - 1
    tree = CompactTree(size, [LEAVES[0]] * 40)
    tree.append(LEAVES[1])
    assert hashes == 40
    tree.append(LEAVES[2])
    assert hashes == 40


@pytest.mark.parametrize(
    ("size", "peaks"),
    [
        (-1, []),
        (0, [LEAVES[0]]),
        (1, []),
        (3, [LEAVES[0]]),
        (2, [LEAVES[0], LEAVES[1]]),
        (1, [LEAVES[0][:31]]),
        (1, [LEAVES[0] + b"\0"]),
        (MAX_TREE_SIZE + 1, [LEAVES[0]]),
    ],
)
def test_peaks_of_another_size_are_refused(size: int, peaks: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"peaks|range"):
        CompactTree(size, peaks)


@pytest.mark.parametrize("leaf", [b"", LEAVES[0][:31], LEAVES[0] + b"\0"])
def test_what_is_no_hash_is_not_appended(leaf: bytes) -> None:
    tree = CompactTree()
    with pytest.raises(ValueError, match="not a leaf hash"):
        tree.append(leaf)
    assert tree.size == 0


def test_a_full_tree_takes_no_leaf() -> None:
    tree = CompactTree(MAX_TREE_SIZE, [LEAVES[0]] * 63)
    with pytest.raises(ValueError, match="full"):
        tree.append(LEAVES[0])
