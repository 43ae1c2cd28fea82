"""The cloud provider on moto's server: what a wrapping is bound to, and what a disabled or absent key means."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kms.errors import Backpressure, BadRequest, KmsError, NotFound, StoreUnavailable, Timeout, TooLarge, Unsupported
from kms.kid import Kid
from kms.primitive import Primitive
from kms.providers import cloud
from kms.providers.cloud import CloudProvider, check_endpoint, open_cloud_provider
from kms.providers.provider import KeyHandle
from tests.support import moto_kms
from tests.support.provider_parts import kid_of

X25519 = Primitive.X25519
SECRET = bytes(range(32))


class SetClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _credentials() -> Iterator[None]:
    with moto_kms.credentials():
        yield


@pytest.fixture
def key_id() -> str:
    return moto_kms.new_key()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def provider(key_id: str, clock: SetClock) -> Iterator[CloudProvider]:
    opened = moto_kms.open_provider(key_id, clock)
    yield opened
    opened.close()


def handle_of(provider: CloudProvider, kid: Kid | None = None) -> KeyHandle:
    return provider.generate(X25519, kid or kid_of(X25519)).handle


def test_what_is_wrapped_unwraps_and_is_not_seen(provider: CloudProvider) -> None:
    handle = handle_of(provider)
    wrapped = provider.wrap(handle, SECRET, b"aad")
    assert SECRET not in wrapped
    assert provider.unwrap(handle, wrapped, b"aad") == SECRET
    assert provider.wrap(handle, SECRET, b"aad") != wrapped
    assert provider.unwrap(handle, provider.wrap(handle, bytes(4096), b""), b"") == bytes(4096)


def test_a_wrapping_is_bound_to_its_kid_its_bytes_and_its_cloud_key(provider: CloudProvider) -> None:
    handle, other = handle_of(provider), handle_of(provider, kid_of(X25519, 2))
    wrapped = provider.wrap(handle, SECRET, b"aad")
    cases: list[tuple[KeyHandle, bytes, bytes]] = [
        (other, wrapped, b"aad"),
        (KeyHandle(""), wrapped, b"aad"),
        (handle, wrapped, b"aae"),
        (handle, wrapped, b""),
        (handle, wrapped[:-1], b"aad"),
        (handle, wrapped + b"\0", b"aad"),
        (handle, b"", b"aad"),
        (handle, bytes(6145), b"aad"),
        *((handle, wrapped[:at] + bytes([wrapped[at] ^ 1]) + wrapped[at + 1 :], b"aad") for at in (0, 40, 50, 70, -2)),
    ]
    for name, blob, aad in cases:
        with pytest.raises(BadRequest):
            provider.unwrap(name, blob, aad)
    elsewhere = moto_kms.open_provider(moto_kms.new_key())
    with pytest.raises(BadRequest):
        elsewhere.unwrap(handle, wrapped, b"aad")
    elsewhere.close()


def test_the_service_sees_neither_kid_nor_tenant(provider: CloudProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encryption context stands in the cloud's own log."""
    contexts: list[dict[str, str]] = []
    encrypt = provider._client.encrypt

    def seen(**request: Any) -> Any:
        contexts.append(request["EncryptionContext"])
        return encrypt(**request)

    monkeypatch.setattr(provider._client, "encrypt", seen)
    handle = handle_of(provider)
    provider.wrap(handle, SECRET, str(kid_of(X25519)).encode())
    assert contexts[0].keys() == {"signet-kms", "signet-kms-handle", "signet-kms-aad-sha256"}
    assert contexts[0]["signet-kms-handle"] == handle
    assert "acme" not in str(contexts)


def test_only_wrapping_keys_are_named_here(provider: CloudProvider) -> None:
    for primitive in Primitive:
        if primitive in {X25519, Primitive.ML_KEM_768}:
            assert provider.generate(primitive, kid_of(primitive)).public == b""
        else:
            with pytest.raises(Unsupported):
                provider.generate(primitive, kid_of(primitive))


def test_sizes_and_names_are_bounded(provider: CloudProvider) -> None:
    handle = handle_of(provider)
    for plaintext in (b"", bytes(4097)):
        with pytest.raises(TooLarge):
            provider.wrap(handle, plaintext, b"")
    with pytest.raises(TooLarge):
        provider.wrap(handle, SECRET, bytes(4097))
    with pytest.raises(NotFound):
        provider.wrap(KeyHandle("x"), SECRET, b"")


