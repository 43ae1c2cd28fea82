"""The offline verifier's own parts, against their definitions and against others' implementations."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts import verify
from receipts.canonical_json import CanonicalJsonError, parse_canonical
from receipts.merkle import ProofError
from receipts.merkle_verify import verify_consistency, verify_inclusion
from receipts.tile import ENTRIES, tile_of, tiles_of
from tests.support import merkle_reference as reference
from tests.support.pack_parts import PackParts, repack, unpack

VECTORS = Path(__file__).resolve().parents[2] / "vectors"

# Values that RFC 8785 can write: doubles, and integers that every reader keeps exact.
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_canonical_form_is_that_of_rfc8785(value: Any) -> None:
    raw = rfc8785.dumps(value)
    assert verify.canonical_text(verify.parse_canonical(raw)).encode() == raw


@given(values, st.data())
def test_reading_is_as_strict_as_the_log_is(value: Any, data: st.DataObject) -> None:
    raw = bytearray(rfc8785.dumps(value))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    assert accepts(bytes(raw)) == log_accepts(bytes(raw))


def accepts(raw: bytes) -> bool:
    try:
        verify.parse_canonical(raw)
    except ValueError:
        return False
    return True


def log_accepts(raw: bytes) -> bool:
    try:
        parse_canonical(raw)
    except CanonicalJsonError:
        return False
    return True


@pytest.mark.parametrize("name", ["arrays", "french", "structures", "values"])
def test_jcs_vectors(name: str) -> None:
    expected = (VECTORS / "jcs/output" / f"{name}.json").read_bytes()
    value = json.loads((VECTORS / "jcs/input" / f"{name}.json").read_bytes())
    assert verify.canonical_text(value).encode() == expected.rstrip(b"\n")


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=70), st.data())
@settings(deadline=None)
def test_proofs_are_judged_as_the_log_judges_them(entries: list[bytes], data: st.DataObject) -> None:
    leaves = [verify.leaf_hash(entry) for entry in entries]
    size = len(leaves)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    root = reference.mth(leaves)
    proof = reference.path(index, leaves)
    joined = reference.subproof(old, leaves) if 0 < old < size else []
    assert verify.inclusion_root(leaves[index], index, size, proof) == root
    assert verify.is_consistent(old, size, reference.mth(leaves[:old]), root, joined)
    wrong_size, wrong_index = data.draw(st.integers(0, 80)), data.draw(st.integers(0, 80))
    assert (verify.inclusion_root(leaves[index], wrong_index, wrong_size, proof) == root) == judged(
        verify_inclusion, leaves[index], wrong_index, wrong_size, proof, root
    )
    for changed in (joined[:-1], [*joined, root], [bytes(32), *joined[1:]]):
        theirs = judged(verify_consistency, old, size, reference.mth(leaves[:old]), root, changed)
        assert verify.is_consistent(old, size, reference.mth(leaves[:old]), root, changed) == theirs


def judged(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except ProofError:
        return False
    return True


def vectors(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((VECTORS / "merkle" / f"{name}.json").read_bytes())
    assert len(loaded) > 50
    return loaded


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def test_every_inclusion_vector_is_judged_as_it_should_be() -> None:
    for each in vectors("inclusion"):
        proof = [decoded(hash_) for hash_ in each["proof"] or []]
        sizes = [len(hash_) == 32 for hash_ in (*proof, decoded(each["root"]), decoded(each["leafHash"]))]
        root = verify.inclusion_root(decoded(each["leafHash"]), each["leafIdx"], each["treeSize"], proof)
        assert (all(sizes) and root == decoded(each["root"])) != each["wantErr"], each["file"]


def test_every_consistency_vector_is_judged_as_it_should_be() -> None:
    for each in vectors("consistency"):
        roots = decoded(each["root1"]), decoded(each["root2"])
        proof = [decoded(hash_) for hash_ in each["proof"] or []]
        if not all(len(hash_) == 32 for hash_ in (*proof, *roots)):
            assert each["wantErr"]
            continue
        assert verify.is_consistent(each["size1"], each["size2"], *roots, proof) != each["wantErr"], each["file"]


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_tiles_in_a_pack_are_those_of_its_tree(one: int, other: int) -> None:
    start, end = sorted((one, other))
    for level, index, width in verify.tile_places(start, end):
        tile = tile_of(level, index, end)
        assert tile.width == width
        assert verify.tile_name(level, index, width) == f"proofs/{tile.path}"
    if start == 0:
        named = {f"proofs/{tile.path}" for tile in tiles_of(end) if tile.level != ENTRIES}
        assert {verify.tile_name(*place) for place in verify.tile_places(0, end)} == named


@given(st.integers(0, 10**9), st.integers(0, 10**6), st.binary(min_size=32, max_size=32))
def test_sample_is_spread_over_the_whole_day(start: int, count: int, root: bytes) -> None:
    chosen = verify.sample_indexes(start, start + count, root)
    assert len(chosen) == min(count, 1000)
    assert chosen == sorted(set(chosen))
    assert all(start <= index < start + count for index in chosen)
    assert chosen == verify.sample_indexes(start, start + count, root)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    parts = PackParts(tmp_path_factory.mktemp("pack"))
    parts.add(3)
    made = parts.pack()
    parts.close()
    return made


def ends_in_a_verdict(data: bytes) -> bool:
    """Whatever the input, nothing but a report or one of the two refusals comes out."""
    try:
        verify.PackVerifier(io.BytesIO(data)).verify()
    except (verify.Invalid, verify.Unusable):
        return False
    return True


@given(st.binary(max_size=4000))
def test_any_bytes_end_in_a_verdict(data: bytes) -> None:
    assert not ends_in_a_verdict(data)


@pytest.mark.slow
def test_a_change_of_any_byte_is_found(pack: bytes) -> None:
    source = random.Random(3)
    for at in range(len(pack)):
        changed = bytearray(pack)
        changed[at] ^= source.randrange(1, 256)
        assert not ends_in_a_verdict(bytes(changed)), f"byte {at}"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_found(pack: bytes, data: st.DataObject) -> None:
    changed = bytearray(pack)
    start = data.draw(st.integers(0, len(pack) - 1))
    end = data.draw(st.integers(start, min(len(pack), start + 200)))
    changed[start:end] = data.draw(st.binary(max_size=300))
    if bytes(changed) != pack:
        assert not ends_in_a_verdict(bytes(changed))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["keys/jwks.json", "sth.json", "proofs/consistency.json", "proofs/predecessors.jsonl", "keys/rotations.jsonl"]


@given(st.sampled_from(NAMES), json_values, st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_json_in_a_member_ends_in_a_verdict(pack: bytes, name: str, value: Any, listed: bool) -> None:
    text = json.dumps(value).encode() + b"\n"
    data = b"[\n" + text + b"]\n" if name == "sth.json" and listed else text
    members = {**unpack(pack), name: data}
    verdict = ends_in_a_verdict(repack(members))
    assert not verdict or (name == "proofs/consistency.json" and value == [])


FIELDS = ["note", "size", "root", "time", "prev", "consistency"]


@given(st.sampled_from(FIELDS), json_values)
@settings(max_examples=100, deadline=None)
def test_any_value_in_a_head_ends_in_a_verdict(pack: bytes, field: str, value: Any) -> None:
    members = unpack(pack)
    heads = json.loads(members["sth.json"])
    was = heads[-1][field]
    heads[-1][field] = value
    members["sth.json"] = b"[\n" + b",\n".join(json.dumps(head).encode() for head in heads) + b"\n]\n"
    assert ends_in_a_verdict(repack(members)) == (value == was and type(value) is type(was))
