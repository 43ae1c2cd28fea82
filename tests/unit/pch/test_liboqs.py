"""The two providers of ML-DSA against each other, and how liboqs is found: never by cloning it."""

from __future__ import annotations

import _ctypes
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.keyring import KeyringFile
from extproc.ml_dsa_provider import ProviderError, algorithms_by
from pch import liboqs
from pch.algorithms import ALGORITHMS, PublicKey
from pch.errors import BadSignature
from pch.keys import KeyFormatError, generate, private_key_from_jwk, public_jwk, public_key_from_jwk, thumbprint
from pch.liboqs import INSTALL_PATH_VARIABLE, LiboqsUnavailable, liboqs_algorithms, load_oqs

ROOT = Path(__file__).resolve().parents[3]
VECTORS = ROOT / "tests" / "vectors"
INSTALLED = Path(os.environ.get(INSTALL_PATH_VARIABLE, ROOT / "build" / "liboqs"))
NAMES = ["ml-dsa-44", "ml-dsa-65", "ml-dsa-87"]
PRESENT = any((INSTALLED / folder / "liboqs.so").exists() for folder in ("lib", "lib64"))


def test_liboqs_is_here_where_everything_has_to_be() -> None:
    assert PRESENT or os.environ.get("CI") != "true", "liboqs is missing: run `make parts`"


needs_liboqs = pytest.mark.skipif(not PRESENT, reason="liboqs is missing: run `make parts` (CI fails without it)")


@pytest.fixture(scope="module")
def registry() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(INSTALL_PATH_VARIABLE, str(INSTALLED))
        return liboqs_algorithms()


def b64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def verdicts(keys: list[PublicKey], signature: bytes, data: bytes) -> list[bool]:
    """Ask every provider; each says yes or BadSignature, nothing else."""
    said = []
    for key in keys:
        try:
            key.verify(signature, data)
            said.append(True)
        except BadSignature:
            said.append(False)
    return said


@needs_liboqs
def test_liboqs_replaces_ml_dsa_and_nothing_else(registry: Any) -> None:
    assert list(registry) == list(ALGORITHMS)
    for name, algorithm in ALGORITHMS.items():
        assert (registry[name] is algorithm) == (name not in NAMES)
        jwk = public_jwk(generate(name))
        assert public_key_from_jwk(jwk, registry).algorithm.name == name
        with pytest.raises(KeyFormatError):
            public_key_from_jwk({**jwk, "alg": "ML-DSA-77"}, registry)


@needs_liboqs
@pytest.mark.parametrize("name", NAMES)
def test_what_cryptography_signs_liboqs_verifies_and_refuses_alike(registry: Any, name: str) -> None:
    private = generate(name)
    signer, jwk = private_key_from_jwk(private), public_jwk(private)
    keys = [public_key_from_jwk(jwk), public_key_from_jwk(jwk, registry)]

    @settings(max_examples=25, deadline=None)
    @given(data=st.binary(max_size=300), position=st.integers(0, 10_000), flip=st.integers(1, 255))
    def agree(data: bytes, position: int, flip: int) -> None:
        signature = signer.sign(data)
        assert verdicts(keys, signature, data) == [True, True]
        altered = bytearray(signature)
        altered[position % len(altered)] ^= flip
        assert verdicts(keys, bytes(altered), data) == [False, False]
        assert verdicts(keys, signature, data + b"\n") == [False, False]
        assert verdicts(keys, signature[:-1], data) == verdicts(keys, signature + b"\0", data) == [False, False]

    agree()


@needs_liboqs
@pytest.mark.parametrize("name", NAMES)
def test_what_liboqs_signs_cryptography_verifies_and_refuses_alike(
    registry: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INSTALL_PATH_VARIABLE, str(INSTALLED))
    oqs = load_oqs()
    with oqs.Signature(name.upper()) as signer:
        public = signer.generate_keypair()
        jwk = {"kty": "AKP", "alg": name.upper(), "pub": b64url(public)}
        keys = [public_key_from_jwk(jwk), public_key_from_jwk(jwk, registry)]
        for data in (b"", b"x", bytes(range(256)) * 20):
            signature = signer.sign(data)
            assert len(signature) == ALGORITHMS[name].signature_bytes
            assert verdicts(keys, signature, data) == [True, True]
            assert verdicts(keys, signature, data + b"x") == [False, False]
            altered = bytearray(signature)
            altered[len(data) % len(altered)] ^= 1
            assert verdicts(keys, bytes(altered), data) == [False, False]


