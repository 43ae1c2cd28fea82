"""ML-DSA-44 cosignatures of checkpoints, C2SP tlog-cosignature: a time, and a signature over it and the head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from receipts.checkpoint import TreeHead, parse_checkpoint
from receipts.signed_note import (
    ED25519,
    ML_DSA_44,
    Ed25519NoteVerifier,
    NoteSignature,
    NoteSignatureInvalid,
    NoteVerifier,
    VerifierKey,
    VerifierKeyError,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

ML_DSA_44_SIGNATURE_BYTES: Final = 2420
MAX_TIME_S: Final = 2**63 - 1
_LABEL: Final = b"subtree/v1\n\0"
COSIGNATURE_TIME_BYTES: Final = 8
"""The time stands before the signature, in so many bytes, big-endian."""


def cosigned_message(name: str, time_s: int, head: TreeHead) -> bytes:
    """Build what a cosigner signs, C2SP tlog-cosignature `cosigned_message`, for a whole tree.

    `name`: the cosigner's; `time_s`: POSIX seconds. Raises ValueError when one is out of range.
    """
    if not 0 <= time_s <= MAX_TIME_S:
        raise ValueError("the time is out of range")
    return b"".join(
        (
            _LABEL,
            _opaque(name),
            time_s.to_bytes(COSIGNATURE_TIME_BYTES, "big"),
            _opaque(head.origin),
            bytes(8),  # The subtree's start: all leaves from the first on.
            head.size.to_bytes(8, "big"),
            head.root,
        )
    )


def _opaque(text: str) -> bytes:
    encoded = text.encode()
    if not 1 <= len(encoded) <= 0xFF:
        raise ValueError("a name is empty or longer than 255 bytes")
    return bytes([len(encoded)]) + encoded


class CosignatureVerifier:
    """Verifies the ML-DSA-44 cosignatures of one key. Raises VerifierKeyError."""

    def __init__(self, key: VerifierKey) -> None:
        if key.signature_type != ML_DSA_44:
            raise VerifierKeyError("not an ML-DSA-44 key")
        self.key = key
        self._public_key = MLDSA44PublicKey.from_public_bytes(key.public_key)

    def verify(self, text: bytes, signature: bytes) -> int:
        """Check a timestamped signature (8 + 2420 bytes) of a checkpoint; return its time, POSIX seconds.

        Raises NoteSignatureInvalid; NoteFormatError when `text` is no checkpoint.
        """
        head = parse_checkpoint(text)
        time_s = int.from_bytes(signature[:COSIGNATURE_TIME_BYTES], "big")
        if len(signature) != COSIGNATURE_TIME_BYTES + ML_DSA_44_SIGNATURE_BYTES or time_s > MAX_TIME_S:
            raise NoteSignatureInvalid("a cosignature has not its length, or its time is out of range")
        try:
            self._public_key.verify(signature[COSIGNATURE_TIME_BYTES:], cosigned_message(self.key.name, time_s, head))
        except InvalidSignature as error:
            raise NoteSignatureInvalid("an ML-DSA-44 cosignature does not verify") from error
        return time_s


def note_verifier(key: VerifierKey) -> NoteVerifier:
    """Make the verifier for a key of either type. Raises VerifierKeyError."""
    return Ed25519NoteVerifier(key) if key.signature_type == ED25519 else CosignatureVerifier(key)


def sign_ed25519(private_key: Ed25519PrivateKey, name: str, text: bytes) -> NoteSignature:
    """Sign a note's text, C2SP signed-note; `name`: the key's. Raises VerifierKeyError when that is no name."""
    key = VerifierKey(name, ED25519, private_key.public_key().public_bytes_raw())
    return NoteSignature(name, key.key_id, private_key.sign(text))


def cosign_ml_dsa_44(private_key: MLDSA44PrivateKey, name: str, time_s: int, head: TreeHead) -> NoteSignature:
    """Cosign a head at `time_s` (POSIX seconds), C2SP tlog-cosignature; `name`: the key's.

    Raises VerifierKeyError when that is no name, ValueError when the time is out of range.
    """
    key = VerifierKey(name, ML_DSA_44, private_key.public_key().public_bytes_raw())
    signature = private_key.sign(cosigned_message(name, time_s, head))
    return NoteSignature(name, key.key_id, time_s.to_bytes(COSIGNATURE_TIME_BYTES, "big") + signature)
