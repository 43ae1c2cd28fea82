"""Every verifier here is given proofs that hold, and each of them changed in every way that could pass."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.merkle import EMPTY_ROOT, MAX_TREE_SIZE, ProofError
from receipts.merkle_prove import prove_consistency, prove_inclusion
from receipts.merkle_verify import (
    verify_consistency,
    verify_inclusion,
    verify_subtree_consistency,
    verify_subtree_inclusion,
)
from tests.support import merkle_reference as reference

if TYPE_CHECKING:
    from collections.abc import Iterator

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "merkle"
LEAVES = [reference.leaf(number) for number in range(300)]
NODES = reference.LeafNodes(LEAVES)
OTHER = reference.leaf(-1)


def _decoded(vector: dict[str, Any]) -> dict[str, Any]:
    for name in ("root", "root1", "root2", "leafHash"):
        if name in vector:
            vector[name] = base64.b64decode(vector[name] or "")
    vector["proof"] = [base64.b64decode(each) for each in vector["proof"] or []]
    return vector


def _inclusion(v: dict[str, Any]) -> None:
    verify_inclusion(v["leafHash"], v["leafIdx"], v["treeSize"], v["proof"], v["root"])


def _consistency(v: dict[str, Any]) -> None:
    verify_consistency(v["size1"], v["size2"], v["root1"], v["root2"], v["proof"])


def _subtree_inclusion(v: dict[str, Any]) -> None:
    verify_subtree_inclusion(v["leafHash"], v["leafIdx"], v["start"], v["end"], v["proof"], v["root"])


def _subtree_consistency(v: dict[str, Any]) -> None:
    verify_subtree_consistency(v["start"], v["end"], v["size"], v["root1"], v["root2"], v["proof"])


CHECKS = {
    "inclusion": (_inclusion, 71),
    "consistency": (_consistency, 72),
    "subtreeinclusion": (_subtree_inclusion, 145),
    "subtreeconsistency": (_subtree_consistency, 74),
}


def _vectors() -> Iterator[Any]:
    for kind, (check, count) in CHECKS.items():
        vectors = json.loads((VECTORS / f"{kind}.json").read_text())
        assert len(vectors) == count
        assert {each["wantErr"] for each in vectors} == {True, False}
        for each in vectors:
            yield pytest.param(check, _decoded(each), id=each["file"].removesuffix(".json"))


@pytest.mark.parametrize(("check", "vector"), list(_vectors()))
def test_merkle_vectors_hold_or_fail_as_they_say(check: Any, vector: dict[str, Any]) -> None:
    if vector["wantErr"]:
        with pytest.raises(ProofError):
            check(vector)
    else:
        check(vector)


def _mutations(proof: list[bytes], draw: Any) -> list[list[bytes]]:
    """The proof too long, too short, and with one bit of it changed."""
    place = draw(st.integers(0, len(proof)))
    changed = [[*proof[:place], OTHER, *proof[place:]], [*proof, EMPTY_ROOT]]
    if proof:
        which = draw(st.integers(0, len(proof) - 1))
        bit = draw(st.integers(0, 255))
        flipped = (int.from_bytes(proof[which], "big") ^ (1 << bit)).to_bytes(32, "big")
        changed += [
            [*proof[:which], *proof[which + 1 :]],
            [*proof[:which], flipped, *proof[which + 1 :]],
            [*proof[:which], proof[which][:31], *proof[which + 1 :]],
            [*proof[:which], proof[which] + b"\0", *proof[which + 1 :]],
        ]
    if len(set(proof)) > 1:
        changed.append([*proof[1:], proof[0]])
    return changed


@settings(deadline=None)
@given(size=st.integers(1, 300), data=st.data())
def test_an_inclusion_proof_fails_when_anything_about_it_changes(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    root = reference.mth(LEAVES[:size])
    proof = prove_inclusion(NODES, index, size)
    verify_inclusion(LEAVES[index], index, size, proof, root)
    for changed in _mutations(proof, data.draw):
        with pytest.raises(ProofError):
            verify_inclusion(LEAVES[index], index, size, changed, root)
    others = data.draw(st.integers(0, size).filter(lambda other: other != index))
    for leaf, place, leaves, top in (
        (OTHER, index, size, root),
        (LEAVES[index], others, size, root),
        (LEAVES[index], index, size, OTHER),
        (LEAVES[index], index, size, root[:31]),
        (LEAVES[index][:31], index, size, root),
        (LEAVES[index], index - size, size, root),
        (LEAVES[index], index, MAX_TREE_SIZE + 1, root),
    ):
        with pytest.raises(ProofError):
            verify_inclusion(leaf, place, leaves, proof, top)


@settings(deadline=None)
@given(size=st.integers(1, 300), data=st.data())
def test_a_consistency_proof_fails_when_anything_about_it_changes(size: int, data: st.DataObject) -> None:
    old_size = data.draw(st.integers(1, size))
    old_root, root = reference.mth(LEAVES[:old_size]), reference.mth(LEAVES[:size])
    proof = prove_consistency(NODES, old_size, size)
    verify_consistency(old_size, size, old_root, root, proof)
    for changed in _mutations(proof, data.draw):
        with pytest.raises(ProofError):
            verify_consistency(old_size, size, old_root, root, changed)
    for olds, news, first, second in (
        (old_size, size, OTHER, root),
        (old_size, size, old_root, OTHER),
        (old_size, size, old_root[:31], root),
        (old_size, size, old_root, root + b"\0"),
        (size + 1, size, old_root, root),
        (old_size, MAX_TREE_SIZE + 1, old_root, root),
        (-1, size, old_root, root),
    ):
        with pytest.raises(ProofError):
            verify_consistency(olds, news, first, second, proof)


@settings(deadline=None)
@given(size=st.integers(2, 300), data=st.data())
def test_a_rewritten_past_has_no_consistency_proof(size: int, data: st.DataObject) -> None:
    old_size = data.draw(st.integers(1, size - 1))
    changed = data.draw(st.integers(0, old_size - 1))
    forked = [*LEAVES[:changed], OTHER, *LEAVES[changed + 1 : size]]
    honest = prove_consistency(NODES, old_size, size)
    theirs = prove_consistency(reference.LeafNodes(forked), old_size, size)
    for proof in (honest, theirs):
        with pytest.raises(ProofError):
            verify_consistency(old_size, size, reference.mth(LEAVES[:old_size]), reference.mth(forked), proof)


def test_the_empty_tree_begins_every_tree_without_a_proof() -> None:
    root = reference.mth(LEAVES[:5])
    verify_consistency(0, 5, EMPTY_ROOT, root, [])
    verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])


@pytest.mark.parametrize(
    ("size", "old_root", "root", "proof"),
    [
        (5, OTHER, OTHER, []),
        (5, EMPTY_ROOT, OTHER, [OTHER]),
        (0, EMPTY_ROOT, OTHER, []),
        (0, OTHER, OTHER, []),
        (0, EMPTY_ROOT, EMPTY_ROOT, [OTHER]),
        (-1, EMPTY_ROOT, OTHER, []),
        (5, EMPTY_ROOT, OTHER[:31], []),
        (5, b"", OTHER, []),
        (MAX_TREE_SIZE + 1, EMPTY_ROOT, OTHER, []),
    ],
)
def test_what_does_not_begin_with_the_empty_tree(size: int, old_root: bytes, root: bytes, proof: list[bytes]) -> None:
    with pytest.raises(ProofError):
        verify_consistency(0, size, old_root, root, proof)


def test_a_proof_of_the_wrong_length_is_refused_before_anything_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(left: bytes, right: bytes) -> bytes:
        raise AssertionError("hashed")

    monkeypatch.setattr("receipts.merkle_verify.node_hash", never)
    with pytest.raises(ProofError, match="the proof has 1000 hashes, 9 are needed"):
        verify_inclusion(LEAVES[0], 0, 300, [OTHER] * 1000, OTHER)
    with pytest.raises(ProofError, match="hashes"):
        verify_consistency(1, 300, OTHER, OTHER, [OTHER] * 1000)
