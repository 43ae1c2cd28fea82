"""Keys in a PKCS#11 token, which never lets them out: Ed25519 and P-256, as far as its mechanisms go (IDB.md §3.5)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NoReturn

from kms.errors import StoreUnavailable, TooLarge, Unsupported
from kms.providers.connection import Connection, ConnectionMeter
from kms.providers.key_handle import check_handle_form, new_handle
from kms.providers.owner_thread import OwnerThread
from kms.providers.provider import Attestation, KeyHandle, ProviderKey
from kms.providers.software_key import MAX_MESSAGE_BYTES
from kms.providers.token_session import ATTESTATION_CLASS, TokenSession

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kms.kid import Kid
    from kms.primitive import Primitive

OPERATION_TIMEOUT_S: Final = 2.0
ATTEST_TIMEOUT_S: Final = 3.0
OPEN_TIMEOUT_S: Final = 10.0
MAX_NONCE_BYTES: Final = 64
# python-pkcs11 initialises a module without locks and for the whole process: one provider uses it at a time.
_MODULE_IN_USE: Final = threading.Lock()


class Pkcs11Provider:
    """The provider `pkcs11`. It serves as soon as the token is there again after a loss, if it is the same token."""

    name = "pkcs11"
    attestation_class: str | None = ATTESTATION_CLASS
    wraps_itself = False
    in_process = False
    max_keys: int | None = None

    def __init__(self, thread: OwnerThread[TokenSession], primitives: frozenset[Primitive]) -> None:
        self._thread = thread
        self.primitives = primitives
        self._close_lock = threading.Lock()
        self._closed = False

    def generate(self, primitive: Primitive, kid: Kid) -> ProviderKey:
        """Make a key in the token; see `Provider.generate`."""
        self._check_claim(primitive)
        handle = new_handle(kid, primitive)
        public = self._thread.call(lambda token: token.generate(primitive, kid, handle), OPERATION_TIMEOUT_S)
        return ProviderKey(primitive, handle, public)

    def sign(self, handle: KeyHandle, primitive: Primitive, message: bytes) -> bytes:
        """Sign in the token; see `Provider.sign`."""
        self._check_claim(primitive)
        check_handle_form(handle)
        if len(message) > MAX_MESSAGE_BYTES:
            raise TooLarge("the message to sign is too long")
        return self._thread.call(lambda token: token.sign(handle, primitive, message), OPERATION_TIMEOUT_S)

    def agree(self, handle: KeyHandle, peer_public: bytes) -> NoReturn:
        """Refuse: no X25519 here."""
        raise Unsupported("this provider does not agree on secrets")

    def decapsulate(self, handle: KeyHandle, ciphertext: bytes) -> NoReturn:
        """Refuse: no ML-KEM here."""
        raise Unsupported("this provider does not decapsulate")

    def derive(self, handle: KeyHandle, info: bytes, primitive: Primitive, kid: Kid) -> NoReturn:
        """Refuse: no HKDF roots here."""
        raise Unsupported("this provider derives no keys")

    def wrap(self, handle: KeyHandle, plaintext: bytes, aad: bytes) -> NoReturn:
        """Refuse: the token's keys sign only."""
        raise Unsupported("this provider has no wrapping key of its own")

    def unwrap(self, handle: KeyHandle, wrapped: bytes, aad: bytes) -> NoReturn:
        """Refuse: the token's keys sign only."""
        raise Unsupported("this provider has no wrapping key of its own")

    def destroy(self, handle: KeyHandle) -> None:
        """Destroy a key in the token; see `Provider.destroy`."""
        check_handle_form(handle)
        self._thread.call(lambda token: token.destroy(handle), OPERATION_TIMEOUT_S)

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation:
        """Give the token's own statement of a key: a line of JSON, then the marker key's signature (r ‖ s).

        It binds the key's point and `nonce`. It shows that this token answers now; it is not a vendor's proof.
        """
        check_handle_form(handle)
        if len(nonce) > MAX_NONCE_BYTES:
            raise TooLarge("the attestation's nonce is too long")
        return self._thread.call(lambda token: token.attest(handle, nonce), ATTEST_TIMEOUT_S)

    def check(self) -> None:
        """Find the token's marker afresh; raise StoreUnavailable otherwise."""
        self._thread.call(lambda token: token.check(), OPERATION_TIMEOUT_S)

    def close(self) -> None:
        """Log out and let go of the module. A second call does nothing."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._thread.close()
        _MODULE_IN_USE.release()

    def _check_claim(self, primitive: Primitive) -> None:
        if primitive not in self.primitives:
            raise Unsupported("the token does not do this algorithm")


def open_pkcs11_provider(
    module: Path,
    label: str,
    pin_env: str,
    environ: Mapping[str, str],
    monotonic_s: Callable[[], float],
    random: Callable[[], float],
    meter: ConnectionMeter | None = None,
) -> Pkcs11Provider:
    """Open the token named `label` of a module with the PIN that the variable `pin_env` holds.

    Raises StoreUnavailable when the PIN is unset or refused, the token is away or lets keys out, or the module is in
    use by another provider of this process.
    """
    pin = environ.get(pin_env, "")
    if not pin:
        raise StoreUnavailable("backends.pkcs11.pin_env names no variable that is set", reason="token_pin_unset")
    if not _MODULE_IN_USE.acquire(blocking=False):
        raise StoreUnavailable("the module is in use by another provider", reason="token_in_use")
    marker: list[bytes] = []

    def connect() -> TokenSession:
        session = TokenSession(module, label, pin, marker[0] if marker else None)
        marker[:] = [session.marker_public]
        return session

    thread = OwnerThread("kms-pkcs11", Connection(connect, monotonic_s, random, meter))
    try:
        primitives = thread.call(lambda token: token.primitives, OPEN_TIMEOUT_S)
    except BaseException:
        thread.close()
        _MODULE_IN_USE.release()
        raise
    return Pkcs11Provider(thread, primitives)
