"""Read the channel binding that the edge vouches for (docs/reference/pch.md §1.1)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from envoy.config.core.v3.base_pb2 import Metadata

METADATA_NAMESPACE: Final = "signet.tls"
METADATA_KEY: Final = "tls_exporter"
UNBOUND: Final = bytes(32)
"""Stands for the binding inside the challenge of a route declared `binding="none"`."""
_SIXTY_FOUR_HEX: Final = re.compile(r"[0-9a-f]{64}")


def binding_of(metadata: Metadata) -> bytes | None:
    """Give the 32 exporter bytes of the downstream connection, or None: absent, empty or malformed alike."""
    if METADATA_NAMESPACE not in metadata.filter_metadata:
        return None
    fields = metadata.filter_metadata[METADATA_NAMESPACE].fields
    if METADATA_KEY not in fields:
        return None
    text: str = fields[METADATA_KEY].string_value
    return bytes.fromhex(text) if _SIXTY_FOUR_HEX.fullmatch(text) else None
