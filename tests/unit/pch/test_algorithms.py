"""The signature algorithms against Wycheproof and CCTV, and their edges."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from pch.algorithms import ALGORITHMS, ECDSA_P256_SHA256, ED25519, P256_ORDER
from pch.errors import BadSignature
from pch.keys import KeyFormatError, generate, private_key_from_jwk, public_jwk, public_key_from_jwk

VECTORS = Path(__file__).resolve().parents[2] / "vectors"


def b64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def verdict(jwk: dict[str, str], signature: bytes, data: bytes) -> str:
    try:
        key = public_key_from_jwk(jwk)
    except KeyFormatError:
        return "bad key"
    try:
        key.verify(signature, data)
    except BadSignature:
        return "invalid"
    return "valid"


def wycheproof(name: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
    groups = json.loads((VECTORS / "wycheproof" / name).read_text())["testGroups"]
    return [(group, test) for group in groups for test in group["tests"]]


def test_ed25519_agrees_with_every_wycheproof_vector() -> None:
    seen: Counter[str] = Counter()
    for group, test in wycheproof("ed25519_test.json"):
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes.fromhex(group["publicKey"]["pk"]))}  # type: ignore[index]
        result = verdict(jwk, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
        assert result == test["result"], test["tcId"]
        seen[result] += 1
    assert seen == {"valid": 58, "invalid": 41}


def test_p256_agrees_with_every_wycheproof_vector() -> None:
    seen: Counter[str] = Counter()
    for group, test in wycheproof("ecdsa_secp256r1_sha256_p1363_test.json"):
        point = bytes.fromhex(group["publicKey"]["uncompressed"])  # type: ignore[index]
        jwk = {"kty": "EC", "crv": "P-256", "x": b64url(point[1:33]), "y": b64url(point[33:])}
        result = verdict(jwk, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
        assert result == test["result"], test["tcId"]
        seen[result] += 1
    assert seen["valid"] + seen["invalid"] == 189
    assert min(seen["valid"], seen["invalid"]) > 20


def test_ed25519_edge_cases_have_the_documented_outcome() -> None:
    """Keys of small order or not canonical are refused; of the others exactly the strict equation's proofs hold.

    The CCTV set varies what verifiers disagree about. Ours is without cofactor (a residue of small order fails) and
    compares R as bytes (another encoding of R fails).
    """
    seen: Counter[str] = Counter()
    for case in json.loads((VECTORS / "cctv" / "ed25519vectors.json").read_text()):
        flags = set(case["flags"] or [])
        if flags & {"low_order_A", "non_canonical_A"}:
            expected = "bad key"
        elif flags & {"low_order_residue", "non_canonical_R", "reencoded_k"}:
            expected = "invalid"
        else:
            expected = "valid"
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes.fromhex(case["key"]))}
        assert verdict(jwk, bytes.fromhex(case["sig"]), case["msg"].encode()) == expected, case["number"]
        seen[expected] += 1
    assert sum(seen.values()) == 644
    assert min(seen["bad key"], seen["invalid"], seen["valid"]) > 10, seen


KEYS = {name: generate(name) for name in ALGORITHMS}
SIGNERS = {name: private_key_from_jwk(jwk) for name, jwk in KEYS.items()}
PUBLIC_KEYS = {name: public_key_from_jwk(public_jwk(jwk)) for name, jwk in KEYS.items()}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_signature_of_any_other_length_is_refused(name: str) -> None:
    signature = SIGNERS[name].sign(b"x")
    PUBLIC_KEYS[name].verify(signature, b"x")
    for altered in (b"", signature[:-1], signature + b"\0", b"\0" + signature, signature * 2, signature[:32]):
        with pytest.raises(BadSignature):
            PUBLIC_KEYS[name].verify(altered, b"x")


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@given(position=st.integers(0, 63), flip=st.integers(1, 255), data=st.binary(max_size=64))
def test_every_changed_byte_of_a_signature_is_refused(name: str, position: int, flip: int, data: bytes) -> None:
    signature = bytearray(SIGNERS[name].sign(data))
    PUBLIC_KEYS[name].verify(bytes(signature), data)
    signature[position] ^= flip
    with pytest.raises(BadSignature):
        PUBLIC_KEYS[name].verify(bytes(signature), data)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@given(signature=st.binary(max_size=80), data=st.binary(max_size=16))
def test_arbitrary_signatures_are_refused_and_nothing_else_is_raised(name: str, signature: bytes, data: bytes) -> None:
    with pytest.raises(BadSignature):
        PUBLIC_KEYS[name].verify(signature, data)


@pytest.mark.parametrize("r", [0, 1, P256_ORDER - 1, P256_ORDER, P256_ORDER + 1, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, P256_ORDER - 1, P256_ORDER, P256_ORDER + 1, 2**256 - 1])
def test_p256_extreme_values_are_refused(r: int, s: int) -> None:
    with pytest.raises(BadSignature):
        PUBLIC_KEYS[ECDSA_P256_SHA256.name].verify(r.to_bytes(32) + s.to_bytes(32), b"x")


def test_p256_order_is_that_of_the_curve() -> None:
    assert ec.SECP256R1.group_order == P256_ORDER


def test_p256_der_signature_is_refused() -> None:
    der = bytes.fromhex("3044022000") + bytes(59)
    with pytest.raises(BadSignature):
        PUBLIC_KEYS[ECDSA_P256_SHA256.name].verify(der, b"x")


def test_p256_value_of_another_width_is_refused() -> None:
    key, signer = PUBLIC_KEYS[ECDSA_P256_SHA256.name], SIGNERS[ECDSA_P256_SHA256.name]
    signature = signer.sign(b"x")
    with pytest.raises(BadSignature):
        key.verify(signature[:32] + b"\0" + signature[32:], b"x")
    # One signature in 256 has a short s; without the width it would be the same number.
    short = next(found for found in (signer.sign(b"x") for _ in range(20_000)) if found[32] == 0)
    key.verify(short, b"x")
    with pytest.raises(BadSignature):
        key.verify(short[:32] + short[33:], b"x")


def test_p256_values_are_padded_to_their_full_width() -> None:
    lengths = {len(SIGNERS[ECDSA_P256_SHA256.name].sign(b"%d" % n)) for n in range(600)}
    assert lengths == {64}


def test_p256_both_signs_of_s_verify() -> None:
    signature = SIGNERS[ECDSA_P256_SHA256.name].sign(b"x")
    other = signature[:32] + (P256_ORDER - int.from_bytes(signature[32:])).to_bytes(32)
    PUBLIC_KEYS[ECDSA_P256_SHA256.name].verify(other, b"x")
    with pytest.raises(BadSignature):
        PUBLIC_KEYS[ECDSA_P256_SHA256.name].verify(other, b"y")


def test_keys_of_one_algorithm_do_not_verify_the_other() -> None:
    for name, signer in SIGNERS.items():
        other = next(key for key in PUBLIC_KEYS.values() if key.algorithm.name != name)
        with pytest.raises(BadSignature):
            other.verify(signer.sign(b"x"), b"x")


def test_the_registry_holds_the_names_of_the_protocol() -> None:
    assert {"ed25519": ED25519, "ecdsa-p256-sha256": ECDSA_P256_SHA256}.items() <= ALGORITHMS.items()
    for name, algorithm in ALGORITHMS.items():
        assert algorithm.name == name
        assert not (algorithm.post_quantum and algorithm.kty != "AKP")
    with pytest.raises(TypeError):
        ALGORITHMS["none"] = ED25519  # type: ignore[index]
