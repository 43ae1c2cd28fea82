from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.checkpoint import TreeHead, compose_checkpoint, parse_checkpoint, verify_checkpoint
from receipts.cosignature import (
    ML_DSA_44_SIGNATURE_BYTES,
    CosignatureVerifier,
    cosign_ml_dsa_44,
    cosigned_message,
    note_verifier,
    sign_ed25519,
)
from receipts.merkle import EMPTY_ROOT, MAX_TREE_SIZE
from receipts.signed_note import (
    ED25519,
    ML_DSA_44,
    NoteError,
    NoteFormatError,
    NoteSignature,
    NoteSignatureInvalid,
    NoteSignatureMissing,
    SignedNote,
    VerifierKey,
    VerifierKeyError,
    parse_note,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = bytes(range(32))
ROOT_TEXT = base64.b64encode(ROOT).decode()
ORIGIN = "log.example/a"
HEAD = TreeHead(ORIGIN, 42, ROOT)
TEXT = compose_checkpoint(HEAD)
ED = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
PQ = MLDSA44PrivateKey.from_seed_bytes(bytes([2]) * 32)
ED_KEY = VerifierKey(ORIGIN, ED25519, ED.public_key().public_bytes_raw())
PQ_KEY = VerifierKey(ORIGIN, ML_DSA_44, PQ.public_key().public_bytes_raw())
VERIFIERS = [note_verifier(ED_KEY), note_verifier(PQ_KEY)]
TIME_S = 1_800_000_000
LINES = (sign_ed25519(ED, ORIGIN, TEXT), cosign_ml_dsa_44(PQ, ORIGIN, TIME_S, HEAD))


def note(*lines: NoteSignature, text: bytes = TEXT) -> bytes:
    return SignedNote(text, lines).data


def test_a_head_is_written_as_three_lines() -> None:
    assert f"log.example/a\n42\n{ROOT_TEXT}\n".encode() == TEXT
    assert parse_checkpoint(TEXT) == HEAD


def test_the_example_of_the_specification_is_read() -> None:
    data = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa "
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
        "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0"
        "xUe+mbIUBkBIfZ+qnA==\n"
    ).encode()
    head = parse_checkpoint(parse_note(data).text)
    assert (head.origin, head.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert parse_note(data).data == data


@settings(deadline=None)
@given(
    origin=st.text(st.characters(min_codepoint=0x20, codec="utf-8"), min_size=1, max_size=60),
    size=st.integers(1, MAX_TREE_SIZE),
    root=st.binary(min_size=32, max_size=32),
)
def test_any_head_survives_being_written(origin: str, size: int, root: bytes) -> None:
    head = TreeHead(origin, size, root)
    assert parse_checkpoint(compose_checkpoint(head)) == head


@pytest.mark.parametrize(
    "head",
    [
        TreeHead("", 1, ROOT),
        TreeHead("a\nb", 1, ROOT),
        TreeHead("a\tb", 1, ROOT),
        TreeHead("\ud800", 1, ROOT),
        TreeHead("a" * 256, 1, ROOT),
        TreeHead("a", -1, ROOT),
        TreeHead("a", MAX_TREE_SIZE + 1, ROOT),
        TreeHead("a", 1, ROOT[:31]),
        TreeHead("a", 1, b""),
        TreeHead("a", 0, ROOT),
    ],
)
def test_what_is_no_head_is_not_written(head: TreeHead) -> None:
    with pytest.raises(NoteFormatError):
        compose_checkpoint(head)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n",
        f"a\n1\n{ROOT_TEXT}",
        f"a\n1\n{ROOT_TEXT}\n\n",
        f"a\n1\n{ROOT_TEXT}\nextension\n",
        f"a\n\n1\n{ROOT_TEXT}\n",
        f"\n1\n{ROOT_TEXT}\n",
        f"a\n01\n{ROOT_TEXT}\n",
        f"a\n+1\n{ROOT_TEXT}\n",
        f"a\n-1\n{ROOT_TEXT}\n",
        f"a\n 1\n{ROOT_TEXT}\n",
        f"a\n1.0\n{ROOT_TEXT}\n",
        f"a\n١\n{ROOT_TEXT}\n",
        f"a\n9223372036854775808\n{ROOT_TEXT}\n",
        f"a\n{'9' * 5000}\n{ROOT_TEXT}\n",
        f"a\n\n{ROOT_TEXT}\n",
        f"a\n1\n{ROOT_TEXT[:-1]}\n",
        f"a\n1\n{ROOT_TEXT[:-2]}9=\n",
        f"a\n1\n{ROOT_TEXT} \n",
        f"a\n1\n{base64.b64encode(ROOT + b'x').decode()}\n",
        f"a\n1\n{ROOT.hex()}\n",
        f"a\n0\n{ROOT_TEXT}\n",
        f"a\r\n1\r\n{ROOT_TEXT}\r\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteFormatError):
        parse_checkpoint(text.encode())


def test_the_empty_tree_has_its_own_root_alone() -> None:
    assert parse_checkpoint(f"a\n0\n{base64.b64encode(EMPTY_ROOT).decode()}\n".encode()).size == 0
    with pytest.raises(NoteFormatError):
        parse_checkpoint(b"a\xff\n1\n" + ROOT_TEXT.encode() + b"\n")


def test_the_cosigned_message_is_that_of_the_specification() -> None:
    expected = (
        b"subtree/v1\n\0"
        b"\x09cosigner1"
        + (1679315147).to_bytes(8, "big")
        + b"\x0dlog.example/a"
        + bytes(8)
        + (42).to_bytes(8, "big")
        + ROOT
    )
    assert cosigned_message("cosigner1", 1679315147, HEAD) == expected


@pytest.mark.parametrize(
    ("name", "time_s", "origin"), [("", 1, "a"), ("a" * 256, 1, "a"), ("a", -1, "a"), ("a", 2**63, "a"), ("a", 1, "")]
)
def test_a_cosigned_message_has_bounds(name: str, time_s: int, origin: str) -> None:
    with pytest.raises(ValueError, match=r"range|name"):
        cosigned_message(name, time_s, TreeHead(origin, 1, ROOT))


def test_a_checkpoint_that_both_keys_signed_verifies_with_its_time() -> None:
    data = note(*LINES)
    checkpoint = verify_checkpoint(data, VERIFIERS, ORIGIN)
    assert (checkpoint.head, checkpoint.note, checkpoint.time_s) == (HEAD, data, TIME_S)
    assert [each.key for each in checkpoint.signatures] == [ED_KEY, PQ_KEY]
    assert len(LINES[1].signature) == 8 + ML_DSA_44_SIGNATURE_BYTES


def test_the_earliest_time_counts_when_two_sets_of_keys_signed() -> None:
    other = MLDSA44PrivateKey.from_seed_bytes(bytes([3]) * 32)
    other_key = VerifierKey(ORIGIN, ML_DSA_44, other.public_key().public_bytes_raw())
    data = note(*LINES, cosign_ml_dsa_44(other, ORIGIN, TIME_S - 5, HEAD))
    assert verify_checkpoint(data, VERIFIERS, ORIGIN).time_s == TIME_S
    assert verify_checkpoint(data, [*VERIFIERS, note_verifier(other_key)], ORIGIN).time_s == TIME_S - 5


def test_a_checkpoint_without_cosignature_has_no_time() -> None:
    assert verify_checkpoint(note(LINES[0]), VERIFIERS, ORIGIN, wanted_types={ED25519}).time_s is None


OTHER_HEADS = [TreeHead(ORIGIN, 43, ROOT), TreeHead(ORIGIN, 42, EMPTY_ROOT), TreeHead("log.example/b", 42, ROOT)]


@pytest.mark.parametrize("other", OTHER_HEADS)
def test_signatures_hold_for_no_other_head(other: TreeHead) -> None:
    for line, key in zip(LINES, (ED_KEY, PQ_KEY), strict=True):
        verifier = note_verifier(key)
        verifier.verify(TEXT, line.signature)
        with pytest.raises(NoteSignatureInvalid):
            verifier.verify(compose_checkpoint(other), line.signature)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-1],
        lambda s: s + b"\0",
        lambda s: s[:8],
        lambda _: b"",
        lambda s: (TIME_S + 1).to_bytes(8, "big") + s[8:],
        lambda s: b"\x80" + s[1:],
        lambda s: s[:100] + bytes([s[100] ^ 1]) + s[101:],
        lambda s: s[8:] + s[:8],
    ],
)
def test_a_changed_cosignature_does_not_verify(change: Callable[[bytes], bytes]) -> None:
    verifier = CosignatureVerifier(PQ_KEY)
    assert verifier.verify(TEXT, LINES[1].signature) == TIME_S
    with pytest.raises(NoteSignatureInvalid):
        verifier.verify(TEXT, change(LINES[1].signature))


