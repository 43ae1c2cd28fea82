"""JWKs and thumbprints, RFC 7517 and RFC 7638."""

import base64
import dataclasses
import hashlib
from types import MappingProxyType
from typing import Any

import pytest

from pch import keys
from pch.algorithms import ALGORITHMS
from pch.errors import BadSignature
from pch.keys import (
    KeyFormatError,
    generate,
    private_key_from_jwk,
    public_jwk,
    public_key_from_jwk,
    thumbprint,
)

# RFC 8037 Appendix A.1 to A.3.
ED25519 = {
    "kty": "OKP",
    "crv": "Ed25519",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
ED25519_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
# RFC 7515 Appendix A.3.
P256 = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
}
P256_PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
P256_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


def public(jwk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name != "d"}


def b64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def test_thumbprint_is_that_of_rfc_8037() -> None:
    assert thumbprint(public(ED25519)) == ED25519_THUMBPRINT


def test_thumbprint_depends_on_the_required_members_alone() -> None:
    decorated = {"use": "sig", "kid": "other", "alg": "EdDSA", **ED25519, "x5c": ["a"]}
    assert thumbprint(decorated) == ED25519_THUMBPRINT
    assert len({thumbprint(ED25519), thumbprint(P256), thumbprint(P256 | {"x": P256["y"]})}) == 3


def test_thumbprint_of_an_algorithm_key_pair_covers_alg_and_pub() -> None:
    key = {"kty": "AKP", "alg": "ML-DSA-44", "pub": "YQ"}
    assert len({thumbprint(key), thumbprint(key | {"alg": "ML-DSA-65"}), thumbprint(key | {"pub": "Yg"})}) == 3
    assert thumbprint(key | {"priv": "YQ"}) == thumbprint(key)


@pytest.mark.parametrize("jwk", [ED25519, P256], ids=["ed25519", "p256"])
def test_keys_sign_and_verify_and_altered_data_fails(jwk: dict[str, str]) -> None:
    signer = private_key_from_jwk(jwk)
    key = public_key_from_jwk(public(jwk))
    assert signer.algorithm is key.algorithm
    assert signer.key_id == thumbprint(jwk)
    signature = signer.sign(b"data")
    assert len(signature) == key.algorithm.signature_bytes == 64
    key.verify(signature, b"data")
    for altered in (b"datb", b"data ", b""):
        with pytest.raises(BadSignature):
            key.verify(signature, altered)


@pytest.mark.parametrize(
    ("jwk", "extra"),
    [
        (ED25519, {"alg": "EdDSA"}),
        (ED25519, {"alg": "Ed25519"}),
        (ED25519, {"use": "sig", "kid": "x", "key_ops": ["verify"]}),
        (P256, {"alg": "ES256"}),
        (P256, {"unknown": [1]}),
    ],
)
def test_harmless_members_are_accepted(jwk: dict[str, str], extra: dict[str, object]) -> None:
    public_key_from_jwk(public(jwk) | extra)


PRIVATE = ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"]


@pytest.mark.parametrize("member", PRIVATE)
def test_public_key_with_a_private_member_is_refused(member: str) -> None:
    with pytest.raises(KeyFormatError):
        public_key_from_jwk(public(ED25519) | {member: "YQ"})


