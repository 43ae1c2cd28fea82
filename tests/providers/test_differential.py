"""Every provider's work judged by the others' libraries: OpenSSL, SoftHSM's Botan or OpenSSL, and liboqs (G-3)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from kms.primitive import Primitive
from kms.providers.provider import Provider, ProviderKey
from kms.public_keys import BadSignature, check_signature, load_verifying_key
from pch.liboqs import INSTALL_PATH_VARIABLE, load_oqs
from tests.support.provider_parts import kid_of, missing_part, open_named
from tests.support.public_operations import ML_DSA_PUBLIC

ROOT = Path(__file__).parents[2]
LIBOQS = Path(os.environ.get(INSTALL_PATH_VARIABLE, ROOT / "build" / "liboqs"))
OQS_NAMES = {
    Primitive.ML_DSA_44: "ML-DSA-44",
    Primitive.ML_DSA_65: "ML-DSA-65",
    Primitive.ML_DSA_87: "ML-DSA-87",
}
SIGNERS = ("inmem", "file", "tpm", "pkcs11")
MESSAGES = st.binary(max_size=200)


class Keys(dict[str, tuple[Provider, dict[Primitive, ProviderKey]]]):
    """Each provider with its keys. hypothesis shows it with a failure: public keys in full would hide what failed."""

    def __repr__(self) -> str:
        return f"<keys of {', '.join(self)}>"


@pytest.fixture(scope="module")
def keys(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Keys]:
    with ExitStack() as stack:
        opened = Keys()
        for name in SIGNERS:
            provider = stack.enter_context(open_named(name, tmp_path_factory.mktemp(name)))
            signing = sorted(each for each in provider.primitives if each.signs)
            opened[name] = (
                provider,
                {primitive: provider.generate(primitive, kid_of(primitive)) for primitive in signing},
            )
        yield opened


@pytest.fixture(scope="module")
def oqs() -> Any:
    if not any((LIBOQS / folder / "liboqs.so").exists() for folder in ("lib", "lib64")):
        missing_part("liboqs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(INSTALL_PATH_VARIABLE, str(LIBOQS))
        return load_oqs()


def accepts(key: ProviderKey, signature: bytes, message: bytes) -> bool:
    try:
        check_signature(load_verifying_key(key.primitive, key.public), signature, message)
    except BadSignature:
        return False
    return True


QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(message=MESSAGES, flip=st.integers(0, 10_000))
def test_the_service_accepts_what_every_provider_signs_and_no_altered_twin(
    keys: Keys, message: bytes, flip: int
) -> None:
    for provider, made in keys.values():
        for primitive, key in made.items():
            signature = provider.sign(key.handle, primitive, message)
            assert accepts(key, signature, message)
            altered = bytearray(signature)
            altered[flip % len(altered)] ^= 1 << flip % 8
            assert not accepts(key, bytes(altered), message)
            assert not accepts(key, signature, message + b"x")


def test_no_provider_accepts_anothers_key(keys: Keys) -> None:
    for name, (provider, made) in keys.items():
        for other, (_, others) in keys.items():
            for primitive in made.keys() & others.keys():
                signature = provider.sign(made[primitive].handle, primitive, bytes(32))
                assert accepts(others[primitive], signature, bytes(32)) is (name == other)


@QUICK
@given(message=MESSAGES)
def test_liboqs_accepts_our_ml_dsa_and_we_accept_its_own(keys: Keys, oqs: Any, message: bytes) -> None:
    for provider, made in keys.values():
        for primitive in OQS_NAMES.keys() & made.keys():
            signature = provider.sign(made[primitive].handle, primitive, message)
            with oqs.Signature(OQS_NAMES[primitive]) as theirs:
                assert theirs.verify(message, signature, made[primitive].public)
                altered = bytes([signature[0] ^ 1]) + signature[1:]
                assert not theirs.verify(message, altered, made[primitive].public)
                assert not theirs.verify(message + b"x", signature, made[primitive].public)
    for primitive, name in OQS_NAMES.items():
        with oqs.Signature(name) as theirs:
            public = theirs.generate_keypair()
            signature = theirs.sign(message)
        key = ProviderKey(primitive, next(iter(keys["inmem"][1].values())).handle, public)
        assert accepts(key, signature, message)
        assert not accepts(key, bytes([signature[0] ^ 1]) + signature[1:], message)
        assert ML_DSA_PUBLIC[primitive].from_public_bytes(public).public_bytes_raw() == public


def judge_of(
    template: dict[Attribute, Any], mechanism: Mechanism, data: bytes, signature: bytes
) -> Callable[[Any], list[bool]]:
    def judge(token: Any) -> list[bool]:
        key = token._session.create_object(template)
        answers = []
        for each in (signature, bytes([signature[0] ^ 1]) + signature[1:]):
            try:
                answers.append(bool(key.verify(data, each, mechanism=mechanism)))
            except pkcs11.PKCS11Error:
                answers.append(False)
        return answers

    return judge


def test_the_token_itself_verifies_what_software_keys_sign(
    keys: Keys,
) -> None:
    """SoftHSM's own Ed25519 and P-256 as the judges of ours."""
    token: Any = keys["pkcs11"][0]
    for name in ("inmem", "file", "tpm"):
        provider, made = keys[name]
        for primitive, curve, key_type, mechanism, point in (
            (Primitive.ED25519, "06032b6570", KeyType.EC_EDWARDS, Mechanism.EDDSA, b"\x04\x20"),
            (Primitive.ECDSA_P256_SHA256, "06082a8648ce3d030107", KeyType.EC, Mechanism.ECDSA, b"\x04\x41"),
        ):
            message = f"signed by {name}".encode()
            signature = provider.sign(made[primitive].handle, primitive, message)
            data = hashlib.sha256(message).digest() if key_type is KeyType.EC else message
            template = {
                Attribute.CLASS: ObjectClass.PUBLIC_KEY,
                Attribute.KEY_TYPE: key_type,
                Attribute.EC_PARAMS: bytes.fromhex(curve),
                Attribute.EC_POINT: point + made[primitive].public,
                Attribute.VERIFY: True,
                Attribute.TOKEN: False,
            }
            judge = judge_of(template, mechanism, data, signature)
            assert token._thread.call(judge, 5.0) == [True, False], (name, primitive)


def test_the_mldsa_of_the_library_has_the_sizes_of_the_standard() -> None:
    """FIPS 204 table 2: what `cryptography` calls a seed is ξ, 32 bytes."""
    assert len(mldsa.MLDSA65PrivateKey.generate().private_bytes_raw()) == 32
