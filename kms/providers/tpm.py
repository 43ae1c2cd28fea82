"""Keys in sealed files whose master key only this machine's TPM opens; its counter tells old files (IDB.md §3.5)."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kms.errors import KmsError, StoreUnavailable, TooLarge
from kms.providers.connection import Connection, ConnectionMeter
from kms.providers.key_folder import KeyFolder
from kms.providers.owner_thread import OwnerThread
from kms.providers.provider import Attestation, KeyHandle
from kms.providers.sealed_bytes import KEY_BYTES, Aead, HeaderReader, SealedFileError, derive_seal_key
from kms.providers.sealed_key import STORE_ID_BYTES
from kms.providers.sealed_provider import SealedProvider
from kms.providers.secret_buffer import RandomFill, SecretBuffer, os_random, os_random_bytes
from kms.providers.tpm_manifest import (
    MAX_LISTED_KEYS,
    MAX_MANIFEST_BYTES,
    Manifest,
    parse_manifest,
    write_manifest,
)
from kms.providers.tpm_session import QUOTED_PCRS, SealedRoot, TpmSession

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ATTESTATION_CLASS: Final = "tpm-2.0"
ROOT_NAME: Final = "root.tpm"
MANIFEST_NAME: Final = "keys.list"
OPERATION_TIMEOUT_S: Final = 2.0
ATTEST_TIMEOUT_S: Final = 3.0
OPEN_TIMEOUT_S: Final = 10.0
MAX_NONCE_BYTES: Final = 64
MAX_ROOT_BYTES: Final = 2048
ROOT_MAGIC: Final = b"SGNTTPMR"
ROOT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class TpmRoot:
    """The root file, version 1.

        "SGNTTPMR" | version u8 | store id 16 | two NV indices u32 | TPM2B_PUBLIC | TPM2B_PRIVATE

    The counters are that of the folder's changes and that of the audit log. The two TPM structures each stand behind
    a u16 length. The TPM guards its own; the rest is bound by the manifest.
    """

    store_id: bytes
    nv_index: int
    audit_nv_index: int
    sealed: SealedRoot

    def encode(self) -> bytes:
        """Write the file."""
        parts = [ROOT_MAGIC, bytes([ROOT_VERSION]), self.store_id]
        parts += [index.to_bytes(4, "big") for index in (self.nv_index, self.audit_nv_index)]
        parts += [len(blob).to_bytes(2, "big") + blob for blob in (self.sealed.public, self.sealed.private)]
        return b"".join(parts)


def parse_tpm_root(data: bytes) -> TpmRoot:
    """Read a root file. Raises SealedFileError."""
    reader = HeaderReader(data)
    reader.magic(ROOT_MAGIC, ROOT_VERSION)
    store_id, nv_index, audit_nv_index = reader.take(STORE_ID_BYTES), reader.number(4), reader.number(4)
    public, private = reader.take(reader.number(2)), reader.take(reader.number(2))
    if reader.offset != len(data):
        raise SealedFileError("the root file is too long", "too_long")
    return TpmRoot(store_id, nv_index, audit_nv_index, SealedRoot(public, private))


class TpmCounter:
    """A counter in the TPM that only rises; the audit log's, `kms.audit_anchor.RollbackCounter`."""

    def __init__(self, thread: OwnerThread[TpmSession], index: int, auth: bytes) -> None:
        self._thread = thread
        self._index = index
        self._auth = auth

    def read(self) -> int:
        """Give its value. Raises StoreUnavailable, Timeout."""
        return self._thread.call(lambda tpm: tpm.read_counter(self._index, self._auth), OPERATION_TIMEOUT_S)

    def increment(self) -> int:
        """Raise it by one and give the new value. Raises StoreUnavailable, Timeout."""

        def count(tpm: TpmSession) -> int:
            tpm.increment_counter(self._index, self._auth)
            return tpm.read_counter(self._index, self._auth)

        return self._thread.call(count, OPERATION_TIMEOUT_S)


