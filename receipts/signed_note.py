"""Signed notes, C2SP signed-note: a text, and lines of signatures over it.

Signatures of unknown keys are ignored, since anyone may add them. One of a known key that does not verify, or
a second one of the same key, makes the whole note invalid.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

ED25519: Final = 0x01
"""Signature type: Ed25519 over the note's text."""
ML_DSA_44: Final = 0x06
"""Signature type: a timestamped ML-DSA-44 cosignature, C2SP tlog-cosignature."""

PUBLIC_KEY_BYTES: Final = {ED25519: 32, ML_DSA_44: 1312}

MAX_NOTE_BYTES: Final = 256 * 1024
MAX_SIGNATURES: Final = 32
"""Signature lines in a note; C2SP signed-note asks for 16 at least, each of up to about 7 KB here."""
MAX_NAME_BYTES: Final = 255
"""A key's name; C2SP tlog-cosignature gives its length one byte."""
KEY_ID_BYTES: Final = 4

_LINE_START: Final = "\N{EM DASH} ".encode()
_CONTROL: Final = re.compile(rb"[\x00-\x09\x0b-\x1f]")
_VERIFIER_KEY: Final = re.compile(r"(?P<name>[^+]+)\+(?P<id>[0-9a-f]{8})\+(?P<key>[A-Za-z0-9+/]{4,2048}={0,2})")


class NoteError(ValueError):
    """A note may not be believed. Messages never repeat what it says."""

    code = "note_error"


class NoteFormatError(NoteError):
    """The bytes are not a signed note, or its text not a checkpoint."""

    code = "note_format"


class NoteSignatureInvalid(NoteError):
    """A line under the name and id of a known key is not a signature by that key."""

    code = "note_signature_invalid"


class NoteSignatureMissing(NoteError):
    """The note lacks a signature that it must have."""

    code = "note_signature_missing"


class VerifierKeyError(ValueError):
    """The text is not a verifier key, or of a type that is not known here."""


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: the key's name, its id (4 bytes), and what that type of signature consists of."""

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> bytes:
        """The line as it stands in a note, with its newline."""
        encoded = binascii.b2a_base64(self.key_id + self.signature, newline=False)
        return _LINE_START + self.name.encode() + b" " + encoded + b"\n"


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A note as parsed: nothing in it is verified. `text` ends in a newline."""

    text: bytes
    signatures: tuple[NoteSignature, ...]

    @property
    def data(self) -> bytes:
        """The note as bytes."""
        return self.text + b"\n" + b"".join(each.line for each in self.signatures)


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key under a name, C2SP signed-note: what a verifier is told out of band.

    `public_key`: as long as `PUBLIC_KEY_BYTES` says for the type. Raises VerifierKeyError.
    """

    name: str
    signature_type: int
    public_key: bytes

    def __post_init__(self) -> None:
        if not is_key_name(self.name):
            raise VerifierKeyError("not a key name")
        if PUBLIC_KEY_BYTES.get(self.signature_type) != len(self.public_key):
            raise VerifierKeyError("the signature type is unknown, or the key has not its length")

    @property
    def key_id(self) -> bytes:
        """The key's id in signature lines: 4 bytes that depend on name, type and key."""
        material = self.name.encode() + b"\n" + bytes([self.signature_type]) + self.public_key
        return hashlib.sha256(material).digest()[:KEY_ID_BYTES]

    @property
    def text(self) -> str:
        """The key as `<name>+<hex id>+<base64 of type and key>`."""
        encoded = binascii.b2a_base64(bytes([self.signature_type]) + self.public_key, newline=False)
        return f"{self.name}+{self.key_id.hex()}+{encoded.decode()}"


class NoteVerifier(Protocol):
    """Verifies the signatures of one key."""

    @property
    def key(self) -> VerifierKey:
        """The key that it verifies with."""

    def verify(self, text: bytes, signature: bytes) -> int | None:
        """Check a signature over a note's text; return the time it states (POSIX seconds), if it states one.

        Raises NoteSignatureInvalid; NoteFormatError when the type needs a checkpoint and `text` is none.
        """


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """A signature line that verified; `time_s` as the signature states it."""

    key: VerifierKey
    time_s: int | None


@dataclass(frozen=True, slots=True)
class VerifiedNote:
    """A text, and whose signatures over it verified; made by `verify_note` alone."""

    text: bytes
    signatures: tuple[VerifiedSignature, ...]


