"""Providers whose part a test plays: away, slow, attesting, failing in the middle."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kms.errors import BadRequest, StoreUnavailable
from kms.kid import Kid
from kms.primitive import Primitive
from kms.providers.inmem import InMemoryProvider
from kms.providers.provider import Attestation, KeyHandle, ProviderKey


class StagedProvider(InMemoryProvider):
    """The in-memory provider with a switch for each thing that a token or a disk can do to it."""

    def __init__(self, name: str = "staged", class_: str | None = None, *, in_process: bool = True) -> None:
        super().__init__()
        self.name = name
        self.attestation_class = class_
        self.in_process = in_process
        self.away = False
        self.evidence: Callable[[], Attestation | None] = lambda: Attestation(class_ or "none", b"evidence")
        self.hold: threading.Event | None = None
        self.began = threading.Event()
        self.fails_at: Primitive | None = None
        self.fails_with_key_limit = False
        self.calls: list[str] = []

    def sign(self, handle: KeyHandle, primitive: Primitive, message: bytes) -> bytes:
        self._work("sign")
        return super().sign(handle, primitive, message)

    def decapsulate(self, handle: KeyHandle, ciphertext: bytes) -> bytes:
        self._work("decapsulate")
        return super().decapsulate(handle, ciphertext)

    def generate(self, primitive: Primitive, kid: Kid) -> ProviderKey:
        self._work("generate")
        if self.fails_with_key_limit:
            raise StoreUnavailable("the provider holds as many keys as it may", reason="key_limit")
        if primitive is self.fails_at:
            raise StoreUnavailable("the token went away")
        return super().generate(primitive, kid)

    def derive(self, handle: KeyHandle, info: bytes, primitive: Primitive, kid: Kid) -> ProviderKey:
        self._work("derive")
        if primitive is self.fails_at:
            raise StoreUnavailable("the token went away")
        return super().derive(handle, info, primitive, kid)

    def destroy(self, handle: KeyHandle) -> None:
        self._work("destroy")
        super().destroy(handle)

    def attest(self, handle: KeyHandle, nonce: bytes) -> Attestation | None:
        self.calls.append("attest")
        assert len(nonce) == 32
        return self.evidence()

    def check(self) -> None:
        if self.away:
            raise StoreUnavailable("the token is away", retry_after_s=3)
        super().check()

    def _work(self, verb: str) -> None:
        self.calls.append(verb)
        self.began.set()
        if self.hold is not None and not self.hold.wait(5):
            raise TimeoutError
        if self.away:
            raise StoreUnavailable("the token is away", retry_after_s=3)

    @property
    def keys_held(self) -> int:
        return len(self._keys)


class WrappingProvider(StagedProvider):
    """A provider that wraps under a key of its own, as a cloud's key service does."""

    wraps_itself = True
    primitives = frozenset({Primitive.X25519, Primitive.ML_KEM_768})

    def wrap(self, handle: KeyHandle, plaintext: bytes, aad: bytes) -> bytes:  # type: ignore[override]
        self._work("wrap")
        return len(aad).to_bytes(2, "big") + aad + plaintext[::-1]

    def unwrap(self, handle: KeyHandle, wrapped: bytes, aad: bytes) -> bytes:  # type: ignore[override]
        self._work("unwrap")
        if wrapped[2 : 2 + int.from_bytes(wrapped[:2], "big")] != aad:
            raise BadRequest("not ours", reason="unwrap_failed")
        return wrapped[2 + len(aad) :][::-1]
