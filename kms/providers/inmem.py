"""Keys that live in this process's memory and end with it: for development and amnesia mode (I-11)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NoReturn

from kms.errors import NotFound, StoreUnavailable, Unsupported
from kms.providers.key_handle import new_handle
from kms.providers.provider import Attestation, KeyHandle, ProviderKey
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random
from kms.providers.software_key import SOFTWARE_PRIMITIVES, SoftwareKey, new_seed

if TYPE_CHECKING:
    from kms.kid import Kid
    from kms.primitive import Primitive

MAX_KEYS: Final = 65_536


class InMemoryProvider:
    """The provider `inmem`. Nothing is written anywhere; `close` wipes every key."""

    name = "inmem"
    attestation_class: str | None = None
    primitives: frozenset[Primitive] = SOFTWARE_PRIMITIVES
    wraps_itself = False
    in_process = True

    def __init__(self, random_fill: RandomFill = os_random) -> None:
        self._random_fill = random_fill
        # Guarded by the lock; a key's own lock guards what is inside.
        self._lock = threading.Lock()
        self._keys: dict[KeyHandle, SoftwareKey] = {}
        self._closed = False

    def generate(self, primitive: Primitive, kid: Kid) -> ProviderKey:
        """Make a key; see `Provider.generate`."""
        with new_seed(primitive, self._random_fill) as seed:
            return self._add(primitive, kid, seed)

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
            return self._add(primitive, kid, seed)

    def wrap(self, handle: KeyHandle, plaintext: bytes, aad: bytes) -> NoReturn:
        """Refuse: keys here wrap through the KEM envelope."""
        raise Unsupported("this provider has no wrapping key of its own")

    def unwrap(self, handle: KeyHandle, wrapped: bytes, aad: bytes) -> NoReturn:
        """Refuse: keys here unwrap through the KEM envelope."""
        raise Unsupported("this provider has no wrapping key of its own")

    def destroy(self, handle: KeyHandle) -> None:
        """Wipe a key; see `Provider.destroy`."""
        with self._lock:
            key = self._keys.pop(handle, None)
        if key is not None:
            key.wipe()

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation | None:
        """Attest nothing: memory has no evidence. Raises NotFound for an unknown handle."""
        self._find(handle)
        return None

    def check(self) -> None:
        """Raise StoreUnavailable once closed."""
        if self._closed:
            raise StoreUnavailable("the provider is closed", reason="closed")

    def close(self) -> None:
        """Wipe every key. A second call does nothing."""
        with self._lock:
            self._closed = True
            keys = list(self._keys.values())
            self._keys.clear()
        for key in keys:
            key.wipe()

    def _add(self, primitive: Primitive, kid: Kid, seed: SecretBuffer) -> ProviderKey:
        key, handle = SoftwareKey(primitive, seed), new_handle(kid, primitive)
        with self._lock:
            self.check()
            if len(self._keys) >= MAX_KEYS:
                raise StoreUnavailable("the provider holds as many keys as it may", reason="key_limit")
            self._keys[handle] = key
        return ProviderKey(primitive, handle, key.public)

    def _find(self, handle: KeyHandle) -> SoftwareKey:
        self.check()
        with self._lock:
            key = self._keys.get(handle)
        if key is None:
            raise NotFound("no such key")
        return key
