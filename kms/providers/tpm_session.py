"""An open TPM 2.0: every call to it is here, on the thread that owns it, and no handle stays loaded behind a call.

TCG TPM 2.0 Library Part 3. What travels to and from the TPM as a secret goes through a session salted by its storage
root key, so that its bus sees ciphertext.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tpm2_pytss import ESAPI, ESYS_TR, TSS2_Exception
from tpm2_pytss.constants import TPM2_ALG, TPM2_NT, TPM2_RC, TPM2_SE, TPMA_NV, TPMA_OBJECT, TPMA_SESSION
from tpm2_pytss.types import (
    TPM2B_NV_PUBLIC,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMS_SENSITIVE_CREATE,
    TPMT_SYM_DEF,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from kms.errors import StoreUnavailable
from kms.providers.connection import ConnectionLostError
from kms.providers.sealed_bytes import KEY_BYTES
from kms.providers.secret_buffer import SecretBuffer

if TYPE_CHECKING:
    from collections.abc import Iterator

QUOTED_PCRS: Final = "sha256:0,2,4,7"
# The owner's part of the range of NV indices (TCG Registry of Reserved TPM 2.0 Handles, §2.2.2): ours start here.
FIRST_NV_INDEX: Final = 0x0180_5347
NV_INDICES: Final = 64
_COUNTER_BYTES: Final = 8
_LAYER_MASK: Final = 0xFF_0000
# TSS 2.0 Overview, response code layers: ESAPI, SAPI and the transport. What fails there, and not in the TPM, leaves
# the context in the middle of a command, and it takes no other: flushing behind a lost TPM, which hides the
# transport's error behind one of ESAPI's (bad sequence), as well as every later call.
_BROKEN_LAYERS: Final = frozenset({0x07_0000, 0x08_0000, 0x0A_0000})
_BOUND: Final = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA
_GENERATED: Final = _BOUND | TPMA_OBJECT.SENSITIVEDATAORIGIN | TPMA_OBJECT.RESTRICTED
_STORAGE_KEY: Final = ("ecc256:aes128cfb", _GENERATED | TPMA_OBJECT.DECRYPT)
_QUOTING_KEY: Final = ("ecc256:ecdsa-sha256:null", _GENERATED | TPMA_OBJECT.SIGN_ENCRYPT)
_COUNTER: Final = TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.NO_DA | (TPM2_NT.COUNTER << TPMA_NV.TPM2_NT_SHIFT)


@dataclass(frozen=True, slots=True)
class SealedRoot:
    """The master key as the TPM gave it out: nothing but this TPM opens it."""

    public: bytes
    private: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_ATTEST, its TPMT_SIGNATURE and the TPMT_PUBLIC of the key that made it, as the TPM marshals them."""

    attest: bytes
    signature: bytes
    key: bytes