class Ed25519NoteVerifier:
    """Verifies the signatures of an Ed25519 key over whole notes, C2SP signed-note. Raises VerifierKeyError."""

    def __init__(self, key: VerifierKey) -> None:
        if key.signature_type != ED25519:
            raise VerifierKeyError("not an Ed25519 key")
        self.key = key
        self._public_key = Ed25519PublicKey.from_public_bytes(key.public_key)

    def verify(self, text: bytes, signature: bytes) -> None:
        """Check a signature (64 bytes); see `NoteVerifier.verify`."""
        try:
            self._public_key.verify(signature, text)
        except InvalidSignature as error:
            raise NoteSignatureInvalid("an Ed25519 signature does not verify") from error


def is_key_name(name: str) -> bool:
    """Say whether `name` may name a key, C2SP signed-note: not empty, no space, no plus, no control character."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return False
    if not 1 <= len(encoded) <= MAX_NAME_BYTES or _CONTROL.search(encoded):
        return False
    return not any(character.isspace() or character == "+" for character in name)


def parse_verifier_key(text: str) -> VerifierKey:
    """Read a verifier key, C2SP signed-note. Raises VerifierKeyError, also when the id is not that of the key."""
    match = _VERIFIER_KEY.fullmatch(text)
    if match is None:
        raise VerifierKeyError("not a verifier key")
    try:
        material = decode_base64(match["key"].encode())
    except NoteFormatError as error:
        raise VerifierKeyError("the key is not canonical base64") from error
    key = VerifierKey(match["name"], material[0], material[1:])
    if key.key_id.hex() != match["id"]:
        raise VerifierKeyError("the id is not that of the key")
    return key


def parse_note(data: bytes) -> SignedNote:
    """Cut a signed note into text and signatures, C2SP signed-note; verifies nothing.

    Raises NoteFormatError: too long, not UTF-8, control characters, no or malformed or too many signature lines,
    anything after them.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise NoteFormatError(f"the note is longer than {MAX_NOTE_BYTES} bytes")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise NoteFormatError("the note is not UTF-8") from error
    if _CONTROL.search(data):
        raise NoteFormatError("the note has a control character")
    text, separator, lines = data.rpartition(b"\n\n")
    if not separator or not lines.endswith(b"\n"):
        raise NoteFormatError("the note has no signature lines, or goes on after them")
    signatures = lines[:-1].split(b"\n")
    if len(signatures) > MAX_SIGNATURES:
        raise NoteFormatError(f"the note has more than {MAX_SIGNATURES} signatures")
    return SignedNote(text + b"\n", tuple(_parse_line(line) for line in signatures))


def _parse_line(line: bytes) -> NoteSignature:
    if not line.startswith(_LINE_START):
        raise NoteFormatError("a signature line does not start as it should")
    encoded_name, _, encoded = line[len(_LINE_START) :].partition(b" ")
    name = encoded_name.decode()
    if not is_key_name(name):
        raise NoteFormatError("a signature line has no key name")
    value = decode_base64(encoded)
    if len(value) <= KEY_ID_BYTES:
        raise NoteFormatError("a signature line has no signature")
    return NoteSignature(name, value[:KEY_ID_BYTES], value[KEY_ID_BYTES:])


def decode_base64(encoded: bytes) -> bytes:
    """Decode canonical, padded base64, RFC 4648 §4. Raises NoteFormatError."""
    try:
        value = binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error as error:
        raise NoteFormatError("not base64") from error
    if binascii.b2a_base64(value, newline=False) != encoded:
        raise NoteFormatError("not canonical base64")
    return value


def verify_note(
    note: SignedNote, verifiers: Iterable[NoteVerifier], *, wanted_types: Collection[int] = ()
) -> VerifiedNote:
    """Verify every signature of a known key, C2SP signed-note; ignore the others.

    `wanted_types`: signature types of which at least one must verify each; with none given, any one must.
    Raises NoteSignatureInvalid, NoteSignatureMissing, NoteFormatError; ValueError when two verifiers share name
    and id.
    """
    known: dict[tuple[str, bytes], NoteVerifier] = {}
    for verifier in verifiers:
        if known.setdefault((verifier.key.name, verifier.key.key_id), verifier) is not verifier:
            raise ValueError("two verifiers have one name and key id")
    verified: dict[tuple[str, bytes], VerifiedSignature] = {}
    for line in note.signatures:
        place = (line.name, line.key_id)
        match = known.get(place)
        if match is None:
            continue
        if place in verified:
            raise NoteSignatureInvalid("a known key signed twice")
        verified[place] = VerifiedSignature(match.key, match.verify(note.text, line.signature))
    signatures = tuple(verified.values())
    if not signatures or not {each.key.signature_type for each in signatures}.issuperset(wanted_types):
        raise NoteSignatureMissing("a wanted signature is missing")
    return VerifiedNote(note.text, signatures)
