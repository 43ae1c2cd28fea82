"""Keys in a token: a real SoftHSM, its keys used through their URI, and everything that is no such key."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pch.client import Client, InvalidRequest, TokenFailed, Unsupported, pkcs11_key
from pch.client.cli import main
from pch.client.pkcs11_key import Pkcs11Signer, parse_uri
from pch.client.signers import signers_of
from pch.keys import generate, public_jwk, public_key_from_jwk, thumbprint
from tests.support.client_token import MODULE, client_token, key_uri


def test_softhsm_is_here() -> None:
    assert Path(MODULE).exists(), "softhsm2 is missing: run `make parts`"
    assert shutil.which("softhsm2-util")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with client_token(tmp_path_factory.mktemp("token")) as folder:
        yield folder


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [("object=p256", "ecdsa-p256-sha256"), ("id=%01", "ed25519"), ("object=ed;id=%02", "ed25519")],
)
def test_a_key_in_a_token_signs_what_its_public_key_verifies(token: Path, name: str, algorithm: str) -> None:
    signer = Pkcs11Signer(key_uri(token, name))
    try:
        assert signer.algorithm.name == algorithm
        assert len(signer.key_id) == 43
        first, second = signer.sign(b"one"), signer.sign(b"two")
        assert len(first) == len(second) == 64
        assert first != second
        assert signers_of((signer, generate("ml-dsa-65")))[0] is signer
        Client(key=signer).close()
    finally:
        signer.close()
    with pytest.raises(TokenFailed):
        signer.sign(b"three")
    signer.close()


def test_a_token_that_hangs_is_a_typed_error(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Pkcs11Signer(key_uri(token, "object=p256"))
    released = threading.Event()
    monkeypatch.setattr(pkcs11_key, "TOKEN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(signer, "_sign", lambda _data: released.wait(10))
    with pytest.raises(TokenFailed, match="in time"):
        signer.sign(b"x")
    released.set()
    monkeypatch.setattr(pkcs11_key, "TOKEN_TIMEOUT_S", 10.0)
    signer.close()


def test_a_token_whose_signature_is_none_is_a_typed_error(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Pkcs11Signer(key_uri(token, "object=p256"))
    monkeypatch.setattr(signer, "_sign", lambda _data: b"short")
    with pytest.raises(TokenFailed, match="wrong length"):
        signer.sign(b"x")
    signer.close()


def test_without_the_package_a_token_is_unsupported(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(Unsupported, match="python-pkcs11"):
        Pkcs11Signer(key_uri(token, "object=p256"))


def test_a_public_key_that_is_not_the_private_keys_is_refused(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = public_key_from_jwk(public_jwk(generate("ecdsa-p256-sha256")))
    monkeypatch.setattr(pkcs11_key, "public_key_from_jwk", lambda _jwk: foreign)
    with pytest.raises(TokenFailed, match="not that of its private key"):
        Pkcs11Signer(key_uri(token, "object=p256"))


@pytest.mark.parametrize("name", ["p384", "rsa"])
def test_a_key_of_another_kind_is_unsupported(token: Path, name: str) -> None:
    with pytest.raises(Unsupported, match="ed25519 or ecdsa-p256-sha256"):
        Pkcs11Signer(key_uri(token, f"object={name}"))


@pytest.mark.parametrize(("name", "message"), [("object=absent", "no key pair"), ("object=ed", "several keys")])
def test_a_key_that_is_not_there_or_not_alone_is_refused(token: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Pkcs11Signer(key_uri(token, name))


def test_a_wrong_pin_fails_without_telling_it(token: Path) -> None:
    wrong = token / "wrong"
    wrong.write_text("00000000")
    wrong.chmod(0o600)
    with pytest.raises(TokenFailed) as caught:
        Pkcs11Signer(key_uri(token, "object=p256", "wrong"))
    assert "00000000" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_pin_file_that_others_may_read_or_that_holds_no_pin_is_refused(token: Path) -> None:
    for content, mode in (("12345678", 0o644), ("", 0o600), ("1\n2", 0o600), ("x" * 300, 0o600), ("pän", 0o600)):
        path = token / "odd"
        path.write_text(content)
        path.chmod(mode)
        with pytest.raises(InvalidRequest, match="PIN"):
            Pkcs11Signer(key_uri(token, "object=p256", "odd"))
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Pkcs11Signer(key_uri(token, "object=p256", "absent"))


def test_a_module_that_is_none_fails(token: Path) -> None:
    with pytest.raises(TokenFailed):
        Pkcs11Signer(f"pkcs11:token=signet;object=p256?module-path=/absent.so&pin-source={token / 'pin'}")


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:",
        "file:token=a;object=b?module-path=m",
        "pkcs11:token=a?module-path=m",
        "pkcs11:object=a?module-path=m",
        "pkcs11:token=a;object=b",
        "pkcs11:token=a;object=b;token=c?module-path=m",
        "pkcs11:token=a;object=b;slot-id=1?module-path=m",
        "pkcs11:token=a;object=b?module-path=m&pin-value=1234",
        "pkcs11:token=a;object=b?module-path",
        "pkcs11:token=%ff;object=b?module-path=m",
        "pkcs11:token=a;object=b?module-path=" + "m" * 2100,
    ],
)
def test_a_uri_that_says_too_little_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_uri(text)


def test_a_uri_is_decoded() -> None:
    read = parse_uri("pkcs11:token=my%20hsm;object=a%3Bb;id=%00%ff?module-path=/m%26.so&pin-source=file:/p")
    assert (read.token, read.label, read.key_id, read.module) == ("my hsm", "a;b", b"\x00\xff", "/m&.so")
    assert read.pin_file == Path("/p")


def test_the_command_signs_with_a_token_and_says_what_a_token_cannot(
    token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["https://app.example/x", "--challenge", "AQAAAAc" + "A" * 53]
    assert main(["sign", *common, "--key", key_uri(token, "object=p256")]) == 0
    assert 'alg="ecdsa-p256-sha256"' in capsys.readouterr().out
    assert main(["sign", *common, "--key", key_uri(token, "object=p256"), "--alg", "ml-dsa-65"]) == 2
    assert main(["sign", *common, "--key", key_uri(token, "object=rsa")]) == 2
    assert "ML-DSA keys are kept in files" in capsys.readouterr().err
    assert main(["sign", *common, "--key", key_uri(token, "object=absent")]) == 2


def test_the_command_prints_the_public_key_to_register(
    token: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["public", "--key", key_uri(token, "object=p256"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["key_ids"] == [thumbprint(told["public_jwk"])]
    assert public_key_from_jwk(told["public_jwk"]).algorithm.name == "ecdsa-p256-sha256"
    private = generate("ml-dsa-65")
    (tmp_path / "pq.jwk").write_text(json.dumps(private))
    assert main(["public", "--key", key_uri(token, "object=p256"), "--key", str(tmp_path / "pq.jwk")]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"keys": [told["public_jwk"], public_jwk(private)]}
    assert private["priv"] not in printed
    (tmp_path / "pq.jwk").write_text('{"kty": "RSA"}')
    assert main(["public", "--key", str(tmp_path / "pq.jwk")]) == 2
