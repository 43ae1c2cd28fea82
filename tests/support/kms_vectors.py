"""Write the key service's own vectors, once: `python -m tests.support.kms_vectors FOLDER`. A file that is there stays.

The private keys are for tests: their seeds stand in the files. ML-DSA signatures and envelopes are random; what was
written is what has to verify and open for ever.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kms.kem_envelope import AeadName, KemPublic, seal
from kms.kid import Kid, parse_kid
from kms.operations.derive import child_name, derivation_info
from kms.primitive import KEY_ALGORITHMS, WIRE_NAMES, Primitive
from kms.providers.inmem import InMemoryProvider
from kms.providers.provider import ProviderKey
from kms.providers.software_key import SEED_BYTES

# BLAKE3 of "hello world".
DIGEST = "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"
SIGN_KID = "core/audit/hybrid/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v1"
KEM_KID = "core/kem/x25519/3c8b1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v2"
ROOT_KID = "core/tree/hkdf/7d2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b#v1"
SIGNING = (
    Primitive.ED25519,
    Primitive.ECDSA_P256_SHA256,
    Primitive.ML_DSA_44,
    Primitive.ML_DSA_65,
    Primitive.ML_DSA_87,
)


def seed_of(primitive: Primitive) -> bytes:
    return bytes((index * 7 + len(primitive.value)) % 256 for index in range(SEED_BYTES[primitive]))


def provider_with(seed: bytes) -> InMemoryProvider:
    """A provider whose next key has this seed."""

    def fill(view: memoryview) -> None:
        view[:] = seed

    return InMemoryProvider(random_fill=fill)


def key_from(seed: bytes, primitive: Primitive, kid: Kid) -> tuple[InMemoryProvider, ProviderKey]:
    provider = provider_with(seed)
    return provider, provider.generate(primitive, kid)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def forged(signature: bytes) -> bytes:
    return bytes([signature[0] ^ 1]) + signature[1:]


def bundles() -> dict[str, Any]:
    kid = parse_kid(SIGN_KID)
    keys, signed = {}, {}
    for primitive in SIGNING:
        provider, part = key_from(seed_of(primitive), primitive, kid)
        name = WIRE_NAMES[primitive]
        keys[name] = {"seed": seed_of(primitive).hex(), "pubkey_b64": b64(part.public)}
        signature = provider.sign(part.handle, primitive, bytes.fromhex(DIGEST))
        signed[name] = {"alg": name, "signature_b64": b64(signature)}
    broken = {
        name: {**each, "signature_b64": b64(forged(base64.b64decode(each["signature_b64"])))}
        for name, each in signed.items()
    }
    cases = [
        case(name, [name], [signed[name]], either=True, both=name.startswith("ml-dsa"), pq=name.startswith("ml-dsa"))
        for name in signed
    ]
    halves = ["ed25519", "ml-dsa"]
    cases += [
        case("hybrid", halves, [signed["ed25519"], signed["ml-dsa"]], either=True, both=True, pq=True),
        case(
            "hybrid, classical half forged",
            halves,
            [broken["ed25519"], signed["ml-dsa"]],
            either=True,
            both=False,
            pq=True,
        ),
        case(
            "hybrid, post-quantum half forged",
            halves,
            [signed["ed25519"], broken["ml-dsa"]],
            either=True,
            both=False,
            pq=False,
        ),
        case("hybrid, classical half alone", halves, [signed["ed25519"]], either=True, both=False, pq=False),
        case("hybrid, post-quantum half alone", halves, [signed["ml-dsa"]], either=True, both=False, pq=True),
        case("hybrid, both forged", halves, [broken["ed25519"], broken["ml-dsa"]], either=False, both=False, pq=False),
    ]
    return {"kid": SIGN_KID, "payload": "hello world", "payload_b3": DIGEST, "keys": keys, "cases": cases}


def case(name: str, parts: list[str], sigs: list[Any], *, either: bool, both: bool, pq: bool) -> dict[str, Any]:
    return {"name": name, "parts": parts, "sigs": sigs, "expected": {"or": either, "and": both, "pq_only": pq}}


def envelopes() -> dict[str, Any]:
    kid, plaintext = parse_kid(KEM_KID), bytes(range(32))
    keys = {each: key_from(seed_of(each), each, kid)[1] for each in (Primitive.X25519, Primitive.ML_KEM_768)}
    public = KemPublic(keys[Primitive.X25519].public, keys[Primitive.ML_KEM_768].public)
    names: tuple[AeadName, ...] = ("chacha20poly1305", "aes-gcm")
    return {
        "kid": KEM_KID,
        "plaintext_key_b64": b64(plaintext),
        "keys": {
            WIRE_NAMES[each]: {"seed": seed_of(each).hex(), "pubkey_b64": b64(part.public)}
            for each, part in keys.items()
        },
        "envelopes": {name: b64(seal(kid, public, plaintext, b"\0" * 11 + b"\1", name)) for name in names},
    }


def children() -> dict[str, Any]:
    root = parse_kid(ROOT_KID)
    provider, part = key_from(seed_of(Primitive.HKDF_ROOT), Primitive.HKDF_ROOT, root)
    cases = []
    for context in ("tree/1", "a"):
        for alg in ("ed25519", "ecdsa-p256-sha256", "ml-dsa", "hybrid", "x25519", "hkdf"):
            name = child_name(root, context, alg)
            info = derivation_info(name, context)
            parts = [
                provider.derive(part.handle, info, primitive, name.version(1))
                for primitive in KEY_ALGORITHMS[alg].parts
            ]
            cases.append(
                {
                    "context": context,
                    "alg": alg,
                    "kid": str(name.version(1)),
                    "info": info.decode(),
                    "pubkeys_b64": [b64(each.public) for each in parts],
                }
            )
    return {"root": ROOT_KID, "seed": seed_of(Primitive.HKDF_ROOT).hex(), "children": cases}


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "bundles.json": bundles,
    "envelopes.json": envelopes,
    "children.json": children,
}


if __name__ == "__main__":
    for file_name, make in FILES.items():
        path = Path(sys.argv[1]) / file_name
        if not path.exists():
            path.write_text(json.dumps(make(), indent=1) + "\n")