class TpmSession:
    """A connection to the TPM that `tcti` names."""

    def __init__(self, tcti: str) -> None:
        """Connect. Raises ConnectionLostError."""
        try:
            self._esapi = ESAPI(tcti)
        except (TSS2_Exception, RuntimeError) as error:
            raise ConnectionLostError from error

    def close(self) -> None:
        """Let go of the connection; never raises."""
        try:
            self._esapi.close()
        except (TSS2_Exception, RuntimeError):
            return

    def seal_root(self, master: SecretBuffer) -> SealedRoot:
        """Seal `master` under the storage root key: only this TPM opens it again."""
        with _tpm_errors(), self._storage() as (parent, session):
            template = TPM2B_PUBLIC.parse("keyedhash", objectAttributes=_BOUND)
            secret = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=bytes(master.view)))
            private, public, *_ = self._esapi.create(
                parent, secret, template, session1=ESYS_TR.PASSWORD, session2=session
            )
            return SealedRoot(public.marshal(), private.marshal())

    def unseal_root(self, sealed: SealedRoot) -> SecretBuffer:
        """Open what `seal_root` gave. The caller wipes it. Raises StoreUnavailable when it is not this TPM's."""
        with _tpm_errors(), self._storage() as (parent, session):
            public, _ = TPM2B_PUBLIC.unmarshal(sealed.public)
            private, _ = TPM2B_PRIVATE.unmarshal(sealed.private)
            loaded = self._esapi.load(parent, private, public)
            try:
                opened = bytes(self._esapi.unseal(loaded, session1=ESYS_TR.PASSWORD, session2=session))
            finally:
                self._esapi.flush_context(loaded)
        if len(opened) != KEY_BYTES:
            raise StoreUnavailable("the TPM's sealed root has the wrong length", reason="tpm_root")
        master = SecretBuffer(KEY_BYTES)
        master.view[:] = opened
        return master

    def define_counter(self, auth: bytes) -> int:
        """Make a monotonic NV counter that only `auth` reads and increments. Returns its NV index."""
        with _tpm_errors():
            for index in range(FIRST_NV_INDEX, FIRST_NV_INDEX + NV_INDICES):
                public = TPMS_NV_PUBLIC(
                    nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=_COUNTER, dataSize=_COUNTER_BYTES
                )
                try:
                    self._esapi.nv_define_space(auth, TPM2B_NV_PUBLIC(nvPublic=public))
                except TSS2_Exception as error:
                    if error.rc != TPM2_RC.NV_DEFINED:
                        raise
                    continue
                self.increment_counter(index, auth)
                return index
        raise StoreUnavailable("the TPM has no place for another counter", reason="tpm_counter_full")

    def read_counter(self, index: int, auth: bytes) -> int:
        """Read the counter. Raises StoreUnavailable when the TPM has none there, or not ours."""
        with _tpm_errors(), self._counter(index, auth) as (counter, session):
            return int.from_bytes(bytes(self._esapi.nv_read(counter, _COUNTER_BYTES, session1=session)), "big")

    def increment_counter(self, index: int, auth: bytes) -> None:
        """Count one further; it is durable when this returns."""
        with _tpm_errors(), self._counter(index, auth) as (counter, session):
            self._esapi.nv_increment(counter, session1=session)

    def quote(self, extra: bytes) -> Quote:
        """Quote the boot PCRs and `extra` (32 bytes) with a restricted key of the endorsement hierarchy."""
        with _tpm_errors(), self._primary(ESYS_TR.ENDORSEMENT, _QUOTING_KEY) as (key, public):
            attest, signature = self._esapi.quote(key, QUOTED_PCRS, extra)
            return Quote(bytes(attest), signature.marshal(), public.publicArea.marshal())

    def check(self) -> None:
        """Ask for eight random bytes: raise unless the TPM answers."""
        with _tpm_errors():
            self._esapi.get_random(8)

    @contextmanager
    def _primary(self, hierarchy: ESYS_TR, kind: tuple[str, TPMA_OBJECT]) -> Iterator[tuple[ESYS_TR, Any]]:
        """Derive a primary key from its hierarchy's seed, the same one every time, and flush it behind."""
        template = TPM2B_PUBLIC.parse(kind[0], objectAttributes=kind[1])
        handle, public, *_ = self._esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, hierarchy)
        try:
            yield handle, public
        finally:
            self._esapi.flush_context(handle)

    @contextmanager
    def _storage(self) -> Iterator[tuple[ESYS_TR, ESYS_TR]]:
        """Give the storage root key and a session salted by it that encrypts what is secret; flush both behind."""
        cipher = TPMT_SYM_DEF(
            algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
        )
        with self._primary(ESYS_TR.OWNER, _STORAGE_KEY) as (parent, _):
            session = self._esapi.start_auth_session(parent, ESYS_TR.NONE, TPM2_SE.HMAC, cipher, TPM2_ALG.SHA256)
            try:
                wanted = TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION
                self._esapi.trsess_set_attributes(session, wanted)
                yield parent, session
            finally:
                self._esapi.flush_context(session)

    @contextmanager
    def _counter(self, index: int, auth: bytes) -> Iterator[tuple[ESYS_TR, ESYS_TR]]:
        """Give the counter with its authorisation, and a session that proves it without sending it."""
        with self._storage() as (_, session):
            counter = self._esapi.tr_from_tpmpublic(index)
            self._esapi.tr_set_auth(counter, auth)
            yield counter, session


@contextmanager
def _tpm_errors() -> Iterator[None]:
    """Tell a TPM that is away, or a context that is of no more use, from a TPM that is there and refuses."""
    try:
        yield
    except TSS2_Exception as error:
        if error.rc & _LAYER_MASK in _BROKEN_LAYERS:
            raise ConnectionLostError from error
        raise StoreUnavailable("the TPM refuses", reason="tpm_refuses") from error
