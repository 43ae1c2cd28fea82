"""The RFC's own examples: signature bases byte for byte, and their signatures."""

import base64
import hmac
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from pch.algorithms import ECDSA_P256_SHA256, ED25519, Algorithm, PublicKey
from pch.errors import BadSignature
from pch.httpsig.message import RequestMessage, ResponseMessage
from pch.httpsig.sign import sign
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_field import parse_signature
from pch.httpsig.signature_input import make_signature_params, parse_signature_input, serialise_signature_input
from pch.httpsig.verify import verify
from pch.keys import private_key_from_jwk, public_key_from_jwk

VECTORS = Path(__file__).resolve().parents[3] / "vectors" / "rfc9421"
APPENDIX_B = json.loads((VECTORS / "appendix_b.json").read_text())
MORE = json.loads((VECTORS / "more_examples.json").read_text())
CASES = [*APPENDIX_B["vectors"], *MORE["vectors"]]


def _b64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


class RsaPss:
    """rsa-pss-sha512, RFC 9421 §3.3.1, which the project itself does not offer."""

    algorithm: Algorithm

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        self._key = key

    def verify(self, signature: bytes, data: bytes) -> None:
        scheme = padding.PSS(mgf=padding.MGF1(hashes.SHA512()), salt_length=64)
        try:
            self._key.verify(signature, data, scheme, hashes.SHA512())
        except InvalidSignature as error:
            raise BadSignature("rsa-pss") from error


class RsaV15:
    """rsa-v1_5-sha256, RFC 9421 §3.3.2."""

    algorithm = type("Named", (), {"name": "rsa-v1_5-sha256"})()

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        self._key = key

    def verify(self, signature: bytes, data: bytes) -> None:
        try:
            self._key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature as error:
            raise BadSignature("rsa-v1_5") from error


class HmacSha256:
    """hmac-sha256, RFC 9421 §3.3.3."""

    algorithm: Algorithm

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def verify(self, signature: bytes, data: bytes) -> None:
        if not hmac.compare_digest(hmac.digest(self._secret, data, "sha256"), signature):
            raise BadSignature("hmac")


def public_key(name: str) -> PublicKey:
    entry = APPENDIX_B["keys"][name]
    if "base64" in entry:
        return HmacSha256(base64.b64decode(entry["base64"]))
    pem = entry["public_pem"].encode()
    key = serialization.load_pem_public_key(pem)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return public_key_from_jwk({"kty": "OKP", "crv": "Ed25519", "x": _b64url(key.public_bytes_raw())})
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_numbers()
        x, y = _b64url(point.x.to_bytes(32)), _b64url(point.y.to_bytes(32))
        return public_key_from_jwk({"kty": "EC", "crv": "P-256", "x": x, "y": y})
    assert isinstance(key, rsa.RSAPublicKey)
    return RsaV15(key) if name == "test-key-rsa" else RsaPss(key)


def message(name: str) -> RequestMessage | ResponseMessage:
    data: dict[str, Any] = APPENDIX_B.get(name) or MORE["messages"][name]
    given = data["headers"].items() if isinstance(data["headers"], dict) else data["headers"]
    headers = tuple((field.lower(), value.encode()) for field, value in given)
    if "status" in data:
        return ResponseMessage(data["status"], headers)
    uri = urlsplit(data["target_uri"])
    target = f"{uri.path}?{uri.query}" if uri.query else uri.path
    return RequestMessage(data["method"], uri.scheme, uri.netloc, target, headers)


