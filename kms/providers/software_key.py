"""Private keys in this process's memory, for the providers whose keys are sealed bytes (inmem, file, tpm).

A key is made from its seed: 32 bytes, 64 for ML-KEM (FIPS 203 d ‖ z), and ML-DSA keys are always stored as their seed
(FIPS 204 ξ). The seed is wiped once the library has built the key; nothing here gives a private byte back.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, mlkem, x25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from kms.errors import BadRequest, NotFound, TooLarge, Unsupported
from kms.primitive import Primitive
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.utils import Buffer

MAX_MESSAGE_BYTES: Final = 4096
MAX_INFO_BYTES: Final = 1024
SEED_BYTES: Final = {primitive: 64 if primitive is Primitive.ML_KEM_768 else 32 for primitive in Primitive}
SOFTWARE_PRIMITIVES: Final = frozenset(Primitive)

_P256_SCALAR_BYTES: Final = 32
# RFC 5915 ECPrivateKey without the public key: what stands before and after the scalar.
_P256_PREFIX: Final = bytes.fromhex("3031020101" + "0420")
_P256_SUFFIX: Final = bytes.fromhex("a00a06082a8648ce3d030107")
# Every byte string that starts with these four bytes is refused as a scalar: all that are not below the group's order
# start so, and the rest of them is one value in 2^32.
_P256_TOO_LARGE: Final = b"\xff" * 4
_MAX_SCALAR_TRIES: Final = 4

_PrivateKey = (
    ed25519.Ed25519PrivateKey
    | ec.EllipticCurvePrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
    | x25519.X25519PrivateKey
    | mlkem.MLKEM768PrivateKey
)
_ML_DSA: Final[dict[Primitive, Callable[[Buffer], _PrivateKey]]] = {
    Primitive.ML_DSA_44: mldsa.MLDSA44PrivateKey.from_seed_bytes,
    Primitive.ML_DSA_65: mldsa.MLDSA65PrivateKey.from_seed_bytes,
    Primitive.ML_DSA_87: mldsa.MLDSA87PrivateKey.from_seed_bytes,
}


class SoftwareKey:
    """A private key that computes and is never given out. Any thread may use it."""

    __slots__ = ("_lock", "_private", "_root", "primitive", "public")

    def __init__(self, primitive: Primitive, seed: SecretBuffer) -> None:
        """Build the key from `seed`, which the caller wipes. Raises ValueError for a seed of another length."""
        if len(seed) != SEED_BYTES[primitive]:
            raise ValueError("the seed has the wrong length")
        self.primitive = primitive
        self._lock = threading.Lock()
        self._root: SecretBuffer | None = None
        self._private: _PrivateKey | None = None
        if primitive is Primitive.HKDF_ROOT:
            self._root = SecretBuffer(len(seed))
            self._root.view[:] = seed.view
            self.public = b""
        else:
            self._private = _load(primitive, seed.view)
            self.public = _public_bytes(self._private)

    def sign(self, message: bytes) -> bytes:
        """Sign `message`: RFC 8032 Ed25519, FIPS 204 ML-DSA with an empty context, ECDSA as r ‖ s (64 bytes).

        Raises Unsupported when the key does not sign, TooLarge past 4096 bytes, NotFound once it is wiped.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise TooLarge("the message to sign is too long")
        private = self._usable()
        if isinstance(private, ec.EllipticCurvePrivateKey):
            r, s = decode_dss_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(_P256_SCALAR_BYTES, "big") + s.to_bytes(_P256_SCALAR_BYTES, "big")
        if isinstance(private, (x25519.X25519PrivateKey, mlkem.MLKEM768PrivateKey)) or private is None:
            raise Unsupported("this key does not sign")
        return private.sign(message)

    def agree(self, peer_public: bytes) -> bytes:
        """Compute the X25519 shared secret, RFC 7748 §6.1. Raises BadRequest for a peer key that gives all zeros."""
        private = self._usable()
        if not isinstance(private, x25519.X25519PrivateKey):
            raise Unsupported("this key does not agree on secrets")
        try:
            return private.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public))
        except ValueError as error:
            raise BadRequest("the peer's X25519 key cannot be used", reason="bad_peer_key") from error

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """Compute the ML-KEM-768 shared secret, FIPS 203 §7.3. Raises BadRequest for a ciphertext of another length.

        An altered ciphertext of the right length gives another secret (implicit rejection): the envelope is what
        tells it.
        """
        private = self._usable()
        if not isinstance(private, mlkem.MLKEM768PrivateKey):
            raise Unsupported("this key does not decapsulate")
        try:
            return private.decapsulate(ciphertext)
        except ValueError as error:
            raise BadRequest("the ML-KEM-768 ciphertext has the wrong length", reason="bad_ciphertext") from error

    def derive_seed(self, info: bytes, primitive: Primitive) -> SecretBuffer:
        """Derive a child's seed from an HKDF root: HKDF-SHA256 (RFC 5869), no salt, info ‖ 0x00 ‖ the primitive's name.

        A P-256 scalar out of range is derived again with a counter byte behind the name. The caller wipes the result.
        """
        if len(info) > MAX_INFO_BYTES:
            raise TooLarge("the derivation's context is too long")
        if not info:
            raise BadRequest("a derivation needs a context")
        # Under the lock, so that no child is derived from a root that is being wiped.
        with self._lock:
            root = self._root
            if root is None or root.wiped:
                self._usable()
                raise Unsupported("this key derives no children")

            def fill(view: memoryview, attempt: int) -> None:
                label = info + b"\0" + primitive.value.encode() + (bytes([attempt]) if attempt else b"")
                HKDF(hashes.SHA256(), view.nbytes, None, label).derive_into(root.view, view)

            return _seed_by(primitive, fill)

    def wipe(self) -> None:
        """Let go of the private half; OpenSSL clears its memory with the last use. A second call does nothing."""
        with self._lock:
            self._private = None
            if self._root is not None:
                self._root.wipe()

    def _usable(self) -> _PrivateKey | None:
        private = self._private
        if private is None and (self._root is None or self._root.wiped):
            raise NotFound("the key is gone", reason="wiped")
        return private

    def __repr__(self) -> str:
        return f"<private {self.primitive.value} key>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a private key is not pickled or copied")


