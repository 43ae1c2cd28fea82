"""Verify a Signet compliance pack offline: python verify.py PACK.zip [--trust JWKS] [--since OLDER.zip] [--json].

One file that imports nothing of Signet, so that it can be read whole and run anywhere: Python 3.11 or later and the
package `cryptography`. It opens no socket and writes no file. docs/reference/pack.md describes what it reads.

1. Container: a plain zip, every byte accounted for, every name expected, nothing larger than it says.
2. Manifest: every member has the digest and size stated.
3. Keys: the ones pinned by --trust, or by the --since pack; later ones only if those vouch for them in the log.
4. Heads: signed with Ed25519 and ML-DSA-44, chained, in order of time, each consistent with the one before.
5. Receipts: each one's leaf is in the tiles, the tiles are the tree of every signed head, each writer's chain is whole.
6. Proofs: the sampled inclusion proofs, the consistency proofs, and the join to the --since pack.

Exit status: 0 valid, 1 invalid (the first receipt that fails is named), 2 unusable input.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import heapq
import json
import re
import struct
import sys
import zlib
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - the copy in a pack meets any Python
    sys.stderr.write("this verifier needs Python 3.11 or later\n")
    sys.exit(2)  # No verdict, which 1 would be.
try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
except ImportError:  # pragma: no cover - a machine without it cannot run the tests either
    sys.stderr.write("this verifier needs the Python package cryptography, version 50 or later\n")
    sys.exit(2)  # No verdict, which 1 would be.

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

FORMAT: Final = "signet-pack/1"
EXIT_VALID: Final = 0
EXIT_INVALID: Final = 1
EXIT_UNUSABLE: Final = 2

# Bounds. What is beyond one of them is unusable input, however it is signed.
MAX_MEMBERS: Final = 65_000
MAX_DIRECTORY_BYTES: Final = 16 << 20
MAX_NAME_BYTES: Final = 200
MAX_RECEIPTS: Final = 10_000_000
MAX_RECEIPT_BYTES: Final = 65_535
MAX_WRITERS: Final = 100_000
MAX_HEAD_LINE_BYTES: Final = 1 << 20
MAX_LINE_BYTES: Final = 1 << 20
MAX_NOTE_BYTES: Final = 256 << 10
MAX_SIGNATURES: Final = 32
MAX_KEYS: Final = 1024
MAX_JSON_PARTS: Final = 6 * MAX_MEMBERS
"""Commas, and opening brackets, in one JSON text: what it takes in memory, however little it is in bytes."""
MAX_TREE_SIZE: Final = 2**63 - 1
MAX_RATIO: Final = 100
"""How many times its packed size a large member may be: receipts are full of digests and pack 3 to 10 times."""
SMALL_BYTES: Final = 1 << 20
MAX_MEMBER_BYTES: Final = {
    "manifest.json": 32 << 20,
    "receipts.jsonl": MAX_RECEIPTS * 8192,
    "sth.json": 8 << 30,
    "proofs/predecessors.jsonl": 1 << 30,
    "keys/rotations.jsonl": 64 << 20,
    "policy/bundle": 64 << 20,
}
DEFAULT_MAX_MEMBER_BYTES: Final = 4 << 20
SAMPLES: Final = 1000
"""Inclusion proofs in a pack; as many as receipts where those are fewer."""

TRAILER_PREFIX: Final = b"signet-pack sha256 "
TRAILER_BYTES: Final = len(TRAILER_PREFIX) + 64
LEADING_MEMBERS: Final = (
    "README",
    "verify.py",
    "checkpoint",
    "keys/jwks.json",
    "keys/verifier-keys.txt",
    "keys/rotations.jsonl",
    "policy/bundle",
    "policy/digest",
    "cbom.json",
    "sth.json",
    "proofs/consistency.json",
)
MANIFEST_MEMBERS: Final = (
    *("format", "origin", "date", "complete", "created_s"),
    *("start", "end", "root", "receipts", "pruned", "since", "files"),
)
STH_MEMBERS: Final = ("note", "size", "root", "time", "prev", "consistency")
RECEIPTS: Final = "receipts.jsonl"
PREDECESSORS: Final = "proofs/predecessors.jsonl"
MANIFEST: Final = "manifest.json"
PRUNED_START: Final = b'{"leaf":"'
KEYS_EVENT: Final = "log_keys_added"
DAY_S: Final = 86_400

ED25519: Final = 0x01
ML_DSA_44: Final = 0x06
_PUBLIC_BYTES: Final = {ED25519: 32, ML_DSA_44: 1312}
_EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
_CHUNK: Final = 256 << 10
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,18}")
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UUID7: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_KINDS: Final = frozenset({"decision", "body_verdict", "outcome", "summary", "log_event"})
_MAX_SAFE: Final = 2**53 - 1
_MAX_DEPTH: Final = 40


class Unusable(Exception):
    """There is no verdict: the input is not a pack, or is beyond a bound."""


class Invalid(Exception):
    """The pack's evidence does not hold. `index`, `receipt_id`: the receipt that fails, where it is one."""

    def __init__(self, check: str, message: str, index: int | None = None, receipt_id: str | None = None) -> None:
        super().__init__(message)
        self.check, self.message, self.index, self.receipt_id = check, message, index, receipt_id


# -- 1. container