def test_a_cosignature_commits_to_the_name_of_its_key() -> None:
    renamed = CosignatureVerifier(VerifierKey("log.example/b", ML_DSA_44, PQ_KEY.public_key))
    with pytest.raises(NoteSignatureInvalid):
        renamed.verify(TEXT, LINES[1].signature)


def test_a_cosignature_is_of_checkpoints_alone() -> None:
    with pytest.raises(NoteFormatError):
        CosignatureVerifier(PQ_KEY).verify(TEXT + b"extension\n", LINES[1].signature)
    with pytest.raises(VerifierKeyError):
        CosignatureVerifier(ED_KEY)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (note(LINES[0]), NoteSignatureMissing),
        (note(LINES[1]), NoteSignatureMissing),
        (note(*LINES, text=compose_checkpoint(OTHER_HEADS[0])), NoteSignatureInvalid),
        (note(*LINES, text=compose_checkpoint(OTHER_HEADS[2])), NoteFormatError),
        (note(*LINES, text=TEXT + b"extension\n"), NoteFormatError),
        (TEXT, NoteFormatError),
        (note(NoteSignature(ORIGIN, PQ_KEY.key_id, LINES[0].signature), LINES[0]), NoteSignatureInvalid),
        (note(*LINES, LINES[1]), NoteSignatureInvalid),
    ],
)
def test_a_checkpoint_that_lacks_anything_is_refused(data: bytes, error: type[NoteError]) -> None:
    with pytest.raises(error):
        verify_checkpoint(data, VERIFIERS, ORIGIN)


def test_every_changed_byte_of_a_checkpoint_is_found() -> None:
    data = note(*LINES)
    # Every byte of the text, of the first line and of the ends of the second; the rest of it in steps.
    places = [*range(len(TEXT) + 200), *range(len(TEXT) + 200, len(data) - 20, 37), *range(len(data) - 20, len(data))]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(NoteError):
            verify_checkpoint(bytes(changed), VERIFIERS, ORIGIN)
