"""Keys that live in this process's memory and end with it: for development and amnesia mode (I-11)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from kms.errors import NotFound, StoreUnavailable
from kms.providers.key_handle import new_handle
from kms.providers.provider import KeyHandle, ProviderKey
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random
from kms.providers.software_key import SoftwareKey
from kms.providers.software_provider import SoftwareProvider

if TYPE_CHECKING:
    from kms.kid import Kid
    from kms.primitive import Primitive

# Each HKDF root has a page of its own, and the kernel counts mappings.
MAX_KEYS: Final = 32_768


class InMemoryProvider(SoftwareProvider):
    """The provider `inmem`. Nothing is written anywhere; `close` wipes every key."""

    name = "inmem"

    def __init__(self, random_fill: RandomFill = os_random, max_keys: int = MAX_KEYS) -> None:
        super().__init__(random_fill)
        self.max_keys = self._max_keys = max_keys
        # Guarded by the lock; a key's own lock guards what is inside.
        self._lock = threading.Lock()
        self._keys: dict[KeyHandle, SoftwareKey] = {}
        self._closed = False

    def destroy(self, handle: KeyHandle) -> None:
        """Wipe a key; see `Provider.destroy`."""
        with self._lock:
            key = self._keys.pop(handle, None)
        if key is not None:
            key.wipe()

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

    def _keep(self, primitive: Primitive, kid: Kid, seed: SecretBuffer) -> ProviderKey:
        key, handle = SoftwareKey(primitive, seed), new_handle(kid, primitive)
        with self._lock:
            self.check()
            if len(self._keys) >= self._max_keys:
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
