"""Digest fields over content, RFC 9530 §2, for sha-256 and sha-512."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from pch.errors import BadContentDigest
from pch.httpsig.errors import FieldSyntaxError, HttpSigError
from pch.httpsig.structured_field import join_lines, parse, serialise_byte_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MAX_DIGESTS: Final = 8
"""Most members of a Content-Digest field."""

MAX_CONTENT_DIGEST_BYTES: Final = 4096
"""Longest Content-Digest field: eight members stay far below it."""

REQUIRED_ALGORITHM: Final = "sha-256"
"""The digest that every Content-Digest of PCH holds (PCH §3)."""

_HASHES: Final[dict[str, Callable[[bytes], hashlib._Hash]]] = {
    "sha-256": hashlib.sha256,
    "sha-512": hashlib.sha512,
}


def content_digest(body: bytes, algorithms: Sequence[str] = (REQUIRED_ALGORITHM,)) -> str:
    """Make a Content-Digest field, RFC 9530 §2.

    `algorithms`: of `sha-256` and `sha-512`, non-empty. Raises FieldSyntaxError for another one.
    """
    if not algorithms or not set(algorithms) <= _HASHES.keys():
        raise FieldSyntaxError("digest algorithm is not sha-256 or sha-512")
    return ", ".join([f"{name}={serialise_byte_sequence(_HASHES[name](body).digest())}" for name in algorithms])


def parse_content_digest(lines: Sequence[bytes]) -> dict[str, bytes]:
    """Parse a Content-Digest field, RFC 9530 §2: digests by algorithm, unknown ones included.

    `lines`: the field's raw lines; none gives no digests. Raises FieldSyntaxError, DuplicateError.
    """
    if not lines:
        return {}
    dictionary = parse(join_lines(lines, MAX_CONTENT_DIGEST_BYTES), "dictionary")
    if len(dictionary) > MAX_DIGESTS:
        raise FieldSyntaxError("too many digests")
    digests: dict[str, bytes] = {}
    for name, (value, _params) in dictionary.items():
        if type(value) is not bytes:
            raise FieldSyntaxError("digest is not a byte sequence")
        digests[name] = value
    return digests


def expected_digests(lines: Sequence[bytes]) -> dict[str, bytes]:
    """Read which digests content must have, PCH §3: sha-256, and sha-512 if it is there. Others are ignored.

    `lines`: the field's raw lines. Raises BadContentDigest when it is malformed, has no sha-256, or one that counts is
    not as long as its algorithm makes them.
    """
    try:
        digests = parse_content_digest(lines)
    except HttpSigError as error:
        raise BadContentDigest("Content-Digest is malformed") from error
    if REQUIRED_ALGORITHM not in digests:
        raise BadContentDigest("Content-Digest has no sha-256")
    expected = {name: digests[name] for name in _HASHES if name in digests}
    if any(len(digest) != _HASHES[name](b"").digest_size for name, digest in expected.items()):
        raise BadContentDigest("a digest is too short or too long for its algorithm")
    return expected


class ContentDigestCheck:
    """Check content against its digests as it arrives, RFC 9530 §2. Not safe across threads.

    `expected`: digests by algorithm, as `expected_digests` gives them.
    """

    __slots__ = ("_expected", "_hashes")

    def __init__(self, expected: Mapping[str, bytes]) -> None:
        if REQUIRED_ALGORITHM not in expected or not expected.keys() <= _HASHES.keys():
            raise ValueError("the digests are not those that PCH §3 wants")
        self._expected = dict(expected)
        self._hashes = {name: _HASHES[name](b"") for name in expected}

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the content, as they arrived."""
        for each in self._hashes.values():
            each.update(data)

    def verify(self) -> bytes:
        """Settle whether everything taken so far is the content; returns its SHA-256. Raises BadContentDigest."""
        for name, digest in self._expected.items():
            if not hmac.compare_digest(digest, self._hashes[name].digest()):
                raise BadContentDigest(f"Content-Digest does not match: {name}")
        return self._hashes[REQUIRED_ALGORITHM].digest()


def verify_content_digest(lines: Sequence[bytes], body: bytes) -> None:
    """Check content against Content-Digest, RFC 9530 §2, PCH §3: sha-256 is there, and it and sha-512 match.

    `body`: the content as it arrived. Digests by other algorithms are ignored. Raises BadContentDigest.
    """
    check = ContentDigestCheck(expected_digests(lines))
    check.update(body)
    check.verify()
