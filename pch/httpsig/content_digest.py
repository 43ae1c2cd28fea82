"""Digest fields over content, RFC 9530 §2, for sha-256 and sha-512."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from pch.errors import BadContentDigest
from pch.httpsig.errors import FieldSyntaxError, HttpSigError
from pch.httpsig.structured_field import join_lines, parse, serialise_byte_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_DIGESTS: Final = 8
"""Most members of a Content-Digest field."""

MAX_CONTENT_DIGEST_BYTES: Final = 4096
"""Longest Content-Digest field: eight members stay far below it."""

REQUIRED_ALGORITHM: Final = "sha-256"
"""The digest that every Content-Digest of PCH holds (PCH §3)."""

_HASHES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "sha-256": lambda body: hashlib.sha256(body).digest(),
    "sha-512": lambda body: hashlib.sha512(body).digest(),
}


def content_digest(body: bytes, algorithms: Sequence[str] = (REQUIRED_ALGORITHM,)) -> str:
    """Make a Content-Digest field, RFC 9530 §2.

    `algorithms`: of `sha-256` and `sha-512`, non-empty. Raises FieldSyntaxError for another one.
    """
    if not algorithms or not set(algorithms) <= _HASHES.keys():
        raise FieldSyntaxError("digest algorithm is not sha-256 or sha-512")
    return ", ".join([f"{name}={serialise_byte_sequence(_HASHES[name](body))}" for name in algorithms])


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


def verify_content_digest(lines: Sequence[bytes], body: bytes) -> None:
    """Check content against Content-Digest, RFC 9530 §2, PCH §3: sha-256 is there, and it and sha-512 match.

    `body`: the content as it arrived. Digests by other algorithms are ignored. Raises BadContentDigest.
    """
    try:
        digests = parse_content_digest(lines)
    except HttpSigError as error:
        raise BadContentDigest("Content-Digest is malformed") from error
    if REQUIRED_ALGORITHM not in digests:
        raise BadContentDigest("Content-Digest has no sha-256")
    for name, make_digest in _HASHES.items():
        if name in digests and not hmac.compare_digest(digests[name], make_digest(body)):
            raise BadContentDigest(f"Content-Digest does not match: {name}")
