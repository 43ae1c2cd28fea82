"""Sealed files: what was altered, cut, swapped or made by a later version is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import NotFound, StoreUnavailable
from kms.primitive import Primitive
from kms.providers.file import FileProvider
from kms.providers.key_handle import new_handle
from kms.providers.provider import KeyHandle, ProviderKey
from kms.providers.sealed_bytes import Aead, SealedFileError, derive_seal_key
from kms.providers.sealed_key import (
    MAGIC,
    MAX_SEALED_KEY_BYTES,
    SealedKeyHeader,
    open_sealed_key,
    parse_sealed_key,
    write_sealed_key,
)
from kms.providers.sealed_root import (
    SEALED_ROOT_BYTES,
    Kdf,
    KdfCost,
    check_cost,
    new_sealed_root,
    open_sealed_root,
    parse_sealed_root,
)
from kms.providers.secret_buffer import SecretBuffer, os_random
from kms.providers.software_key import SoftwareKey, new_seed
from tests.support.provider_parts import QUICK_ARGON2ID, QUICK_SCRYPT, kid_of, open_quick_file_provider
from tests.support.sealed_fuzz import fuzz_sealed_key, fuzz_sealed_root

DIGEST = bytes(32)
STORE = bytes(range(16))


def secret(data: bytes) -> SecretBuffer:
    buffer = SecretBuffer(len(data))
    buffer.view[:] = data
    return buffer


MASTER = secret(bytes(range(32)))


def sealed(primitive: Primitive, aead: Aead = Aead.CHACHA20_POLY1305, version: int = 1) -> tuple[KeyHandle, bytes]:
    kid = kid_of(primitive, version)
    handle = new_handle(kid, primitive)
    with new_seed(primitive) as seed:
        public = SoftwareKey(primitive, seed).public
        header = SealedKeyHeader(STORE, handle, primitive, str(kid), public, aead, bytes(12))
        return handle, write_sealed_key(MASTER, header, seed)


@pytest.mark.parametrize("aead", list(Aead))
@pytest.mark.parametrize("primitive", list(Primitive))
def test_a_sealed_key_opens_as_it_was(primitive: Primitive, aead: Aead) -> None:
    handle, data = sealed(primitive, aead)
    header, _ = parse_sealed_key(data)
    opened = open_sealed_key(MASTER, STORE, handle, data)
    assert (header.kid, header.primitive, header.aead) == (str(kid_of(primitive)), primitive, aead)
    assert header.handle == handle
    assert opened.primitive is primitive
    assert opened.public == header.public


@pytest.mark.parametrize("aead", list(Aead))
@pytest.mark.parametrize("primitive", [Primitive.ED25519, Primitive.HKDF_ROOT])
def test_every_altered_byte_is_refused(primitive: Primitive, aead: Aead) -> None:
    handle, data = sealed(primitive, aead)
    for position in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            altered = bytearray(data)
            altered[position] ^= flip
            with pytest.raises(SealedFileError):
                open_sealed_key(MASTER, STORE, handle, bytes(altered))


def test_every_cut_and_every_added_byte_is_refused() -> None:
    handle, data = sealed(Primitive.ED25519)
    for length in range(len(data)):
        with pytest.raises(SealedFileError):
            open_sealed_key(MASTER, STORE, handle, data[:length])
    for extra in (b"\0", b"x" * 100, bytes(MAX_SEALED_KEY_BYTES)):
        with pytest.raises(SealedFileError):
            open_sealed_key(MASTER, STORE, handle, data + extra)


def test_what_is_wrong_is_named() -> None:
    handle, data = sealed(Primitive.ED25519)
    other, other_data = sealed(Primitive.ED25519, version=2)
    cases = {
        "other_key": (STORE, other, data),
        "other_store": (bytes(16), handle, data),
        "unknown_version": (STORE, handle, MAGIC + b"\2" + data[9:]),
        "bad_magic": (STORE, handle, b"x" + data[1:]),
        "unknown_aead": (STORE, handle, data[:9] + b"\3" + data[10:]),
        "too_long": (STORE, handle, data + bytes(MAX_SEALED_KEY_BYTES)),
        "unknown_primitive": (STORE, handle, data.replace(b"\7ed25519", b"\7ed25518")),
        # A file that says another kid than its handle was made for.
        "other_kid": (STORE, handle, data.replace(b"#v1", b"#v3")),
        "seal_broken": (STORE, handle, data[:-1] + bytes([data[-1] ^ 1])),
    }
    for reason, (store, name, content) in cases.items():
        with pytest.raises(SealedFileError) as caught:
            open_sealed_key(MASTER, store, name, content)
        assert caught.value.reason == reason
    assert open_sealed_key(MASTER, STORE, other, other_data).public


def test_a_seed_under_another_public_key_is_refused() -> None:
    """Whoever holds the master key may write files, but a public key that is not the seed's gains him nothing."""
    kid = kid_of(Primitive.ED25519)
    handle = new_handle(kid, Primitive.ED25519)
    with new_seed(Primitive.ED25519) as seed:
        header = SealedKeyHeader(
            STORE, handle, Primitive.ED25519, str(kid), bytes(32), Aead.CHACHA20_POLY1305, bytes(12)
        )
        data = write_sealed_key(MASTER, header, seed)
    with pytest.raises(SealedFileError, match="public"):
        open_sealed_key(MASTER, STORE, handle, data)


