from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.merkle import ProofError, leaf_hash
from receipts.signed_note import NoteError
from receipts.tlog_proof import (
    MAX_EXTRA_BYTES,
    MAX_TLOG_PROOF_BYTES,
    TlogProof,
    TlogProofError,
    parse_tlog_proof,
    verify_tlog_proof,
)
from tests.support.log_parts import ORIGIN, LogParts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from receipts.signed_note import NoteVerifier

HASHES = tuple(bytes([number]) * 32 for number in range(3))
LINES = "\n".join(base64.b64encode(each).decode() for each in HASHES)
PROOF = TlogProof(73894, HASHES, b"checkpoint\n")
TEXT = f"c2sp.org/tlog-proof@v1\nindex 73894\n{LINES}\n\ncheckpoint\n"


def test_a_proof_is_written_as_the_specification_says() -> None:
    assert PROOF.data == TEXT.encode()
    assert parse_tlog_proof(PROOF.data) == PROOF
    with_extra = TlogProof(0, (), b"c\n", b"extra data")
    assert with_extra.data == b"c2sp.org/tlog-proof@v1\nextra ZXh0cmEgZGF0YQ==\nindex 0\n\nc\n"
    assert parse_tlog_proof(with_extra.data) == with_extra


@settings(deadline=None)
@given(
    st.builds(
        TlogProof,
        st.integers(0, 2**63 - 2),
        st.lists(st.binary(min_size=32, max_size=32), max_size=63).map(tuple),
        st.binary(max_size=50),
        st.none() | st.binary(min_size=1, max_size=50),
    )
)
def test_any_proof_survives_being_written(proof: TlogProof) -> None:
    assert parse_tlog_proof(proof.data) == proof


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT.replace("@v1", "@v2"),
        TEXT.replace("c2sp", "C2SP"),
        " " + TEXT,
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("index 73894\n", ""),
        TEXT.replace("index 73894", "index 073894"),
        TEXT.replace("index 73894", "index -1"),
        TEXT.replace("index 73894", "index  1"),
        TEXT.replace("index 73894", "index 1 "),
        TEXT.replace("index 73894", "index 9223372036854775807"),
        TEXT.replace("index 73894", f"index {'9' * 5000}"),
        TEXT.replace("index 73894", "Index 1"),
        TEXT.replace("index", "extra YQ==\nextra YQ==\nindex"),
        TEXT.replace("index", "extra \nindex"),
        TEXT.replace("index", "extra YQ\nindex"),
        TEXT.replace("index", "extra YR==\nindex"),
        TEXT.replace("index", "extra\nindex"),
        TEXT.replace("index", f"extra {base64.b64encode(bytes(MAX_EXTRA_BYTES + 1)).decode()}\nindex"),
        TEXT.replace("index 73894\n", "index 73894\nextra YQ==\n"),
        TEXT.replace("index 73894\n", "index 73894\n" + "\n".join([LINES] * 21) + "\n"),
        TEXT.replace(LINES, LINES[:-1]),
        TEXT.replace(LINES, LINES[:-4]),
        TEXT.replace(LINES, LINES + " "),
        TEXT.replace(LINES, base64.b64encode(bytes(33)).decode()),
        TEXT.replace("\n\n", "\n"),
        "c2sp.org/tlog-proof@v1\n\ncheckpoint\n",
        TEXT + "x" * MAX_TLOG_PROOF_BYTES,
    ],
)
def test_what_is_no_proof_is_refused(text: str) -> None:
    with pytest.raises(TlogProofError):
        parse_tlog_proof(text.encode())


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes], Sequence[NoteVerifier], bytes]:
    parts = LogParts(tmp_path_factory.mktemp("log"))
    parts.add(300)
    parts.writer().flush()
    proof = parts.reader().prove_inclusion(123).tlog_proof(b"seq 124").data
    found = (parts.folder, [leaf_hash(raw) for raw in parts.raws()], parts.verifiers(), proof)
    parts.close()
    return found


def test_a_proof_from_the_log_verifies_with_nothing_but_keys_and_the_leaf(
    logged: tuple[Path, list[bytes], Sequence[NoteVerifier], bytes],
) -> None:
    _, leaves, verifiers, data = logged
    proof = parse_tlog_proof(data)
    assert (proof.index, proof.extra) == (123, b"seq 124")
    assert verify_tlog_proof(proof, leaves[123], verifiers, ORIGIN).head.size == 300
    for other in (leaves[122], bytes(32), leaves[123][:31]):
        with pytest.raises(ProofError):
            verify_tlog_proof(proof, other, verifiers, ORIGIN)
    for keys, origin in ((verifiers[:1], ORIGIN), ([], ORIGIN), (verifiers, "other.example")):
        with pytest.raises(NoteError):
            verify_tlog_proof(proof, leaves[123], keys, origin)


def test_every_changed_byte_of_a_proof_is_found_but_for_the_extra_data(
    logged: tuple[Path, list[bytes], Sequence[NoteVerifier], bytes],
) -> None:
    _, leaves, verifiers, data = logged
    extra = range(len(b"c2sp.org/tlog-proof@v1\nextra "), data.index(b"\nindex"))
    steps = [*range(1000), *range(1000, len(data), 41)]
    for place in steps:
        changed = bytearray(data)
        changed[place] ^= 1
        if place in extra:
            continue
        with pytest.raises((TlogProofError, NoteError, ProofError)):
            verify_tlog_proof(parse_tlog_proof(bytes(changed)), leaves[123], verifiers, ORIGIN)
