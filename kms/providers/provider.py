"""What a custody provider promises (P-2, IDB.md §3.2 and §3.5 of the founding contract)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol

if TYPE_CHECKING:
    from kms.kid import Kid
    from kms.primitive import Primitive

# Names a private key inside one provider: a blob's name, a CKA_ID, a cloud's key id. It is not secret.
KeyHandle = NewType("KeyHandle", str)


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """A key part as its provider knows it: the handle, and the raw public key (empty for a symmetric one)."""

    primitive: Primitive
    handle: KeyHandle
    public: bytes


@dataclass(frozen=True, slots=True)
class Attestation:
    """A provider's evidence of where a key lives. `class_` is a stable short name such as `tpm-2.0`."""

    class_: str
    evidence: bytes


class Provider(Protocol):
    """Holds private keys, which never leave it. Every method is synchronous and may be called from any thread.

    A provider that is not thread-safe inside owns one thread and queues to it. Every method raises
    `kms.errors.StoreUnavailable` when the token, disk or service behind it is away, `Timeout` past its own bound,
    `NotFound` for a handle that it does not hold, and `Unsupported` for a primitive or verb that it does not claim.
    """

    name: str
    # The evidence class of every key here; None where the provider cannot attest.
    attestation_class: str | None
    # What it can make and use for signing, key agreement or derivation. Where `wraps_itself`, the KEM halves are names
    # of wrapping keys: they have no public half, and neither agree nor decapsulate.
    primitives: frozenset[Primitive]
    # True when it wraps and unwraps by itself under a key of its own (a cloud's key service), without KEM parts.
    wraps_itself: bool
    # True when a key is used in this process's memory, without a lock held long, a file, a token or a socket: cheap
    # primitives then run on the event loop, where a thread hop would cost more than the work.
    in_process: bool
    # How many key parts it may hold; None where the part behind it sets the bound.
    max_keys: int | None

    def generate(self, primitive: Primitive, kid: Kid) -> ProviderKey:
        """Make a key, durable when this returns. `kid` is its label and is bound to the sealed bytes."""
        ...

    def sign(self, handle: KeyHandle, primitive: Primitive, message: bytes) -> bytes:
        """Sign `message` (the 32-byte digest, or a tree head's text for a `tlog` key).

        ECDSA signatures are r ‖ s, 64 bytes; ML-DSA signs with an empty context.
        """
        ...

    def agree(self, handle: KeyHandle, peer_public: bytes) -> bytes:
        """Compute the X25519 shared secret (32 bytes); an all-zero one raises BadRequest (RFC 7748 §6.1)."""
        ...

    def decapsulate(self, handle: KeyHandle, ciphertext: bytes) -> bytes:
        """Compute the ML-KEM-768 shared secret (32 bytes)."""
        ...

    def derive(self, handle: KeyHandle, info: bytes, primitive: Primitive, kid: Kid) -> ProviderKey:
        """Make the child of an HKDF root that `info` names: the same bytes for the same root, info and primitive."""
        ...

    def wrap(self, handle: KeyHandle, plaintext: bytes, aad: bytes) -> bytes:
        """Encrypt under the provider's own key. Only where `wraps_itself`."""
        ...

    def unwrap(self, handle: KeyHandle, wrapped: bytes, aad: bytes) -> bytes:
        """Decrypt what `wrap` gave; anything altered raises BadRequest. Only where `wraps_itself`."""
        ...

    def destroy(self, handle: KeyHandle) -> None:
        """Erase a key for good; a handle that is gone already is no error."""
        ...

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation | None:
        """Give fresh evidence that binds the key's public half and `nonce`, or None where there is none."""
        ...

    def check(self) -> None:
        """Prove that keys can be used now, cheaply; raise StoreUnavailable otherwise."""
        ...

    def close(self) -> None:
        """Wipe what can be wiped and let go of tokens and files. A second call does nothing."""
        ...