class TpmProvider(SealedProvider):
    """The provider `tpm`. Keys are used in this process; the TPM opens their store, counts its changes and quotes."""

    name = "tpm"
    attestation_class: str | None = ATTESTATION_CLASS

    def __init__(
        self,
        folder: KeyFolder,
        root: TpmRoot,
        master: SecretBuffer,
        thread: OwnerThread[TpmSession],
        manifest: Manifest,
        random_fill: RandomFill = os_random,
    ) -> None:
        super().__init__(folder, root.store_id, master, Aead.CHACHA20_POLY1305, random_fill)
        self._root = root
        self._thread = thread
        # Changed under `_change_lock`, as the folder is.
        self._manifest = manifest
        with counter_auth(master, root.store_id) as auth:
            # Sent to nobody: the TPM is shown that we know it.
            self._counter_auth = bytes(auth.view)
        self.audit_counter = TpmCounter(thread, root.audit_nv_index, self._counter_auth)

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation:
        """Quote the boot PCRs over the nonce, the handle, the public key and the sealed root, as one JSON object.

        Raises NotFound for an unknown handle, TooLarge for a nonce over 64 bytes.
        """
        if len(nonce) > MAX_NONCE_BYTES:
            raise TooLarge("the attestation's nonce is too long")
        extra = quoted_data(nonce, handle, self._find(handle).public, self._root.sealed.public)
        quote = self._thread.call(lambda tpm: tpm.quote(extra), ATTEST_TIMEOUT_S)
        evidence = {
            "class": ATTESTATION_CLASS,
            "key": quote.key.hex(),
            "pcrs": QUOTED_PCRS,
            "quote": quote.attest.hex(),
            "root": self._root.sealed.public.hex(),
            "signature": quote.signature.hex(),
        }
        return Attestation(ATTESTATION_CLASS, json.dumps(evidence, sort_keys=True, separators=(",", ":")).encode())

    def check(self) -> None:
        """Raise StoreUnavailable once closed, or when the folder or the TPM is away."""
        super().check()
        self._thread.call(lambda tpm: tpm.check(), OPERATION_TIMEOUT_S)

    def close(self) -> None:
        """Wipe every key and let go of the folder and the TPM. A second call does nothing."""
        super().close()
        self._thread.close()

    def _add(self, handle: KeyHandle, content: bytes) -> None:
        self._settle()
        self._folder.add(handle, content)
        try:
            self._count(self._manifest.changed(self._present()))
        except KmsError:
            # Nobody was told of the key. If its list is there already, the next start finds it without a file.
            with suppress(KmsError):
                self._folder.remove(handle)
            raise

    def _remove(self, handle: KeyHandle) -> None:
        self._settle()
        self._count(self._manifest.changed(self._present() - {handle}))
        self._folder.remove(handle)

    def _present(self) -> frozenset[KeyHandle]:
        """List the files themselves: a key whose making failed half-way falls out of the next list."""
        return frozenset(self._folder.keys) | frozenset(self._folder.unreadable)

    def _count(self, manifest: Manifest) -> None:
        """Make a list durable and count it. Past the first step it is in force, even where the TPM goes meanwhile."""
        self._folder.replace(MANIFEST_NAME, _encode(manifest, self._master, self._root))
        self._manifest = manifest
        index, auth = self._root.nv_index, self._counter_auth
        self._thread.call(lambda tpm: tpm.increment_counter(index, auth), OPERATION_TIMEOUT_S)

    def _settle(self) -> None:
        """Bring the counter to the list in force before a change: it may be one behind, after a TPM went away."""
        settle_counter(self._thread, self._root.nv_index, self._counter_auth, self._manifest.count)


def quoted_data(nonce: bytes, handle: KeyHandle, public: bytes, sealed_root: bytes) -> bytes:
    """Hash what a quote binds: SHA-256 over each of the four, every one behind its length (u32)."""
    digest = hashlib.sha256(b"signet-kms tpm attestation v1")
    for field in (nonce, bytes.fromhex(handle), public, sealed_root):
        digest.update(len(field).to_bytes(4, "big") + field)
    return digest.digest()