def new_seed(primitive: Primitive, random_fill: RandomFill = os_random) -> SecretBuffer:
    """Draw the seed of a new key. The caller wipes it."""
    return _seed_by(primitive, lambda view, _attempt: random_fill(view))


def _seed_by(primitive: Primitive, fill: Callable[[memoryview, int], None]) -> SecretBuffer:
    seed = SecretBuffer(SEED_BYTES[primitive])
    try:
        for attempt in range(_MAX_SCALAR_TRIES):
            fill(seed.view, attempt)
            if primitive is not Primitive.ECDSA_P256_SHA256 or _is_scalar(seed.view):
                return seed
        raise ValueError("the random source gives no P-256 scalar")
    except BaseException:
        seed.wipe()
        raise


def _is_scalar(view: memoryview) -> bool:
    return view[: len(_P256_TOO_LARGE)] != _P256_TOO_LARGE and any(view)


def _load(primitive: Primitive, seed: memoryview) -> _PrivateKey:
    if primitive is Primitive.ED25519:
        return ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    if primitive is Primitive.X25519:
        return x25519.X25519PrivateKey.from_private_bytes(seed)
    if primitive is Primitive.ML_KEM_768:
        return mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)
    if primitive is Primitive.ECDSA_P256_SHA256:
        return _load_p256(seed)
    return _ML_DSA[primitive](seed)


def _load_p256(scalar: memoryview) -> ec.EllipticCurvePrivateKey:
    if not _is_scalar(scalar):
        raise ValueError("not a P-256 scalar")
    end = len(_P256_PREFIX) + _P256_SCALAR_BYTES
    with SecretBuffer(end + len(_P256_SUFFIX)) as der:
        der.view[: len(_P256_PREFIX)] = _P256_PREFIX
        der.view[len(_P256_PREFIX) : end] = scalar
        der.view[end:] = _P256_SUFFIX
        key = load_der_private_key(der.view, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the library built no elliptic-curve key")
    return key


def _public_bytes(private: _PrivateKey) -> bytes:
    """Give the raw public key: SEC 1 uncompressed (65 bytes) for P-256, else as the standard encodes it."""
    public = private.public_key()
    if isinstance(public, ec.EllipticCurvePublicKey):
        return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return public.public_bytes_raw()
