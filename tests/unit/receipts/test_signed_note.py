from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts.cosignature import note_verifier, sign_ed25519
from receipts.signed_note import (
    ED25519,
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    ML_DSA_44,
    Ed25519NoteVerifier,
    NoteError,
    NoteFormatError,
    NoteSignature,
    NoteSignatureInvalid,
    NoteSignatureMissing,
    SignedNote,
    VerifierKey,
    VerifierKeyError,
    is_key_name,
    parse_note,
    parse_verifier_key,
    verify_note,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# The example of C2SP signed-note, "Example".
SPEC_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
# The note in the text of the same specification; its key is not given.
SPEC_VERSES = (
    "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n"
    "— quasimodo.example/salvatore "
    "NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXxj99ihAQwaqP3ZekRwNtIc=\n"
).encode()

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 5)]
TEXT = b"first\n\nlast\n"


def key_of(number: int, name: str = "a.example") -> VerifierKey:
    return VerifierKey(name, ED25519, KEYS[number].public_key().public_bytes_raw())


def signed(*numbers: int, text: bytes = TEXT, name: str = "a.example") -> SignedNote:
    return SignedNote(text, tuple(sign_ed25519(KEYS[number], name, text) for number in numbers))


def test_the_example_of_the_specification_verifies() -> None:
    key = parse_verifier_key(SPEC_KEY)
    assert key.text == SPEC_KEY
    note = parse_note(SPEC_NOTE)
    assert note.data == SPEC_NOTE
    verified = verify_note(note, [note_verifier(key)])
    assert verified.text == b"This is an example message.\n"
    assert [(each.key, each.time_s) for each in verified.signatures] == [(key, None)]


def test_the_text_ends_at_the_last_empty_line() -> None:
    note = parse_note(SPEC_VERSES)
    assert note.text.endswith("sole:\n\ned è subito sera.\n".encode())
    assert [each.name for each in note.signatures] == ["quasimodo.example/salvatore"]
    assert note.data == SPEC_VERSES


def test_every_changed_byte_of_a_note_is_found() -> None:
    verifiers = [note_verifier(parse_verifier_key(SPEC_KEY))]
    for place in range(len(SPEC_NOTE)):
        for change in (1, 0x20):
            changed = bytearray(SPEC_NOTE)
            changed[place] ^= change
            with pytest.raises(NoteError):
                verify_note(parse_note(bytes(changed)), verifiers)


LINE = signed(0).signatures[0].line
ATTACKS: dict[str, bytes] = {
    "nothing": b"",
    "no signature": TEXT,
    "no signature after the empty line": TEXT + b"\n",
    "no empty line": b"first\n" + LINE,
    "no newline at the end": TEXT + b"\n" + LINE[:-1],
    "an empty line at the end": TEXT + b"\n" + LINE + b"\n",
    "text after the signatures": TEXT + b"\n" + LINE + b"more\n",
    "text without newline after the signatures": TEXT + b"\n" + LINE + b"more",
    "a carriage return": TEXT.replace(b"\n", b"\r\n") + b"\n" + LINE,
    "a tab": b"a\tb\n\n" + LINE,
    "a zero byte": b"a\0b\n\n" + LINE,
    "an escape character": b"a\x1bb\n\n" + LINE,
    "not UTF-8": b"a\xffb\n\n" + LINE,
    "a surrogate": b"a\xed\xa0\x80b\n\n" + LINE,
    "a hyphen in place of the dash": TEXT + b"\n" + LINE.replace("—".encode(), b"-"),
    "two spaces after the dash": TEXT + b"\n" + LINE.replace(b" a", b"  a"),
    "no name": TEXT + b"\n" + LINE.replace(b" a.example", b" "),
    "a plus in the name": TEXT + b"\n" + LINE.replace(b"a.example", b"a+example"),
    "a no-break space in the name": TEXT + b"\n" + LINE.replace(b"a.example", "a\u00a0e".encode()),
    "a name that is too long": TEXT + b"\n" + LINE.replace(b"a.example", b"a" * 256),
    "a field after the signature": TEXT + b"\n" + LINE[:-1] + b" x\n",
    "a space at the end of a line": TEXT + b"\n" + LINE[:-1] + b" \n",
    "no signature in a line": "first\n\n— a.example\n".encode(),
    "an empty signature": "first\n\n— a.example \n".encode(),
    "only a key id": "first\n\n— a.example AAAAAA==\n".encode(),
    "no padding": "first\n\n— a.example AAAAAAA\n".encode(),
    "bits after the signature": "first\n\n— a.example AAAAAAB=\n".encode(),
    "base64url": "first\n\n— a.example AAAA_-A=\n".encode(),
    "one malformed line among good ones": TEXT + b"\n" + LINE + "— b.example !\n".encode() + LINE,
    "too many signatures": TEXT + b"\n" + LINE * (MAX_SIGNATURES + 1),
    "too long": b"a" * MAX_NOTE_BYTES + b"\n\n" + LINE,
}