def _y_at(x: int) -> int:
    return pow(x**3 - 3 * x + P256_B, (P256_PRIME + 1) // 4, P256_PRIME)


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("no kty", ED25519, {"kty": None}),
    ("unknown kty", ED25519, {"kty": "RSA"}),
    ("symmetric kty", ED25519, {"kty": "oct"}),
    ("kty as a list", ED25519, {"kty": ["OKP"]}),
    ("lower-case kty", ED25519, {"kty": "okp"}),
    ("curve of another kty", ED25519, {"crv": "P-256"}),
    ("kty of another curve", P256, {"kty": "OKP"}),
    ("unknown curve", ED25519, {"crv": "Ed448"}),
    ("unsupported curve", P256, {"crv": "P-384"}),
    ("agreement curve", ED25519, {"crv": "X25519"}),
    ("crv as a number", ED25519, {"crv": 1}),
    ("alg of another curve", ED25519, {"alg": "ES256"}),
    ("alg of another curve", P256, {"alg": "EdDSA"}),
    ("alg of a larger hash", P256, {"alg": "ES384"}),
    ("alg none", ED25519, {"alg": "none"}),
    ("alg empty", ED25519, {"alg": ""}),
    ("alg null", ED25519, {"alg": None}),
    ("alg of RFC 9421", ED25519, {"alg": "ed25519"}),
    ("use for encryption", ED25519, {"use": "enc"}),
    ("use null", ED25519, {"use": None}),
    ("operation of signing", ED25519, {"key_ops": ["sign"]}),
    ("operations as a string", ED25519, {"key_ops": "verify"}),
    ("no operations", ED25519, {"key_ops": []}),
    ("x missing", ED25519, {"x": ...}),
    ("x null", ED25519, {"x": None}),
    ("x as bytes", ED25519, {"x": b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}),
    ("x empty", ED25519, {"x": ""}),
    ("x short", ED25519, {"x": b64url(bytes(31))}),
    ("x long", ED25519, {"x": b64url(bytes(33))}),
    ("x padded", ED25519, {"x": ED25519["x"] + "="}),
    ("x with spare bits", ED25519, {"x": ED25519["x"][:-1] + "p"}),
    ("x in plain base64", ED25519, {"x": ED25519["x"].replace("_", "/")}),
    ("x with a line feed", ED25519, {"x": ED25519["x"] + "\n"}),
    ("x with a space", ED25519, {"x": " " + ED25519["x"]}),
    ("x not ASCII", ED25519, {"x": "é" * 43}),
    ("x of a length that base64 does not have", ED25519, {"x": "AAAAA"}),
    ("x giant", ED25519, {"x": "A" * 9000}),
    ("x of the neutral point", ED25519, {"x": b64url((1).to_bytes(32, "little"))}),
    ("x not canonical", ED25519, {"x": b64url((2**255 - 19 + 3).to_bytes(32, "little"))}),
    ("x off the curve", ED25519, {"x": b64url((2).to_bytes(32, "little"))}),
    ("y missing", P256, {"y": ...}),
    ("y short", P256, {"y": b64url(bytes(31))}),
    ("y long", P256, {"y": b64url(bytes(33))}),
    ("point off the curve", P256, {"y": P256["x"]}),
    ("point zero", P256, {"x": b64url(bytes(32)), "y": b64url(bytes(32))}),
    ("x not reduced", P256, {"x": b64url(P256_PRIME.to_bytes(32)), "y": b64url(_y_at(0).to_bytes(32))}),
    ("x too large", P256, {"x": b64url(b"\xff" * 32)}),
]


