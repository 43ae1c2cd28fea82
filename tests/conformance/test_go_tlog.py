"""Our log checked by Go's sumdb packages, and theirs by ours (tests/conformance/go_tlog)."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from receipts import verify
from receipts.checkpoint import verify_checkpoint
from receipts.cosignature import note_verifier
from receipts.log import LogSettings
from receipts.merkle import ProofError, leaf_hash
from receipts.merkle_prove import subtree_root
from receipts.merkle_verify import verify_consistency, verify_inclusion
from receipts.signed_note import parse_verifier_key
from receipts.tlog_proof import TlogProof, parse_tlog_proof, verify_tlog_proof
from tests.support.go_programs import build_or_skip
from tests.support.log_parts import ORIGIN, LogParts

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).with_name("go_tlog")


@pytest.fixture(scope="module")
def go_tlog() -> Callable[..., subprocess.CompletedProcess[str]]:
    binary = build_or_skip("go_tlog", SOURCE)

    def run(*arguments: str, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [binary, *arguments],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def request_for(parts: LogParts, indices: set[int], old_sizes: set[int]) -> dict[str, Any]:
    reader = parts.reader()
    size = reader.head().size
    ed25519, ml_dsa = parts.signer.verifier_keys()
    return {
        "Origin": ORIGIN,
        "Ed25519": ed25519.text,
        "MLDSA44": ml_dsa.text,
        "Records": [
            {"Index": index, "Proof": [text(each) for each in reader.prove_inclusion(index).proof]}
            for index in sorted(indices)
        ],
        "Trees": [
            {
                "OldSize": old_size,
                "OldRoot": text(subtree_root(reader.nodes(size), 0, old_size)),
                "Proof": [text(each) for each in reader.prove_consistency(old_size, size)],
            }
            for old_size in sorted(old_sizes)
        ],
    }


@pytest.mark.parametrize("sizes", [(1,), (2, 3), (255, 256), (256, 257), (100, 300, 777), (65_000, 66_000)])
def test_go_verifies_our_checkpoint_tiles_and_proofs(
    tmp_path: Path, go_tlog: Callable[..., subprocess.CompletedProcess[str]], sizes: tuple[int, ...]
) -> None:
    parts = LogParts(tmp_path, settings=LogSettings(max_batch_receipts=1_000_000))
    writer = parts.writer()
    before = 0
    for size in sizes:
        parts.add(size - before)
        before = writer.flush().size
    indices = {0, before // 3, before // 2, before - 1, min(256, before - 1)}
    request = request_for(parts, indices, {1, sizes[0], before // 2 or 1, before})
    done = go_tlog("check", str(parts.log_folder), request=request)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"size {before} records {len(indices)}")
    parts.close()


def _flip(encoded: str) -> str:
    value = bytearray(base64.b64decode(encoded))
    value[0] ^= 1
    return text(bytes(value))


def _proof(kind: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path, dict[str, Any]], None]:
    def damage(_: Path, request: dict[str, Any]) -> None:
        request[kind][0]["Proof"] = change(request[kind][0]["Proof"])

    return damage


def _file(name: str) -> Callable[[Path, dict[str, Any]], None]:
    def damage(folder: Path, _: dict[str, Any]) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-40] ^= 1
        (folder / name).write_bytes(data)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(_file(name) for name in ("checkpoint", "tile/0/000", "tile/0/001.p/44", "tile/entries/000")),
        *(
            _proof(kind, change)
            for kind in ("Records", "Trees")
            for change in (lambda p: p[1:], lambda p: [*p, p[0]], lambda p: [_flip(p[0]), *p[1:]])
        ),
        lambda _, request: request.update(Ed25519=request["Ed25519"].replace(ORIGIN, "other.example")),
    ],
)
def test_go_refuses_what_was_changed(
    tmp_path: Path,
    go_tlog: Callable[..., subprocess.CompletedProcess[str]],
    damage: Callable[[Path, dict[str, Any]], None],
) -> None:
    parts = LogParts(tmp_path, settings=LogSettings(max_batch_receipts=1000))
    parts.add(300)
    parts.writer().flush()
    request = request_for(parts, {7}, {200})
    damage(parts.log_folder, request)
    parts.close()
    assert go_tlog("check", str(parts.log_folder), request=request).returncode == 1


def log_of_go(go_tlog: Callable[..., subprocess.CompletedProcess[str]], size: int) -> Any:
    request = {
        "Origin": "go.example/log",
        "Size": size,
        "Time": 1_800_000_000,
        "Indices": sorted({0, size // 3, size // 2, size - 1}),
        "OldSizes": sorted({1, size // 2 or 1, size}),
        "Seed": size % 251,
    }
    done = go_tlog("make", request=request)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000])
def test_we_verify_the_checkpoint_and_proofs_of_gos_log(
    go_tlog: Callable[..., subprocess.CompletedProcess[str]], size: int
) -> None:
    made = log_of_go(go_tlog, size)
    verifiers = [note_verifier(parse_verifier_key(made[name])) for name in ("Ed25519", "MLDSA44")]
    checkpoint = verify_checkpoint(made["Note"].encode(), verifiers, "go.example/log")
    assert (checkpoint.head.size, checkpoint.time_s) == (size, 1_800_000_000)
    root = checkpoint.head.root
    for record in made["Records"]:
        index, proof = record["Index"], tuple(base64.b64decode(each) for each in record["Proof"] or [])
        leaf = leaf_hash(b"entry %d" % index)
        assert base64.b64decode(record["Leaf"]) == leaf
        verify_inclusion(leaf, index, size, proof, root)
        offline = parse_tlog_proof(TlogProof(index, proof, made["Note"].encode()).data)
        verify_tlog_proof(offline, leaf, verifiers, "go.example/log")
        with pytest.raises(ProofError):
            verify_tlog_proof(offline, leaf_hash(b"another entry"), verifiers, "go.example/log")
    for tree in made["Trees"]:
        proof = tuple(base64.b64decode(each) for each in tree["Proof"] or [])
        old_root = base64.b64decode(tree["OldRoot"])
        verify_consistency(tree["OldSize"], size, old_root, root, proof)
        with pytest.raises(ProofError):
            verify_consistency(tree["OldSize"], size, leaf_hash(old_root), root, proof)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1000])
def test_the_verifier_in_a_pack_takes_the_checkpoint_and_proofs_of_gos_log(
    go_tlog: Callable[..., subprocess.CompletedProcess[str]], size: int
) -> None:
    made = log_of_go(go_tlog, size)
    note = made["Note"].encode()
    keys = frozenset(verify.parse_verifier_key(made[name]) for name in ("Ed25519", "MLDSA44"))
    head = verify.verify_note(note, "go.example/log", keys)
    assert (head.size, head.time_s) == (size, 1_800_000_000)
    for record in made["Records"]:
        index, proof = record["Index"], [base64.b64decode(each) for each in record["Proof"] or []]
        assert verify.inclusion_root(verify.leaf_hash(b"entry %d" % index), index, size, proof) == head.root
        assert verify.inclusion_root(verify.leaf_hash(b"another entry"), index, size, proof) != head.root
        assert verify.inclusion_root(verify.leaf_hash(b"entry %d" % index), index, size, [*proof, head.root]) is None
    for tree in made["Trees"]:
        old_size, proof = tree["OldSize"], [base64.b64decode(each) for each in tree["Proof"] or []]
        old_root = base64.b64decode(tree["OldRoot"])
        assert verify.is_consistent(old_size, size, old_root, head.root, proof)
        assert not verify.is_consistent(old_size, size, leaf_hash(old_root), head.root, proof)
    other = b"B" if note[-400:-399] == b"A" else b"A"
    for damaged in (note.replace(b"log\n%d\n" % size, b"log\n%d\n" % (size + 1)), note[:-400] + other + note[-399:]):
        assert damaged != note
        with pytest.raises(verify.Invalid):
            verify.verify_note(damaged, "go.example/log", keys)
