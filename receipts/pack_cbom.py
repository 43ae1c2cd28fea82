"""The cryptographic bill of materials of a pack: CycloneDX 1.6, made with `cyclonedx-python-lib`."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import uuid
from typing import TYPE_CHECKING, Final

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.crypto import (
    AlgorithmProperties,
    CryptoAssetType,
    CryptoFunction,
    CryptoPrimitive,
    CryptoProperties,
    RelatedCryptoMaterialProperties,
    RelatedCryptoMaterialState,
    RelatedCryptoMaterialType,
)
from cyclonedx.output.json import JsonV1Dot6

from receipts.signed_note import ED25519, ML_DSA_44

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from receipts.signed_note import VerifierKey

_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SIGN: Final = (CryptoFunction.SIGN, CryptoFunction.VERIFY, CryptoFunction.KEYGEN)


def _signature(
    parameters: str, oid: str, classical_bits: int, quantum_level: int, curve: str | None = None
) -> CryptoProperties:
    return CryptoProperties(
        asset_type=CryptoAssetType.ALGORITHM,
        algorithm_properties=AlgorithmProperties(
            primitive=CryptoPrimitive.SIGNATURE,
            parameter_set_identifier=parameters,
            curve=curve,
            crypto_functions=_SIGN,
            classical_security_level=classical_bits,
            nist_quantum_security_level=quantum_level,
        ),
        oid=oid,
    )


_SHA_256: Final = CryptoProperties(
    asset_type=CryptoAssetType.ALGORITHM,
    algorithm_properties=AlgorithmProperties(
        primitive=CryptoPrimitive.HASH,
        parameter_set_identifier="256",
        crypto_functions=[CryptoFunction.DIGEST],
        classical_security_level=128,
        nist_quantum_security_level=2,
    ),
    oid="2.16.840.1.101.3.4.2.1",
)
ALGORITHMS: Final = {
    "sha-256": ("SHA-256", _SHA_256),
    "ed25519": ("Ed25519", _signature("Ed25519", "1.3.101.112", 128, 0, "edwards25519")),
    "ecdsa-p256-sha256": ("ECDSA-P256-SHA256", _signature("P-256", "1.2.840.10045.4.3.2", 128, 0, "secp256r1")),
    "ml-dsa-44": ("ML-DSA-44", _signature("44", "2.16.840.1.101.3.4.3.17", 128, 2)),
    "ml-dsa-65": ("ML-DSA-65", _signature("65", "2.16.840.1.101.3.4.3.18", 192, 3)),
    "ml-dsa-87": ("ML-DSA-87", _signature("87", "2.16.840.1.101.3.4.3.19", 256, 5)),
}
"""By the name in receipts (RFC 9421's, or C2SP httpsig-pq's)."""
_LOG_ALGORITHMS: Final = ("sha-256", "ed25519", "ml-dsa-44")
_ALGORITHM_OF: Final = {ED25519: "ed25519", ML_DSA_44: "ml-dsa-44"}


def cbom(
    origin: str,
    keys: Iterable[VerifierKey],
    signing: Collection[VerifierKey],
    *,
    request_algorithms: Iterable[str],
    policy: bytes,
    made_s: int,
    serial: bytes,
) -> bytes:
    """List what the log's evidence rests on, as CycloneDX 1.6 JSON.

    `keys`: every key; `signing`: those that signed the checkpoint. `request_algorithms`: what requests may be signed
    with; names not in `ALGORITHMS` are listed without properties. `policy`: the bundle in force, told by its digest and
    the git commit that it states. `made_s`: POSIX seconds. `serial`: 16 bytes.
    """
    names = dict.fromkeys((*_LOG_ALGORITHMS, *request_algorithms))
    algorithms = {name: _algorithm(name) for name in names}
    components = [*algorithms.values()]
    for key in keys:
        state = RelatedCryptoMaterialState.ACTIVE if key in signing else RelatedCryptoMaterialState.DEACTIVATED
        used = algorithms[_ALGORITHM_OF[key.signature_type]]
        components.append(_key(key, used, state))
    bom = Bom(
        components=components,
        serial_number=uuid.UUID(bytes=serial[:16], version=4),
        metadata=BomMetaData(
            component=Component(name=origin, type=ComponentType.APPLICATION, bom_ref="log"),
            timestamp=dt.datetime.fromtimestamp(made_s, dt.UTC),
            properties=_policy(policy),
        ),
    )
    bom.register_dependency(bom.metadata.component, components)  # type: ignore[arg-type]
    return JsonV1Dot6(bom).output_as_string(indent=1).encode() + b"\n"


def _policy(bundle: bytes) -> list[Property]:
    told = [Property(name="signet:policy-digest", value=hashlib.sha256(bundle).hexdigest())]
    try:
        stated = json.loads(bundle)
    except (ValueError, RecursionError):
        return told
    commit = stated.get("commit") if isinstance(stated, dict) else None
    if isinstance(commit, str) and _COMMIT.fullmatch(commit):
        told.append(Property(name="signet:policy-git-commit", value=commit))
    return told


def _algorithm(name: str) -> Component:
    title, properties = ALGORITHMS.get(name, (name, CryptoProperties(asset_type=CryptoAssetType.ALGORITHM)))
    return Component(
        name=title,
        type=ComponentType.CRYPTOGRAPHIC_ASSET,
        bom_ref=f"algorithm/{name}",
        crypto_properties=properties,
    )


def _key(key: VerifierKey, algorithm: Component, state: RelatedCryptoMaterialState) -> Component:
    return Component(
        name=f"{key.name}+{key.key_id.hex()}",
        type=ComponentType.CRYPTOGRAPHIC_ASSET,
        bom_ref=f"key/{key.key_id.hex()}",
        properties=[Property(name="signet:verifier-key", value=key.text)],
        crypto_properties=CryptoProperties(
            asset_type=CryptoAssetType.RELATED_CRYPTO_MATERIAL,
            related_crypto_material_properties=RelatedCryptoMaterialProperties(
                type=RelatedCryptoMaterialType.PUBLIC_KEY,
                id=key.key_id.hex(),
                state=state,
                algorithm_ref=algorithm.bom_ref,
                size=8 * len(key.public_key),
                format="raw",
            ),
        ),
    )