def test_no_two_files_are_sealed_under_one_key() -> None:
    """Nonces cannot repeat under a key, because no key seals twice (G-15)."""
    keys = set()
    for _ in range(200):
        handle = new_handle(kid_of(Primitive.ED25519), Primitive.ED25519)
        with derive_seal_key(MASTER, bytes.fromhex(handle), b"signet-kms sealed key v1") as key:
            keys.add(bytes(key.view))
    assert len(keys) == 200


SAMPLE = sealed(Primitive.ED25519)[1]
SAMPLE_ROOT = new_sealed_root(secret(b"x" * 16), QUICK_SCRYPT, Aead.AES_256_GCM)[0]


@st.composite
def damaged(draw: st.DrawFn, sample: bytes) -> bytes:
    data = bytearray(sample)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data[start:end] = draw(st.binary(max_size=10))
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=300), damaged(SAMPLE), st.binary(max_size=200).map(lambda tail: MAGIC + tail)))
def test_any_bytes_are_refused_or_are_what_they_say(data: bytes) -> None:
    fuzz_sealed_key(data)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), damaged(SAMPLE_ROOT)))
def test_any_bytes_are_refused_or_are_a_root(data: bytes) -> None:
    fuzz_sealed_root(data)


@pytest.mark.parametrize("cost", [QUICK_SCRYPT, QUICK_ARGON2ID])
@pytest.mark.parametrize("aead", list(Aead))
def test_a_root_opens_under_its_passphrase_alone(cost: KdfCost, aead: Aead) -> None:
    data, store_id, master = new_sealed_root(secret(b"passphrase of sixteen"), cost, aead)
    assert len(data) == SEALED_ROOT_BYTES
    opened_id, opened = open_sealed_root(secret(b"passphrase of sixteen"), data)
    assert opened_id == store_id
    assert opened.view == master.view
    for wrong in (b"passphrase of sixteem", b"Passphrase of sixteen", b"passphrase of sixteen "):
        with pytest.raises(SealedFileError, match="seal"):
            open_sealed_root(secret(wrong), data)


def test_every_altered_byte_of_a_root_is_refused() -> None:
    passphrase = secret(b"x" * 16)
    data, _, _ = new_sealed_root(passphrase, QUICK_ARGON2ID, Aead.CHACHA20_POLY1305)
    kdf_cost = range(10, 22)
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= 0x10 if position in kdf_cost else 0x01
        with pytest.raises(SealedFileError):
            open_sealed_root(passphrase, bytes(altered))
    for length in (0, 8, 9, len(data) - 1):
        with pytest.raises(SealedFileError):
            open_sealed_root(passphrase, data[:length])


def test_a_random_source_that_fails_leaves_no_root_and_no_master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped: list[int] = []
    wipe = SecretBuffer.wipe
    monkeypatch.setattr(SecretBuffer, "wipe", lambda self: (wiped.append(len(self)), wipe(self))[1])

    def broken(_view: memoryview) -> None:
        raise OSError("no entropy")

    with pytest.raises(OSError, match="entropy"):
        new_sealed_root(secret(b"x" * 16), QUICK_SCRYPT, Aead.AES_256_GCM, broken)
    assert 32 in wiped


