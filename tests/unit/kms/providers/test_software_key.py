"""Software keys: the standards' known answers for the private side, and what a wiped or misused key does."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import BadRequest, NotFound, StoreUnavailable, TooLarge, Unsupported
from kms.primitive import Primitive
from kms.providers.inmem import InMemoryProvider
from kms.providers.secret_buffer import SecretBuffer
from kms.providers.software_key import SEED_BYTES, SoftwareKey, new_seed
from tests.support.provider_parts import kid_of
from tests.support.public_operations import verify

VECTORS = Path(__file__).parents[3] / "vectors"
P256 = Primitive.ECDSA_P256_SHA256
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def key_of(primitive: Primitive, seed: bytes) -> SoftwareKey:
    with SecretBuffer(len(seed)) as buffer:
        buffer.view[:] = seed
        return SoftwareKey(primitive, buffer)


# known answers

# RFC 8032 §7.1, tests 1 to 3: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
            "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
            "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
            "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_ed25519_signs_as_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = key_of(Primitive.ED25519, bytes.fromhex(seed))
    assert key.public.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature


def test_x25519_agrees_with_every_wycheproof_vector_and_refuses_zeros() -> None:
    """Among them RFC 7748 §6.1; what gives an all-zero secret is refused."""
    outcomes = {"agreed": 0, "refused": 0, "rfc7748": 0}
    for case in load("wycheproof/x25519_test.json")["testGroups"][0]["tests"]:
        key = key_of(Primitive.X25519, bytes.fromhex(case["private"]))
        if case["shared"] == "00" * 32:
            with pytest.raises(BadRequest):
                key.agree(bytes.fromhex(case["public"]))
            outcomes["refused"] += 1
            continue
        assert key.agree(bytes.fromhex(case["public"])).hex() == case["shared"], case["tcId"]
        outcomes["agreed"] += 1
        outcomes["rfc7748"] += case["comment"].startswith("RFC 7748")
    assert outcomes["agreed"] > 300
    assert outcomes["refused"] > 0
    assert outcomes["rfc7748"] == 2


def test_ml_kem_768_agrees_with_every_wycheproof_vector() -> None:
    """From the 64-byte seed to the public key and the shared secret, implicit rejections among them."""
    seen = {"valid": 0, "invalid": 0}
    for group in load("wycheproof/mlkem_768_test.json")["testGroups"]:
        for case in group["tests"]:
            seed, ciphertext = bytes.fromhex(case["seed"]), bytes.fromhex(case["c"])
            seen[case["result"]] += 1
            if len(seed) != SEED_BYTES[Primitive.ML_KEM_768]:
                with pytest.raises(ValueError, match="length"):
                    key_of(Primitive.ML_KEM_768, seed)
                continue
            key = key_of(Primitive.ML_KEM_768, seed)
            if case["result"] == "invalid":
                with pytest.raises(BadRequest):
                    key.decapsulate(ciphertext)
                continue
            assert key.public.hex() == case["ek"]
            assert key.decapsulate(ciphertext).hex() == case["K"]
    assert seen == {"valid": 106, "invalid": 30}


def test_ml_dsa_65_keys_are_those_of_every_wycheproof_seed() -> None:
    """Our signatures are hedged, so not those of the file; both verify under the key that the seed makes."""
    seen = 0
    for group in load("wycheproof/mldsa_65_sign_seed_test.json")["testGroups"]:
        seed = bytes.fromhex(group["privateSeed"])
        if len(seed) != SEED_BYTES[Primitive.ML_DSA_65]:
            with pytest.raises(ValueError, match=r"length|64 KiB"):
                key_of(Primitive.ML_DSA_65, seed)
            continue
        key = key_of(Primitive.ML_DSA_65, seed)
        assert key.public.hex() == group["publicKey"]
        case = group["tests"][0]
        if "ctx" in case or "msg" not in case or case["result"] != "valid":
            continue
        message = bytes.fromhex(case["msg"])
        verify(Primitive.ML_DSA_65, key.public, message, bytes.fromhex(case["sig"]))
        if len(message) <= 4096:
            verify(Primitive.ML_DSA_65, key.public, message, key.sign(message))
            seen += 1
    assert seen > 10


def test_ml_dsa_agrees_with_every_acvp_verification() -> None:
    """FIPS 204's internal interface, for all three sizes."""
    sizes = {
        "ML-DSA-44": mldsa.MLDSA44PublicKey,
        "ML-DSA-65": mldsa.MLDSA65PublicKey,
        "ML-DSA-87": mldsa.MLDSA87PublicKey,
    }
    passed = {True: 0, False: 0}
    for group in load("acvp/ML-DSA-sigVer-FIPS204.json")["testGroups"]:
        raw = bytes.fromhex(group["pk"])
        public = sizes[group["parameterSet"]].from_public_bytes(raw)
        for case in group["tests"]:
            tr = hashlib.shake_256(raw).digest(64)
            mu = hashlib.shake_256(tr + bytes.fromhex(case["message"])).digest(64)
            try:
                public.verify_mu(bytes.fromhex(case["signature"]), mu)
                found = True
            except (InvalidSignature, ValueError):
                found = False
            assert found is case["testPassed"], case["tcId"]
            passed[found] += 1
    assert passed[True] > 3
    assert passed[False] > 10


