"""What the providers have in common whose keys are used in this process's memory: inmem, file, tpm."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from kms.errors import NotFound, Unsupported
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random
from kms.providers.software_key import SOFTWARE_PRIMITIVES, SoftwareKey, new_seed

if TYPE_CHECKING:
    from kms.kid import Kid
    from kms.primitive import Primitive
    from kms.providers.provider import Attestation, KeyHandle, ProviderKey


class SoftwareProvider:
    """The verbs over `SoftwareKey`. A provider says where seeds go (`_keep`) and how a handle is found (`_find`)."""

    name: str
    attestation_class: str | None = None
    primitives: frozenset[Primitive] = SOFTWARE_PRIMITIVES
    wraps_itself = False
    in_process = True
    max_keys: int | None = None

    def __init__(self, random_fill: RandomFill = os_random) -> None:
        self._random_fill = random_fill

    def _keep(self, primitive: Primitive, kid: Kid, seed: SecretBuffer) -> ProviderKey:
        """Keep a new key, durable when this returns. The caller wipes `seed`."""
        raise NotImplementedError

    def _find(self, handle: KeyHandle) -> SoftwareKey:
        """Find a key. Raises NotFound, StoreUnavailable."""
        raise NotImplementedError

    def generate(self, primitive: Primitive, kid: Kid) -> ProviderKey:
        """Make a key; see `Provider.generate`."""
        with new_seed(primitive, self._random_fill) as seed:
            return self._keep(primitive, kid, seed)

    def sign(self, handle: KeyHandle, primitive: Primitive, message: bytes) -> bytes:
        """Sign; see `Provider.sign`."""
        key = self._find(handle)
        if key.primitive is not primitive:
            raise NotFound("no such key of this algorithm", reason="handle_of_another_key")
        return key.sign(message)

    def agree(self, handle: KeyHandle, peer_public: bytes) -> bytes:
        """Agree on a secret; see `Provider.agree`."""
        return self._find(handle).agree(peer_public)

    def decapsulate(self, handle: KeyHandle, ciphertext: bytes) -> bytes:
        """Decapsulate; see `Provider.decapsulate`."""
        return self._find(handle).decapsulate(ciphertext)

    def derive(self, handle: KeyHandle, info: bytes, primitive: Primitive, kid: Kid) -> ProviderKey:
        """Derive a child; see `Provider.derive`."""
        with self._find(handle).derive_seed(info, primitive) as seed:
            return self._keep(primitive, kid, seed)

    def wrap(self, handle: KeyHandle, plaintext: bytes, aad: bytes) -> NoReturn:
        """Refuse: keys here wrap through the KEM envelope."""
        raise Unsupported("this provider has no wrapping key of its own")

    def unwrap(self, handle: KeyHandle, wrapped: bytes, aad: bytes) -> NoReturn:
        """Refuse: keys here unwrap through the KEM envelope."""
        raise Unsupported("this provider has no wrapping key of its own")

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation | None:
        """Attest nothing: memory has no evidence. Raises NotFound for an unknown handle."""
        self._find(handle)
        return None
