"""Wrap a small key to a hybrid KEM key: X25519 and ML-KEM-768 into HKDF, then an AEAD (IDB.md §3.3, I-7, G-15).

    0       version   1: this format; 2: a provider's own wrapping, whose bytes follow
    1       AEAD      1: ChaCha20-Poly1305 (RFC 8439); 2: AES-256-GCM
    2       12 bytes  nonce
    14      32 bytes  ephemeral X25519 public key
    46      1088      ML-KEM-768 ciphertext
    1134    the key, encrypted, and a tag of 16 bytes

    key  = HKDF-SHA256(salt = none, IKM = ML-KEM secret ‖ X25519 secret, info = label ‖ SHA-256(transcript), 32 bytes)
    transcript = version ‖ AEAD ‖ length of kid (2 bytes) ‖ kid ‖ recipient's X25519 key ‖ recipient's ML-KEM key
                 ‖ ephemeral key ‖ ciphertext
    AAD  = version ‖ AEAD ‖ kid

An altered ML-KEM ciphertext gives another secret without an error (FIPS 203, implicit rejection): the tag tells it, as
it tells an altered X25519 key, nonce, version or kid. Every envelope has a key of its own, since its ephemeral key is
new; nonces never repeat within a process all the same, and two processes differ by a random prefix.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kms.errors import BadRequest, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.kid import Kid

AeadName = Literal["chacha20poly1305", "aes-gcm"]

HYBRID_VERSION: Final = 1
PROVIDER_VERSION: Final = 2
ENVELOPE_ALG: Final = "hybrid(x25519+ml-kem)"
PROVIDER_ALG: Final = "provider"
MIN_KEY_BYTES: Final = 16
MAX_KEY_BYTES: Final = 4096
_NONCE_BYTES: Final = 12
_PREFIX_BYTES: Final = 4
_COUNTER_BYTES: Final = 8
_X25519_BYTES: Final = 32
_CIPHERTEXT_BYTES: Final = 1088
_TAG_BYTES: Final = 16
_HEADER_BYTES: Final = 2 + _NONCE_BYTES + _X25519_BYTES + _CIPHERTEXT_BYTES
MAX_ENVELOPE_BYTES: Final = _HEADER_BYTES + MAX_KEY_BYTES + _TAG_BYTES
_LABEL: Final = b"signet-kms hybrid kem envelope v1\0"
_AEAD_IDS: Final[dict[AeadName, int]] = {"chacha20poly1305": 1, "aes-gcm": 2}
_AEADS: Final[dict[int, type[ChaCha20Poly1305 | AESGCM]]] = {1: ChaCha20Poly1305, 2: AESGCM}


@dataclass(frozen=True, slots=True)
class KemPublic:
    """The two public halves of one version of a KEM key, raw."""

    x25519: bytes
    ml_kem: bytes


class Nonces:
    """96-bit nonces that never repeat: a random prefix for the process, and a counter. Any thread may take one."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._prefix = random_bytes(_PREFIX_BYTES)
        self._counter = itertools.count()

    def take(self) -> bytes:
        """Give the next nonce. Raises OverflowError after 2^64 of them rather than giving one again."""
        return self._prefix + next(self._counter).to_bytes(_COUNTER_BYTES, "big")


def seal(kid: Kid, recipient: KemPublic, plaintext: bytes, nonce: bytes, aead: AeadName = "chacha20poly1305") -> bytes:
    """Wrap `plaintext` (16 to 4096 bytes) to a version of a KEM key. Raises BadRequest for another length."""
    check_key_length(plaintext)
    shared_pq, ciphertext = mlkem.MLKEM768PublicKey.from_public_bytes(recipient.ml_kem).encapsulate()
    ephemeral = x25519.X25519PrivateKey.generate()
    shared_classical = ephemeral.exchange(x25519.X25519PublicKey.from_public_bytes(recipient.x25519))
    ephemeral_public = ephemeral.public_key().public_bytes_raw()
    start = bytes([HYBRID_VERSION, _AEAD_IDS[aead]])
    kid_text = str(kid).encode()
    key = _derive(start, kid_text, recipient, ephemeral_public, ciphertext, shared_pq + shared_classical)
    try:
        sealed = _AEADS[start[1]](key).encrypt(nonce, plaintext, start + kid_text)
    finally:
        _wipe(key)
    return start + nonce + ephemeral_public + ciphertext + sealed


def open_envelope(
    kid: Kid,
    recipient: KemPublic,
    envelope: bytes,
    agree: Callable[[bytes], bytes],
    decapsulate: Callable[[bytes], bytes],
) -> bytes:
    """Unwrap. `agree` and `decapsulate` are the private halves' (`Provider.agree`, `Provider.decapsulate`).

    Raises BadRequest for whatever was not sealed to this version of this key, without saying why not; Unsupported for
    a version or an AEAD that is not known.
    """
    if len(envelope) < _HEADER_BYTES + MIN_KEY_BYTES + _TAG_BYTES or len(envelope) > MAX_ENVELOPE_BYTES:
        raise _refused()
    start = envelope[:2]
    if start[0] != HYBRID_VERSION or start[1] not in _AEADS:
        raise Unsupported("the envelope is of a version that is not known", reason="envelope_version")
    ephemeral_at = 2 + _NONCE_BYTES
    ciphertext_at = ephemeral_at + _X25519_BYTES
    nonce, ephemeral_public = envelope[2:ephemeral_at], envelope[ephemeral_at:ciphertext_at]
    ciphertext, sealed = envelope[ciphertext_at:_HEADER_BYTES], envelope[_HEADER_BYTES:]
    kid_text = str(kid).encode()
    try:
        secrets = decapsulate(ciphertext) + agree(ephemeral_public)
    except BadRequest as error:
        raise _refused() from error
    key = _derive(start, kid_text, recipient, ephemeral_public, ciphertext, secrets)
    try:
        return _AEADS[start[1]](key).decrypt(nonce, sealed, start + kid_text)
    except InvalidTag as error:
        raise _refused() from error
    finally:
        _wipe(key)


def check_key_length(plaintext: bytes) -> None:
    """Raise BadRequest for a key that is not 16 to 4096 bytes long."""
    if not MIN_KEY_BYTES <= len(plaintext) <= MAX_KEY_BYTES:
        raise BadRequest(f"the key to wrap must be {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes long")


def provider_aad(kid: Kid) -> bytes:
    """Give what a provider's own wrapping is bound to."""
    return bytes([PROVIDER_VERSION]) + str(kid).encode()


def _derive(
    start: bytes, kid: bytes, recipient: KemPublic, ephemeral_public: bytes, ciphertext: bytes, secrets: bytes
) -> bytearray:
    transcript = hashlib.sha256(start + len(kid).to_bytes(2, "big") + kid)
    for part in (recipient.x25519, recipient.ml_kem, ephemeral_public, ciphertext):
        transcript.update(part)  # Each is of a fixed length.
    key = bytearray(32)
    HKDF(hashes.SHA256(), len(key), None, _LABEL + transcript.digest()).derive_into(secrets, key)
    return key


def _wipe(key: bytearray) -> None:
    key[:] = bytes(len(key))


def _refused() -> BadRequest:
    return BadRequest("the envelope does not open with this key", reason="unwrap_failed")
