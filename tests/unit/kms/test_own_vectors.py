"""The key service's own vectors hold, release after release, and by a second reading (INTEROP.md §4, G-2, G-3)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from kms.base64_text import decode_base64
from kms.bundle import judge, read_bundle
from kms.errors import BadRequest, PqPolicy
from kms.kem_envelope import KemPublic, open_envelope
from kms.kid import parse_kid
from kms.messages import Signature, VerifyMode
from kms.operations.derive import child_name, derivation_info
from kms.policy import check_bundle_may_pass
from kms.primitive import KEY_ALGORITHMS, PRIMITIVES_BY_WIRE_NAME, Primitive
from kms.public_keys import load_verifying_key
from pch.liboqs import INSTALL_PATH_VARIABLE, load_oqs
from tests.support.kms_vectors import key_from

VECTORS = Path(__file__).parents[2] / "vectors"
BUNDLES, ENVELOPES, CHILDREN = (
    json.loads((VECTORS / "kms" / f"{name}.json").read_text()) for name in ("bundles", "envelopes", "children")
)
DIGEST = bytes.fromhex(BUNDLES["payload_b3"])
INSTALLED = Path(os.environ.get(INSTALL_PATH_VARIABLE, Path(__file__).parents[3] / "build" / "liboqs"))
PRESENT = any((INSTALLED / folder / "liboqs.so").exists() for folder in ("lib", "lib64"))
needs_liboqs = pytest.mark.skipif(
    not PRESENT and os.environ.get("CI") != "true", reason="liboqs is missing: run `make parts` (CI fails without it)"
)
LIBOQS_NAMES = {"ml-dsa-44": "ML-DSA-44", "ml-dsa": "ML-DSA-65", "ml-dsa-87": "ML-DSA-87"}


@pytest.fixture
def oqs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(INSTALL_PATH_VARIABLE, str(INSTALLED))
    return load_oqs()


def b64(text: str) -> bytes:
    return decode_base64(text, "a vector")


def test_the_files_are_those_that_were_released() -> None:
    rows = re.findall(r"^\| (kms/\S+) \|.*\| ([0-9a-f]{64}) \|$", (VECTORS / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {"kms/bundles.json", "kms/envelopes.json", "kms/children.json"}
    for name, checksum in rows:
        assert hashlib.sha256((VECTORS / name).read_bytes()).hexdigest() == checksum, name


@pytest.mark.parametrize("mode", ["or", "and", "pq_only"])
@pytest.mark.parametrize("case", BUNDLES["cases"], ids=lambda case: case["name"])
def test_bundles_are_judged_as_recorded(case: dict[str, Any], mode: VerifyMode) -> None:
    keys = {
        PRIMITIVES_BY_WIRE_NAME[part]: load_verifying_key(
            PRIMITIVES_BY_WIRE_NAME[part], b64(BUNDLES["keys"][part]["pubkey_b64"])
        )
        for part in case["parts"]
    }
    bundle = read_bundle([Signature(**each) for each in case["sigs"]])
    assert judge(keys, bundle, mode, DIGEST).ok == case["expected"][mode]
    assert not judge(keys, bundle, mode, hashlib.sha256(DIGEST).digest()).ok
    if mode != "or" and not any(primitive.post_quantum for primitive in bundle):
        with pytest.raises(PqPolicy):
            check_bundle_may_pass(mode, has_post_quantum=False)


@pytest.mark.parametrize("name", list(BUNDLES["keys"]))
def test_keys_come_from_their_seeds_and_ed25519_signatures_are_always_the_same(name: str) -> None:
    primitive, recorded = PRIMITIVES_BY_WIRE_NAME[name], BUNDLES["keys"][name]
    provider, part = key_from(bytes.fromhex(recorded["seed"]), primitive, parse_kid(BUNDLES["kid"]))
    assert part.public == b64(recorded["pubkey_b64"])
    if primitive is Primitive.ED25519:
        (signature,) = (case["sigs"][0] for case in BUNDLES["cases"] if case["name"] == "ed25519")
        assert provider.sign(part.handle, primitive, DIGEST) == b64(signature["signature_b64"])


@pytest.mark.parametrize("aead", list(ENVELOPES["envelopes"]))
def test_recorded_envelopes_open_and_their_altered_twins_do_not(aead: str) -> None:
    kid, envelope = parse_kid(ENVELOPES["kid"]), b64(ENVELOPES["envelopes"][aead])
    keys = {
        primitive: key_from(bytes.fromhex(ENVELOPES["keys"][name]["seed"]), primitive, kid)
        for name, primitive in (("x25519", Primitive.X25519), ("ml-kem", Primitive.ML_KEM_768))
    }
    (x_provider, x_part), (m_provider, m_part) = keys[Primitive.X25519], keys[Primitive.ML_KEM_768]
    public = KemPublic(x_part.public, m_part.public)
    assert [x_part.public, m_part.public] == [
        b64(ENVELOPES["keys"][name]["pubkey_b64"]) for name in ("x25519", "ml-kem")
    ]

    def opened(data: bytes) -> bytes:
        return open_envelope(
            kid,
            public,
            data,
            lambda peer: x_provider.agree(x_part.handle, peer),
            lambda ciphertext: m_provider.decapsulate(m_part.handle, ciphertext),
        )

    assert opened(envelope) == b64(ENVELOPES["plaintext_key_b64"])
    for place in (2, 20, 100, 1133, 1140, len(envelope) - 1):
        altered = bytearray(envelope)
        altered[place] ^= 1
        with pytest.raises(BadRequest):
            opened(bytes(altered))


@pytest.mark.parametrize("case", CHILDREN["children"], ids=lambda case: f"{case['context']}-{case['alg']}")
def test_children_are_derived_as_recorded(case: dict[str, Any]) -> None:
    root = parse_kid(CHILDREN["root"])
    provider, part = key_from(bytes.fromhex(CHILDREN["seed"]), Primitive.HKDF_ROOT, root)
    name = child_name(root, case["context"], case["alg"])
    assert str(name.version(1)) == case["kid"]
    info = derivation_info(name, case["context"])
    assert info == case["info"].encode()
    parts = [
        provider.derive(part.handle, info, primitive, name.version(1))
        for primitive in KEY_ALGORITHMS[case["alg"]].parts
    ]
    assert [base64.b64encode(each.public).decode() for each in parts] == case["pubkeys_b64"]


def test_a_child_is_what_hmac_alone_says() -> None:
    """RFC 5869 by hand: extract without salt, one block of expand; the seed is RFC 8032's."""
    extracted = hmac.digest(bytes(32), bytes.fromhex(CHILDREN["seed"]), "sha256")
    seen = 0
    for case in CHILDREN["children"]:
        if case["alg"] not in ("ed25519", "hybrid", "x25519"):
            continue
        primitive = "x25519" if case["alg"] == "x25519" else "ed25519"
        seed = hmac.digest(extracted, case["info"].encode() + b"\0" + primitive.encode() + b"\x01", "sha256")
        private: Any = x25519.X25519PrivateKey if primitive == "x25519" else ed25519.Ed25519PrivateKey
        public = private.from_private_bytes(seed).public_key().public_bytes_raw()
        assert base64.b64encode(public).decode() == case["pubkeys_b64"][0]
        seen += 1
    assert seen == 6


