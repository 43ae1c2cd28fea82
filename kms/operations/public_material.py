"""The public half of a version as the API answers it (API.md §2.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kms.base64_text import encode_base64
from kms.messages import PublicMaterial, PublicPart
from kms.primitive import WIRE_NAMES

if TYPE_CHECKING:
    from kms.key_record import KeyRecord, KeyVersion


def public_material(record: KeyRecord, version: KeyVersion) -> PublicMaterial:
    """Give the first part's public key, and for a version of several parts all of them in `parts`."""
    parts = [
        PublicPart(alg=WIRE_NAMES[part.primitive], pubkey_b64=encode_base64(part.public)) for part in version.parts
    ]
    return PublicMaterial(alg=record.name.alg, pubkey_b64=parts[0].pubkey_b64, parts=parts if len(parts) > 1 else [])