@pytest.mark.parametrize(
    "cost",
    [
        KdfCost(Kdf.SCRYPT, 13, 8, 1),
        KdfCost(Kdf.SCRYPT, 19, 8, 1),
        KdfCost(Kdf.SCRYPT, 16, 16, 1),
        KdfCost(Kdf.SCRYPT, 16, 8, 0),
        KdfCost(Kdf.ARGON2ID, 0, 65_536, 4),
        KdfCost(Kdf.ARGON2ID, 3, 2**31, 4),
        KdfCost(Kdf.ARGON2ID, 3, 65_536, 255),
    ],
)
def test_costs_out_of_bounds_are_not_followed(cost: KdfCost) -> None:
    """A header could else ask for all the machine's memory, or for none."""
    with pytest.raises(SealedFileError, match="out of bounds"):
        check_cost(cost)
    header, ciphertext = parse_sealed_root(SAMPLE_ROOT)
    forged = dataclasses.replace(header, cost=cost).encode() + ciphertext
    with pytest.raises(SealedFileError, match="out of bounds"):
        parse_sealed_root(forged)


def test_an_unknown_kdf_is_refused() -> None:
    forged = bytearray(SAMPLE_ROOT)
    forged[9] = 9
    with pytest.raises(SealedFileError, match="key derivation"):
        parse_sealed_root(bytes(forged))


# in the folder


@pytest.fixture
def two_keys(tmp_path: Path) -> tuple[Path, ProviderKey, ProviderKey]:
    provider = open_quick_file_provider(tmp_path)
    first = provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 1))
    second = provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 2))
    provider.close()
    return tmp_path, first, second


def reopened(folder: Path) -> FileProvider:
    return open_quick_file_provider(folder)


def test_files_swapped_between_kids_are_refused(two_keys: tuple[Path, ProviderKey, ProviderKey]) -> None:
    folder, first, second = two_keys
    one, two = (folder / "sealed" / f"{key.handle}.key" for key in (first, second))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    provider = reopened(folder)
    for key in (first, second):
        with pytest.raises(StoreUnavailable) as caught:
            provider.sign(key.handle, Primitive.ED25519, DIGEST)
        assert caught.value.reason == "sealed_file_other_key"
    provider.close()


def test_a_file_of_another_store_is_refused(two_keys: tuple[Path, ProviderKey, ProviderKey], tmp_path: Path) -> None:
    folder, first, second = two_keys
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    open_quick_file_provider(elsewhere).close()
    shutil.copy2(folder / "sealed" / f"{first.handle}.key", elsewhere / "sealed")
    provider = reopened(elsewhere)
    with pytest.raises(StoreUnavailable) as caught:
        provider.sign(first.handle, Primitive.ED25519, DIGEST)
    assert caught.value.reason == "sealed_file_other_store"
    with pytest.raises(NotFound):
        provider.sign(second.handle, Primitive.ED25519, DIGEST)
    provider.close()


def test_one_damaged_file_leaves_the_others_usable(two_keys: tuple[Path, ProviderKey, ProviderKey]) -> None:
    folder, first, second = two_keys
    path = folder / "sealed" / f"{first.handle}.key"
    path.write_bytes(path.read_bytes()[:-1])
    provider = reopened(folder)
    with pytest.raises(StoreUnavailable) as caught:
        provider.sign(first.handle, Primitive.ED25519, DIGEST)
    assert caught.value.reason == "sealed_file_bad_length"
    assert len(provider.sign(second.handle, Primitive.ED25519, DIGEST)) == 64
    provider.close()


def test_the_seed_stands_nowhere_in_the_clear(tmp_path: Path) -> None:
    drawn: list[bytes] = []

    def remembered(view: memoryview) -> None:
        os_random(view)
        drawn.append(bytes(view))

    provider = open_quick_file_provider(tmp_path)
    provider._random_fill = remembered
    for primitive in Primitive:
        provider.generate(primitive, kid_of(primitive))
    provider.close()
    assert len(drawn) == len(Primitive)
    for path in (tmp_path / "sealed").iterdir():
        content = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        assert not any(seed[:16] in content or seed.hex()[:32].encode() in content for seed in drawn)
