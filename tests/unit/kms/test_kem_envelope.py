"""The hybrid KEM envelope: it opens where it was sealed to, and nothing altered opens anywhere (I-7, G-2, G-15)."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import BadRequest, KmsError, Unsupported
from kms.kem_envelope import MAX_ENVELOPE_BYTES, AeadName, KemPublic, Nonces, open_envelope, provider_aad, seal
from kms.kid import Kid, parse_kid
from kms.primitive import Primitive
from kms.providers.inmem import InMemoryProvider

VECTORS = Path(__file__).parents[2] / "vectors" / "wycheproof"
KID = parse_kid("core/kem/x25519/3c8b1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v2")
OTHER = parse_kid("core/kem/x25519/3c8b1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v1")
KEY = bytes(range(32))
# Where each field of the envelope begins.
FIELDS = {"version": 0, "aead": 1, "nonce": 2, "ephemeral": 14, "ciphertext": 46, "sealed": 1134, "tag": 1166}


class KemKey:
    """Both halves in a provider."""

    def __init__(self) -> None:
        self.provider = InMemoryProvider()
        self.x = self.provider.generate(Primitive.X25519, KID)
        self.m = self.provider.generate(Primitive.ML_KEM_768, KID)
        self.public = KemPublic(self.x.public, self.m.public)

    def open(self, envelope: bytes, kid: Kid = KID, public: KemPublic | None = None) -> bytes:
        return open_envelope(
            kid,
            public or self.public,
            envelope,
            lambda peer: self.provider.agree(self.x.handle, peer),
            lambda ciphertext: self.provider.decapsulate(self.m.handle, ciphertext),
        )


@pytest.fixture(scope="module")
def key() -> KemKey:
    return KemKey()


@pytest.fixture(scope="module")
def nonces() -> Nonces:
    return Nonces(lambda count: b"\x07" * count)


@pytest.mark.parametrize("aead", ["chacha20poly1305", "aes-gcm"])
@pytest.mark.parametrize("length", [16, 17, 32, 4096])
def test_a_key_is_got_back(key: KemKey, nonces: Nonces, aead: AeadName, length: int) -> None:
    plaintext = bytes(length)
    envelope = seal(KID, key.public, plaintext, nonces.take(), aead)
    assert key.open(envelope) == plaintext
    assert len(envelope) == 1134 + length + 16 <= MAX_ENVELOPE_BYTES


@pytest.mark.parametrize("length", [0, 15, 4097])
def test_keys_of_another_length_are_not_wrapped(key: KemKey, nonces: Nonces, length: int) -> None:
    with pytest.raises(BadRequest):
        seal(KID, key.public, bytes(length), nonces.take())


@pytest.mark.parametrize("field", list(FIELDS))
@pytest.mark.parametrize("aead", ["chacha20poly1305", "aes-gcm"])
def test_an_envelope_altered_in_any_field_does_not_open(
    key: KemKey, nonces: Nonces, field: str, aead: AeadName
) -> None:
    envelope = bytearray(seal(KID, key.public, KEY, nonces.take(), aead))
    for bit in (1, 2, 0x40):
        altered = bytearray(envelope)
        altered[FIELDS[field]] ^= bit
        with pytest.raises((BadRequest, Unsupported)):
            key.open(bytes(altered))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 1181), flip=st.integers(1, 255))
def test_one_altered_byte_anywhere_refuses(place: int, flip: int) -> None:
    altered = bytearray(_ENVELOPE)
    altered[place] ^= flip
    with pytest.raises((BadRequest, Unsupported)):
        _KEY.open(bytes(altered))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=1300))
def test_whatever_is_no_envelope_is_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises(KmsError):
        _KEY.open(data)
    with pytest.raises(KmsError):
        _KEY.open(_ENVELOPE[: len(data)] if len(data) < len(_ENVELOPE) else _ENVELOPE + b"x")


def test_it_opens_under_no_other_kid_or_version_of_the_same_key(key: KemKey, nonces: Nonces) -> None:
    envelope = seal(KID, key.public, KEY, nonces.take())
    assert key.open(envelope) == KEY
    with pytest.raises(BadRequest) as refused:
        key.open(envelope, OTHER)
    assert refused.value.reason == "unwrap_failed"


def test_it_opens_with_no_other_key(key: KemKey, nonces: Nonces) -> None:
    envelope = seal(KID, key.public, KEY, nonces.take())
    with pytest.raises(BadRequest):
        KemKey().open(envelope)


def test_implicit_rejection_of_ml_kem_does_not_pass(key: KemKey, nonces: Nonces) -> None:
    """The ML-KEM half alone would give a secret for any ciphertext: only the tag can tell."""
    envelope = bytearray(seal(KID, key.public, KEY, nonces.take()))
    foreign = mlkem.MLKEM768PublicKey.from_public_bytes(key.public.ml_kem).encapsulate()[1]
    envelope[FIELDS["ciphertext"] : FIELDS["sealed"]] = foreign
    assert len(key.provider.decapsulate(key.m.handle, foreign)) == 32
    with pytest.raises(BadRequest):
        key.open(bytes(envelope))


@pytest.mark.parametrize("half", ["x25519", "ml_kem"])
def test_one_half_alone_does_not_open_it(key: KemKey, nonces: Nonces, half: str) -> None:
    envelope = seal(KID, key.public, KEY, nonces.take())
    other = KemKey()
    x_from, m_from = (key, other) if half == "x25519" else (other, key)
    with pytest.raises(BadRequest):
        open_envelope(
            KID,
            key.public,
            envelope,
            lambda peer: x_from.provider.agree(x_from.x.handle, peer),
            lambda ciphertext: m_from.provider.decapsulate(m_from.m.handle, ciphertext),
        )


@pytest.mark.parametrize("half", ["x25519", "ml_kem"])
def test_the_recipients_public_keys_are_bound(key: KemKey, nonces: Nonces, half: str) -> None:
    envelope = seal(KID, key.public, KEY, nonces.take())
    other = KemKey().public
    wrong = (
        KemPublic(other.x25519, key.public.ml_kem) if half == "x25519" else KemPublic(key.public.x25519, other.ml_kem)
    )
    with pytest.raises(BadRequest):
        key.open(envelope, public=wrong)


def test_a_small_order_ephemeral_key_is_refused_like_any_other_alteration(key: KemKey, nonces: Nonces) -> None:
    envelope = bytearray(seal(KID, key.public, KEY, nonces.take()))
    envelope[FIELDS["ephemeral"] : FIELDS["ciphertext"]] = bytes(32)
    with pytest.raises(BadRequest) as refused:
        key.open(bytes(envelope))
    assert refused.value.reason == "unwrap_failed"


def test_two_envelopes_of_one_key_share_nothing(key: KemKey, nonces: Nonces) -> None:
    envelopes = [seal(KID, key.public, KEY, nonces.take()) for _ in range(50)]
    for start, end in ((2, 14), (14, 46), (46, 1134), (1134, 1182)):
        assert len({envelope[start:end] for envelope in envelopes}) == 50


def test_the_format_is_the_documented_one() -> None:
    """A second reading of the module's text, from HMAC up, opens what the first one sealed."""
    x_private, m_private = x25519.X25519PrivateKey.generate(), mlkem.MLKEM768PrivateKey.generate()
    x_public, m_public = x_private.public_key().public_bytes_raw(), m_private.public_key().public_bytes_raw()
    for aead, cipher in (("chacha20poly1305", ChaCha20Poly1305), ("aes-gcm", AESGCM)):
        envelope = seal(KID, KemPublic(x_public, m_public), KEY, b"n" * 12, aead)  # type: ignore[arg-type]
        start, nonce, ephemeral, ciphertext, sealed = (
            envelope[:2],
            envelope[2:14],
            envelope[14:46],
            envelope[46:1134],
            envelope[1134:],
        )
        assert nonce == b"n" * 12
        secrets = m_private.decapsulate(ciphertext) + x_private.exchange(
            x25519.X25519PublicKey.from_public_bytes(ephemeral)
        )
        kid = str(KID).encode()
        transcript = start + len(kid).to_bytes(2, "big") + kid + x_public + m_public + ephemeral + ciphertext
        info = b"signet-kms hybrid kem envelope v1\0" + hashlib.sha256(transcript).digest()
        extracted = hmac.digest(bytes(32), secrets, "sha256")
        derived = hmac.digest(extracted, info + b"\x01", "sha256")
        assert cipher(derived).decrypt(nonce, sealed, start + kid) == KEY
        with pytest.raises(InvalidTag):
            cipher(derived).decrypt(nonce, sealed, start + kid + b"x")


