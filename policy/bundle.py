"""The policy in force as one document: what was compiled, from which source, with which data.

Its SHA-256 is the policy's digest: in every receipt, and of `policy/bundle` in a compliance pack, where an auditor
finds the source to read and the module to run.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec

COMMIT: Final = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})")
"""A git commit's whole name, of either of git's hashes."""


class PolicyBundle(msgspec.Struct, frozen=True, kw_only=True):
    """`engine`: `wasm` or `opa`. `modules`: Rego by name. `data`: the document under `data`. `wasm`: compiled.

    `commit`: the git commit that the modules are said to be of, 40 or 64 hex digits; None where nobody said.
    """

    engine: str
    modules: dict[str, str]
    data: msgspec.Raw
    wasm: bytes = b""
    commit: str | None = None


def bundle_bytes(bundle: PolicyBundle) -> bytes:
    """Write the document: JSON with its members in order, so that equal policies have equal bytes."""
    return msgspec.json.encode(bundle, order="deterministic")


def bundle_digest(document: bytes) -> str:
    """Give the SHA-256 of the document, lower-case hex."""
    return hashlib.sha256(document).hexdigest()
