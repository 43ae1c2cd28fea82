"""Bundles under each mode: every combination of halves, present, forged or missing (I-7, PQ-I1, PQ-I4)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.base64_text import decode_base64, encode_base64
from kms.bundle import judge, read_bundle
from kms.errors import BadRequest
from kms.kid import parse_kid
from kms.messages import Signature, VerifyMode
from kms.primitive import Primitive
from kms.providers.inmem import InMemoryProvider
from kms.public_keys import VerifyingKey, load_verifying_key

KID = parse_kid("core/audit/hybrid/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v1")
DIGEST = bytes(range(32))
PROVIDER = InMemoryProvider()
PARTS = {each: PROVIDER.generate(each, KID) for each in (Primitive.ED25519, Primitive.ML_DSA_65)}
SIGNED = {each: PROVIDER.sign(part.handle, each, DIGEST) for each, part in PARTS.items()}
HYBRID: dict[Primitive, VerifyingKey] = {each: load_verifying_key(each, PARTS[each].public) for each in PARTS}
KEYS = {
    "classical": {Primitive.ED25519: HYBRID[Primitive.ED25519]},
    "pq": {Primitive.ML_DSA_65: HYBRID[Primitive.ML_DSA_65]},
    "hybrid": HYBRID,
}


def made(state: str, primitive: Primitive) -> dict[Primitive, bytes]:
    good = SIGNED[primitive]
    return {"absent": {}, "good": {primitive: good}, "forged": {primitive: good[:-1] + bytes([good[-1] ^ 1])}}[state]


STATES = ("absent", "good", "forged")


@pytest.mark.parametrize("mode", ["or", "and", "pq_only"])
@pytest.mark.parametrize("kind", list(KEYS))
@pytest.mark.parametrize(("classical", "pq"), list(itertools.product(STATES, STATES)))
def test_a_mode_is_satisfied_by_exactly_these_bundles(mode: VerifyMode, kind: str, classical: str, pq: str) -> None:
    bundle = {**made(classical, Primitive.ED25519), **made(pq, Primitive.ML_DSA_65)}
    has = {"classical": (True, False), "pq": (False, True), "hybrid": (True, True)}[kind]
    halves = [state for state, held in ((classical, has[0]), (pq, has[1])) if held]
    expected = {
        "or": "good" in halves,
        "and": has[1] and all(state == "good" for state in halves),
        "pq_only": has[1] and pq == "good",
    }[mode]
    verdict = judge(KEYS[kind], bundle, mode, DIGEST)
    assert verdict.ok == expected
    assert verdict.ok is False or verdict.checked


def test_checked_names_what_was_looked_at() -> None:
    assert judge(HYBRID, SIGNED, "and", DIGEST).checked == ("ed25519", "ml-dsa")
    assert judge(HYBRID, SIGNED, "pq_only", DIGEST).checked == ("ml-dsa",)
    assert judge(HYBRID, {Primitive.ED25519: SIGNED[Primitive.ED25519]}, "or", DIGEST).checked == ("ed25519",)


@pytest.mark.parametrize("mode", ["or", "and", "pq_only"])
def test_no_bundle_passes_for_another_digest(mode: VerifyMode) -> None:
    assert judge(HYBRID, SIGNED, mode, DIGEST).ok
    assert not judge(HYBRID, SIGNED, mode, DIGEST[::-1]).ok
    assert not judge(HYBRID, {}, mode, DIGEST).ok


def test_a_signature_of_one_half_does_not_stand_for_the_other() -> None:
    swapped = {Primitive.ED25519: SIGNED[Primitive.ML_DSA_65], Primitive.ML_DSA_65: SIGNED[Primitive.ED25519]}
    assert not judge(HYBRID, swapped, "or", DIGEST).ok


def test_a_bundle_is_read_and_one_algorithm_may_sign_once() -> None:
    signatures = [Signature(alg="ed25519", signature_b64="AAAA"), Signature(alg="ml-dsa", signature_b64="AQ==")]
    assert read_bundle(signatures) == {Primitive.ED25519: b"\0\0\0", Primitive.ML_DSA_65: b"\x01"}
    for bad in ([signatures[0], signatures[0]], []):
        with pytest.raises(BadRequest):
            read_bundle(bad)


@pytest.mark.parametrize("text", ["A", "AA", "AAA", "AB==", "A A=", "AA==\n", "AA==AA==", "_-8=", "é", "=", "AAAA="])
def test_base64_has_one_spelling(text: str) -> None:
    with pytest.raises(BadRequest):
        read_bundle([Signature(alg="ed25519", signature_b64=text)])


@given(data=st.binary(max_size=200))
def test_base64_gives_back_what_it_took(data: bytes) -> None:
    assert decode_base64(encode_base64(data), "x") == data


@settings(max_examples=200)
@given(text=st.text(alphabet="AB=+/_- \n", max_size=12))
def test_base64_that_decodes_is_what_would_be_written(text: str) -> None:
    try:
        data = decode_base64(text, "x")
    except BadRequest:
        return
    assert encode_base64(data) == text
