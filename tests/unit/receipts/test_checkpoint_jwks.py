from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pch.keys import thumbprint
from receipts.checkpoint_jwks import JwksError, verifier_jwks, verifier_keys_of
from receipts.checkpoint_keys import FileCheckpointSigner, create_key_file
from receipts.signed_note import ED25519, ML_DSA_44, VerifierKey, VerifierKeyError
from tests.support.log_parts import NOW_S, ORIGIN, seeded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# RFC 8037 Appendix A.2 and A.3.
RFC_X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
RFC_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[VerifierKey, ...]:
    create_key_file(tmp_path / "keys.json", ORIGIN, NOW_S, seeded("first"))
    signer = FileCheckpointSigner(tmp_path / "keys.json", lambda: NOW_S)
    signer.introduce(signer.prepare_rotation(seeded("second")), 1)
    return signer.verifier_keys()


def test_keys_survive_the_set(keys: tuple[VerifierKey, ...]) -> None:
    jwks = verifier_jwks(keys)
    assert verifier_keys_of(jwks, ORIGIN) == keys
    assert [(each["kty"], each["alg"], each["use"]) for each in jwks["keys"]] == [
        ("OKP", "Ed25519", "sig"),
        ("AKP", "ML-DSA-44", "sig"),
    ] * 2
    # The other implementation of RFC 7638 in this project agrees.
    assert [each["kid"] for each in jwks["keys"]] == [thumbprint(each) for each in jwks["keys"]]


def test_the_key_of_the_rfc_has_the_thumbprint_of_the_rfc() -> None:
    (key,) = verifier_keys_of({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": RFC_X}]}, ORIGIN)
    assert key.signature_type == ED25519
    assert verifier_jwks([key])["keys"][0]["kid"] == RFC_THUMBPRINT


def test_other_keys_are_left_out(keys: tuple[VerifierKey, ...]) -> None:
    jwks = verifier_jwks(keys)
    others: list[dict[str, Any]] = [
        {"kty": "EC", "crv": "P-256", "x": "a", "y": "b"},
        {"kty": "OKP", "crv": "X25519", "x": RFC_X},
        {"kty": "AKP", "alg": "ML-DSA-65", "pub": "a"},
        {"kty": "OKP", "crv": "Ed25519", "x": RFC_X, "use": "enc"},
        {"kty": "OKP", "crv": "Ed25519", "x": RFC_X, "alg": "ES256"},
        {"kty": "OKP", "crv": "Ed25519", "x": RFC_X, "alg": ["EdDSA"]},
        {},
    ]
    assert verifier_keys_of({"keys": [*others, *jwks["keys"], *jwks["keys"]]}, ORIGIN) == keys
    assert verifier_keys_of({"keys": others}, ORIGIN) == ()


@pytest.mark.parametrize(
    "jwks", [{}, {"keys": None}, {"keys": {}}, {"keys": ["a"]}, {"keys": [None]}, {"keys": [{}] * 1025}]
)
def test_what_is_no_set_is_refused(jwks: dict[str, Any]) -> None:
    with pytest.raises(JwksError):
        verifier_keys_of(jwks, ORIGIN)


OKP = {"kty": "OKP", "crv": "Ed25519", "x": RFC_X, "kid": RFC_THUMBPRINT}


@pytest.mark.parametrize(
    "change",
    [
        {"d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"},
        {"priv": "a"},
        {"x": None},
        {"x": 7},
        {"x": ""},
        {"x": RFC_X[:-1]},
        {"x": RFC_X + "A"},
        {"x": RFC_X + "="},
        {"x": RFC_X[:-1] + "p"},
        {"x": RFC_X.replace("_", "/")},
        {"x": RFC_X[:-1] + "é"},
        {"kid": "other"},
        {"kid": 7},
    ],
)
def test_a_malformed_or_private_key_is_refused(change: dict[str, Any]) -> None:
    verifier_keys_of({"keys": [OKP]}, ORIGIN)
    with pytest.raises(JwksError):
        verifier_keys_of({"keys": [OKP | change]}, ORIGIN)


def test_an_ml_dsa_key_has_its_length(keys: tuple[VerifierKey, ...]) -> None:
    (jwk,) = verifier_jwks([key for key in keys if key.signature_type == ML_DSA_44][:1])["keys"]
    cut: Callable[[str], str] = lambda text: text[:-4]  # noqa: E731
    with pytest.raises(JwksError):
        verifier_keys_of({"keys": [jwk | {"pub": cut(jwk["pub"])}]}, ORIGIN)


def test_a_name_that_names_no_key_is_refused() -> None:
    with pytest.raises((JwksError, VerifierKeyError)):
        verifier_keys_of({"keys": [OKP]}, "no name")
