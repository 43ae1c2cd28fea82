"""Which keys sign: one or the two of a hybrid, whatever form they come in."""

from __future__ import annotations

from typing import Any

import pytest

from pch.client import Client, InvalidRequest
from pch.client.signers import signers_of
from pch.keys import KeyFormatError, generate, jwks_members, private_key_from_jwk, public_jwk

ED, P256, PQ = generate("ed25519"), generate("ecdsa-p256-sha256"), generate("ml-dsa-65")
PQ_44, PQ_87 = generate("ml-dsa-44"), generate("ml-dsa-87")


def names(key: Any, alg: str | None = None) -> list[str]:
    return [signer.algorithm.name for signer in signers_of(key, alg)]


@pytest.mark.parametrize(
    ("key", "alg", "expected"),
    [
        (ED, None, ["ed25519"]),
        (PQ_44, None, ["ml-dsa-44"]),
        (private_key_from_jwk(PQ), None, ["ml-dsa-65"]),
        ({"keys": [ED]}, None, ["ed25519"]),
        ({"keys": [ED, PQ]}, None, ["ed25519", "ml-dsa-65"]),
        ({"keys": [PQ, ED]}, None, ["ed25519", "ml-dsa-65"]),
        ((PQ, P256), None, ["ecdsa-p256-sha256", "ml-dsa-65"]),
        ([private_key_from_jwk(PQ), ED], "ed25519+ml-dsa-65", ["ed25519", "ml-dsa-65"]),
        ({"keys": [ED, PQ]}, "ml-dsa-65", ["ml-dsa-65"]),
        ({"keys": [ED, PQ]}, "ed25519", ["ed25519"]),
        ((ED, P256, PQ), "ecdsa-p256-sha256+ml-dsa-65", ["ecdsa-p256-sha256", "ml-dsa-65"]),
        ((ED,), "ed25519", ["ed25519"]),
    ],
)
def test_the_classical_half_comes_first(key: Any, alg: str | None, expected: list[str]) -> None:
    assert names(key, alg) == expected


@pytest.mark.parametrize(
    ("key", "alg", "message"),
    [
        ((), None, "signed by one key"),
        ((ED, P256), None, "those of a hybrid"),
        ((ED, PQ_44), None, "those of a hybrid"),
        ((P256, PQ_87), None, "those of a hybrid"),
        ((PQ, PQ_44), None, "those of a hybrid"),
        ((ED, ED), None, "those of a hybrid"),
        ((ED, P256, PQ), None, "signed by one key"),
        (({"keys": [ED, PQ]}, P256), None, "signed by one key"),
        (ED, "ml-dsa-65", "needs exactly one key"),
        (ED, "ed25519+ml-dsa-65", "needs exactly one key"),
        ((ED, generate("ed25519"), PQ), "ed25519+ml-dsa-65", "needs exactly one key"),
        ((ED, generate("ed25519")), "ed25519", "needs exactly one key"),
        ((ED, PQ_44), "ed25519+ml-dsa-44", "algorithm is unknown"),
        (ED, "rsa-v1_5-sha256", "algorithm is unknown"),
        (public_jwk(ED), None, "the key is not usable"),
        ({"keys": [ED, public_jwk(PQ)]}, None, "the key is not usable"),
    ],
)
def test_what_cannot_sign_is_refused(key: Any, alg: str | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        signers_of(key, alg)


def test_a_refusal_never_tells_the_key() -> None:
    with pytest.raises(InvalidRequest) as caught:
        signers_of({"keys": [ED, PQ | {"priv": ED["d"]}]})
    assert ED["d"] not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_the_client_refuses_two_keys_that_are_no_hybrid() -> None:
    with pytest.raises(InvalidRequest):
        Client(key=(ED, P256))
    Client(key=(ED, PQ)).close()


@pytest.mark.parametrize(
    "document", [{"keys": None}, {"keys": {}}, {"keys": []}, {"keys": [ED] * 3}, {"keys": ["x"]}, {"keys": [[]]}]
)
def test_a_set_that_is_none_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(KeyFormatError):
        jwks_members(document)
    assert jwks_members(ED) == (ED,)
    assert jwks_members({"keys": [ED, PQ]}) == (ED, PQ)
