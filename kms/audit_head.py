"""Signed heads of the audit log: checkpoints of C2SP tlog-checkpoint with one Ed25519 signature (IDB.md §3.6)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Final, Literal, Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kms.errors import StoreUnavailable
from kms.kid import KeyName
from kms.primitive import Primitive
from kms.providers.provider import KeyHandle
from receipts.checkpoint import TreeHead, compose_checkpoint, parse_checkpoint, verify_checkpoint
from receipts.signed_note import ED25519, Ed25519NoteVerifier, NoteError, NoteSignature, SignedNote, VerifierKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.providers.provider import Provider

SEED_BYTES: Final = 32
_PROOF_OF_POSSESSION: Final = b"signet-kms audit key: proof of possession v1\0"
_WRAP_AAD: Final = b"signet-kms audit key v1"


class AuditIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which log this is, in `log.json`.

    `epoch` rises by one with every accepted rollback. `wrapped_seed` is there only where the provider cannot sign.
    """

    version: Literal[1]
    log_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}\Z")]
    epoch: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    key_handle: Annotated[str, msgspec.Meta(max_length=512)]
    wrapped_seed: Annotated[bytes, msgspec.Meta(max_length=8192)] = b""

    @property
    def origin(self) -> str:
        """The origin of this epoch's heads."""
        return f"signet-kms/audit/{self.log_id}/{self.epoch}"

    @property
    def verifier(self) -> Ed25519NoteVerifier:
        """What verifies this epoch's heads."""
        return Ed25519NoteVerifier(VerifierKey(self.origin, ED25519, self.public_key))


class HeadSigner(Protocol):
    """Holds the audit key. `quick`: signing takes microseconds and waits for nothing."""

    quick: bool

    def sign(self, message: bytes) -> bytes:
        """Sign with Ed25519, 64 bytes. Raises StoreUnavailable."""
        ...


class ProviderHeadSigner:
    """Signs with a key that a custody provider holds."""

    def __init__(self, provider: Provider, handle: str) -> None:
        self._provider, self._handle = provider, KeyHandle(handle)
        self.quick = provider.in_process

    def sign(self, message: bytes) -> bytes:
        """Sign; see `HeadSigner.sign`."""
        return self._provider.sign(self._handle, Primitive.ED25519, message)


class UnwrappedHeadSigner:
    """Signs with a key that the provider unwrapped at start, for providers that only wrap."""

    quick = True

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def sign(self, message: bytes) -> bytes:
        """Sign; see `HeadSigner.sign`."""
        return self._key.sign(message)


def new_identity(provider: Provider, random_bytes: Callable[[int], bytes]) -> AuditIdentity:
    """Make a log's identity and its key, which the provider holds. Raises StoreUnavailable."""
    log_id = uuid.UUID(bytes=random_bytes(16), version=4)
    if Primitive.ED25519 in provider.primitives:
        name = KeyName("signet-kms", "audit-log", "ed25519", str(log_id))
        made = provider.generate(Primitive.ED25519, name.version(1))
        return AuditIdentity(1, str(log_id), 1, made.public, made.handle)
    if not provider.wraps_itself:
        raise StoreUnavailable("the provider neither signs nor wraps the audit log's key", reason="audit_key")
    seed = random_bytes(SEED_BYTES)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    wrapped = provider.wrap(KeyHandle(""), seed, _WRAP_AAD)
    return AuditIdentity(1, str(log_id), 1, public, "", wrapped)


def open_signer(identity: AuditIdentity, provider: Provider) -> HeadSigner:
    """Get at the audit key, and prove that it is the one in `identity`. Raises StoreUnavailable, NotFound."""
    signer: HeadSigner
    if identity.wrapped_seed:
        signer = UnwrappedHeadSigner(provider.unwrap(KeyHandle(""), identity.wrapped_seed, _WRAP_AAD))
    else:
        signer = ProviderHeadSigner(provider, identity.key_handle)
    message = _PROOF_OF_POSSESSION + identity.origin.encode()
    try:
        Ed25519PublicKey.from_public_bytes(identity.public_key).verify(signer.sign(message), message)
    except InvalidSignature as error:
        raise StoreUnavailable("the audit key is not the one that the log names", reason="audit_key") from error
    return signer


def sign_head(identity: AuditIdentity, signer: HeadSigner, size: int, root: bytes) -> bytes:
    """Sign the head of `size` records with this root (32 bytes); return the note's bytes."""
    text = compose_checkpoint(TreeHead(identity.origin, size, root))
    key = identity.verifier.key
    return SignedNote(text, (NoteSignature(key.name, key.key_id, signer.sign(text)),)).data


def verify_head(identity: AuditIdentity, note: bytes) -> TreeHead:
    """Verify a head of this log's present epoch. Raises NoteError."""
    return verify_checkpoint(note, (identity.verifier,), identity.origin, wanted_types=(ED25519,)).head


def head_size(note: bytes) -> int | None:
    """Read the size that a note states, without believing it; None when it is no head."""
    try:
        text, mark, _ = note.partition(b"\n\n")
        return parse_checkpoint(text + b"\n").size if mark else None
    except NoteError:
        return None