@needs_liboqs
def test_both_providers_agree_about_every_vector(registry: Any) -> None:
    seen = []
    for group in json.loads((VECTORS / "wycheproof" / "mldsa_65_verify_test.json").read_text())["testGroups"]:
        jwk = {"kty": "AKP", "alg": "ML-DSA-65", "pub": b64url(bytes.fromhex(group["publicKey"]))}
        try:
            keys = [public_key_from_jwk(jwk), public_key_from_jwk(jwk, registry)]
        except KeyFormatError:
            continue
        for test in group["tests"]:
            said = verdicts(keys, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
            assert said[0] == said[1], test["tcId"]
            seen.append(said[0])
    assert min(seen.count(True), seen.count(False)) > 20
    for vector in json.loads((VECTORS / "httpsig-pq" / "httpsig-pq.json").read_text())["vectors"]:
        public = base64.b64decode(vector["public_key_base64"])
        key = public_key_from_jwk({"kty": "AKP", "alg": vector["algorithm"].upper(), "pub": b64url(public)}, registry)
        signature = base64.b64decode(vector["deterministic_signature_base64"])
        key.verify(signature, base64.b64decode(vector["signature_base_base64"]))


@needs_liboqs
def test_the_filter_verifies_with_the_provider_that_its_configuration_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = generate("ml-dsa-65")
    path = tmp_path / "keyring.json"
    path.write_text(json.dumps([{"subject": "a", "jwk": public_jwk(private), "status": "active"}]))
    monkeypatch.setenv(INSTALL_PATH_VARIABLE, str(INSTALLED))
    kinds = set()
    for provider in ("cryptography", "liboqs"):
        key = KeyringFile(path, algorithms_by(provider)).current.lookup(thumbprint(private)).public_key
        key.verify(private_key_from_jwk(private).sign(b"x"), b"x")
        with pytest.raises(BadSignature):
            key.verify(private_key_from_jwk(private).sign(b"x"), b"y")
        kinds.add(type(key).__name__)
    assert kinds == {"MlDsaPublicKey", "LiboqsPublicKey"}


@pytest.mark.parametrize("value", [None, "", "relative", "/nonexistent"])
def test_without_the_library_nothing_is_imported_or_cloned(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(INSTALL_PATH_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(INSTALL_PATH_VARIABLE, value)
    monkeypatch.setattr(liboqs.importlib, "import_module", lambda _name: pytest.fail("oqs was imported"))
    with pytest.raises(LiboqsUnavailable):
        load_oqs()
    with pytest.raises(ProviderError, match="ml_dsa_provider"):
        algorithms_by("liboqs")


def test_a_library_that_is_none_or_another_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    library = tmp_path / "lib" / "liboqs.so"
    monkeypatch.setenv(INSTALL_PATH_VARIABLE, str(tmp_path))
    monkeypatch.setattr(liboqs.importlib, "import_module", lambda _name: pytest.fail("oqs was imported"))
    library.write_bytes(b"not a library")
    with pytest.raises(LiboqsUnavailable, match="cannot be loaded"):
        load_oqs()
    library.unlink()
    library.symlink_to(_ctypes.__file__)
    with pytest.raises(LiboqsUnavailable, match="lacks what"):
        load_oqs()


@needs_liboqs
@pytest.mark.parametrize("error", [ImportError, AttributeError, RuntimeError, SystemExit])
def test_a_package_that_is_missing_or_gives_up_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fails(_name: str) -> None:
        raise error

    monkeypatch.setenv(INSTALL_PATH_VARIABLE, str(INSTALLED))
    monkeypatch.setattr(liboqs.importlib, "import_module", fails)
    with pytest.raises(LiboqsUnavailable):
        load_oqs()


@needs_liboqs
def test_importing_says_nothing_on_standard_output() -> None:
    code = "from pch.liboqs import liboqs_algorithms; liboqs_algorithms()"
    environment = os.environ | {INSTALL_PATH_VARIABLE: str(INSTALLED), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert (ran.stdout, ran.stderr) == (b"", b"")