def ids(case: dict[str, str]) -> str:
    return f"{case['id']}-{case['label']}-{len(case['signature_base'])}"


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_signature_base_is_the_published_one(case: dict[str, str]) -> None:
    params = parse_signature_input([case["signature_input"].encode()])[case["label"]]
    assert signature_base(message(case["message"]), params) == case["signature_base"].encode()


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_published_signature_verifies_and_no_altered_one_does(case: dict[str, str]) -> None:
    key = public_key(case["keyid"])
    params = parse_signature_input([case["signature_input"].encode()])[case["label"]]
    signature = parse_signature([case["signature"].encode()])[case["label"]]
    assert verify(message(case["message"]), params, signature, key) == case["signature_base"].encode()

    for position in range(0, len(signature), 7):
        altered = bytearray(signature)
        altered[position] ^= 1
        with pytest.raises(BadSignature):
            verify(message(case["message"]), params, bytes(altered), key)
    base = case["signature_base"].encode()
    for position in range(0, len(base), 5):
        altered = bytearray(base)
        altered[position] ^= 1
        with pytest.raises(BadSignature):
            key.verify(signature, bytes(altered))


def test_all_of_appendix_b_2_is_here() -> None:
    assert {case["id"] for case in CASES} >= {f"B.2.{n}" for n in range(1, 7)} | {"B.3", "B.4", "4.3"}


def test_ed25519_signing_gives_the_published_bytes_of_b_2_6() -> None:
    case = next(case for case in CASES if case["id"] == "B.2.6")
    pem = APPENDIX_B["keys"]["test-key-ed25519"]["private_pem"].encode()
    secret = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(secret, ed25519.Ed25519PrivateKey)
    jwk = {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": _b64url(secret.public_key().public_bytes_raw()),
        "d": _b64url(secret.private_bytes_raw()),
    }
    covered = ["date", "@method", "@path", "@authority", "content-type", "content-length"]
    params = make_signature_params(covered, created=1618884473, keyid="test-key-ed25519")
    assert serialise_signature_input({"sig-b26": params}) == case["signature_input"]
    signature = sign(message("request"), params, private_key_from_jwk(jwk))
    assert signature == parse_signature([case["signature"].encode()])["sig-b26"]


TRANSFORMED = next(case for case in CASES if case["id"] == "B.4")
ORIGINAL = message("transform")
assert isinstance(ORIGINAL, RequestMessage)


def _b4(headers: tuple[tuple[str, bytes], ...], method: str = "GET", authority: str = "example.org") -> RequestMessage:
    return RequestMessage(method, "https", authority, "/demo?name1=Value1&Name2=value2&param=added", headers)


@pytest.mark.parametrize(
    "changed",
    [
        _b4((("accept", b"application/json"), ("accept", b"*/*"), ("accept-language", b"en-US"))),
        _b4((("referer", b"https://developer.example.org/demo"), ("accept", b"application/json, */*"))),
        _b4((("accept", b"  application/json\t"), ("accept", b" */* "))),
        _b4((("accept", b"application/json, */*"),), authority="EXAMPLE.org:443"),
    ],
    ids=["added header and parameter", "lines joined", "outer whitespace", "authority spelt otherwise"],
)
def test_transformations_of_b_4_that_a_signature_survives(changed: RequestMessage) -> None:
    params = parse_signature_input([TRANSFORMED["signature_input"].encode()])["transform"]
    signature = parse_signature([TRANSFORMED["signature"].encode()])["transform"]
    verify(changed, params, signature, public_key("test-key-ed25519"))


@pytest.mark.parametrize(
    "changed",
    [
        _b4((("accept", b"application/json"), ("accept", b"*/*")), method="POST", authority="example.com"),
        _b4((("accept", b"*/*"), ("accept", b"application/json"))),
        _b4((("accept", b"application/json,  */*"),)),
        _b4((("accept", b"application/json, */*"),), authority="example.org:8443"),
    ],
    ids=["method and authority", "lines reordered", "inner whitespace", "another port"],
)
def test_transformations_of_b_4_that_break_a_signature(changed: RequestMessage) -> None:
    params = parse_signature_input([TRANSFORMED["signature_input"].encode()])["transform"]
    signature = parse_signature([TRANSFORMED["signature"].encode()])["transform"]
    with pytest.raises(BadSignature):
        verify(changed, params, signature, public_key("test-key-ed25519"))


def test_the_published_keys_are_of_the_registered_algorithms() -> None:
    assert public_key("test-key-ed25519").algorithm is ED25519
    assert public_key("test-key-ecc-p256").algorithm is ECDSA_P256_SHA256
