"""The primitives that a key part may be of, and the algorithm names that callers use for them (IDB.md §3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Primitive(StrEnum):
    """What one key part computes. The values are stored in key records and never change."""

    ED25519 = "ed25519"
    ECDSA_P256_SHA256 = "ecdsa-p256-sha256"
    ML_DSA_44 = "ml-dsa-44"
    ML_DSA_65 = "ml-dsa-65"
    ML_DSA_87 = "ml-dsa-87"
    X25519 = "x25519"
    ML_KEM_768 = "ml-kem-768"
    # 32 random bytes from which HKDF derives child keys (IDB.md §3.4); it neither signs nor wraps.
    HKDF_ROOT = "hkdf-root"

    @property
    def post_quantum(self) -> bool:
        """Tell whether a quantum computer is not known to break it."""
        return self in POST_QUANTUM

    @property
    def signs(self) -> bool:
        """Tell whether it makes signatures."""
        return self in SIGNING


SIGNING = frozenset(
    {
        Primitive.ED25519,
        Primitive.ECDSA_P256_SHA256,
        Primitive.ML_DSA_44,
        Primitive.ML_DSA_65,
        Primitive.ML_DSA_87,
    }
)
POST_QUANTUM = frozenset({Primitive.ML_DSA_44, Primitive.ML_DSA_65, Primitive.ML_DSA_87, Primitive.ML_KEM_768})

# The name of a part on the wire: `ml-dsa` means ML-DSA-65 and `ml-kem` ML-KEM-768.
WIRE_NAMES: dict[Primitive, str] = {
    Primitive.ED25519: "ed25519",
    Primitive.ECDSA_P256_SHA256: "ecdsa-p256-sha256",
    Primitive.ML_DSA_44: "ml-dsa-44",
    Primitive.ML_DSA_65: "ml-dsa",
    Primitive.ML_DSA_87: "ml-dsa-87",
    Primitive.X25519: "x25519",
    Primitive.ML_KEM_768: "ml-kem",
    Primitive.HKDF_ROOT: "hkdf",
}
PRIMITIVES_BY_WIRE_NAME: dict[str, Primitive] = {name: primitive for primitive, name in WIRE_NAMES.items()}


@dataclass(frozen=True, slots=True)
class KeyAlgorithm:
    """The algorithm segment of a kid and the parts that a key of it holds, in the order of their signatures."""

    name: str
    parts: tuple[Primitive, ...]

    @property
    def is_kem(self) -> bool:
        """Tell whether keys of it wrap and unwrap."""
        return Primitive.X25519 in self.parts

    @property
    def signs(self) -> bool:
        """Tell whether keys of it sign."""
        return self.parts[0].signs


# Every KEM key holds both halves, whichever name it was asked for by.
_KEM_PARTS = (Primitive.X25519, Primitive.ML_KEM_768)
KEY_ALGORITHMS: dict[str, KeyAlgorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        KeyAlgorithm("ed25519", (Primitive.ED25519,)),
        KeyAlgorithm("ecdsa-p256-sha256", (Primitive.ECDSA_P256_SHA256,)),
        KeyAlgorithm("ml-dsa", (Primitive.ML_DSA_65,)),
        KeyAlgorithm("ml-dsa-44", (Primitive.ML_DSA_44,)),
        KeyAlgorithm("ml-dsa-87", (Primitive.ML_DSA_87,)),
        KeyAlgorithm("hybrid", (Primitive.ED25519, Primitive.ML_DSA_65)),
        KeyAlgorithm("x25519", _KEM_PARTS),
        KeyAlgorithm("ml-kem", _KEM_PARTS),
        KeyAlgorithm("hkdf", (Primitive.HKDF_ROOT,)),
    )
}
# Keys of this purpose sign tree heads and nothing else; their kid says `hybrid` (docs/reference/kms.md).
TLOG_PURPOSE = "tlog"
TLOG_PARTS = (Primitive.ED25519, Primitive.ML_DSA_44)