def open_tpm_provider(
    folder_path: Path,
    tcti: str,
    monotonic_s: Callable[[], float],
    random: Callable[[], float],
    meter: ConnectionMeter | None = None,
    random_fill: RandomFill = os_random,
) -> TpmProvider:
    """Open a folder that this TPM sealed, or make a new store in an empty one.

    Raises StoreUnavailable when the TPM is away, the root is of another TPM, a file was altered, or the folder or the
    TPM's counter is older than the other (`tpm_folder_rolled_back`, `tpm_counter_rolled_back`).
    """
    thread = OwnerThread("kms-tpm", Connection(lambda: TpmSession(tcti), monotonic_s, random, meter))
    try:
        folder = KeyFolder(folder_path, MAX_LISTED_KEYS)
    except BaseException:
        thread.close()
        raise
    master: SecretBuffer | None = None
    try:
        data = folder.read(ROOT_NAME, MAX_ROOT_BYTES)
        if data is None:
            root, master, manifest = _new_store(folder, thread, random_fill)
        else:
            root = parse_tpm_root(data)
            master = thread.call(lambda tpm: tpm.unseal_root(root.sealed), OPEN_TIMEOUT_S)
            manifest = _open_store(folder, thread, root, master)
        _forget_unlisted(folder, manifest)
    except BaseException as error:
        if master is not None:
            master.wipe()
        folder.close()
        thread.close()
        if isinstance(error, SealedFileError):
            raise StoreUnavailable("the TPM's store was altered", reason=f"tpm_store_{error.reason}") from error
        raise
    return TpmProvider(folder, root, master, thread, manifest, random_fill)


def _new_store(
    folder: KeyFolder, thread: OwnerThread[TpmSession], random_fill: RandomFill
) -> tuple[TpmRoot, SecretBuffer, Manifest]:
    if folder.keys or folder.unreadable:
        raise StoreUnavailable("there are sealed keys but no root.tpm", reason="root_missing")
    store_id, master = os_random_bytes(STORE_ID_BYTES), SecretBuffer(KEY_BYTES)
    random_fill(master.view)
    with counter_auth(master, store_id) as auth:
        secret = bytes(auth.view)
    index, audit_index = (thread.call(lambda tpm: tpm.define_counter(secret), OPEN_TIMEOUT_S) for _ in range(2))
    count = thread.call(lambda tpm: tpm.read_counter(index, secret), OPEN_TIMEOUT_S)
    root = TpmRoot(store_id, index, audit_index, thread.call(lambda tpm: tpm.seal_root(master), OPEN_TIMEOUT_S))
    manifest = Manifest(store_id, count, frozenset())
    # The list first: a root is never without one.
    folder.replace(MANIFEST_NAME, _encode(manifest, master, root))
    folder.create(ROOT_NAME, root.encode())
    return root, master, manifest


def _open_store(folder: KeyFolder, thread: OwnerThread[TpmSession], root: TpmRoot, master: SecretBuffer) -> Manifest:
    data = folder.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if data is None:
        raise StoreUnavailable("the TPM's store has no list of its keys", reason="tpm_list_missing")
    with _manifest_key(master, root.store_id) as key:
        manifest = parse_manifest(data, key, root.encode())
    if manifest.store_id != root.store_id:
        raise SealedFileError("the list is of another store", "other_store")
    with counter_auth(master, root.store_id) as auth:
        settle_counter(thread, root.nv_index, bytes(auth.view), manifest.count)
    return manifest


def settle_counter(thread: OwnerThread[TpmSession], index: int, auth: bytes, listed: int) -> None:
    """Compare the list's count with the TPM's; a list that is one ahead is counted now.

    Raises StoreUnavailable: `tpm_folder_rolled_back` for an older list, `tpm_counter_rolled_back` for an older counter.
    """
    counted = thread.call(lambda tpm: tpm.read_counter(index, auth), OPERATION_TIMEOUT_S)
    if counted > listed:
        raise StoreUnavailable("the key folder is older than the TPM's counter", reason="tpm_folder_rolled_back")
    if counted < listed - 1:
        raise StoreUnavailable("the TPM's counter is older than the key folder", reason="tpm_counter_rolled_back")
    if counted == listed - 1:
        thread.call(lambda tpm: tpm.increment_counter(index, auth), OPERATION_TIMEOUT_S)


def counter_auth(master: SecretBuffer, store_id: bytes) -> SecretBuffer:
    """Derive the counter's authorisation from the master key. The caller wipes it."""
    return derive_seal_key(master, store_id, b"signet-kms tpm counter v1")


def _manifest_key(master: SecretBuffer, store_id: bytes) -> SecretBuffer:
    return derive_seal_key(master, store_id, b"signet-kms tpm manifest v1")


def _encode(manifest: Manifest, master: SecretBuffer, root: TpmRoot) -> bytes:
    with _manifest_key(master, root.store_id) as key:
        return write_manifest(manifest, key, root.encode())


def _forget_unlisted(folder: KeyFolder, manifest: Manifest) -> None:
    """Erase files that the list does not name: never told of, or destroyed and put back."""
    for handle in [*folder.keys, *folder.unreadable]:
        if handle not in manifest.handles:
            folder.remove(handle)
