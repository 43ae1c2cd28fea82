"""What a well-behaved token never does, played by a token of paper: keys that come out, faults, stale handles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.exceptions import DeviceError, GeneralError, NoSuchKey, ObjectHandleInvalid

from kms.errors import NotFound, StoreUnavailable
from kms.primitive import Primitive
from kms.providers import token_session
from kms.providers.connection import ConnectionLostError
from kms.providers.key_handle import new_handle
from kms.providers.token_session import MARKER_ID, TokenSession
from tests.support.provider_parts import kid_of

ED25519 = Primitive.ED25519
KID = kid_of(ED25519)
GOOD = {
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
    Attribute.EC_POINT: b"\x04\x20" + bytes(32),
}


class PaperKey:
    """A key whose attributes say what a test wants, and whose signing raises what it wants."""

    def __init__(self, errors: list[Exception] | None = None, **changed: Any) -> None:
        self.attributes = GOOD | {Attribute[name]: value for name, value in changed.items()}
        self.key_type = KeyType.EC_EDWARDS
        self.errors = errors or []
        self.destroyed = False
        self.wraps_out = False

    def __getitem__(self, name: Attribute) -> Any:
        return self.attributes[name]

    def sign(self, _data: bytes, **_: Any) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        return bytes(64)

    def wrap_key(self, _key: PaperKey) -> bytes:
        if self.wraps_out:
            return b"the private key"
        raise GeneralError

    def destroy(self) -> None:
        self.destroyed = True


class PaperSession:
    """A session that finds one key and the marker, and makes the pair that it is given."""

    def __init__(self, key: PaperKey | None, *, marker: bool = True) -> None:
        self.key = key
        self.marker = marker
        self.wrapping = PaperKey()
        self.lookups = 0
        self.error: Exception | None = None

    def get_key(self, *, object_class: ObjectClass, id: bytes) -> PaperKey:
        self.lookups += 1
        if self.key is None:
            raise NoSuchKey
        return self.key

    def get_objects(self, query: dict[Attribute, Any]) -> list[PaperKey]:
        if self.error is not None:
            raise self.error
        if query[Attribute.ID] == MARKER_ID:
            return [PaperKey()] if self.marker else []
        return [] if self.key is None else [self.key]

    def generate_key(self, *_: Any, **__: Any) -> PaperKey:
        return self.wrapping

    def create_domain_parameters(self, *_: Any, **__: Any) -> PaperSession:
        return self

    def generate_keypair(self, **_: Any) -> tuple[PaperKey, PaperKey]:
        if self.error is not None:
            raise self.error
        assert self.key is not None
        return self.key, self.key


def token_of(session: PaperSession) -> TokenSession:
    token = object.__new__(TokenSession)
    token._session = session  # type: ignore[assignment]
    token._objects = {}
    token.marker_public = b""
    return token


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SENSITIVE", False),
        ("EXTRACTABLE", True),
        ("ALWAYS_SENSITIVE", False),
        ("NEVER_EXTRACTABLE", False),
        ("LOCAL", False),
    ],
)
def test_a_key_that_the_token_does_not_keep_to_itself_is_neither_made_nor_used(name: str, value: bool) -> None:
    key = PaperKey(**{name: value})
    token = token_of(PaperSession(key))
    with pytest.raises(StoreUnavailable) as made:
        token.generate(ED25519, KID, new_handle(KID, ED25519))
    assert made.value.reason == "token_key_extractable"
    assert key.destroyed
    with pytest.raises(StoreUnavailable) as used:
        token.sign(new_handle(KID, ED25519), ED25519, b"")
    assert used.value.reason == "token_key_extractable"


def test_a_token_that_wraps_a_private_key_out_is_refused() -> None:
    """Its attributes say that it cannot: only trying tells."""
    session = PaperSession(PaperKey())
    token = token_of(session)
    token._refuse_if_it_comes_out(PaperKey())
    session.wrapping.wraps_out = True
    with pytest.raises(StoreUnavailable) as caught:
        token._refuse_if_it_comes_out(PaperKey())
    assert caught.value.reason == "token_exports_keys"


@pytest.mark.parametrize("point", [b"", b"\x04\x20" + bytes(31), b"\x04\x21" + bytes(33), b"\x03\x20" + bytes(32)])
def test_a_public_key_of_another_form_is_refused_and_its_pair_destroyed(point: bytes) -> None:
    key = PaperKey(EC_POINT=point)
    with pytest.raises(StoreUnavailable) as caught:
        token_of(PaperSession(key)).generate(ED25519, KID, new_handle(KID, ED25519))
    assert caught.value.reason == "token_bad_point"
    assert key.destroyed


def test_a_stale_object_is_looked_up_once_more_and_no_oftener() -> None:
    handle = new_handle(KID, ED25519)
    session = PaperSession(PaperKey([ObjectHandleInvalid()]))
    assert len(token_of(session).sign(handle, ED25519, b"")) == 64
    assert session.lookups == 2
    session = PaperSession(PaperKey([ObjectHandleInvalid(), ObjectHandleInvalid()]))
    with pytest.raises(StoreUnavailable) as caught:
        token_of(session).sign(handle, ED25519, b"")
    assert caught.value.reason == "token_fault"
    assert session.lookups == 2


def verbs(token: TokenSession) -> list[Callable[[], object]]:
    handle = new_handle(KID, ED25519)
    return [
        lambda: token.sign(handle, ED25519, b""),
        lambda: token.generate(ED25519, KID, handle),
        lambda: token.destroy(handle),
        lambda: token.attest(handle, b""),
    ]


def test_a_fault_with_the_marker_there_is_a_fault_and_without_it_a_loss() -> None:
    for marker, expected in ((True, StoreUnavailable), (False, ConnectionLostError)):
        session = PaperSession(PaperKey([DeviceError()]), marker=marker)
        with pytest.raises(expected):
            token_of(session).sign(new_handle(KID, ED25519), ED25519, b"")


def test_a_token_that_fails_at_everything_is_lost() -> None:
    session = PaperSession(PaperKey([DeviceError()]))
    session.error = DeviceError()
    for verb in verbs(token_of(session)):
        with pytest.raises(ConnectionLostError):
            verb()


def test_an_absent_key_is_not_found_only_while_the_token_is_there() -> None:
    handle = new_handle(KID, ED25519)
    with pytest.raises(NotFound):
        token_of(PaperSession(None)).sign(handle, ED25519, b"")
    with pytest.raises(ConnectionLostError):
        token_of(PaperSession(None, marker=False)).sign(handle, ED25519, b"")
    # A key whose public half is gone gives no evidence.
    with pytest.raises(NotFound):
        token_of(PaperSession(None)).attest(handle, b"")


def test_objects_are_kept_in_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_session, "MAX_CACHED_OBJECTS", 2)
    token = token_of(PaperSession(PaperKey()))
    for _ in range(5):
        token.sign(new_handle(KID, ED25519), ED25519, b"")
        assert len(token._objects) <= 2


def test_closing_never_raises() -> None:
    class Library:
        initialized = True

        def finalize(self) -> None:
            raise GeneralError

    token = token_of(PaperSession(None))
    token.close()
    token._library = Library()  # type: ignore[assignment]
    token.close()
