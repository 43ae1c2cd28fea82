"""Signature algorithms, RFC 9421 §3.3, C2SP httpsig-pq and PCH §3: one registry entry each.

A further algorithm joins by an entry in ALGORITHMS, a further hybrid by one in HYBRIDS; nothing else dispatches on
names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NewType, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from pch import edwards25519, ml_dsa
from pch.errors import BadSignature

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KeyId = NewType("KeyId", str)
"""The RFC 7638 thumbprint of a public JWK: 43 base64url characters."""

P256_ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
"""The order of the P-256 group: r and s of a signature lie from 1 to one below it."""

_P256_PRIME: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
_ECDSA_SHA256: Final = ec.ECDSA(hashes.SHA256())


class PublicKey(Protocol):
    """A key that verifies signatures of one algorithm."""

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm that this key verifies."""
        ...

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify `signature` over `data`. Raises BadSignature; never returns a verdict."""
        ...


class Signer(Protocol):
    """A key that signs with one algorithm, wherever it is kept."""

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm that this key signs with."""
        ...

    @property
    def key_id(self) -> KeyId:
        """The key id that verifiers know this key by."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Sign `data`. Returns exactly `algorithm.signature_bytes` bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One signature algorithm.

    `name`: in the RFC 9421 registry. `kty`, `crv`, `jose_algs`: how a JWK says it; `jose_algs` are the values
    of a JWK's `alg` that do not contradict it. `public_members`: the JWK members of the public key and their
    length in bytes; `private_member`, `private_bytes`: the same of the private one. `signature_bytes`: exact
    length of a signature. `load_public` takes the public members' bytes, `load_private` the private bytes and
    a key id, `public_of` gives the public members of private bytes (all three raise ValueError), `generate`
    makes private bytes.
    """

    name: str
    kty: str
    crv: str | None
    jose_algs: frozenset[str]
    public_members: Mapping[str, int]
    private_member: str
    private_bytes: int
    signature_bytes: int
    post_quantum: bool
    load_public: Callable[[Mapping[str, bytes]], PublicKey] = field(repr=False)
    load_private: Callable[[bytes, KeyId], Signer] = field(repr=False)
    public_of: Callable[[bytes], dict[str, bytes]] = field(repr=False)
    generate: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ed25519PublicKey:
    """An Ed25519 public key, RFC 9421 §3.3.6 and RFC 8032 §5.1.

    Verification is OpenSSL's: without cofactor, S below the group order, R compared as bytes, so that no
    signature has a second encoding. Keys of small order or with a second encoding are refused when loaded.
    """

    _key: ed25519.Ed25519PublicKey = field(repr=False)

    @property
    def algorithm(self) -> Algorithm:
        """Ed25519."""
        return ED25519

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify a 64-byte signature. Raises BadSignature."""
        # The length is checked here so that no backend decides about it.
        if len(signature) != ED25519.signature_bytes:
            raise BadSignature("signature has the wrong length")
        try:
            self._key.verify(signature, data)
        except InvalidSignature as error:
            raise BadSignature("signature does not verify") from error


@dataclass(frozen=True, slots=True)
class Ed25519Signer:
    """An Ed25519 private key held in memory."""

    _key: ed25519.Ed25519PrivateKey = field(repr=False)
    key_id: KeyId

    @property
    def algorithm(self) -> Algorithm:
        """Ed25519."""
        return ED25519

    def sign(self, data: bytes) -> bytes:
        """Sign `data`, RFC 8032 §5.1.6. Returns 64 bytes."""
        return self._key.sign(data)


@dataclass(frozen=True, slots=True)
class P256PublicKey:
    """An ECDSA P-256 public key with SHA-256, RFC 9421 §3.3.4.

    The signature is r ‖ s, 32 bytes each. Both (r, s) and (r, n-s) verify, as the algorithm defines it:
    nothing in PCH tells requests apart by their signature's bytes.
    """

    _key: ec.EllipticCurvePublicKey = field(repr=False)

    @property
    def algorithm(self) -> Algorithm:
        """ECDSA over P-256 with SHA-256."""
        return ECDSA_P256_SHA256

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify a 64-byte signature. Raises BadSignature."""
        if len(signature) != ECDSA_P256_SHA256.signature_bytes:
            raise BadSignature("signature has the wrong length")
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        if not (0 < r < P256_ORDER and 0 < s < P256_ORDER):
            raise BadSignature("signature value is out of range")
        try:
            self._key.verify(encode_dss_signature(r, s), data, _ECDSA_SHA256)
        except InvalidSignature as error:
            raise BadSignature("signature does not verify") from error


@dataclass(frozen=True, slots=True)
class P256Signer:
    """An ECDSA P-256 private key held in memory."""

    _key: ec.EllipticCurvePrivateKey = field(repr=False)
    key_id: KeyId

    @property
    def algorithm(self) -> Algorithm:
        """ECDSA over P-256 with SHA-256."""
        return ECDSA_P256_SHA256

    def sign(self, data: bytes) -> bytes:
        """Sign `data`. Returns r ‖ s, 64 bytes."""
        r, s = decode_dss_signature(self._key.sign(data, _ECDSA_SHA256))
        return r.to_bytes(32) + s.to_bytes(32)


