"""JWKs and thumbprints, RFC 7517 and RFC 7638."""

import base64
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import mldsa

from pch import keys
from pch.algorithms import ALGORITHMS, Algorithm, KeyId, PublicKey, Signer
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
    assert jwk["d"] != other["d"]
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


class MlDsa44Key:
    """Both halves of ML-DSA-44, to show that an algorithm joins by its registry entry alone."""

    def __init__(self, public_key: mldsa.MLDSA44PublicKey, secret: mldsa.MLDSA44PrivateKey | None = None) -> None:
        self._public, self._secret = public_key, secret
        self.algorithm = ML_DSA_44
        self.key_id = KeyId("")

    def verify(self, signature: bytes, data: bytes) -> None:
        try:
            self._public.verify(signature, data)
        except InvalidSignature as error:
            raise BadSignature("ml-dsa") from error

    def sign(self, data: bytes) -> bytes:
        assert self._secret is not None
        return self._secret.sign(data)


def _load_private(secret: bytes, _key_id: KeyId) -> Signer:
    key = mldsa.MLDSA44PrivateKey.from_seed_bytes(secret)
    return MlDsa44Key(key.public_key(), key)


def _load_public(members: Any) -> PublicKey:
    return MlDsa44Key(mldsa.MLDSA44PublicKey.from_public_bytes(members["pub"]))


ML_DSA_44 = Algorithm(
    name="ml-dsa-44",
    kty="AKP",
    crv=None,
    jose_algs=frozenset({"ML-DSA-44"}),
    public_members={"pub": 1312},
    private_member="priv",
    private_bytes=32,
    signature_bytes=2420,
    post_quantum=True,
    load_public=_load_public,
    load_private=_load_private,
    public_of=lambda seed: {
        "pub": mldsa.MLDSA44PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw(),
    },
    generate=lambda: mldsa.MLDSA44PrivateKey.generate().private_bytes_raw(),
)


def test_a_further_algorithm_joins_by_its_registry_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ALGORITHMS", MappingProxyType({**ALGORITHMS, "ml-dsa-44": ML_DSA_44}))
    jwk = generate("ml-dsa-44")
    assert sorted(jwk) == ["alg", "kty", "priv", "pub"]
    signature = private_key_from_jwk(jwk).sign(b"x")
    public_key_from_jwk(public_jwk(jwk)).verify(signature, b"x")
    with pytest.raises(KeyFormatError):
        public_key_from_jwk(public_jwk(jwk) | {"alg": "ML-DSA-65"})
    with pytest.raises(KeyFormatError):
        public_key_from_jwk({name: value for name, value in public_jwk(jwk).items() if name != "alg"})
    with pytest.raises(KeyFormatError):
        private_key_from_jwk(public_jwk(jwk) | {"d": jwk["priv"]})
