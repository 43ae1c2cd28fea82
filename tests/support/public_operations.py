"""The public halves' work, done with `cryptography` alone: what a provider computed is judged by it."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, x25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kms.primitive import Primitive

ML_DSA_PUBLIC = {
    Primitive.ML_DSA_44: mldsa.MLDSA44PublicKey,
    Primitive.ML_DSA_65: mldsa.MLDSA65PublicKey,
    Primitive.ML_DSA_87: mldsa.MLDSA87PublicKey,
}
SIGNATURE_BYTES = {
    Primitive.ED25519: 64,
    Primitive.ECDSA_P256_SHA256: 64,
    Primitive.ML_DSA_44: 2420,
    Primitive.ML_DSA_65: 3309,
    Primitive.ML_DSA_87: 4627,
}


def verify(primitive: Primitive, public: bytes, message: bytes, signature: bytes) -> None:
    """Verify a signature as a provider writes it. Raises InvalidSignature, ValueError."""
    if primitive is Primitive.ED25519:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    elif primitive is Primitive.ECDSA_P256_SHA256:
        if len(signature) != 64:
            raise ValueError("not r ‖ s")
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    else:
        ML_DSA_PUBLIC[primitive].from_public_bytes(public).verify(signature, message)


def exchange(public: bytes) -> tuple[bytes, bytes]:
    """Agree with an X25519 public key by a key of ours. Returns our public key and the shared secret."""
    ours = x25519.X25519PrivateKey.generate()
    peer = x25519.X25519PublicKey.from_public_bytes(public)
    return ours.public_key().public_bytes_raw(), ours.exchange(peer)


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """Encapsulate to an ML-KEM-768 public key. Returns the ciphertext and the shared secret."""
    secret, ciphertext = mlkem.MLKEM768PublicKey.from_public_bytes(public).encapsulate()
    return ciphertext, secret