@dataclass(frozen=True, slots=True)
class Member:
    """One member of the zip; sizes in bytes, `at` is where its packed bytes begin."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    at: int


class Container:
    """The zip, read by a parser that knows only what a pack may hold. Raises Unusable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.file_bytes = file.seek(0, 2)
        self.members: dict[str, Member] = {}
        self._read_directory()

    def _read_directory(self) -> None:
        end_at = self.file_bytes - 22 - TRAILER_BYTES
        if end_at < 0:
            raise Unusable("not a pack: too short")
        end = self._read(end_at, 22 + TRAILER_BYTES)
        signature, disk, first_disk, here, count, size, offset, comment = struct.unpack("<4s4H2LH", end[:22])
        if signature != b"PK\5\6" or comment != TRAILER_BYTES:
            raise Unusable("not a pack, or its end is missing")
        self.trailer = end[22:]
        directory_end = end_at
        if end_at >= 76 and self._read(end_at - 20, 4) == b"PK\6\7":
            directory_end -= 76
            zip64 = struct.unpack("<4sQ2H2L4Q", self._read(directory_end, 56))
            short = here, count, size, offset
            disk, first_disk, here, count, size, offset = zip64[4:]
            most = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
            if zip64[0] != b"PK\6\6" or short != tuple(map(min, (here, count, size, offset), most)):
                raise Unusable("the zip has two directories")
        if disk or first_disk or here != count or offset + size != directory_end:
            raise Unusable("the zip's directory is not where it should be")
        if count > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise Unusable(f"the zip has more than {MAX_MEMBERS} members")
        self._read_entries(self._read(offset, size), count, offset)

    def _read_entries(self, directory: bytes, count: int, directory_at: int) -> None:
        place = at = 0
        for _ in range(count):
            if place + 46 > len(directory):
                raise Unusable("the zip's directory ends early")
            fields = struct.unpack("<4s4B4H3L5H2L", directory[place : place + 46])
            _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes, comment, disk, _, _, offset = fields[4:]
            name_at = place + 46
            place = name_at + name_bytes + extra_bytes
            if fields[0] != b"PK\1\2" or flags != 8 or method not in (0, 8) or comment or disk:
                raise Unusable("the zip uses features that no pack has")
            if not 1 <= name_bytes <= MAX_NAME_BYTES or place > len(directory):
                raise Unusable("a member's name is empty or too long")
            name = _member_name(directory[name_at : name_at + name_bytes])
            sizes = _zip64_sizes((size, packed, offset), directory[name_at + name_bytes : place])
            at = self._add(Member(name, method, crc, sizes[1], sizes[0], 0), sizes[2], at)
        if place != len(directory) or at != directory_at:
            raise Unusable("the zip has bytes that belong to no member")

    def _add(self, member: Member, offset: int, expected_offset: int) -> int:
        """Take a member whose local header must lie at `expected_offset`; return where the next one must."""
        if member.name in self.members:
            raise Unusable(f"{member.name} is there twice")
        if offset != expected_offset:
            raise Unusable(f"{member.name} is not where it should be")
        limit = MAX_MEMBER_BYTES.get(member.name, DEFAULT_MAX_MEMBER_BYTES)
        if member.size > limit or (member.size > SMALL_BYTES and member.size > MAX_RATIO * member.packed):
            raise Unusable(f"{member.name} is larger than any pack's")
        name = member.name.encode()
        header = self._read(offset, 30 + len(name))
        fields = struct.unpack("<4s2B4H3L2H", header[:30])
        extra_bytes = fields[-1]
        zero = (0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), 20) if extra_bytes else (0, 0, 0, len(name), 0)
        if fields[0] != b"PK\3\4" or fields[3:5] != (8, member.method) or fields[7:] != zero or header[30:] != name:
            raise Unusable(f"{member.name} says one thing in the directory and another in its header")
        at = offset + len(header) + extra_bytes
        if extra_bytes and self._read(at - 20, 20) != b"\1\0\x10\0" + bytes(16):
            raise Unusable(f"{member.name} has an unknown header")
        sizes = struct.pack("<2Q" if extra_bytes else "<2L", member.packed, member.size)
        descriptor = b"PK\7\x08" + struct.pack("<L", member.crc) + sizes
        end = int(at + member.packed + len(descriptor))
        if self._read(end - len(descriptor), len(descriptor)) != descriptor:
            raise Unusable(f"{member.name} has not the size that the directory says")
        self.members[member.name] = dataclasses.replace(member, at=at)
        return end

    def check_trailer(self) -> None:
        """Compare the digest at the end of the file with all that is before it. Raises Invalid."""
        digest = hashlib.sha256()
        for block in self._blocks(0, self.file_bytes - TRAILER_BYTES):
            digest.update(block)
        if self.trailer != TRAILER_PREFIX + digest.hexdigest().encode():
            raise Invalid("container", "the file's bytes are not those that its last line is the digest of")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Unpack a member piece by piece. Raises Invalid when it cannot be, or is not of the size stated."""
        member = self.members[name]
        crc = total = 0
        for piece in self._unpacked(member):
            total += len(piece)
            if total > member.size:
                raise Invalid("container", f"{name} is larger than it says")
            crc = zlib.crc32(piece, crc)
            yield piece
        if total != member.size or crc != member.crc:
            raise Invalid("container", f"{name} is not what the zip says")

    def _unpacked(self, member: Member) -> Iterator[bytes]:
        blocks = self._blocks(member.at, member.packed)
        if member.method == 0:
            yield from blocks
            return
        inflate = zlib.decompressobj(-15)
        try:
            for block in blocks:
                waiting = block
                if inflate.eof:
                    raise Invalid("container", f"{member.name} goes on after its end")
                while waiting and not inflate.eof:
                    yield inflate.decompress(waiting, _CHUNK)
                    waiting = inflate.unconsumed_tail
                if inflate.unused_data:
                    raise Invalid("container", f"{member.name} goes on after its end")
            # All packed bytes are taken in, but a piece that was full may have left some of what they unpack to.
            while not inflate.eof and (rest := inflate.decompress(b"", _CHUNK)):
                yield rest
        except zlib.error as error:
            raise Invalid("container", f"{member.name} cannot be unpacked") from error
        if not inflate.eof:
            raise Invalid("container", f"{member.name} ends early")

    def _blocks(self, at: int, size: int) -> Iterator[bytes]:
        while size:
            block = self._read(at, min(size, _CHUNK))
            at, size = at + len(block), size - len(block)
            yield block

    def _read(self, at: int, size: int) -> bytes:
        if at < 0 or at + size > self.file_bytes:
            raise Unusable("the zip points outside itself")
        self._file.seek(at)
        data = self._file.read(size)
        if len(data) != size:
            raise Unusable("the file became shorter while it was read")
        return data


def _member_name(encoded: bytes) -> str:
    name = encoded.decode("ascii", "replace")
    if not _NAME.fullmatch(name):
        raise Unusable("a member has a name that no pack has")
    return name


def _zip64_sizes(values: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    """Read size, packed size and offset; the ones that do not fit 32 bits are in the zip64 field."""
    large = [place for place, value in enumerate(values) if value == 0xFFFFFFFF]
    if len(extra) != (4 + 8 * len(large) if large else 0):
        raise Unusable("the zip has fields that no pack has")
    sizes = list(values)
    if large:
        tag, length, *numbers = struct.unpack(f"<2H{len(large)}Q", extra)
        if (tag, length) != (1, 8 * len(large)):
            raise Unusable("the zip has fields that no pack has")
        for place, number in zip(large, numbers, strict=True):
            sizes[place] = number
    return sizes[0], sizes[1], sizes[2]


# -- JSON


class _NotPlain(ValueError):
    """The text has a number that the quick way does not handle."""


def _refuse(text: str) -> NoReturn:
    raise _NotPlain(text)


def _short_integer(text: str) -> int:
    if len(text) > 15:
        raise _NotPlain("a long number")
    return int(text)


def _exact_integer(text: str) -> int:
    if len(text) > 20:
        raise _NotPlain("a number out of range")
    return int(text)


def _double_past_safe(text: str) -> int | float:
    """Read an integer as RFC 8785 writes it: past 2^53 it is a double without an exponent."""
    if len(text) > 30:
        raise _NotPlain("a number out of range")
    number = int(text)
    return number if -_MAX_SAFE <= number <= _MAX_SAFE else float(number)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _NotPlain("a member is there twice")
    return members


_quick: Final = json.JSONDecoder(parse_float=_refuse, parse_int=_short_integer, parse_constant=_refuse)
_strict: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_exact_integer, parse_constant=_refuse)
_canonical: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_double_past_safe, parse_constant=_refuse)
_encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def parse_json(data: bytes, what: str) -> Any:
    """Parse JSON without duplicate members, NaN or endless numbers. Raises Invalid, Unusable."""
    if max(data.count(b","), data.count(b"{") + data.count(b"[")) > MAX_JSON_PARTS:
        raise Unusable(f"{what} has more parts than any pack's")
    if len(data) > DEFAULT_MAX_MEMBER_BYTES and not data.isascii():
        raise Unusable(f"{what} would take more memory than any pack's")
    try:
        return _strict.decode(data.decode())
    except (ValueError, RecursionError, OverflowError) as error:
        raise Invalid("form", f"{what} is not JSON as a pack has it") from error


def parse_canonical(raw: bytes) -> Any:
    """Parse bytes that must be their own RFC 8785 form. Raises ValueError."""
    try:
        if raw.isascii():
            text = raw.decode("ascii")
            with contextlib.suppress(_NotPlain):
                value = _quick.decode(text)
                if _encode(value) == text:
                    return value
                raise ValueError("not canonical")
        value = _canonical.decode(raw.decode())
        if canonical_text(value).encode() == raw:
            return value
    except (RecursionError, OverflowError) as error:
        raise ValueError("nested too deeply, or too large a number") from error
    raise ValueError("not canonical")


def canonical_text(value: Any, depth: int = 0) -> str:
    """Serialise a JSON value by RFC 8785. Raises ValueError."""
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{_encode(name)}:{canonical_text(value[name], depth + 1)}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(canonical_text(each, depth + 1) for each in value) + "]"
    return _number_text(value) if isinstance(value, float) else _encode(value)


def _number_text(number: float) -> str:
    """Write a double as ECMAScript does, RFC 8785 §3.2.2.3."""
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    _, places, exponent = Decimal(repr(abs(number))).normalize().as_tuple()
    digits = "".join(map(str, places))
    point = len(digits) + int(exponent)
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{point - 1:+d}"


class Fields:
    """Typed access to a parsed JSON object that must have exactly these members. Raises Invalid."""

    def __init__(self, value: Any, names: Sequence[str], what: str) -> None:
        if not isinstance(value, dict) or set(value) != set(names):
            raise Invalid("form", f"{what} has not the members that it should")
        self._value, self._what = value, what

    def integer(self, name: str, most: int = MAX_TREE_SIZE) -> int:
        """An integer from 0 to `most`."""
        value = self._value[name]
        if type(value) is not int or not 0 <= value <= most:
            self._wrong(name)
        return value

    def text(self, name: str, most: int = 1 << 20) -> str:
        """A string of at most `most` characters."""
        value = self._value[name]
        if not isinstance(value, str) or len(value) > most or _SURROGATE.search(value):
            self._wrong(name)
        return str(value)

    def digest(self, name: str) -> bytes:
        """32 bytes in lower hex."""
        text = self.text(name)
        if not _HEX.fullmatch(text):
            self._wrong(name)
        return bytes.fromhex(text)

    def uuid(self, name: str) -> str:
        """A UUID in lower case."""
        text = self.text(name, 36)
        return text if _UUID.fullmatch(text) else self._wrong(name)

    def hash(self, name: str) -> bytes:
        """32 bytes in base64."""
        return self._hash(self.text(name), name)

    def hashes(self, name: str) -> tuple[bytes, ...]:
        """At most 64 hashes in base64."""
        return tuple(self._hash(each, name) for each in self.items(name, 64))

    def items(self, name: str, most: int) -> list[Any]:
        """A list of at most `most` values, not looked at."""
        value = self._value[name]
        if not isinstance(value, list) or len(value) > most:
            self._wrong(name)
        return list(value)

    def flag(self, name: str) -> bool:
        """A boolean."""
        if type(self._value[name]) is not bool:
            self._wrong(name)
        return bool(self._value[name])

    def optional(self, name: str) -> Any:
        """Whatever is there."""
        return self._value[name]

    def _hash(self, value: Any, name: str) -> bytes:
        if not isinstance(value, str) or len(value) != 44:
            self._wrong(name)
        decoded = decode_base64(value.encode("ascii", "replace"), self._what)
        return decoded if len(decoded) == 32 else self._wrong(name)

    def _wrong(self, name: str) -> NoReturn:
        raise Invalid("form", f"{self._what}: {name} is not what it should be")


def decode_base64(encoded: bytes, what: str) -> bytes:
    """Decode canonical base64. Raises Invalid."""
    try:
        value = binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error as error:
        raise Invalid("form", f"{what}: not base64") from error
    if binascii.b2a_base64(value, newline=False) != encoded:
        raise Invalid("form", f"{what}: not canonical base64")
    return value


# -- 3. keys and notes, C2SP signed-note and tlog-cosignature


@dataclass(frozen=True, slots=True)
class Key:
    """A checkpoint key of the log; `name` is the log's origin."""

    name: str
    type: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """Its id in signature lines, 4 bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public).digest()[:4]

    @property
    def text(self) -> str:
        """The key as C2SP signed-note writes it."""
        encoded = base64.b64encode(bytes([self.type]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"


@dataclass(frozen=True, slots=True)
class Head:
    """A checkpoint whose signatures verified. `keys`: by which; `time_s`: the earliest time they state."""

    note: bytes
    size: int
    root: bytes
    time_s: int
    keys: frozenset[Key]


def keys_of_jwks(jwks: Any, name: str, what: str) -> tuple[Key, ...]:
    """Read the Ed25519 and ML-DSA-44 keys of a JWK set; other keys are left out. Raises Invalid."""
    members = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(members, list) or len(members) > MAX_KEYS:
        raise Invalid("keys", f"{what} is not a JWK set")
    keys = []
    for member in members:
        if not isinstance(member, dict):
            raise Invalid("keys", f"{what}: a key is not an object")
        if member.get("kty") == "OKP" and member.get("crv") == "Ed25519":
            keys.append(_key_of(member.get("x"), ED25519, name, what))
        elif member.get("kty") == "AKP" and member.get("alg") == "ML-DSA-44":
            keys.append(_key_of(member.get("pub"), ML_DSA_44, name, what))
    return tuple(keys)


def _key_of(text: Any, key_type: int, name: str, what: str) -> Key:
    try:
        public = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (TypeError, ValueError) as error:
        raise Invalid("keys", f"{what}: a key is not base64url") from error
    if len(public) != _PUBLIC_BYTES[key_type]:
        raise Invalid("keys", f"{what}: a key has not its length")
    return Key(name, key_type, public)


def _jwks_of_keys(keys: Sequence[Key]) -> bytes:
    """Write keys as the JWK set that a pack has: RFC 7517, RFC 8037, RFC 9964; `kid` is the RFC 7638 thumbprint."""
    members = []
    for key in keys:
        text = _base64url(key.public)
        if key.type == ED25519:
            named = {"crv": "Ed25519", "kty": "OKP", "x": text}
            jwk = {**named, "alg": "Ed25519"}
        else:
            named = jwk = {"alg": "ML-DSA-44", "kty": "AKP", "pub": text}
        kid = _base64url(hashlib.sha256(_encode(named).encode()).digest())
        members.append({**jwk, "kid": kid, "use": "sig"})
    return _encode({"keys": members}).encode() + b"\n"


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def parse_verifier_key(text: str) -> Key:
    """Read a key as C2SP signed-note writes it. Raises Invalid."""
    name, _, rest = text.partition("+")
    material = decode_base64(rest.partition("+")[2].encode("ascii", "replace"), "a verifier key")
    key = Key(name, material[0] if material else 0, material[1:])
    if _PUBLIC_BYTES.get(key.type) != len(key.public) or key.text != text:
        raise Invalid("keys", "a verifier key is not one")
    return key


def verify_note(note: bytes, origin: str, keys: frozenset[Key]) -> Head:
    """Verify a checkpoint: one Ed25519 and one ML-DSA-44 signature at least, by `keys`, and none of theirs wrong.

    Raises Invalid.
    """
    text, separator, rest = note.rpartition(b"\n\n")
    lines = rest.split(b"\n")
    if len(note) > MAX_NOTE_BYTES or not separator or lines.pop() or len(lines) > MAX_SIGNATURES:
        raise Invalid("head", "a checkpoint is not a signed note")
    text += b"\n"
    size, root = _parse_head(text, origin)
    known = {(key.name.encode(), key.key_id): key for key in keys}
    times: list[int] = []
    signed: set[Key] = set()
    for line in lines:
        start, name, encoded = (*line.split(b" ", 2), b"", b"")[:3]
        value = decode_base64(encoded, "a signature")
        if start != b"\xe2\x80\x94" or not name or len(value) < 5:
            raise Invalid("head", "a checkpoint has a malformed signature line")
        key = known.get((name, value[:4]))
        if key is None:
            continue
        if key in signed:
            raise Invalid("head", "a checkpoint has two signatures by one key")
        signed.add(key)
        _verify_signature(key, text, value[4:], origin, size, root, times)
    if {key.type for key in signed} != {ED25519, ML_DSA_44}:
        raise Invalid("head", "a checkpoint lacks an Ed25519 or ML-DSA-44 signature by a trusted key")
    return Head(note, size, root, min(times), frozenset(signed))


def _parse_head(text: bytes, origin: str) -> tuple[int, bytes]:
    lines = text.split(b"\n")
    if len(lines) != 4 or lines[0] != origin.encode() or not _NUMBER.fullmatch(lines[1]):
        raise Invalid("head", "a checkpoint is not one of this log")
    size, root = int(lines[1]), decode_base64(lines[2], "a checkpoint")
    if size > MAX_TREE_SIZE or len(root) != 32 or (size == 0 and root != _EMPTY_ROOT):
        raise Invalid("head", "a checkpoint has an impossible size or root")
    return size, root


def _verify_signature(
    key: Key, text: bytes, value: bytes, origin: str, size: int, root: bytes, times: list[int]
) -> None:
    try:
        if key.type == ED25519:
            Ed25519PublicKey.from_public_bytes(key.public).verify(value, text)
            return
        names = b"".join(bytes([len(each)]) + each for each in (key.name.encode(), origin.encode()))
        cosigner, log = names[: 1 + len(key.name.encode())], names[1 + len(key.name.encode()) :]
        message = b"subtree/v1\n\0" + cosigner + value[:8] + log + bytes(8) + size.to_bytes(8, "big") + root
        _ml_dsa_key(key.public).verify(value[8:], message)
        times.append(int.from_bytes(value[:8], "big"))
    except (InvalidSignature, ValueError) as error:
        raise Invalid("head", f"a signature of the head of {size} entries does not verify") from error


@functools.lru_cache(maxsize=8)
def _ml_dsa_key(public: bytes) -> MLDSA44PublicKey:
    return MLDSA44PublicKey.from_public_bytes(public)


# -- Merkle tree, RFC 9162 §2.1


def leaf_hash(raw: bytes) -> bytes:
    """Hash an entry, RFC 9162 §2.1.1."""
    return hashlib.sha256(b"\0" + raw).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two nodes, RFC 9162 §2.1.1."""
    return hashlib.sha256(b"\1" + left + right).digest()


