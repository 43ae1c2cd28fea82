from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.merkle_prove import complete_subtrees, prove_consistency, prove_inclusion, subtree_root
from receipts.merkle_verify import verify_consistency, verify_inclusion, verify_subtree_consistency
from tests.support import merkle_reference as reference

LEAVES = [reference.leaf(number) for number in range(70)]
NODES = reference.LeafNodes(LEAVES)
ROOTS = [reference.mth(LEAVES[:size]) for size in range(len(LEAVES) + 1)]


def test_every_inclusion_proof_is_the_path_of_the_definition_and_verifies() -> None:
    for size in range(1, len(LEAVES) + 1):
        for index in range(size):
            proof = prove_inclusion(NODES, index, size)
            assert proof == reference.path(index, LEAVES[:size])
            verify_inclusion(LEAVES[index], index, size, proof, ROOTS[size])


def test_every_consistency_proof_is_that_of_the_definition_and_verifies() -> None:
    for size in range(1, len(LEAVES) + 1):
        for old_size in range(1, size + 1):
            proof = prove_consistency(NODES, old_size, size)
            assert proof == reference.subproof(old_size, LEAVES[:size])
            verify_consistency(old_size, size, ROOTS[old_size], ROOTS[size], proof)


def test_the_empty_tree_needs_no_proof() -> None:
    assert prove_consistency(NODES, 0, 0) == []
    assert prove_consistency(NODES, 0, 70) == []


def test_every_subtree_has_the_root_of_the_definition() -> None:
    for end in range(len(LEAVES) + 1):
        for start in range(end + 1):
            width = end - start
            if width == 0 or start % (1 << (width - 1).bit_length()) == 0:
                assert subtree_root(NODES, start, end) == reference.mth(LEAVES[start:end])
            else:
                with pytest.raises(ValueError, match="not the bounds"):
                    subtree_root(NODES, start, end)


@settings(deadline=None)
@given(st.data())
def test_a_complete_subtree_anywhere_is_consistent_with_the_tree(data: st.DataObject) -> None:
    # Its proof is the upper part of the inclusion proof of any of its leaves.
    level = data.draw(st.integers(0, 6))
    index = data.draw(st.integers(0, (len(LEAVES) >> level) - 1))
    start, end = index << level, (index + 1) << level
    size = data.draw(st.integers(end, len(LEAVES)))
    proof = prove_inclusion(NODES, start, size)[level:]
    verify_subtree_consistency(start, end, size, reference.mth(LEAVES[start:end]), ROOTS[size], proof)


@settings(deadline=None)
@given(size=st.integers(1, 2**62), data=st.data())
def test_a_proof_in_a_huge_tree_reads_few_nodes(size: int, data: st.DataObject) -> None:
    class Counting:
        reads = 0

        def node(self, level: int, index: int) -> bytes:
            assert (index + 1) << level <= size
            self.reads += 1
            return bytes(32)

    nodes = Counting()
    assert len(prove_inclusion(nodes, data.draw(st.integers(0, size - 1)), size)) <= 63
    assert len(prove_consistency(nodes, data.draw(st.integers(0, size)), size)) <= 64
    assert nodes.reads <= 4 * 63


def test_complete_subtrees_shrink_from_the_left() -> None:
    assert list(complete_subtrees(0, 7)) == [(2, 0), (1, 2), (0, 6)]
    assert list(complete_subtrees(8, 14)) == [(2, 2), (1, 6)]
    assert list(complete_subtrees(5, 5)) == []


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (0, 2**63)])
def test_there_is_no_inclusion_proof_of_a_leaf_outside_the_tree(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="index"):
        prove_inclusion(NODES, index, size)


@pytest.mark.parametrize(("old_size", "size"), [(-1, 3), (4, 3), (1, 2**63)])
def test_there_is_no_consistency_proof_into_the_past(old_size: int, size: int) -> None:
    with pytest.raises(ValueError, match="old size"):
        prove_consistency(NODES, old_size, size)
