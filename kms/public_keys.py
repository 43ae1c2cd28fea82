"""Public halves ready to verify with: kept while fresh, served in an outage with their age (I-18, I-19)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from kms.errors import StoreUnavailable, Unsupported
from kms.primitive import Primitive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms.clock import Clock
    from kms.custody import Custody
    from kms.key_record import KeyRecord, KeyVersion
    from kms.kid import Kid
    from kms.telemetry import Telemetry

# Past the soft TTL an answer says its age and is counted; past this many times the soft TTL there is no answer.
HARD_TTL_FACTOR: Final = 2
_P256_COORDINATE_BYTES: Final = 32
# What a loaded key takes of memory, as measured with the library; the cache as a whole is bounded by it, since the
# service keeps below 512 MiB whatever the number of entries allowed (PERFORMANCE.md §1.3).
LOADED_BYTES: Final = {
    Primitive.ED25519: 512,
    Primitive.ECDSA_P256_SHA256: 1024,
    Primitive.ML_DSA_44: 6 * 1024,
    Primitive.ML_DSA_65: 9 * 1024,
    Primitive.ML_DSA_87: 11 * 1024,
}
_ENTRY_BYTES: Final = 1024
MAX_CACHE_BYTES: Final = 128 * 1024 * 1024

VerifyingKey = (
    ed25519.Ed25519PublicKey
    | ec.EllipticCurvePublicKey
    | mldsa.MLDSA44PublicKey
    | mldsa.MLDSA65PublicKey
    | mldsa.MLDSA87PublicKey
)


class BadSignature(Exception):
    """A signature that does not verify: the verdict of one check, not an error of the service."""


def load_verifying_key(primitive: Primitive, public: bytes) -> VerifyingKey:
    """Load a raw public key as its standard encodes it. Raises Unsupported for a primitive that does not sign."""
    if primitive is Primitive.ED25519:
        return ed25519.Ed25519PublicKey.from_public_bytes(public)
    if primitive is Primitive.ECDSA_P256_SHA256:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    if primitive is Primitive.ML_DSA_44:
        return mldsa.MLDSA44PublicKey.from_public_bytes(public)
    if primitive is Primitive.ML_DSA_65:
        return mldsa.MLDSA65PublicKey.from_public_bytes(public)
    if primitive is Primitive.ML_DSA_87:
        return mldsa.MLDSA87PublicKey.from_public_bytes(public)
    raise Unsupported("keys of this kind do not sign")


def check_signature(key: VerifyingKey, signature: bytes, message: bytes) -> None:
    """Verify: RFC 8032 Ed25519, FIPS 204 ML-DSA with an empty context, ECDSA as r ‖ s. Raises BadSignature."""
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if len(signature) != 2 * _P256_COORDINATE_BYTES:
                raise BadSignature
            r = int.from_bytes(signature[:_P256_COORDINATE_BYTES], "big")
            s = int.from_bytes(signature[_P256_COORDINATE_BYTES:], "big")
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        # ValueError: the library's word for a signature of a length that the algorithm does not have.
        raise BadSignature from error


@dataclass(frozen=True, slots=True)
class _Entry:
    keys: Mapping[Primitive, VerifyingKey]
    loaded_s: float

    @property
    def size_bytes(self) -> int:
        """Estimate what it takes of memory."""
        return _ENTRY_BYTES + sum(LOADED_BYTES[primitive] for primitive in self.keys)


@dataclass(frozen=True, slots=True)
class PublicKeySet:
    """The verifying keys of one version. `age_ms`: how old what they rest on is; None when it was just confirmed."""

    keys: Mapping[Primitive, VerifyingKey]
    age_ms: int | None


class PublicKeys:
    """The cache, least recently used first out. The event loop owns it."""

    def __init__(
        self, custody: Custody, clock: Clock, telemetry: Telemetry, *, max_entries: int, soft_ttl_ms: int
    ) -> None:
        self._custody = custody
        self._clock = clock
        self._entries: OrderedDict[Kid, _Entry] = OrderedDict()
        self._size_bytes = 0
        self._hit = telemetry.verify_cache_hits.labels("true")
        self._miss = telemetry.verify_cache_hits.labels("false")
        self._telemetry = telemetry
        self.configure(max_entries=max_entries, soft_ttl_ms=soft_ttl_ms)

    def __len__(self) -> int:
        return len(self._entries)

    def configure(self, *, max_entries: int, soft_ttl_ms: int) -> None:
        """Set the bounds; a reload may."""
        self._max_entries = max_entries
        self.soft_ttl_ms = soft_ttl_ms
        self._telemetry.verify_cache_ttl.set(soft_ttl_ms)
        self._evict()

    def get(self, kid: Kid, record: KeyRecord, version: KeyVersion) -> PublicKeySet:
        """Give the verifying keys of a version.

        With its provider away they are served with the time since it last answered. Raises StoreUnavailable past the
        hard TTL, Unsupported for a key that does not sign.
        """
        outage_ms = self._custody.outage_ms(record.provider)
        now_s = self._clock.monotonic_s()
        entry = self._entries.get(kid)
        if outage_ms is not None:
            self._check_outage(outage_ms)
        elif entry is not None and (now_s - entry.loaded_s) * 1000 > self.soft_ttl_ms:
            entry = None
        if entry is None:
            self._miss.inc()
            entry = self._load(kid, version, now_s)
            return PublicKeySet(entry.keys, outage_ms)
        self._hit.inc()
        self._entries.move_to_end(kid)
        return PublicKeySet(entry.keys, int((now_s - entry.loaded_s) * 1000) if outage_ms is None else outage_ms)

    def _check_outage(self, outage_ms: int) -> None:
        self._telemetry.verify_cache_age.set(outage_ms)
        if outage_ms > self.soft_ttl_ms:
            self._telemetry.verify_cache_expired.inc()
        if outage_ms > HARD_TTL_FACTOR * self.soft_ttl_ms:
            raise StoreUnavailable("the cached public keys are too old", reason="verify_cache_expired")

    def _load(self, kid: Kid, version: KeyVersion, now_s: float) -> _Entry:
        keys = {
            part.primitive: load_verifying_key(part.primitive, part.public)
            for part in version.parts
            if part.primitive.signs
        }
        if not keys:
            raise Unsupported("keys of this kind do not sign")
        entry = _Entry(keys, now_s)
        former = self._entries.pop(kid, None)
        self._size_bytes += entry.size_bytes - (0 if former is None else former.size_bytes)
        self._entries[kid] = entry
        self._evict()
        return entry

    def _evict(self) -> None:
        while len(self._entries) > self._max_entries or self._size_bytes > MAX_CACHE_BYTES:
            self._size_bytes -= self._entries.popitem(last=False)[1].size_bytes