def fold(peaks: Sequence[bytes]) -> bytes:
    """Hash the roots of complete subtrees, the largest first, into the root over all."""
    if not peaks:
        return _EMPTY_ROOT
    return functools.reduce(lambda right, left: node_hash(left, right), reversed(peaks))


def inclusion_root(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Compute the root that an inclusion proof leads to, RFC 9162 §2.1.3.2; None when it cannot be one."""
    if not 0 <= index < size:
        return None
    node, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return None
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    return root if last == 0 else None


def is_consistent(old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> bool:
    """Check that a tree begins with an older one, RFC 9162 §2.1.4.2."""
    if old_size == size or old_size == 0:
        return not proof and old_root == (root if old_size else _EMPTY_ROOT) and (old_size != size or old_root == root)
    if not 0 < old_size < size or not proof:
        return False
    hashes = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    node, last = old_size - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = hashes[0]
    for each in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(each, old), node_hash(each, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, each)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == root


def tile_name(level: int, index: int, width: int) -> str:
    """Name a hash tile's member: C2SP tlog-tiles below proofs/."""
    parts = [f"{index % 1000:03}"]
    above = index // 1000
    while above:
        parts.insert(0, f"x{above % 1000:03}")
        above //= 1000
    return f"proofs/tile/{level}/{'/'.join(parts)}" + (f".p/{width}" if width < 256 else "")


def tile_places(start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Name (level, index, width) of every hash tile that the entries from `start` to before `end` have hashes in.

    Those of the tree of `end` entries, with the one at its left edge: enough to prove any of these entries, and to
    compute the root of any size from `start` to `end`.
    """
    level = 0
    while count := end >> 8 * level:
        for index in range(start >> 8 * (level + 1), -(-count // 256)):
            yield level, index, min(256, count - 256 * index)
        level += 1


def sample_indexes(start: int, end: int, root: bytes) -> list[int]:
    """Choose the entries whose proofs are in the pack: all, or one of each of `SAMPLES` stretches, by the root."""
    count = end - start
    if count <= SAMPLES:
        return list(range(start, end))
    chosen = []
    for number in range(SAMPLES):
        low, high = start + number * count // SAMPLES, start + (number + 1) * count // SAMPLES
        choice = hashlib.sha256(root + number.to_bytes(4, "big")).digest()
        chosen.append(low + int.from_bytes(choice[:8], "big") % (high - low))
    return chosen


def expected_members(start: int, end: int, root: bytes) -> Iterator[str]:
    """Name every member of a pack, in order."""
    yield from LEADING_MEMBERS
    for place in tile_places(start, end):
        yield tile_name(*place)
    for index in sample_indexes(start, end, root):
        yield sample_name(index)
    yield RECEIPTS
    yield PREDECESSORS
    yield MANIFEST


def sample_name(index: int) -> str:
    """Name the member with the inclusion proof of an entry."""
    return f"proofs/inclusion/{index}.tlog-proof"


# -- the verification


@dataclass(frozen=True, slots=True)
class Manifest:
    """What manifest.json says; `files` maps each other member to its size and SHA-256."""

    origin: str
    date: str
    complete: bool
    created_s: int
    start: int
    end: int
    root: bytes
    receipts: int
    pruned: int
    since: tuple[int, bytes] | None
    files: dict[str, tuple[int, bytes]]

    @property
    def day_start_s(self) -> int:
        """The first second of the day, POSIX."""
        midnight = dt.datetime.fromisoformat(self.date).replace(tzinfo=dt.UTC)
        return int(midnight.timestamp())


@dataclass(slots=True)
class Report:
    """What was found. `tails`: each writer's last (wseq, leaf hash)."""

    manifest: Manifest
    checkpoint: Head
    keys: frozenset[Key]
    pinned: str = "no: the keys are the pack's own"
    heads: int = 0
    receipts: int = 0
    pruned: int = 0
    proofs: int = 0
    under_policy: int = 0
    asked_policy: int = 0
    tails: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    joined: str | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The receipt of a writer before its first one in the pack; `wseq` is None when it was pruned."""

    index: int
    leaf: bytes
    wseq: int | None


class PackVerifier:
    """Verifies one pack; `verify` returns a Report or raises Invalid, Unusable.

    `trust`: the JWK set to trust. `since`: the report on an older pack. `progress` is told receipts done and all.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        trust: Any = None,
        since: Report | None = None,
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        self._zip = Container(file)
        self._trust, self._since, self._progress = trust, since, progress

    def verify(self) -> Report:
        """Run every check, in the order of the module's list."""
        self._manifest = self._read_manifest()
        self._check_small_digests()
        keys = self._read_keys()
        report = self._report = self._check_head_keys(keys)
        self._check_heads()
        self._check_policy()
        self._check_receipts()
        self._check_consistency()
        self._zip.check_trailer()
        if report.receipts != self._manifest.receipts or report.pruned != self._manifest.pruned:
            raise Invalid("manifest", "the manifest does not count the receipts that there are")
        return report

    # 2. manifest

    def _read_manifest(self) -> Manifest:
        if MANIFEST not in self._zip.members:
            raise Unusable("not a pack: it has no manifest")
        fields = Fields(parse_json(self._whole(MANIFEST), MANIFEST), MANIFEST_MEMBERS, MANIFEST)
        if fields.text("format") != FORMAT:
            raise Unusable("a pack of another format than this verifier knows")
        files: dict[str, tuple[int, bytes]] = {}
        for each in fields.items("files", MAX_MEMBERS):
            entry = Fields(each, ("name", "bytes", "sha256"), MANIFEST)
            if entry.text("name") in files:
                raise Invalid("manifest", "the manifest names a member twice")
            files[entry.text("name")] = entry.integer("bytes"), entry.digest("sha256")
        since = None
        if fields.optional("since") is not None:
            last = Fields(fields.optional("since"), ("size", "root"), MANIFEST)
            since = last.integer("size"), last.hash("root")
        manifest = Manifest(
            _origin(fields.text("origin", 255)),
            _day(fields.text("date", 10)),
            fields.flag("complete"),
            fields.integer("created_s", _MAX_SAFE),
            fields.integer("start"),
            fields.integer("end"),
            fields.hash("root"),
            fields.integer("receipts"),
            fields.integer("pruned"),
            since,
            files,
        )
        self._check_members(manifest)
        return manifest

    def _check_members(self, manifest: Manifest) -> None:
        start, end = manifest.start, manifest.end
        if start > end or manifest.receipts != end - start:
            raise Invalid("manifest", "the manifest's numbers contradict each other")
        if end - start > MAX_RECEIPTS:
            raise Unusable(f"more than {MAX_RECEIPTS} receipts")
        expected = list(expected_members(start, end, manifest.root))
        if list(self._zip.members) != expected or list(manifest.files) != expected[:-1]:
            raise Invalid("manifest", "the pack has not exactly the members that it should, in their order")

    def _check_small_digests(self) -> None:
        for name in self._manifest.files:
            if name not in (RECEIPTS, "sth.json"):
                for _ in self._digested(name):
                    pass

    def _digested(self, name: str) -> Iterator[bytes]:
        """Read a member and compare it with the manifest at its end. Raises Invalid."""
        size, expected = self._manifest.files[name]
        digest = hashlib.sha256()
        for piece in self._zip.chunks(name):
            digest.update(piece)
            yield piece
        if digest.digest() != expected or size != self._zip.members[name].size:
            raise Invalid("digest", f"{name} is not what the manifest says")

    def _whole(self, name: str) -> bytes:
        return b"".join(self._zip.chunks(name))

    def _lines(self, name: str, most: int) -> Iterator[bytes]:
        """Read a digested member line by line, each ended by a newline and at most `most` bytes long."""
        rest = b""
        for piece in self._digested(name):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if len(line) > most:
                    raise Invalid("form", f"{name} has a line that is too long")
                yield line
            if len(rest) > most:
                raise Invalid("form", f"{name} has a line that is too long")
        if rest:
            raise Invalid("form", f"{name} ends in the middle of a line")

    # 3. keys

    def _read_keys(self) -> frozenset[Key]:
        origin = self._manifest.origin
        keys = keys_of_jwks(parse_json(self._whole("keys/jwks.json"), "keys/jwks.json"), origin, "keys/jwks.json")
        if self._whole("keys/jwks.json") != _jwks_of_keys(keys):
            raise Invalid("keys", "keys/jwks.json is not written as it should be")
        if self._whole("keys/verifier-keys.txt") != "".join(f"{key.text}\n" for key in keys).encode():
            raise Invalid("keys", "the JWK set and the verifier keys are not the same keys")
        return frozenset(keys)

    def _check_head_keys(self, keys: frozenset[Key]) -> Report:
        """Verify the checkpoint with keys that are trusted, or for which trusted ones vouch."""
        manifest, trusted, pinned = self._manifest, keys, ""
        if self._trust is not None:
            trusted, pinned = frozenset(keys_of_jwks(self._trust, manifest.origin, "--trust")), "by --trust"
        elif self._since is not None:
            trusted, pinned = self._since.keys, "by the older pack"
        note = self._whole("checkpoint")
        trusted = self._follow_rotations(trusted & keys, note, keys)
        head = verify_note(note, manifest.origin, trusted)
        if (head.size, head.root) != (manifest.end, manifest.root):
            raise Invalid("manifest", "the manifest and the checkpoint do not state the same tree")
        report = Report(manifest, head, trusted)
        if pinned:
            report.pinned = pinned
        else:
            report.warnings.append("keys are not pinned: give --trust with a JWK set that you got another way")
        return report

    def _follow_rotations(self, trusted: frozenset[Key], checkpoint: bytes, keys: frozenset[Key]) -> frozenset[Key]:
        """Add the keys that trusted ones vouch for: a head that they signed has the entry that names the new keys.

        That both sets sign one head is not enough: anybody can add a line to a note.
        """
        origin = self._manifest.origin
        size, root = _parse_head(checkpoint.rpartition(b"\n\n")[0] + b"\n", origin)
        for line in self._lines("keys/rotations.jsonl", MAX_LINE_BYTES):
            what = "keys/rotations.jsonl"
            names = ("index", "receipt", "head", "inclusion", "consistency")
            fields = Fields(parse_json(line, what), names, what)
            raw, note = fields.text("receipt").encode(), fields.text("head").encode()
            head = verify_note(note, origin, trusted | keys)
            proven = inclusion_root(leaf_hash(raw), fields.integer("index"), head.size, fields.hashes("inclusion"))
            joined = is_consistent(head.size, size, head.root, root, fields.hashes("consistency"))
            if proven != head.root or not joined:
                raise Invalid("keys", "an entry that introduces keys is not in the log")
            if {key.type for key in head.keys & trusted} == {ED25519, ML_DSA_44}:
                trusted |= _introduced_keys(raw, origin) & keys
        return trusted

    # 4. heads

    def _check_heads(self) -> None:
        """Read sth.json once: signatures, order and consistency. Roots are compared later, with the receipts.

        Trusted keys must have signed every head, not the checkpoint alone: the ones before and after the day say
        where it begins and that it is over.
        """
        manifest, last = self._manifest, None
        day = manifest.day_start_s
        opening = closing = False
        within: Head | None = None
        for number, head in enumerate(self._heads(self._report.keys)):
            if closing or (last is not None and (head.size < last.size or head.time_s < last.time_s)):
                raise Invalid("sth", f"head {number} of sth.json is out of order")
            if head.time_s >= day + DAY_S:
                closing = True
            else:
                within = head
            if head.time_s < day:
                if number:
                    raise Invalid("sth", "sth.json has two heads from before the day")
                opening = True
            first_size = head.size if number == 0 and opening else None
            if number == 0 and (0 if first_size is None else first_size) != manifest.start:
                raise Invalid("sth", "the pack does not begin at the last head before the day")
            last = head
            self._report.heads += 1
        if within is None or within.note != self._report.checkpoint.note:
            raise Invalid("sth", "the checkpoint is not the day's last head")
        if closing != manifest.complete:
            raise Invalid("sth", "the day is complete if and only if a later head is there")

    def _heads(self, keys: frozenset[Key]) -> Iterator[Head]:
        last: Head | None = None
        what = "sth.json"
        for entry in self._sth_entries():
            fields = Fields(entry, STH_MEMBERS, what)
            head = verify_note(fields.text("note", MAX_NOTE_BYTES).encode(), self._manifest.origin, keys)
            if (fields.integer("size"), fields.hash("root"), fields.integer("time")) != head_facts(head):
                raise Invalid("sth", "a head says something else than its note")
            prev = None if fields.optional("prev") is None else fields.digest("prev")
            proof = fields.hashes("consistency")
            if last is not None and prev != hashlib.sha256(last.note).digest():
                raise Invalid("sth", f"the head of {head.size} entries does not follow the one before it")
            old_size, old_root = (0, _EMPTY_ROOT) if last is None else (last.size, last.root)
            # Of the first one, what goes before is not in the pack, unless it is the log's first.
            begins = last is None and prev is not None
            if not begins and not is_consistent(old_size, head.size, old_root, head.root, proof):
                raise Invalid("sth", f"the head of {head.size} entries is not consistent with the one before it")
            yield head
            last = head

    def _sth_entries(self) -> Iterator[Any]:
        """Read the array, written with one head on each line."""
        lines = self._lines("sth.json", MAX_HEAD_LINE_BYTES)
        if next(lines, b"") != b"[":
            raise Invalid("form", "sth.json does not begin as it should")
        open_ended = True
        for line in lines:
            if line == b"]" and not open_ended:
                if next(lines, None) is not None:
                    break
                return
            if not open_ended:
                break
            open_ended = line.endswith(b",")
            yield parse_json(line.removesuffix(b","), "sth.json")
        raise Invalid("form", "sth.json does not end as it should")

    def _roots(self) -> Iterator[tuple[int, bytes, str]]:
        """Name every (size, root) that the receipts must lead to, in order of size."""
        manifest = self._manifest
        parsed = (Fields(entry, STH_MEMBERS, "sth.json") for entry in self._sth_entries())
        heads = ((each.integer("size"), each.hash("root"), "a head") for each in parsed)
        known = [(size, root, "the older pack's head") for size, root in self._since_size()]
        for size, root, what in heapq.merge(heads, known, key=lambda each: each[0]):
            if manifest.start <= size <= manifest.end:
                yield size, root, what

    def _since_size(self) -> list[tuple[int, bytes]]:
        return [] if self._since is None else [(self._since.manifest.end, self._since.manifest.root)]

    def _check_policy(self) -> None:
        digest = self._manifest.files["policy/bundle"][1].hex()  # Compared with the bundle before.
        if self._whole("policy/digest") != digest.encode() + b"\n":
            raise Invalid("policy", "policy/digest is not the digest of policy/bundle")
        self._policy_digest = digest

    # 5. receipts

    def _check_receipts(self) -> None:
        manifest, report = self._manifest, self._report
        chains = Chains(self._predecessors(), self._since, report)
        tree = TileTree(self._tile, manifest.start, manifest.end)
        samples = iter(sample_indexes(manifest.start, manifest.end, manifest.root))
        sample = next(samples, None)
        roots = self._roots()
        wanted = self._compare_roots(tree, roots, next(roots, None), manifest.start)
        index = manifest.start
        try:
            for raw in self._lines(RECEIPTS, MAX_RECEIPT_BYTES):
                if index >= manifest.end:
                    raise Invalid("receipts", "there are more receipts than the log has", index)
                pruned = _parse_pruned(raw, index) if raw.startswith(PRUNED_START) else None
                leaf = leaf_hash(raw) if pruned is None else pruned[0]
                tree.add(index, leaf, raw)
                if pruned is None:
                    chains.add(index, raw, leaf, self._policy_digest)
                else:
                    chains.add_pruned(index, *pruned)
                if index == sample:
                    self._check_sample(index, leaf)
                    sample = next(samples, None)
                index += 1
                if wanted is not None and wanted[0] == index:
                    wanted = self._compare_roots(tree, roots, wanted, index)
                if index & 1023 == 0:
                    self._progress(index - manifest.start, manifest.receipts)
        except Invalid as error:
            if error.check in ("container", "form") and error.index is None:
                raise Invalid(error.check, error.message, index) from error
            raise
        if index != manifest.end:
            raise Invalid("receipts", f"receipt {index} is missing", index)
        if wanted is not None or tree.root() != manifest.root:
            raise Invalid("head", "the receipts do not lead to the checkpoint's root")
        chains.finish()
        report.receipts = index - manifest.start
        self._progress(report.receipts, manifest.receipts)

    def _compare_roots(
        self, tree: TileTree, roots: Iterator[tuple[int, bytes, str]], wanted: tuple[int, bytes, str] | None, size: int
    ) -> tuple[int, bytes, str] | None:
        """Compare the tree with every head of this size; return the next larger one."""
        while wanted is not None and wanted[0] == size:
            if tree.root() != wanted[1]:
                raise Invalid("head", f"the receipts do not lead to {wanted[2]} of {size} entries", max(size - 1, 0))
            wanted = next(roots, None)
        return wanted

    def _tile(self, level: int, index: int, width: int) -> bytes:
        name = tile_name(level, index, width)
        data = self._whole(name)
        if len(data) != 32 * width:
            raise Invalid("tiles", f"{name} has not its length")
        return data

    def _predecessors(self) -> dict[str, Predecessor]:
        """Read the receipts before the pack that chains go on from; each is proved to be in the log."""
        found: dict[str, Predecessor] = {}
        what = PREDECESSORS
        for line in self._lines(what, MAX_LINE_BYTES):
            fields = Fields(parse_json(line, what), ("writer", "index", "receipt", "leaf", "proof"), what)
            index, leaf, writer = fields.integer("index"), fields.hash("leaf"), fields.uuid("writer")
            head = self._report.checkpoint
            if index >= self._manifest.start or writer in found or len(found) >= MAX_WRITERS:
                raise Invalid("chain", "a predecessor is none, or is there twice")
            if inclusion_root(leaf, index, head.size, fields.hashes("proof")) != head.root:
                raise Invalid("chain", f"the predecessor at {index} is not in the log", index)
            wseq = None
            if fields.optional("receipt") is not None:
                raw = fields.text("receipt").encode()
                receipt = parse_receipt(raw, index)
                wseq = receipt["wseq"]
                if leaf_hash(raw) != leaf or receipt["writer"] != writer:
                    raise Invalid("chain", f"the predecessor at {index} is another receipt", index)
            found[writer] = Predecessor(index, leaf, wseq)
        return found

    # 6. proofs

    def _check_sample(self, index: int, leaf: bytes) -> None:
        name = sample_name(index)
        head, separator, note = self._whole(name).partition(b"\n\n")
        lines = head.split(b"\n")
        form = lines[:2] == [b"c2sp.org/tlog-proof@v1", b"index %d" % index] and separator
        if not form or len(lines) > 65 or note != self._report.checkpoint.note:
            raise Invalid("proof", f"{name} is not a proof for the checkpoint", index)
        proof = [decode_base64(line, name) for line in lines[2:]]
        sizes_fit = all(len(each) == 32 for each in proof)
        if not sizes_fit or inclusion_root(leaf, index, self._manifest.end, proof) != self._manifest.root:
            raise Invalid("proof", f"{name} does not prove receipt {index}", index)
        self._report.proofs += 1

    def _check_consistency(self) -> None:
        what, manifest = "proofs/consistency.json", self._manifest
        proofs = parse_json(self._whole(what), what)
        if not isinstance(proofs, list) or len(proofs) > 1000:
            raise Invalid("form", f"{what} is not a list of proofs")
        proved: set[tuple[int, bytes]] = {(manifest.end, manifest.root)}
        for each in proofs:
            fields = Fields(each, ("from", "from_root", "to", "to_root", "hashes"), what)
            old_size, old_root = fields.integer("from"), fields.hash("from_root")
            size, root = fields.integer("to"), fields.hash("to_root")
            if (size, root) != (manifest.end, manifest.root):
                raise Invalid("consistency", "a consistency proof leads to another head than the pack's")
            if not is_consistent(old_size, size, old_root, root, fields.hashes("hashes")):
                raise Invalid("consistency", f"the proof from {old_size} entries does not hold")
            proved.add((old_size, old_root))
        if manifest.since is not None and manifest.since not in proved:
            raise Invalid("consistency", "no proof joins this pack to the last one that was handed out")
        if self._since is not None:
            self._check_since(self._since, proved)

    def _check_since(self, older: Report, proved: set[tuple[int, bytes]]) -> None:
        manifest, report, before = self._manifest, self._report, older.manifest
        if before.origin != manifest.origin:
            raise Invalid("since", "the older pack is that of another log")
        if before.end > manifest.end:
            raise Unusable("the --since pack is the newer one")
        # A size between start and end was compared with the receipts themselves.
        if before.end < manifest.start and (before.end, before.root) not in proved:
            raise Invalid("since", "no proof in the pack joins it to the older one; ask for one from that size")
        if before.complete and not _fits(before, manifest):
            raise Invalid("since", f"{before.date} was complete with {before.end} entries, which this pack contradicts")
        report.joined = f"goes on from {before.date}, {before.end} entries"
        if before.end < manifest.start:
            report.warnings.append(f"receipts {before.end} to {manifest.start - 1} are in neither pack")


def head_facts(head: Head) -> tuple[int, bytes, int]:
    """Give what sth.json repeats of a head."""
    return head.size, head.root, head.time_s


def _fits(before: Manifest, later: Manifest) -> bool:
    """Tell whether a day that was over ended where this pack says so: no head of either may be kept back."""
    days = (later.day_start_s - before.day_start_s) // DAY_S
    if days < 2:
        return days < 0 or before.end == (later.start if days else later.end)
    return before.end <= later.start


def _origin(text: str) -> str:
    """Take a log's name: what C2SP signed-note lets a key be called, and nothing that a terminal would act on."""
    if not text or not text.isprintable() or " " in text or "+" in text:
        raise Invalid("manifest", "the manifest's origin is none")
    return text


def _day(text: str) -> str:
    try:
        if dt.date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError as error:
        raise Invalid("manifest", "the manifest's date is none") from error
    raise Invalid("manifest", "the manifest's date is none")


def _introduced_keys(raw: bytes, origin: str) -> frozenset[Key]:
    receipt = parse_receipt(raw, None)
    event = receipt.get("event")
    if receipt["kind"] != "log_event" or not isinstance(event, dict) or event.get("name") != KEYS_EVENT:
        raise Invalid("keys", "an entry that should introduce keys does not")
    facts = event.get("facts")
    texts = facts.get("verifier_keys") if isinstance(facts, dict) else None
    if not isinstance(texts, list) or len(texts) > MAX_KEYS or not all(isinstance(text, str) for text in texts):
        raise Invalid("keys", "an entry that introduces keys has none")
    return frozenset(key for key in map(parse_verifier_key, texts) if key.name == origin)


def _parse_pruned(raw: bytes, index: int) -> tuple[bytes, str, int]:
    """Read the line of a receipt whose payload was dropped: leaf hash, writer, wseq. Raises Invalid."""
    try:
        value = parse_canonical(raw)
        if value["pruned"] is not True or value["wseq"] == 0:
            raise ValueError("not pruned, or of no number")
        fields = Fields(value, ("leaf", "pruned", "writer", "wseq"), f"the line of receipt {index}")
        return fields.digest("leaf"), fields.uuid("writer"), fields.integer("wseq", _MAX_SAFE)
    except (ValueError, KeyError, TypeError, Invalid) as error:
        raise Invalid("receipts", f"line of receipt {index} is neither a receipt nor pruned", index) from error


def parse_receipt(raw: bytes, index: int | None) -> dict[str, Any]:
    """Parse a receipt's bytes; check what this verifier goes by (docs/reference/receipt.md §2, §3). Raises Invalid."""
    try:
        receipt = parse_canonical(raw)
    except ValueError as error:
        raise Invalid("receipts", f"receipt {index} is not canonical JSON", index) from error
    if not isinstance(receipt, dict):
        raise Invalid("receipts", f"receipt {index} is not an object", index)
    get = receipt.get
    kind, wseq, prev, writer, name = get("kind"), get("wseq"), get("prev"), get("writer"), get("id")
    good = (
        type(get("v")) is int
        and get("v") == 1
        and isinstance(kind, str)
        and kind in _KINDS
        and type(wseq) is int
        and 1 <= wseq <= _MAX_SAFE
        and (prev is None if wseq == 1 else isinstance(prev, str) and _HEX.fullmatch(prev) is not None)
        and isinstance(writer, str)
        and _UUID.fullmatch(writer) is not None
        and isinstance(name, str)
        and _UUID7.fullmatch(name) is not None
        and type(get("time_ms")) is int
    )
    if not good:
        raise Invalid("receipts", f"receipt {index} is not a receipt of version 1", index)
    return receipt


def _id_of(raw: bytes) -> str | None:
    """Find a receipt's id for a message, whatever else is wrong with it."""
    match = re.search(rb'"id":"([0-9a-f-]{36})"', raw)
    return None if match is None else match[1].decode()


class TileTree:
    """The tree as the receipts make it, compared with the pack's tiles, hash by hash, on the way.

    The hashes left of `start` come from the tiles too: they are believed only because roots that are signed
    follow from them.
    """

    def __init__(self, tile: Callable[[int, int, int], bytes], start: int, end: int) -> None:
        self._tile, self._end = tile, end
        self._open: dict[int, tuple[int, bytes]] = {}
        self._peaks = [self._peak(start, height) for height in reversed(range(64)) if start >> height & 1]

    def _peak(self, start: int, height: int) -> bytes:
        level, above = divmod(height, 8)
        first = start >> (height + 1) << (height + 1) >> 8 * level
        hashes = [self._stored(level, index) for index in range(first, first + (1 << above))]
        while len(hashes) > 1:
            hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
        return hashes[0]

    def _stored(self, level: int, index: int) -> bytes:
        number, place = index >> 8, 32 * (index & 255)
        opened = self._open.get(level)
        if opened is None or opened[0] != number:
            width = min(256, (self._end >> 8 * level) - 256 * number)
            opened = self._open[level] = number, self._tile(level, number, width)
        return opened[1][place : place + 32]

    def add(self, index: int, leaf: bytes, raw: bytes) -> None:
        """Append the leaf of entry `index`; compare it and what it completes with the tiles. Raises Invalid."""
        if self._stored(0, index) != leaf:
            raise Invalid("leaf", f"receipt {index} is not the one that the log has there", index, _id_of(raw))
        node, peaks, sha256 = leaf, self._peaks, hashlib.sha256
        above, height = index, 0
        while above & 1:
            node = sha256(b"\1" + peaks.pop() + node).digest()
            above >>= 1
            height += 1
            if height & 7 == 0 and self._stored(height >> 3, above) != node:
                first = above << height
                message = f"receipts {first} to {index} do not make the tile above them"
                raise Invalid("tiles", message, first, None)
        peaks.append(node)

    def root(self) -> bytes:
        """Compute the root over all entries so far."""
        return fold(self._peaks)


class Chains:
    """Each writer's chain: no gap, no repetition, every `prev` the hash of the receipt before."""

    def __init__(self, before: dict[str, Predecessor], since: Report | None, report: Report) -> None:
        self._before, self._since, self._report = before, since, report
        self._tails = report.tails

    def add(self, index: int, raw: bytes, leaf: bytes, policy: str) -> None:
        """Check the receipt at `index`. Raises Invalid that names it."""
        receipt = parse_receipt(raw, index)
        writer, wseq = receipt["writer"], receipt["wseq"]
        last, last_leaf = self._tails.get(writer) or self._begin(writer, wseq, index, receipt["id"])
        if wseq != last + 1:
            message = f"receipt {index} is number {wseq} of writer {writer}, after {last}"
            raise Invalid("chain", message, index, receipt["id"])
        if wseq > 1 and receipt["prev"] != last_leaf.hex():
            message = f"receipt {index} does not carry the hash of its writer's receipt before it"
            raise Invalid("chain", message, index, receipt["id"])
        self._tails[writer] = wseq, leaf
        kinds, kind = self._report.kinds, receipt["kind"]
        kinds[kind] = kinds.get(kind, 0) + 1
        asked = receipt.get("policy")
        if isinstance(asked, dict):
            self._report.asked_policy += 1
            self._report.under_policy += asked.get("digest") == policy

    def add_pruned(self, index: int, leaf: bytes, writer: str, wseq: int) -> None:
        """Take a pruned receipt's place in its chain; the next one's `prev` proves it. Raises Invalid."""
        last, _ = self._tails.get(writer) or self._begin(writer, wseq, index, None)
        if wseq != last + 1:
            raise Invalid("chain", f"receipt {index} is number {wseq} of writer {writer}, after {last}", index)
        self._tails[writer] = wseq, leaf
        self._report.pruned += 1

    def _begin(self, writer: str, wseq: int, index: int, receipt_id: str | None) -> tuple[int, bytes]:
        """Find what a writer's first receipt in the pack must follow."""
        if len(self._tails) >= MAX_WRITERS:
            raise Unusable(f"more than {MAX_WRITERS} writers")
        before, known = self._before.pop(writer, None), self._known(writer)
        if before is None:
            if known is not None:
                message = f"receipt {index} begins a chain anew that the older pack has"
                raise Invalid("since", message, index, receipt_id)
            return 0, b""
        if wseq == 1:
            message = f"receipt {index} is its writer's first, and yet there is one before it"
            raise Invalid("chain", message, index, receipt_id)
        last = wseq - 1 if before.wseq is None else before.wseq
        if not self._goes_on(known, before, last):
            message = f"receipt {index} does not follow its writer's last one in the older pack"
            raise Invalid("since", message, index, receipt_id)
        return last, before.leaf

    def _known(self, writer: str) -> tuple[int, bytes] | None:
        """Give a writer's end in the older pack, where that ends before this one begins."""
        since = self._since
        if since is None or since.manifest.end > self._report.manifest.start:
            return None  # What both have was compared as one tree.
        return since.tails.get(writer)

    def _goes_on(self, known: tuple[int, bytes] | None, before: Predecessor, last: int) -> bool:
        """Tell whether a predecessor is what the older pack ends with, or lies between the two packs."""
        since = self._since
        if since is None or since.manifest.end > self._report.manifest.start:
            return True
        if before.index >= since.manifest.end:
            return known is None or last > known[0]
        return known == (last, before.leaf) or (known is None and before.index < since.manifest.start)

    def finish(self) -> None:
        """Refuse predecessors of writers that have no receipt in the pack. Raises Invalid."""
        if self._before:
            raise Invalid("chain", "a predecessor belongs to no writer in the pack")


# -- command line


def verify_file(
    path: str | Path,
    *,
    trust: Any = None,
    since: Report | None = None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Report:
    """Verify the pack at `path`; see PackVerifier. Raises Invalid, Unusable."""
    try:
        with Path(path).open("rb") as file:
            return PackVerifier(file, trust=trust, since=since, progress=progress).verify()
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror or type(error).__name__}") from error


def _read_trust(path: str) -> Any:
    try:
        with Path(path).open("rb") as file:
            data = file.read(DEFAULT_MAX_MEMBER_BYTES + 1)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    try:
        if len(data) > DEFAULT_MAX_MEMBER_BYTES:
            raise Unusable(f"{path} is too long for a JWK set")
        jwks = parse_json(data, path)
        if not keys_of_jwks(jwks, "any", path):
            raise Unusable(f"{path} has no Ed25519 or ML-DSA-44 key")
    except Invalid as error:
        raise Unusable(f"{path}: {error.message}") from error
    return jwks


def _check_all(args: argparse.Namespace, progress: Callable[[int, int], None]) -> Report:
    trust = None if args.trust is None else _read_trust(args.trust)
    older = None
    if args.since is not None:
        try:
            older = verify_file(args.since, trust=trust, progress=progress)
        except Invalid as error:
            raise Invalid("since", f"the older pack: {error.message}", error.index, error.receipt_id) from error
        except Unusable as error:
            raise Unusable(f"the older pack: {error}") from error
    return verify_file(args.pack, trust=trust, since=older, progress=progress)


def report_json(report: Report) -> dict[str, Any]:
    """Give a report as what --json prints."""
    manifest = report.manifest
    return {
        "valid": True,
        "origin": manifest.origin,
        "date": manifest.date,
        "complete": manifest.complete,
        "start": manifest.start,
        "end": manifest.end,
        "root": base64.b64encode(manifest.root).decode(),
        "head_time_s": report.checkpoint.time_s,
        "receipts": report.receipts,
        "pruned": report.pruned,
        "kinds": dict(sorted(report.kinds.items())),
        "writers": len(report.tails),
        "heads": report.heads,
        "inclusion_proofs": report.proofs,
        "keys_pinned": report.pinned,
        "keys": sorted(f"{key.name}+{key.key_id.hex()}" for key in report.checkpoint.keys),
        "policy": {"asked": report.asked_policy, "under_bundle": report.under_policy},
        "joined": report.joined,
        "warnings": report.warnings,
    }


def report_text(report: Report) -> str:
    """Give a report for people."""
    manifest = report.manifest
    day = manifest.date + (" (whole day)" if manifest.complete else " (day not finished)")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items())) or "none"
    bounds = f"index {manifest.start} to {manifest.end - 1}" if report.receipts else "no traffic"
    lines = [
        f"log        {manifest.origin}",
        f"day        {day}",
        f"receipts   {report.receipts} ({bounds}): {kinds}",
        f"tree       {manifest.end} entries, root {base64.b64encode(manifest.root).decode()}",
        f"heads      {report.heads}, each signed with Ed25519 and ML-DSA-44, chained and consistent",
        f"proofs     {report.proofs} inclusion proofs, every leaf in the tiles",
        f"writers    {len(report.tails)}, no gap in any chain",
        f"policy     {report.under_policy} of {report.asked_policy} policy decisions under the bundle in the pack",
        f"keys       pinned {report.pinned}",
    ]
    if report.pruned:
        lines.append(f"pruned     {report.pruned} receipts are there by their hash alone")
    if report.joined:
        lines.append(f"joined     {report.joined}")
    lines += [f"warning    {each}" for each in report.warnings]
    return "\n".join([*lines, "VALID", ""])


