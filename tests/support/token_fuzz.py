"""A fuzz target for what a token answers: the module behind the PKCS#11 adapter says whatever the bytes say.

A zero byte is the answer of a token as it should be, and so is whatever comes after the last byte.
"""

from __future__ import annotations

from typing import Any, Final

from pkcs11 import Attribute, KeyType, exceptions

from kms.errors import NotFound, StoreUnavailable
from kms.kid import parse_kid
from kms.primitive import Primitive
from kms.providers.connection import ConnectionLostError
from kms.providers.key_handle import new_handle
from kms.providers.token_session import TokenSession

KID: Final = parse_kid("core/app/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v3")
PRIMITIVES: Final = (Primitive.ED25519, Primitive.ECDSA_P256_SHA256)
VERBS: Final = ("sign", "generate", "attest", "destroy", "check")
POINT_BYTES: Final = {Primitive.ED25519: 32, Primitive.ECDSA_P256_SHA256: 65}
_HEADERS: Final = {Primitive.ED25519: b"\x04\x20", Primitive.ECDSA_P256_SHA256: b"\x04\x41"}
_KEY_TYPES: Final = {Primitive.ED25519: KeyType.EC_EDWARDS, Primitive.ECDSA_P256_SHA256: KeyType.EC}
_NOT_SO: Final = frozenset({Attribute.EXTRACTABLE})
_FAULTS: Final = (
    exceptions.ObjectHandleInvalid,
    exceptions.NoSuchKey,
    exceptions.MultipleObjectsReturned,
    exceptions.DeviceRemoved,
    exceptions.SessionHandleInvalid,
    exceptions.AttributeTypeInvalid,
    exceptions.GeneralError,
)


class Script:
    """The bytes, one answer after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self.primitive = PRIMITIVES[0]
        self.kept_to_itself = True

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def some(self) -> bytes:
        length = self.byte()
        self._at += length
        return self._data[self._at - length : self._at]

    def may_fail(self) -> int:
        """Raise one of the module's errors, or give a number that is not one of theirs."""
        number = self.byte()
        if 0 < number <= len(_FAULTS):
            raise _FAULTS[number - 1]
        return number


class FuzzedObject:
    """A key in the token, or the session itself: every member answers by the script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def __getitem__(self, name: Attribute) -> Any:
        number = self._script.may_fail()
        if name is Attribute.EC_POINT:
            proper = _HEADERS[self._script.primitive] + bytes(POINT_BYTES[self._script.primitive])
            return proper if number == 0 else self._script.some()
        wanted = name not in _NOT_SO
        said = wanted if number == 0 else (not wanted, None, 1)[number % 3]
        if said is not wanted:
            self._script.kept_to_itself = False
        return said

    @property
    def key_type(self) -> KeyType:
        return _KEY_TYPES[self._script.primitive] if self._script.may_fail() == 0 else KeyType.AES

    def sign(self, _data: bytes, mechanism: object) -> bytes:
        return bytes(64) if self._script.may_fail() == 0 else self._script.some()

    def destroy(self) -> None:
        self._script.may_fail()

    def get_key(self, **_query: object) -> FuzzedObject:
        self._script.may_fail()
        return FuzzedObject(self._script)

    def get_objects(self, _query: object) -> list[FuzzedObject]:
        number = self._script.may_fail()
        return [FuzzedObject(self._script)] * (1 if number == 0 else number % 4)

    def create_domain_parameters(self, *_given: object, **_more: object) -> FuzzedObject:
        self._script.may_fail()
        return self

    def generate_keypair(self, **_given: object) -> tuple[FuzzedObject, FuzzedObject]:
        self._script.may_fail()
        return FuzzedObject(self._script), FuzzedObject(self._script)


class _Token:
    model, serial = "model", b"serial"


def outcome(data: bytes) -> bytes | None:
    """Let the adapter do what the first two bytes say, with the rest as answers; None: it refused by its own errors."""
    script = Script(data)
    verb, script.primitive = VERBS[script.byte() % len(VERBS)], PRIMITIVES[script.byte() % len(PRIMITIVES)]
    session: Any = TokenSession.__new__(TokenSession)
    session._session = session._marker = FuzzedObject(script)
    session._objects, session._token, session.marker_public = {}, _Token(), b"marker"
    handle, message = new_handle(KID, script.primitive), bytes(32)
    try:
        if verb == "sign":
            made: bytes = session.sign(handle, script.primitive, message)
        elif verb == "generate":
            made = session.generate(script.primitive, KID, handle)
            assert len(made) == POINT_BYTES[script.primitive], "a public key of another form"
        elif verb == "attest":
            return bytes(session.attest(handle, message).evidence)
        else:
            session.destroy(handle) if verb == "destroy" else session.check()
            return b""
    except (ConnectionLostError, StoreUnavailable, NotFound):
        return None
    assert script.kept_to_itself, "a key that may leave the token was used"
    return made


def fuzz_pkcs11_adapter(data: bytes) -> None:
    """Take a verb, an algorithm and a token's answers. Nothing but the adapter's own errors comes out."""
    outcome(data)
