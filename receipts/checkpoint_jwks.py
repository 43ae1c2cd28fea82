"""The log's public keys as a JWK set, RFC 7517: OKP keys of RFC 8037 and AKP keys of RFC 9964."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any, Final

from receipts.canonical_json import canonical
from receipts.signed_note import ED25519, ML_DSA_44, VerifierKey, VerifierKeyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_JWKS_KEYS: Final = 1024
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
_OKP: Final = {"kty": "OKP", "crv": "Ed25519", "alg": "Ed25519"}
_AKP: Final = {"kty": "AKP", "alg": "ML-DSA-44"}
_TYPE_MEMBERS: Final = {ED25519: (_OKP, "x"), ML_DSA_44: (_AKP, "pub")}
_OKP_ALGS: Final = frozenset({None, "Ed25519", "EdDSA"})  # RFC 9864 deprecated EdDSA, which many still write.


class JwksError(ValueError):
    """The value is not a JWK set of public keys. Messages name members, never their values."""


def verifier_jwks(keys: Iterable[VerifierKey]) -> dict[str, list[dict[str, str]]]:
    """Write keys as a JWK set; each `kid` is the key's RFC 7638 thumbprint. Names are not part of it."""
    return {"keys": [_jwk(key) for key in keys]}


def verifier_keys_of(jwks: Mapping[str, Any], name: str) -> tuple[VerifierKey, ...]:
    """Read the checkpoint keys of a JWK set; `name`: the log's origin, which names them all.

    Keys of other types or for another use are left out. Raises JwksError when the set, or a key of these types,
    is malformed, private, or not that of its `kid`; VerifierKeyError when `name` is no key name.
    """
    members = jwks.get("keys")
    if not isinstance(members, list) or len(members) > MAX_JWKS_KEYS:
        raise JwksError("keys is not a list, or too long")
    keys = {}
    for member in members:
        if not isinstance(member, dict):
            raise JwksError("a key is not an object")
        signature_type = _type_of(member)
        if signature_type is not None and member.get("use", "sig") == "sig":
            key = _key(member, signature_type, name)
            keys[key.key_id, key.signature_type] = key
    return tuple(keys.values())


def _type_of(member: Mapping[str, Any]) -> int | None:
    kty, alg = member.get("kty"), member.get("alg")
    if kty == "OKP" and member.get("crv") == "Ed25519" and (alg is None or isinstance(alg, str)) and alg in _OKP_ALGS:
        return ED25519
    return ML_DSA_44 if (kty, alg) == ("AKP", "ML-DSA-44") else None


def _key(member: Mapping[str, Any], signature_type: int, name: str) -> VerifierKey:
    if not _PRIVATE_MEMBERS.isdisjoint(member):
        raise JwksError("a key is private")
    text = member.get(_TYPE_MEMBERS[signature_type][1])
    if not isinstance(text, str):
        raise JwksError("a key has no public part")
    try:
        material = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise JwksError("a key is not base64url") from error
    if _base64url(material) != text:
        raise JwksError("a key is not canonical base64url")
    try:
        key = VerifierKey(name, signature_type, material)
    except VerifierKeyError as error:
        raise JwksError("a key has the wrong length, or the name names no key") from error
    if member.get("kid", _jwk(key)["kid"]) != _jwk(key)["kid"]:
        raise JwksError("a kid is not the thumbprint of its key")
    return key


def _jwk(key: VerifierKey) -> dict[str, str]:
    fixed, public = _TYPE_MEMBERS[key.signature_type]
    members = {**fixed, public: _base64url(key.public_key)}
    # RFC 7638 §3.2 and RFC 9964: an OKP key's thumbprint leaves `alg` out, an AKP key's has it.
    required = {name: value for name, value in members.items() if name != "alg" or fixed is _AKP}
    return {**members, "use": "sig", "kid": _base64url(hashlib.sha256(canonical(required)).digest())}


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