def _progress_bar(done: int, total: int) -> None:
    width = 30 * done // total if total else 30
    end = "\n" if done >= total else ""
    sys.stderr.write(f"\rverifying [{'#' * width:30}] {done}/{total}{end}")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="verify", description="Verify a Signet compliance pack offline.")
    parser.add_argument("pack", help="the pack, a zip file")
    parser.add_argument("--trust", metavar="JWKS", help="a JWK set with the log's keys, got from elsewhere")
    parser.add_argument("--since", metavar="PACK", help="an older pack that this one must go on from")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    watched = sys.stderr is not None and sys.stderr.isatty()  # None when its descriptor was closed.
    progress = _progress_bar if watched and not args.json else lambda _done, _all: None
    answer: dict[str, Any]
    try:
        report = _check_all(args, progress)
    except Invalid as error:
        receipt = None if error.index is None else {"index": error.index, "id": error.receipt_id}
        answer = {"valid": False, "check": error.check, "message": error.message, "receipt": receipt}
        place = "" if error.index is None else f"\nreceipt    index {error.index}, id {error.receipt_id or 'unknown'}"
        text, status = f"INVALID    {error.check}: {error.message}{place}\n", EXIT_INVALID
    except Exception as error:  # noqa: BLE001 - a traceback would end in 1, which is a verdict
        reason = str(error) if isinstance(error, Unusable) else f"the verifier failed: {type(error).__name__}"
        answer = {"valid": None, "check": "input", "message": reason, "receipt": None}
        text, status = f"UNUSABLE   {reason}\n", EXIT_UNUSABLE
    else:
        answer, text, status = report_json(report), report_text(report), EXIT_VALID
    # A verdict that nobody can read is none, unless it is the bad one.
    return status if _say(json.dumps(answer) + "\n" if args.json else text) else status or EXIT_UNUSABLE


def _say(text: str) -> bool:
    """Write to the standard output, whatever its encoding; tell whether all of it went out."""
    try:
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # Full, closed, or never there.
        sys.stdout = None  # Or the interpreter tries again, and ends in 120
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