@settings(max_examples=30, deadline=None)
@given(prefix=st.binary(min_size=4, max_size=4), count=st.integers(2, 500))
def test_nonces_never_repeat(prefix: bytes, count: int) -> None:
    nonces = Nonces(lambda _: prefix)
    taken = [nonces.take() for _ in range(count)]
    assert len(set(taken)) == count
    assert all(len(nonce) == 12 for nonce in taken)


def test_nonces_end_rather_than_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itertools, "count", lambda: iter([2**64 - 1, 2**64]))
    nonces = Nonces(bytes)
    nonces.take()
    with pytest.raises(OverflowError):
        nonces.take()


def test_a_providers_own_wrapping_is_bound_to_the_kid() -> None:
    assert provider_aad(KID) != provider_aad(OTHER)
    assert provider_aad(KID).endswith(str(KID).encode())


def test_hkdf_agrees_with_rfc_5869_and_wycheproof() -> None:
    seen = 0
    for group in json.loads((VECTORS / "hkdf_sha256_test.json").read_text())["testGroups"]:
        for case in group["tests"]:
            ikm, salt, info = (bytes.fromhex(case[name]) for name in ("ikm", "salt", "info"))
            try:
                okm = HKDF(hashes.SHA256(), case["size"], salt, info).derive(ikm).hex()
                result = "valid"
            except ValueError:
                okm, result = "", "invalid"
            assert (result, okm) == (case["result"], case["okm"]), case["tcId"]
            seen += 1
    assert seen == 56


@pytest.mark.parametrize(
    ("name", "cipher"), [("chacha20_poly1305_test.json", ChaCha20Poly1305), ("aes_gcm_test.json", AESGCM)]
)
def test_aeads_agree_with_rfc_8439_and_wycheproof(name: str, cipher: Any) -> None:
    seen = 0
    for group in json.loads((VECTORS / name).read_text())["testGroups"]:
        if group["ivSize"] != 96 or group["keySize"] != 256:
            continue  # The envelope has no other nonces and keys.
        for case in group["tests"]:
            key, nonce, aad, message, sealed, tag = (
                bytes.fromhex(case[part]) for part in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            try:
                opened = cipher(key).decrypt(nonce, sealed + tag, aad)
            except InvalidTag:
                assert case["result"] == "invalid", case["tcId"]
            else:
                assert (case["result"], opened) == ("valid", message), case["tcId"]
            seen += 1
    assert seen >= 50


_KEY = KemKey()
_ENVELOPE = seal(KID, _KEY.public, KEY, b"n" * 12)
