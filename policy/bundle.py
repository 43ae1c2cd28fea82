"""The policy in force as one document: what was compiled, from which source, with which data.

Its SHA-256 is the policy's digest: in every receipt, and of `policy/bundle` in a compliance pack, where an auditor
finds the source to read and the module to run.
"""

from __future__ import annotations

import hashlib

import msgspec


class PolicyBundle(msgspec.Struct, frozen=True, kw_only=True):
    """`engine`: `wasm` or `opa`. `modules`: Rego by name. `data`: the document under `data`. `wasm`: compiled."""

    engine: str
    modules: dict[str, str]
    data: msgspec.Raw
    wasm: bytes = b""


def bundle_bytes(bundle: PolicyBundle) -> bytes:
    """Write the document: JSON with its members in order, so that equal policies have equal bytes."""
    return msgspec.json.encode(bundle, order="deterministic")


def bundle_digest(document: bytes) -> str:
    """Give the SHA-256 of the document, lower-case hex."""
    return hashlib.sha256(document).hexdigest()