def hkdf_sha256(key_material: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 §2 by its text, without a salt: an independent computation."""
    extracted = hmac.digest(bytes(32), key_material, "sha256")
    output, block = b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([number]), "sha256")
        output += block
    return output[:length]


def test_the_independent_hkdf_is_that_of_rfc_5869() -> None:
    """RFC 5869 appendix A.3: neither salt nor info."""
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert hkdf_sha256(b"\x0b" * 22, b"", 42).hex() == expected


@pytest.mark.parametrize("primitive", list(Primitive))
def test_children_are_hkdf_of_root_context_and_primitive(primitive: Primitive) -> None:
    root = key_of(Primitive.HKDF_ROOT, bytes(range(32)))
    info = b"ron-kms::acme::auth::ctx"
    expected = hkdf_sha256(bytes(range(32)), info + b"\0" + primitive.value.encode(), SEED_BYTES[primitive])
    with root.derive_seed(info, primitive) as seed:
        assert bytes(seed.view) == expected


def test_derivations_are_pinned() -> None:
    """Released children never change."""
    root = key_of(Primitive.HKDF_ROOT, bytes(range(32)))
    pinned = {
        Primitive.ED25519: "460b0ead21914c5a",
        Primitive.ECDSA_P256_SHA256: "24cacd37b524b9eb",
        Primitive.ML_DSA_44: "e35212c9c85e88c5",
        Primitive.ML_DSA_65: "9815d2489f38215d",
        Primitive.ML_DSA_87: "4944d7300c118ea8",
        Primitive.X25519: "f7cadaa2481feac1",
        Primitive.ML_KEM_768: "9cb06d242717f528",
        Primitive.HKDF_ROOT: "88c363336d805b8e",
    }
    found = {}
    for primitive in pinned:
        with root.derive_seed(b"ron-kms::acme::auth::ctx", primitive) as seed:
            found[primitive] = hashlib.sha256(seed.view).hexdigest()[:16]
    assert found == pinned


def test_a_p256_scalar_out_of_range_is_drawn_again() -> None:
    draws = [b"\xff" * 32, bytes(32), P256_ORDER.to_bytes(32, "big"), bytes(31) + b"\x07"]

    def fill(view: memoryview) -> None:
        view[:] = draws.pop(0)

    with new_seed(P256, fill) as seed:
        key = SoftwareKey(P256, seed)
        assert bytes(seed.view) == bytes(31) + b"\x07"
    assert draws == []
    expected = ec.derive_private_key(7, ec.SECP256R1()).public_key()
    assert key.public == expected.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def test_a_source_that_gives_no_scalar_ends() -> None:
    def fill(view: memoryview) -> None:
        view[:] = b"\xff" * 32

    with pytest.raises(ValueError, match="scalar"):
        new_seed(P256, fill)


@pytest.mark.parametrize("seed", [b"\xff" * 32, bytes(32)])
def test_a_stored_scalar_out_of_range_is_refused(seed: bytes) -> None:
    with pytest.raises(ValueError, match="scalar"):
        key_of(P256, seed)


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_p256_keys_are_those_of_their_scalar_and_sign(seed: bytes, message: bytes) -> None:
    scalar = int.from_bytes(seed, "big")
    if not 0 < scalar < 0xFFFFFFFF << 224:
        return
    key = key_of(P256, seed)
    expected = ec.derive_private_key(scalar, ec.SECP256R1()).public_key()
    assert key.public == expected.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    signature = key.sign(message)
    assert len(signature) == 64
    verify(P256, key.public, message, signature)


@pytest.mark.parametrize("primitive", list(Primitive))
def test_a_wiped_key_does_nothing(primitive: Primitive) -> None:
    with new_seed(primitive) as seed:
        key = SoftwareKey(primitive, seed)
    key.wipe()
    key.wipe()
    for use in (
        lambda: key.sign(b""),
        lambda: key.agree(bytes(32)),
        lambda: key.decapsulate(bytes(1088)),
        lambda: key.derive_seed(b"x", Primitive.ED25519),
    ):
        with pytest.raises(NotFound):
            use()


@pytest.mark.parametrize("primitive", list(Primitive))
def test_the_seed_is_not_needed_once_the_key_is_made(primitive: Primitive) -> None:
    seed = new_seed(primitive)
    key = SoftwareKey(primitive, seed)
    seed.wipe()
    if primitive.signs:
        verify(primitive, key.public, b"x", key.sign(b"x"))
    elif primitive is Primitive.HKDF_ROOT:
        key.derive_seed(b"x", primitive).wipe()
    else:
        with pytest.raises(Unsupported):
            key.sign(b"x")


def test_ml_dsa_signatures_are_hedged_and_have_the_empty_context() -> None:
    key = key_of(Primitive.ML_DSA_65, bytes(32))
    first, second = key.sign(b"x"), key.sign(b"x")
    assert first != second
    public = mldsa.MLDSA65PublicKey.from_public_bytes(key.public)
    public.verify(first, b"x", b"")
    with pytest.raises(InvalidSignature):
        public.verify(first, b"x", b"c")


def test_bounds_hold_before_any_work() -> None:
    key = key_of(Primitive.ED25519, bytes(32))
    assert len(key.sign(bytes(4096))) == 64
    with pytest.raises(TooLarge):
        key.sign(bytes(4097))
    root = key_of(Primitive.HKDF_ROOT, bytes(32))
    root.derive_seed(bytes(1024), Primitive.ED25519).wipe()
    with pytest.raises(TooLarge):
        root.derive_seed(bytes(1025), Primitive.ED25519)


def test_the_number_of_keys_in_memory_is_bounded() -> None:
    provider = InMemoryProvider(max_keys=2)
    made = [provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, version)) for version in (1, 2)]
    with pytest.raises(StoreUnavailable) as caught:
        provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 3))
    assert caught.value.reason == "key_limit"
    provider.destroy(made[0].handle)
    provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 3))
    provider.close()