@needs_liboqs
def test_liboqs_says_the_same_of_every_ml_dsa_signature(oqs: Any) -> None:
    seen = set()
    for case in BUNDLES["cases"]:
        for each in case["sigs"]:
            if each["alg"] not in LIBOQS_NAMES:
                continue
            primitive = PRIMITIVES_BY_WIRE_NAME[each["alg"]]
            public, signature = b64(BUNDLES["keys"][each["alg"]]["pubkey_b64"]), b64(each["signature_b64"])
            keys = {primitive: load_verifying_key(primitive, public)}
            ours = judge(keys, {primitive: signature}, "or", DIGEST).ok
            with oqs.Signature(LIBOQS_NAMES[each["alg"]]) as verifier:
                assert verifier.verify(DIGEST, signature, public) == ours
            seen.add((each["alg"], ours))
    assert len(seen) == 4


@pytest.mark.parametrize(("aead", "cipher"), [("chacha20poly1305", ChaCha20Poly1305), ("aes-gcm", AESGCM)])
def test_the_recorded_envelope_opens_by_the_reference_pages_words_alone(aead: str, cipher: Any) -> None:
    envelope, keys = b64(ENVELOPES["envelopes"][aead]), ENVELOPES["keys"]
    start, nonce, ephemeral, ciphertext, sealed = (
        envelope[:2],
        envelope[2:14],
        envelope[14:46],
        envelope[46:1134],
        envelope[1134:],
    )
    shared_pq = mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(keys["ml-kem"]["seed"])).decapsulate(ciphertext)
    classical = x25519.X25519PrivateKey.from_private_bytes(bytes.fromhex(keys["x25519"]["seed"]))
    secrets = shared_pq + classical.exchange(x25519.X25519PublicKey.from_public_bytes(ephemeral))
    kid = ENVELOPES["kid"].encode()
    recipient = b64(keys["x25519"]["pubkey_b64"]) + b64(keys["ml-kem"]["pubkey_b64"])
    transcript = start + len(kid).to_bytes(2, "big") + kid + recipient + ephemeral + ciphertext
    info = b"signet-kms hybrid kem envelope v1\0" + hashlib.sha256(transcript).digest()
    key = hmac.digest(hmac.digest(bytes(32), secrets, "sha256"), info + b"\x01", "sha256")
    assert cipher(key).decrypt(nonce, sealed, start + kid) == b64(ENVELOPES["plaintext_key_b64"])
