"""ML-DSA against the vectors of C2SP httpsig-pq, with every change that document names, and against Wycheproof."""

import base64
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa

from pch.algorithms import ALGORITHMS, HYBRIDS, PublicKey
from pch.errors import BadSignature
from pch.httpsig.errors import HttpSigError
from pch.httpsig.message import RequestMessage
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_input import parse_signature_input
from pch.httpsig.verify import verify
from pch.keys import KeyFormatError, generate, private_key_from_jwk, public_key_from_jwk
from pch.ml_dsa import PARAMETER_SETS

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
HTTPSIG_PQ: list[dict[str, Any]] = json.loads((VECTORS / "httpsig-pq" / "httpsig-pq.json").read_text())["vectors"]
NAMES = [vector["algorithm"] for vector in HTTPSIG_PQ]
MESSAGE = RequestMessage(
    "GET",
    "https",
    "example.com",
    "/foo?param=Value&Pet=dog",
    (("host", b"example.com"), ("date", b"Mon, 06 Jul 2026 20:00:00 GMT")),
)
CONTEXTS: dict[str, Any] = {
    "ml-dsa-44": mldsa.MLDSA44PrivateKey,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey,
}


def b64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def jwk_of(vector: dict[str, Any]) -> dict[str, str]:
    public = base64.b64decode(vector["public_key_base64"])
    return {"kty": "AKP", "alg": vector["algorithm"].upper(), "pub": b64url(public)}


def parts_of(vector: dict[str, Any]) -> tuple[PublicKey, bytes, bytes]:
    """Give the key, the signature base and the signature."""
    base = base64.b64decode(vector["signature_base_base64"])
    return public_key_from_jwk(jwk_of(vector)), base, base64.b64decode(vector["deterministic_signature_base64"])


def refuses(key: PublicKey, signature: bytes, data: bytes) -> None:
    with pytest.raises(BadSignature):
        key.verify(signature, data)


def test_the_three_parameter_sets_have_vectors_and_registry_entries() -> None:
    assert NAMES == [parameters.name for parameters in PARAMETER_SETS] == ["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"]
    assert all(ALGORITHMS[name].post_quantum for name in NAMES)


@pytest.mark.parametrize("vector", HTTPSIG_PQ, ids=NAMES)
def test_the_vector_is_what_our_own_parts_make_of_the_request(vector: dict[str, Any]) -> None:
    key, base, signature = parts_of(vector)
    field = vector["serialized_signature_input"].removeprefix("Signature-Input: ").encode()
    params = parse_signature_input([field])["sig1"]
    assert signature_base(MESSAGE, params) == base
    assert hashlib.sha256(base).hexdigest() == vector["signature_base_sha256"]
    assert verify(MESSAGE, params, signature, key) == base
    seed = bytes.fromhex(vector["private_key_seed_hex"])
    signer = private_key_from_jwk(jwk_of(vector) | {"priv": b64url(seed)})
    assert signer.algorithm is key.algorithm is ALGORITHMS[vector["algorithm"]]
    hedged = signer.sign(base)
    assert hedged != signature
    key.verify(hedged, base)


@pytest.mark.parametrize("vector", HTTPSIG_PQ, ids=NAMES)
def test_every_change_that_httpsig_pq_names_is_refused(vector: dict[str, Any]) -> None:
    key, base, signature = parts_of(vector)
    lines = base.split(b"\n")
    others = [other for other in NAMES if other != vector["algorithm"]]
    changed = [
        base.replace(b"GET", b"PUT"),
        base.replace(b"dog", b"cat"),
        b"\n".join(lines[1:]),
        b"\n".join(lines[:2] + lines[3:]),
        base.replace(b"\n", b"\r\n"),
        base + b"\n",
        *(base.replace(vector["algorithm"].encode(), other.encode()) for other in others),
        hashlib.sha256(base).digest(),
        b"\0\0" + base,
        b"",
    ]
    for data in changed:
        assert data != base
        refuses(key, signature, data)
    flipped = bytearray(signature)
    flipped[len(flipped) // 2] ^= 1
    for altered in (bytes(flipped), signature[:-1], signature + b"\0", b"", signature[1:] + b"\0"):
        refuses(key, altered, base)
    for name in NAMES:
        refuses(public_key_from_jwk(public_part(generate(name))), signature, base)
    key.verify(signature, base)


def public_part(jwk: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in jwk.items() if name != "priv"}


@pytest.mark.parametrize("vector", HTTPSIG_PQ, ids=NAMES)
def test_a_signature_with_a_context_is_refused(vector: dict[str, Any]) -> None:
    key, base, _ = parts_of(vector)
    private = CONTEXTS[vector["algorithm"]].from_seed_bytes(bytes.fromhex(vector["private_key_seed_hex"]))
    key.verify(private.sign(base), base)
    refuses(key, private.sign(base, b"PCH"), base)


@pytest.mark.parametrize("vector", HTTPSIG_PQ, ids=NAMES)
def test_a_public_key_of_another_length_is_no_key(vector: dict[str, Any]) -> None:
    jwk = jwk_of(vector)
    public = base64.b64decode(vector["public_key_base64"])
    for altered in (public[:-1], public + b"\0", public[:32], b""):
        with pytest.raises(KeyFormatError):
            public_key_from_jwk(jwk | {"pub": b64url(altered)})


def test_the_signature_base_ends_without_a_newline_and_needs_its_fields() -> None:
    params = parse_signature_input([b'a=("@method" "date");created=1'])["a"]
    assert not signature_base(MESSAGE, params).endswith(b"\n")
    with pytest.raises(HttpSigError):
        signature_base(RequestMessage("GET", "https", "example.com", "/", ()), params)


def test_ml_dsa_65_agrees_with_every_wycheproof_vector() -> None:
    """Signatures over a context are of another scheme than ours, so that a valid one is refused here."""
    seen: Counter[str] = Counter()
    for group in json.loads((VECTORS / "wycheproof" / "mldsa_65_verify_test.json").read_text())["testGroups"]:
        jwk = {"kty": "AKP", "alg": "ML-DSA-65", "pub": b64url(bytes.fromhex(group["publicKey"]))}
        try:
            key = public_key_from_jwk(jwk)
        except KeyFormatError:
            assert {test["result"] for test in group["tests"]} == {"invalid"}
            seen["bad key"] += len(group["tests"])
            continue
        for test in group["tests"]:
            expected = "invalid" if test.get("ctx") else test["result"]
            try:
                key.verify(bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
                verdict = "valid"
            except BadSignature:
                verdict = "invalid"
            assert verdict == expected, test["tcId"]
            seen[verdict] += 1
    assert sum(seen.values()) == 143
    assert min(seen["bad key"], seen["valid"], seen["invalid"]) > 2, seen


def test_hybrids_are_those_of_the_protocol_and_join_a_classical_half_with_ml_dsa() -> None:
    assert sorted(HYBRIDS) == ["ecdsa-p256-sha256+ml-dsa-65", "ed25519+ml-dsa-65"]
    for name, hybrid in HYBRIDS.items():
        assert name == hybrid.name == f"{hybrid.classical.name}+{hybrid.post_quantum.name}"
        assert (hybrid.classical.post_quantum, hybrid.post_quantum.post_quantum) == (False, True)
