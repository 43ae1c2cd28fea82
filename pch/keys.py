"""Keys as JWKs, RFC 7517: strict reading, and RFC 7638 thumbprints as key ids (PCH §3)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING, Final

from pch.algorithms import ALGORITHMS, Algorithm, KeyId, PublicKey, Signer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "KeyFormatError",
    "KeyId",
    "generate",
    "jwks_members",
    "private_key_from_jwk",
    "public_jwk",
    "public_key_from_jwk",
    "thumbprint",
]

MAX_SET_KEYS: Final = 2
"""Keys in a JWK Set: those of one hybrid at the most."""

MAX_MEMBER_CHARACTERS: Final = 8192
"""Longest JWK member that is read; an ML-DSA-87 public key takes 3456 characters."""

THUMBPRINT_MEMBERS: Final = {
    "OKP": ("crv", "kty", "x"),
    "EC": ("crv", "kty", "x", "y"),
    "AKP": ("alg", "kty", "pub"),
}
"""The required members of each key type in order, RFC 7638 §3.2, RFC 8037 §2 and RFC 9964."""

PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
"""Members that hold private or symmetric keys in any key type, RFC 7518 §6 and RFC 9964."""

_KEY_MATERIAL: Final = frozenset({"x", "y", "pub"})


class KeyFormatError(ValueError):
    """A JWK is not a key that this project accepts. The message names members, never their values."""


def public_key_from_jwk(jwk: Mapping[str, object], algorithms: Mapping[str, Algorithm] | None = None) -> PublicKey:
    """Read a public JWK, RFC 7517 §4.

    `algorithms`: the registry whose entries load the key; None for `pch.algorithms`. Raises KeyFormatError for
    private members, an unknown kty or crv, an `alg`, `use` or `key_ops` that contradicts verifying, a wrong
    length, and a point that is off the curve, of small order or not canonically encoded.
    """
    if not PRIVATE_MEMBERS.isdisjoint(jwk):
        raise KeyFormatError("JWK holds a private key")
    algorithm = _algorithm_of(jwk, algorithms)
    _check_purpose(jwk, "verify")
    return _load_public(algorithm, _public_members(algorithm, jwk))


def private_key_from_jwk(jwk: Mapping[str, object]) -> Signer:
    """Read a private JWK, RFC 7517 §4; its key id is its thumbprint.

    Raises KeyFormatError as `public_key_from_jwk` does, and when the private part is absent, out of range, or
    not that of the public part.
    """
    algorithm = _algorithm_of(jwk)
    if PRIVATE_MEMBERS.intersection(jwk) != {algorithm.private_member}:
        raise KeyFormatError("JWK does not hold exactly the private member of its type")
    _check_purpose(jwk, "sign")
    members = _public_members(algorithm, jwk)
    secret = _decode(jwk, algorithm.private_member, algorithm.private_bytes)
    try:
        derived = algorithm.public_of(secret)
    except ValueError:
        # The cause is left out: it may quote the private value.
        raise KeyFormatError("private key is out of range") from None
    if derived != members:
        raise KeyFormatError("private key is not that of the public key")
    return algorithm.load_private(secret, thumbprint(jwk))


def jwks_members(document: Mapping[str, object]) -> tuple[Mapping[str, object], ...]:
    """Give the keys of a JWK Set of one or two, RFC 7517 §5, or the one key that a JWK is, as they are written.

    Raises KeyFormatError for a set that is empty, longer, or holds what is no object.
    """
    if "keys" not in document:
        return (document,)
    keys = document["keys"]
    if not isinstance(keys, list) or not 1 <= len(keys) <= MAX_SET_KEYS:
        raise KeyFormatError("keys is not a list of one or two JWKs")
    if not all(isinstance(key, dict) for key in keys):
        raise KeyFormatError("keys holds what is no JWK")
    return tuple(keys)


def generate(alg: str) -> dict[str, str]:
    """Generate a private JWK for an algorithm of the registry. Raises KeyFormatError for another name."""
    algorithm = ALGORITHMS.get(alg)
    if algorithm is None:
        raise KeyFormatError("algorithm is unknown")
    secret = algorithm.generate()
    jwk = {"kty": algorithm.kty}
    if algorithm.crv is None:
        (jwk["alg"],) = algorithm.jose_algs
    else:
        jwk["crv"] = algorithm.crv
    jwk |= {name: _encode(value) for name, value in algorithm.public_of(secret).items()}
    jwk[algorithm.private_member] = _encode(secret)
    return jwk


def public_jwk(jwk: Mapping[str, object]) -> dict[str, str]:
    """Give the public part of a JWK: the members that the thumbprint covers, and no others.

    Raises KeyFormatError.
    """
    return _required_members(jwk)


def thumbprint(jwk: Mapping[str, object]) -> KeyId:
    """Compute a JWK's SHA-256 thumbprint, RFC 7638 §3, from its public members.

    Returns 43 base64url characters. Raises KeyFormatError for an unknown kty or a missing or non-canonical
    member.
    """
    # The members are ASCII without anything to escape, and already in lexicographic order.
    canonical = json.dumps(_required_members(jwk), separators=(",", ":"))
    return KeyId(_encode(hashlib.sha256(canonical.encode("ascii")).digest()))


def _required_members(jwk: Mapping[str, object]) -> dict[str, str]:
    names = THUMBPRINT_MEMBERS.get(_text(jwk, "kty"))
    if names is None:
        raise KeyFormatError("kty is unknown")
    members = {name: _text(jwk, name) for name in names}
    for name in _KEY_MATERIAL.intersection(names):
        _decode(jwk, name, None)
    return members


def _algorithm_of(jwk: Mapping[str, object], algorithms: Mapping[str, Algorithm] | None = None) -> Algorithm:
    kty = _text(jwk, "kty")
    crv = _text(jwk, "crv") if "crv" in jwk else None
    jose_alg = _text(jwk, "alg") if "alg" in jwk else None
    for algorithm in (ALGORITHMS if algorithms is None else algorithms).values():
        # Key types without a curve (AKP) are told apart by alg alone, which is then required.
        alg_agrees = jose_alg in algorithm.jose_algs or (jose_alg is None and crv is not None)
        if (algorithm.kty, algorithm.crv) == (kty, crv) and alg_agrees:
            return algorithm
    raise KeyFormatError("kty, crv and alg name no known algorithm")


def _check_purpose(jwk: Mapping[str, object], operation: str) -> None:
    if jwk.get("use", "sig") != "sig":
        raise KeyFormatError("use is not sig")
    operations = jwk.get("key_ops", [operation])
    if not isinstance(operations, list) or operation not in operations:
        raise KeyFormatError("key_ops does not allow this use")


def _public_members(algorithm: Algorithm, jwk: Mapping[str, object]) -> dict[str, bytes]:
    return {name: _decode(jwk, name, length) for name, length in algorithm.public_members.items()}


def _load_public(algorithm: Algorithm, members: Mapping[str, bytes]) -> PublicKey:
    try:
        return algorithm.load_public(members)
    except ValueError as error:
        raise KeyFormatError("public key is not valid") from error


def _text(jwk: Mapping[str, object], name: str) -> str:
    value = jwk.get(name)
    if type(value) is not str or not value.isascii() or not value.isprintable() or '"' in value or "\\" in value:
        raise KeyFormatError(f"{name} is missing or not plain text")
    if len(value) > MAX_MEMBER_CHARACTERS:
        raise KeyFormatError(f"{name} is too long")
    return value


def _decode(jwk: Mapping[str, object], name: str, length: int | None) -> bytes:
    """Decode canonical base64url without padding, RFC 7515 §2, of `length` bytes if that is given."""
    text = _text(jwk, name)
    try:
        value = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise KeyFormatError(f"{name} is not base64url") from error
    # Decoding skips foreign characters and spare bits; one value has one encoding all the same.
    if _encode(value) != text:
        raise KeyFormatError(f"{name} is not canonical base64url")
    if length is not None and len(value) != length:
        raise KeyFormatError(f"{name} has the wrong length")
    return value


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")
