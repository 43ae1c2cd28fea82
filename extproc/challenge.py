"""Challenges: sealed, stateless and good for one connection (docs/reference/pch.md §2).

    byte 0        version; the high bit is the relax grant
    bytes 1-4     epoch of the sealing key, big-endian
    bytes 5-12    time of issue in milliseconds since 1970, big-endian
    bytes 13-28   random
    bytes 29-44   HMAC-SHA-256, cut to 16 bytes, over "PCH/1", bytes 0-28, and then realm, @authority and
    the
                  32 binding bytes, each after its length in 2 bytes, big-endian

On the wire: base64url without padding, 60 characters exactly. 45 bytes leave no spare bits, so that each
challenge has one spelling.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hmac
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from pch.errors import StaleChallenge

if TYPE_CHECKING:
    from extproc.sealing_keys import SealingKeys

VERSION: Final = 1
RELAX_GRANT: Final = 0x80
BINDING_BYTES: Final = 32
RANDOM_BYTES: Final = 16
DEFAULT_SKEW_MS: Final = 2000
"""How far into the future a challenge may have been issued: the clocks of verifiers differ (PCH §3)."""

_LABEL: Final = b"PCH/1"
_SEALED: Final = struct.Struct(">BIQ16s")
MAX_KEYED: Final = 16
"""Prepared sealing keys kept: the current epoch and those still good, and a few for tests."""
_MAX_FIELD_BYTES: Final = 0xFFFF
_TO_BASE64URL: Final = bytes.maketrans(b"+/", b"-_")
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]{60}")


@dataclass(frozen=True, slots=True)
class OpenChallenge:
    """A challenge that was ours, of this connection and not too old. `token`: its 45 bytes."""

    token: bytes
    epoch: int
    issued_ms: int
    relax_grant: bool


def issue(
    keys: SealingKeys,
    *,
    realm: str,
    authority: str,
    binding32: bytes,
    now_ms: int,
    random16: bytes,
    relax_grant: bool = False,
) -> str:
    """Issue a challenge, PCH §2.

    `authority`: in the form of RFC 9421 §2.2.3, ASCII. `binding32`: 32 bytes, zeros on an unbound route.
    `random16`: 16 fresh random bytes. Returns 60 base64url characters. Raises ValueError for arguments
    that cannot be sealed.
    """
    (issued,) = issue_several(
        keys,
        realm=realm,
        authority=authority,
        binding32=binding32,
        now_ms=now_ms,
        random_bytes=random16,
        relax_grant=relax_grant,
    )
    return issued


def issue_several(
    keys: SealingKeys,
    *,
    realm: str,
    authority: str,
    binding32: bytes,
    now_ms: int,
    random_bytes: bytes,
    relax_grant: bool = False,
) -> tuple[str, ...]:
    """Issue one challenge for each 16 bytes of `random_bytes`, as `issue` does."""
    if not random_bytes or len(random_bytes) % RANDOM_BYTES:
        raise ValueError("a challenge takes 16 random bytes")
    key = keys.current()
    keyed = _keyed(key.key)
    version = VERSION | RELAX_GRANT if relax_grant else VERSION
    connection = _sealed_connection(realm, authority, binding32)
    issued = []
    for start in range(0, len(random_bytes), RANDOM_BYTES):
        sealed = _SEALED.pack(version, key.epoch, now_ms, random_bytes[start : start + RANDOM_BYTES])
        token = sealed + _seal(keyed, sealed, connection)
        issued.append(binascii.b2a_base64(token, newline=False).translate(_TO_BASE64URL).decode("ascii"))
    return tuple(issued)


def open_challenge(
    text: str,
    keys: SealingKeys,
    *,
    realm: str,
    authority: str,
    binding32: bytes,
    now_ms: int,
    max_age_ms: int,
    skew_ms: int = DEFAULT_SKEW_MS,
) -> OpenChallenge:
    """Open a challenge that a client signed, PCH §4 step 5.

    Arguments as for `issue`; `max_age_ms`: how long it is good. Raises `StaleChallenge` for one that is
    misspelt, forged, foreign (realm, authority, connection), of a forgotten key, too old, or issued later
    than `skew_ms` from now.
    """
    if not _ALPHABET.fullmatch(text):
        raise StaleChallenge("the challenge is not 60 base64url characters")
    token = base64.urlsafe_b64decode(text)
    sealed, mac = token[: _SEALED.size], token[_SEALED.size :]
    version, epoch, issued_ms, _random = _SEALED.unpack(sealed)
    if version & ~RELAX_GRANT != VERSION:
        raise StaleChallenge("the challenge has another version")
    key = keys.by_epoch(epoch)
    try:
        expected = _seal(_keyed(key.key), sealed, _sealed_connection(realm, authority, binding32))
    except ValueError as error:
        raise StaleChallenge("no challenge can be of this authority or connection") from error
    if not hmac.compare_digest(mac, expected):
        raise StaleChallenge("the seal does not hold")
    if now_ms - issued_ms > max_age_ms:
        raise StaleChallenge("the challenge is too old")
    if issued_ms - now_ms > skew_ms:
        raise StaleChallenge("the challenge was issued in the future")
    return OpenChallenge(token, epoch, issued_ms, bool(version & RELAX_GRANT))


@functools.lru_cache(maxsize=MAX_KEYED)
def _keyed(key: bytes) -> HMAC:
    """Prepare the HMAC of a sealing key, to be copied for each seal; keys change once an epoch."""
    return HMAC(key, hashes.SHA256())


def _sealed_connection(realm: str, authority: str, binding32: bytes) -> bytes:
    """Join what a challenge is sealed to: three fields, each with a 2-byte length (PCH §2)."""
    if len(binding32) != BINDING_BYTES:
        raise ValueError("a binding is 32 bytes")
    fields = (realm.encode("ascii"), authority.encode("ascii"), binding32)
    if any(len(field) > _MAX_FIELD_BYTES for field in fields):
        raise ValueError("realm or authority is over 65535 bytes")
    return b"".join([len(field).to_bytes(2, "big") + field for field in fields])


def _seal(keyed: HMAC, sealed: bytes, connection: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(_LABEL + sealed + connection)
    return mac.finalize()[:16]