def test_a_disabled_cloud_key_is_not_used_past_a_second(provider: CloudProvider, key_id: str, clock: SetClock) -> None:
    """moto itself goes on encrypting with a disabled key: we do not."""
    handle = handle_of(provider)
    wrapped = provider.wrap(handle, SECRET, b"")
    moto_kms.client().disable_key(KeyId=key_id)
    clock.now_s += 1.001
    for call in (
        lambda: provider.wrap(handle, SECRET, b""),
        lambda: provider.unwrap(handle, wrapped, b""),
        provider.check,
        lambda: handle_of(provider),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert caught.value.reason == "cloud_key_disabled"
    moto_kms.client().enable_key(KeyId=key_id)
    assert provider.unwrap(handle, wrapped, b"") == SECRET
    moto_kms.client().schedule_key_deletion(KeyId=key_id)
    clock.now_s += 1.001
    with pytest.raises(StoreUnavailable):
        provider.unwrap(handle, wrapped, b"")


def test_a_fresh_state_saves_the_question(provider: CloudProvider, clock: SetClock) -> None:
    asked: list[int] = []
    describe = provider._client.describe_key
    provider._client.describe_key = lambda **request: (asked.append(1), describe(**request))[1]
    handle = handle_of(provider)
    asked.clear()
    for _ in range(3):
        provider.wrap(handle, SECRET, b"")
    assert asked == []
    clock.now_s += 1.001
    for _ in range(3):
        provider.wrap(handle, SECRET, b"")
    assert asked == [1]


def test_a_key_that_cannot_wrap_or_is_not_there_stops_the_start() -> None:
    signing = moto_kms.new_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")
    for key, reason in ((signing, "cloud_key_usage"), ("no-such-key", "cloud_key_disabled")):
        with pytest.raises(StoreUnavailable) as caught:
            moto_kms.open_provider(key)
        assert caught.value.reason == reason


def test_an_absent_and_a_silent_service_are_told_in_time(key_id: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable) as away:
            open_cloud_provider(key_id, f"http://127.0.0.1:{port}", moto_kms.REGION, time.monotonic)
        assert away.value.reason == "cloud_away"
        silent.listen()
        started_s = time.monotonic()
        with pytest.raises(Timeout):
            open_cloud_provider(key_id, f"http://127.0.0.1:{port}", moto_kms.REGION, time.monotonic)
        assert time.monotonic() - started_s < 10


def test_no_credentials_are_told(key_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreUnavailable) as caught:
        moto_kms.open_provider(key_id)
    assert caught.value.reason == "cloud_credentials"


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("", True),
        ("https://kms.eu-west-1.amazonaws.com", True),
        ("http://127.0.0.1:4566", True),
        ("http://[::1]:4566", True),
        ("http://localhost:4566", True),
        ("http://kms.example.com", False),
        ("http://10.0.0.1", False),
        ("http://localhost.example.com", False),
        ("ftp://127.0.0.1", False),
        ("127.0.0.1:4566", False),
        ("https://", False),
    ],
)
def test_nothing_is_sent_in_the_clear_off_this_machine(endpoint: str, allowed: bool) -> None:
    if allowed:
        check_endpoint(endpoint)
    else:
        with pytest.raises(Unsupported):
            check_endpoint(endpoint)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("InvalidCiphertextException", BadRequest),
        ("IncorrectKeyException", BadRequest),
        ("DisabledException", StoreUnavailable),
        ("KMSInvalidStateException", StoreUnavailable),
        ("ThrottlingException", Backpressure),
        ("AccessDeniedException", StoreUnavailable),
        ("SomethingNew", StoreUnavailable),
        ("", StoreUnavailable),
    ],
)
def test_every_code_of_the_service_is_one_of_ours(code: str, error: type[KmsError]) -> None:
    assert isinstance(cloud._client_error(code), error)


def test_threads_share_the_client(provider: CloudProvider) -> None:
    handle = handle_of(provider)
    opened: list[bytes] = []

    def work() -> None:
        opened.append(provider.unwrap(handle, provider.wrap(handle, SECRET, b"x"), b"x"))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert opened == [SECRET] * 6