@pytest.mark.parametrize(("jwk", "change"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_public_key_is_refused(jwk: dict[str, Any], change: dict[str, Any]) -> None:
    changed = {name: value for name, value in (public(jwk) | change).items() if value is not ...}
    with pytest.raises(KeyFormatError):
        public_key_from_jwk(changed)


def test_the_reduced_twin_of_the_unreduced_point_is_on_the_curve() -> None:
    x, y = 0, _y_at(0)
    public_key_from_jwk({"kty": "EC", "crv": "P-256", "x": b64url(x.to_bytes(32)), "y": b64url(y.to_bytes(32))})


@pytest.mark.parametrize(
    ("jwk", "change"),
    [
        (ED25519, {"d": ...}),
        (ED25519, {"d": P256["d"]}),
        (ED25519, {"d": b64url(bytes(31))}),
        (ED25519, {"d": ED25519["d"] + "="}),
        (ED25519, {"x": b64url(bytes(31) + b"\x80")}),
        (ED25519, {"k": "YQ"}),
        (ED25519, {"priv": "YQ"}),
        (ED25519, {"key_ops": ["verify"]}),
        (ED25519, {"use": "enc"}),
        (P256, {"d": ED25519["d"]}),
        (P256, {"d": b64url(bytes(32))}),
        (P256, {"d": b64url(b"\xff" * 32)}),
        (P256, {"y": P256["x"]}),
        (P256, {"alg": "ES384"}),
    ],
)
def test_private_key_is_refused_without_telling_it(jwk: dict[str, Any], change: dict[str, Any]) -> None:
    changed = {name: value for name, value in (jwk | change).items() if value is not ...}
    with pytest.raises(KeyFormatError) as caught:
        private_key_from_jwk(changed)
    told = f"{caught.value!r} {caught.value.__cause__!r}"
    assert str(changed.get("d", "absent")) not in told


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_generated_keys_are_whole_and_differ(name: str) -> None:
    jwk, other = generate(name), generate(name)
    assert jwk[ALGORITHMS[name].private_member] != other[ALGORITHMS[name].private_member]
    key = public_key_from_jwk(public_jwk(jwk))
    signer = private_key_from_jwk(jwk)
    assert key.algorithm.name == signer.algorithm.name == name
    key.verify(signer.sign(b"x"), b"x")
    with pytest.raises(BadSignature):
        public_key_from_jwk(public_jwk(other)).verify(signer.sign(b"x"), b"x")


def test_a_key_of_an_unknown_algorithm_is_not_generated() -> None:
    with pytest.raises(KeyFormatError):
        generate("rsa-v1_5-sha256")


def test_the_public_part_holds_nothing_else() -> None:
    assert public_jwk(ED25519 | {"kid": "k", "p": "secret"}) == public(ED25519)
    assert public_jwk(P256) == public(P256)
    for bad in ({}, {"kty": "RSA"}, {"kty": "OKP", "crv": "Ed25519"}, public(ED25519) | {"crv": 'a"b'}):
        with pytest.raises(KeyFormatError):
            public_jwk(bad)


@pytest.mark.parametrize("jwk", [ED25519, P256], ids=["ed25519", "p256"])
def test_a_signer_does_not_show_its_key(jwk: dict[str, str]) -> None:
    signer = private_key_from_jwk(jwk)
    secret = base64.urlsafe_b64decode(jwk["d"] + "=")
    assert jwk["d"] not in repr(signer)
    assert secret.hex() not in repr(signer)
    assert str(int.from_bytes(secret)) not in repr(signer)


@pytest.mark.parametrize("name", ["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"])
def test_an_ml_dsa_key_is_an_akp_jwk_told_apart_by_alg_alone(name: str) -> None:
    jwk = generate(name)
    assert jwk["alg"] == name.upper()
    assert sorted(jwk) == ["alg", "kty", "priv", "pub"]
    assert len(base64.urlsafe_b64decode(jwk["priv"] + "=")) == 32
    others = {"ML-DSA-44", "ML-DSA-65", "ML-DSA-87"} - {jwk["alg"]}
    for alg in (*others, "EdDSA", "ml-dsa-65", ...):
        changed = {key: value for key, value in (public_jwk(jwk) | {"alg": alg}).items() if value is not ...}
        with pytest.raises(KeyFormatError):
            public_key_from_jwk(changed)


@pytest.mark.parametrize(
    "change",
    [
        {"priv": ...},
        {"priv": b64url(bytes(31))},
        {"priv": b64url(bytes(33))},
        # The expanded form of ML-DSA-44, which C2SP httpsig-pq forbids.
        {"priv": b64url(bytes(2560))},
        {"priv": b64url(bytes(32))},
        {"d": b64url(bytes(32))},
        {"pub": b64url(bytes(1312))},
        {"pub": b64url(bytes(1311))},
        {"kty": "OKP"},
    ],
)
def test_an_ml_dsa_private_key_is_refused_without_telling_it(change: dict[str, Any]) -> None:
    jwk = generate("ml-dsa-44")
    private_key_from_jwk(jwk)
    changed = {name: value for name, value in (jwk | change).items() if value is not ...}
    with pytest.raises(KeyFormatError) as caught:
        private_key_from_jwk(changed)
    assert jwk["priv"] not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert jwk["priv"] not in repr(private_key_from_jwk(jwk))


def test_an_ml_dsa_thumbprint_covers_alg_kty_and_pub() -> None:
    jwk = generate("ml-dsa-44")
    canonical = f'{{"alg":"ML-DSA-44","kty":"AKP","pub":"{jwk["pub"]}"}}'
    assert thumbprint(jwk | {"kid": "other"}) == b64url(hashlib.sha256(canonical.encode()).digest())


def test_the_same_seed_is_another_key_under_another_parameter_set() -> None:
    seed = bytes(range(32))
    assert len({ALGORITHMS[name].public_of(seed)["pub"][:32] for name in ("ml-dsa-44", "ml-dsa-65", "ml-dsa-87")}) == 3


def test_a_further_algorithm_joins_by_its_registry_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    further = dataclasses.replace(ALGORITHMS["ml-dsa-44"], name="further", jose_algs=frozenset({"FURTHER"}))
    monkeypatch.setattr(keys, "ALGORITHMS", MappingProxyType({**ALGORITHMS, "further": further}))
    jwk = generate("further")
    assert jwk["alg"] == "FURTHER"
    signature = private_key_from_jwk(jwk).sign(b"x")
    public_key_from_jwk(public_jwk(jwk)).verify(signature, b"x")
    with pytest.raises(KeyFormatError):
        public_key_from_jwk(public_jwk(jwk) | {"alg": "UNKNOWN"})
