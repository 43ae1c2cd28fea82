"""Capabilities for tests: a root key file, an authority on a clock that only tests move, and tokens of every kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kms.capability import Authority
from kms.mint import Grant, mint
from kms.revocation import Revocations
from kms.root_key import RootKeys, create_root_file, read_roots
from tests.support.log_parts import NOW_S, Clock, seeded

if TYPE_CHECKING:
    from pathlib import Path

    from kms.root_key import RootKey

KEY_UUID = "0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"
KEY = f"core/audit/ed25519/{KEY_UUID}"
GRANT = Grant(("kms:sign", "kms:verify"), ("core",), expires_at_s=NOW_S + 3600)


@dataclass
class TokenParts:
    """An authority with its files in `folder`."""

    folder: Path
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.root_file, self.revocations_file = self.folder / "root.json", self.folder / "revoked.json"
        create_root_file(self.root_file, NOW_S, seeded("root"))
        self.roots = RootKeys(self.root_file, self.clock.monotonic_s)
        self.revocations = Revocations(self.revocations_file, self.clock.monotonic_s)
        self.authority = Authority(self.roots, self.revocations)

    @property
    def root(self) -> RootKey:
        return read_roots(self.root_file)[-1]

    def mint(self, grant: Grant = GRANT, seed: str = "token") -> str:
        return mint(self.root, grant, self.clock.now_s(), seeded(seed))[0]
