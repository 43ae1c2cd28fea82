"""Keys as sealed files in a folder, opened in this process's memory when they are first used: file and tpm."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from kms.errors import NotFound, StoreUnavailable
from kms.providers.key_handle import new_handle
from kms.providers.provider import KeyHandle, ProviderKey
from kms.providers.sealed_bytes import NONCE_BYTES, Aead, SealedFileError
from kms.providers.sealed_key import SealedKeyHeader, open_sealed_key, write_sealed_key
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random, os_random_bytes
from kms.providers.software_key import SoftwareKey
from kms.providers.software_provider import SoftwareProvider

if TYPE_CHECKING:
    from kms.kid import Kid
    from kms.primitive import Primitive
    from kms.providers.key_folder import KeyFolder

MAX_OPEN_KEYS: Final = 1024
"""Keys that stay open in memory, the last used ones; an ML-DSA-65 key takes about 33 KiB."""


class SealedProvider(SoftwareProvider):
    """The verbs over a folder of sealed keys and its master key, which it owns and wipes."""

    def __init__(
        self,
        folder: KeyFolder,
        store_id: bytes,
        master: SecretBuffer,
        aead: Aead,
        random_fill: RandomFill = os_random,
        max_open_keys: int = MAX_OPEN_KEYS,
    ) -> None:
        super().__init__(random_fill)
        self._folder = folder
        self.max_keys = folder.max_key_files
        self._store_id = store_id
        self._master = master
        self._aead = aead
        self._max_open_keys = max_open_keys
        # `_change_lock` is held while the folder changes; `_lock` only for as long as a dictionary is touched,
        # so that no signature waits for a disk.
        self._change_lock = threading.Lock()
        self._lock = threading.Lock()
        self._open: OrderedDict[KeyHandle, SoftwareKey] = OrderedDict()
        self._closed = False

    def destroy(self, handle: KeyHandle) -> None:
        """Erase a key's file and wipe it; see `Provider.destroy`."""
        with self._change_lock:
            self._check_open()
            if handle not in self._folder.keys and handle not in self._folder.unreadable:
                return
            self._remove(handle)
            with self._lock:
                key = self._open.pop(handle, None)
        if key is not None:
            key.wipe()

    def check(self) -> None:
        """Raise StoreUnavailable once closed, or when the folder is away."""
        self._check_open()
        self._folder.check()

    def close(self) -> None:
        """Wipe every open key and the master key, and let go of the folder. A second call does nothing."""
        with self._change_lock:
            with self._lock:
                if self._closed:
                    return
                self._closed = True
                keys = list(self._open.values())
                self._open.clear()
            for key in keys:
                key.wipe()
            self._master.wipe()
            self._folder.close()

    def _add(self, handle: KeyHandle, content: bytes) -> None:
        """Make a sealed key durable; the caller holds `_change_lock`."""
        self._folder.add(handle, content)

    def _remove(self, handle: KeyHandle) -> None:
        """Erase a sealed key durably; the caller holds `_change_lock`."""
        self._folder.remove(handle)

    def _keep(self, primitive: Primitive, kid: Kid, seed: SecretBuffer) -> ProviderKey:
        key, handle = SoftwareKey(primitive, seed), new_handle(kid, primitive)
        nonce = os_random_bytes(NONCE_BYTES)
        header = SealedKeyHeader(self._store_id, handle, primitive, str(kid), key.public, self._aead, nonce)
        with self._change_lock:
            self._check_open()
            self._add(handle, write_sealed_key(self._master, header, seed))
            self._keep_open(handle, key)
        return ProviderKey(primitive, handle, key.public)

    def _find(self, handle: KeyHandle) -> SoftwareKey:
        with self._lock:
            self._check_open()
            key = self._open.get(handle)
            if key is not None:
                self._open.move_to_end(handle)
                return key
            content = self._folder.keys.get(handle)
            if content is None:
                if handle in self._folder.unreadable:
                    raise StoreUnavailable("the key's file may not be read", reason="sealed_file_unreadable")
                raise NotFound("no such key")
            # Under the lock: a close must not wipe the master key meanwhile.
            try:
                key = open_sealed_key(self._master, self._store_id, handle, content)
            except SealedFileError as error:
                reason = f"sealed_file_{error.reason}"
                raise StoreUnavailable("the key's file is not as it was left", reason=reason) from error
            self._keep_open_locked(handle, key)
        return key

    def _keep_open(self, handle: KeyHandle, key: SoftwareKey) -> None:
        with self._lock:
            self._keep_open_locked(handle, key)

    def _keep_open_locked(self, handle: KeyHandle, key: SoftwareKey) -> None:
        """Keep a key open; one that falls out is cleared by OpenSSL with its last use, not before."""
        self._open[handle] = key
        while len(self._open) > self._max_open_keys:
            self._open.popitem(last=False)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the provider is closed", reason="closed")