@pytest.mark.parametrize("data", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_is_no_signed_note_is_refused(data: bytes) -> None:
    with pytest.raises(NoteFormatError):
        parse_note(data)


def test_as_many_signatures_as_the_specification_asks_for_are_read() -> None:
    lines = tuple(NoteSignature(f"w{number}.example", b"abcd", b"x" * 5000) for number in range(16))
    note = parse_note(SignedNote(TEXT, lines).data)
    assert note.signatures == lines


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="a\n— +A=\t", max_size=60).map(str.encode))
def test_a_note_that_is_read_is_written_the_same(data: bytes) -> None:
    try:
        note = parse_note(data)
    except NoteFormatError:
        return
    assert note.data == data


@settings(deadline=None)
@given(
    text=st.text(st.characters(min_codepoint=0x20, codec="utf-8") | st.just("\n"), max_size=50),
    name=st.text(min_size=1, max_size=20).filter(is_key_name),
    value=st.binary(min_size=5, max_size=80),
)
def test_any_note_survives_being_written(text: str, name: str, value: bytes) -> None:
    note = SignedNote(f"{text}\n".encode(), (NoteSignature(name, value[:4], value[4:]),))
    assert parse_note(note.data) == note


def verifiers(*numbers: int) -> list[Ed25519NoteVerifier]:
    return [Ed25519NoteVerifier(key_of(number)) for number in numbers]


def test_signatures_of_unknown_keys_are_ignored() -> None:
    verified = verify_note(signed(3, 0, 2), verifiers(0, 1))
    assert [each.key for each in verified.signatures] == [key_of(0)]
    # They share only the name, or only the id, with a known key.
    line = signed(0).signatures[0]
    for other in (NoteSignature("b.example", line.key_id, b"x" * 64), NoteSignature("a.example", b"abcd", b"x" * 64)):
        verify_note(SignedNote(TEXT, (other, line)), verifiers(0))
        with pytest.raises(NoteSignatureMissing):
            verify_note(SignedNote(TEXT, (other,)), verifiers(0))


def _with(line: NoteSignature, signature: bytes) -> NoteSignature:
    return NoteSignature(line.name, line.key_id, signature)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda a, b: (a, _with(b, bytes(64))), NoteSignatureInvalid),
        (lambda a, b: (_with(a, b.signature), b), NoteSignatureInvalid),
        (lambda a, b: (_with(a, a.signature[:63]), b), NoteSignatureInvalid),
        (lambda a, b: (_with(a, a.signature + b"\0"), b), NoteSignatureInvalid),
        (lambda a, b: (a, b, a), NoteSignatureInvalid),
        (lambda a, b: (a, _with(a, bytes(64)), b), NoteSignatureInvalid),
        (lambda _a, _b: (), NoteSignatureMissing),
    ],
)
def test_a_bad_signature_of_a_known_key_spoils_the_note(
    change: Callable[[NoteSignature, NoteSignature], tuple[NoteSignature, ...]], error: type[Exception]
) -> None:
    note = signed(0, 1)
    verify_note(note, verifiers(0, 1))
    with pytest.raises(error):
        verify_note(SignedNote(TEXT, change(*note.signatures)), verifiers(0, 1))


def test_every_wanted_type_must_have_signed() -> None:
    verify_note(signed(0), verifiers(0), wanted_types={ED25519})
    with pytest.raises(NoteSignatureMissing):
        verify_note(signed(0), verifiers(0), wanted_types={ED25519, ML_DSA_44})
    with pytest.raises(NoteSignatureMissing):
        verify_note(signed(0), [])


def test_two_verifiers_for_one_key_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="two verifiers"):
        verify_note(signed(0), verifiers(0, 0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        SPEC_KEY[:-1],
        SPEC_KEY + "A",
        SPEC_KEY.replace("530d903a", "530d903b"),
        SPEC_KEY.replace("530d903a", "530D903A"),
        SPEC_KEY.replace("530d903a", "530d903"),
        SPEC_KEY.replace("foo", "fou"),
        SPEC_KEY.replace("example.com/foo", ""),
        SPEC_KEY.replace("example.com/foo", "example com"),
        SPEC_KEY.replace("+A", "+B"),
        SPEC_KEY + "\n",
        "example.com/foo+530d903a",
        "example.com/foo+530d903a+" + base64.b64encode(b"\x04" + bytes(32)).decode(),
        "example.com/foo+530d903a+" + base64.b64encode(b"\x01" + bytes(31)).decode(),
    ],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(VerifierKeyError):
        parse_verifier_key(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb", "a\u00a0", "\ud800", "é" * 128, "a\x7f\x1f"])
def test_some_names_name_no_key(name: str) -> None:
    assert not is_key_name(name)
    with pytest.raises(VerifierKeyError):
        key_of(0, name)


def test_the_key_id_depends_on_name_type_and_key() -> None:
    material = bytes(1312)
    ids = {
        key_of(0).key_id,
        key_of(1).key_id,
        key_of(0, "b.example").key_id,
        VerifierKey("a.example", ML_DSA_44, material).key_id,
    }
    assert len(ids) == 4
    key = VerifierKey("a.example", ML_DSA_44, material)
    assert parse_verifier_key(key.text) == key


def test_a_verifier_takes_no_key_of_another_type() -> None:
    with pytest.raises(VerifierKeyError):
        Ed25519NoteVerifier(VerifierKey("a.example", ML_DSA_44, bytes(1312)))