def _load_ed25519(members: Mapping[str, bytes]) -> PublicKey:
    edwards25519.check_public_key(members["x"])
    return Ed25519PublicKey(ed25519.Ed25519PublicKey.from_public_bytes(members["x"]))


def _load_ed25519_private(secret: bytes, key_id: KeyId) -> Signer:
    return Ed25519Signer(ed25519.Ed25519PrivateKey.from_private_bytes(secret), key_id)


def _public_of_ed25519(secret: bytes) -> dict[str, bytes]:
    return {"x": ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()}


def _generate_ed25519() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes_raw()


def _load_p256(members: Mapping[str, bytes]) -> PublicKey:
    x, y = int.from_bytes(members["x"]), int.from_bytes(members["y"])
    # OpenSSL reduces coordinates silently, which would give one point several key ids.
    if not (x < _P256_PRIME and y < _P256_PRIME):
        raise ValueError("public key is not canonically encoded")
    # Raises ValueError for a point off the curve; affine coordinates cannot say the point at infinity.
    return P256PublicKey(ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())


def _derive_p256(secret: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret), ec.SECP256R1())


def _load_p256_private(secret: bytes, key_id: KeyId) -> Signer:
    return P256Signer(_derive_p256(secret), key_id)


def _public_of_p256(secret: bytes) -> dict[str, bytes]:
    numbers = _derive_p256(secret).public_key().public_numbers()
    return {"x": numbers.x.to_bytes(32), "y": numbers.y.to_bytes(32)}


def _generate_p256() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32)


ED25519: Final = Algorithm(
    name="ed25519",
    kty="OKP",
    crv="Ed25519",
    jose_algs=frozenset({"EdDSA", "Ed25519"}),
    public_members=MappingProxyType({"x": 32}),
    private_member="d",
    private_bytes=32,
    signature_bytes=64,
    post_quantum=False,
    load_public=_load_ed25519,
    load_private=_load_ed25519_private,
    public_of=_public_of_ed25519,
    generate=_generate_ed25519,
)
"""Ed25519, RFC 9421 §3.3.6; JWK per RFC 8037 §2, `alg` also per RFC 9864."""

ECDSA_P256_SHA256: Final = Algorithm(
    name="ecdsa-p256-sha256",
    kty="EC",
    crv="P-256",
    jose_algs=frozenset({"ES256"}),
    public_members=MappingProxyType({"x": 32, "y": 32}),
    private_member="d",
    private_bytes=32,
    signature_bytes=64,
    post_quantum=False,
    load_public=_load_p256,
    load_private=_load_p256_private,
    public_of=_public_of_p256,
    generate=_generate_p256,
)
"""ECDSA over P-256 with SHA-256, RFC 9421 §3.3.4; JWK per RFC 7518 §6.2."""


def _ml_dsa(parameters: ml_dsa.ParameterSet) -> Algorithm:
    def load_public(members: Mapping[str, bytes]) -> PublicKey:
        return ml_dsa.MlDsaPublicKey(algorithm, parameters.load_public(members["pub"]))

    def load_private(seed: bytes, key_id: KeyId) -> Signer:
        return ml_dsa.MlDsaSigner(algorithm, parameters.load_seed(seed), key_id)

    algorithm = Algorithm(
        name=parameters.name,
        kty="AKP",
        crv=None,
        jose_algs=frozenset({parameters.jose_alg}),
        public_members=MappingProxyType({"pub": parameters.public_bytes}),
        private_member="priv",
        private_bytes=ml_dsa.SEED_BYTES,
        signature_bytes=parameters.signature_bytes,
        post_quantum=True,
        load_public=load_public,
        load_private=load_private,
        public_of=partial(ml_dsa.public_of_seed, parameters),
        generate=ml_dsa.generate_seed,
    )
    return algorithm


ML_DSA_44, ML_DSA_65, ML_DSA_87 = map(_ml_dsa, ml_dsa.PARAMETER_SETS)
"""ML-DSA, C2SP httpsig-pq; JWK of the type AKP per RFC 9964, told apart by `alg` alone."""

ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType(
    {algorithm.name: algorithm for algorithm in (ED25519, ECDSA_P256_SHA256, ML_DSA_44, ML_DSA_65, ML_DSA_87)}
)
"""Every algorithm by its name in the RFC 9421 registry."""


@dataclass(frozen=True, slots=True)
class Hybrid:
    """Two algorithms that sign one request together, PCH §3 "Hybrids": a classical one and ML-DSA."""

    classical: Algorithm
    post_quantum: Algorithm

    @property
    def name(self) -> str:
        """Give the name in allow-lists and challenges: both names joined with `+`, the classical one first."""
        return hybrid_name(self.classical.name, self.post_quantum.name)


def hybrid_name(classical: str, post_quantum: str) -> str:
    """Join the names of two halves, whether or not they are a hybrid of PCH."""
    return f"{classical}+{post_quantum}"


HYBRIDS: Final[Mapping[str, Hybrid]] = MappingProxyType(
    {hybrid.name: hybrid for hybrid in (Hybrid(ED25519, ML_DSA_65), Hybrid(ECDSA_P256_SHA256, ML_DSA_65))}
)
"""Every hybrid of PCH §3 by its name."""
