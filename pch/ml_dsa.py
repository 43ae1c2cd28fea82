"""ML-DSA keys for HTTP signatures, FIPS 204 and C2SP httpsig-pq: empty context, no pre-hash, seeds as private keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import mldsa

from pch.errors import BadSignature

if TYPE_CHECKING:
    from collections.abc import Callable

    from pch.algorithms import Algorithm, KeyId

SEED_BYTES: Final = 32
"""A private key: the seed ξ of FIPS 204 algorithm 1. The expanded forms are not keys here (C2SP httpsig-pq)."""


class _PublicPrimitive(Protocol):
    """What `cryptography` offers for a public key of any parameter set."""

    def verify(self, signature: bytes, data: bytes) -> None: ...

    def public_bytes_raw(self) -> bytes: ...


class _PrivatePrimitive(Protocol):
    """What `cryptography` offers for a private key of any parameter set."""

    def sign(self, data: bytes) -> bytes: ...

    def public_key(self) -> _PublicPrimitive: ...


@dataclass(frozen=True, slots=True)
class ParameterSet:
    """One parameter set, FIPS 204 table 1 and 2.

    `name`: as the signature parameter `alg` says it. `jose_alg`: as a JWK says it (RFC 9964). `load_public` takes
    `public_bytes` bytes, `load_seed` SEED_BYTES; both raise ValueError.
    """

    name: str
    jose_alg: str
    public_bytes: int
    signature_bytes: int
    load_public: Callable[[bytes], _PublicPrimitive] = field(repr=False)
    load_seed: Callable[[bytes], _PrivatePrimitive] = field(repr=False)


ML_DSA_44: Final = ParameterSet(
    "ml-dsa-44",
    "ML-DSA-44",
    1312,
    2420,
    mldsa.MLDSA44PublicKey.from_public_bytes,
    mldsa.MLDSA44PrivateKey.from_seed_bytes,
)
ML_DSA_65: Final = ParameterSet(
    "ml-dsa-65",
    "ML-DSA-65",
    1952,
    3309,
    mldsa.MLDSA65PublicKey.from_public_bytes,
    mldsa.MLDSA65PrivateKey.from_seed_bytes,
)
ML_DSA_87: Final = ParameterSet(
    "ml-dsa-87",
    "ML-DSA-87",
    2592,
    4627,
    mldsa.MLDSA87PublicKey.from_public_bytes,
    mldsa.MLDSA87PrivateKey.from_seed_bytes,
)
PARAMETER_SETS: Final = (ML_DSA_44, ML_DSA_65, ML_DSA_87)


@dataclass(frozen=True, slots=True)
class MlDsaPublicKey:
    """An ML-DSA public key of one parameter set."""

    algorithm: Algorithm
    _key: _PublicPrimitive = field(repr=False)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Verify a signature of `algorithm.signature_bytes` bytes, FIPS 204 algorithm 3. Raises BadSignature."""
        # The length is checked here so that no backend decides about it.
        if len(signature) != self.algorithm.signature_bytes:
            raise BadSignature("signature has the wrong length")
        try:
            self._key.verify(signature, data)
        except InvalidSignature as error:
            raise BadSignature("signature does not verify") from error


@dataclass(frozen=True, slots=True)
class MlDsaSigner:
    """An ML-DSA private key held in memory."""

    algorithm: Algorithm
    _key: _PrivatePrimitive = field(repr=False)
    key_id: KeyId

    def sign(self, data: bytes) -> bytes:
        """Sign `data`, FIPS 204 algorithm 2, hedged. Returns `algorithm.signature_bytes` bytes."""
        return self._key.sign(data)


def public_of_seed(parameters: ParameterSet, seed: bytes) -> dict[str, bytes]:
    """Derive the JWK members of the public key from a seed. Raises ValueError for another length."""
    return {"pub": parameters.load_seed(seed).public_key().public_bytes_raw()}


def generate_seed() -> bytes:
    """Draw a seed from the system's random bit generator, FIPS 204 §3.6.1."""
    return os.urandom(SEED_BYTES)
