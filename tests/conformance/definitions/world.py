"""The world of the conformance cases: keys, routes, a sealing key and a time that stands. Nothing here is secret."""

from __future__ import annotations

import base64
import hashlib
import itertools
from dataclasses import dataclass
from typing import Any, Final

from extproc.challenge import issue
from extproc.sealing_keys import SealingKey
from pch.algorithms import ALGORITHMS
from pch.keys import private_key_from_jwk, public_jwk, thumbprint

NOW_MS: Final = 1_790_000_000_000
NOW_S: Final = NOW_MS // 1000
REALM: Final = "signet"
AUTHORITY: Final = "app.example"
BINDING: Final = bytes(range(32))
OTHER_BINDING: Final = bytes(range(1, 33))
UNBOUND: Final = bytes(32)
MAX_AGE_S: Final = 60
SKEW_S: Final = 2
SEALING_KEY: Final = hashlib.sha256(b"PCH conformance sealing key 7").digest()
FORMER_SEALING_KEY: Final = hashlib.sha256(b"PCH conformance sealing key 6").digest()
EPOCH: Final = 7
ED, P256, M44, M65, M87 = "ed25519", "ecdsa-p256-sha256", "ml-dsa-44", "ml-dsa-65", "ml-dsa-87"
HYBRID, P256_HYBRID = f"{ED}+{M65}", f"{P256}+{M65}"
EVERY: Final = [ED, P256, M44, M65, M87, HYBRID, P256_HYBRID]

ROUTES: Final[list[dict[str, Any]]] = [
    {"name": "open", "path": "/public/**", "guard": "open"},
    {"name": "unbound", "path": "/unbound/**", "binding": "none", "algorithms": EVERY},
    {"name": "upgrade", "path": "/socket", "permit_upgrade": True},
    {"name": "small", "path": "/small", "max_body_bytes": 8},
    {"name": "alice-only", "path": "/alice", "subjects": ["alice"]},
    {"name": "p256-only", "path": "/p256", "algorithms": [P256]},
    {"name": "classical", "path": "/classical", "algorithms": [ED, P256]},
    {"name": "pq", "path": "/pq", "mode": "pq_only", "algorithms": [M65, HYBRID]},
    {"name": "evidence", "path": "/evidence", "evidence": "required"},
    {"name": "never-relaxes", "path": "/plain", "relax": "off"},
    {"name": "fallback", "path": "/fallback", "algorithms": [HYBRID], "fallback_classic": True},
    {"name": "fallback-listed", "path": "/fallback-listed", "algorithms": [HYBRID, ED], "fallback_classic": True},
    {"name": "hybrid", "path": "/hybrid/**", "algorithms": [HYBRID, P256_HYBRID]},
    {"name": "either", "path": "/either", "mode": "or", "algorithms": [HYBRID, ED, M65]},
    {"name": "either-listed", "path": "/either-listed", "mode": "or", "algorithms": [HYBRID]},
    {"name": "protected", "path": "/protected/**", "algorithms": EVERY},
]
"""Tried in this order; defaults as in docs/reference/filter.toml."""


@dataclass(frozen=True)
class Key:
    """A registered key with its private half; `partner` is the name of another one."""

    name: str
    subject: str
    algorithm: str
    partner: str | None = None
    status: str = "active"
    not_before: str | None = None
    not_after: str | None = None
    registered: bool = True

    @property
    def private_jwk(self) -> dict[str, str]:
        """The private JWK, the same in every run."""
        algorithm = ALGORITHMS[self.algorithm]
        secret = hashlib.sha256(f"PCH conformance key {self.name}".encode()).digest()
        jwk = {"kty": algorithm.kty} | (
            {"crv": algorithm.crv} if algorithm.crv else {"alg": next(iter(algorithm.jose_algs))}
        )
        members = {**algorithm.public_of(secret), algorithm.private_member: secret}
        return jwk | {name: base64.urlsafe_b64encode(value).rstrip(b"=").decode() for name, value in members.items()}

    @property
    def key_id(self) -> str:
        """The RFC 7638 thumbprint."""
        return thumbprint(self.private_jwk)

    def as_json(self) -> dict[str, Any]:
        """What keys.json says of it."""
        return {
            "name": self.name,
            "subject": self.subject,
            "algorithm": self.algorithm,
            "key_id": self.key_id,
            "private_jwk": self.private_jwk,
            "jwk": public_jwk(self.private_jwk),
            "partner": None if self.partner is None else KEYS[self.partner].key_id,
            "status": self.status,
            "not_before": self.not_before,
            "not_after": self.not_after,
            "registered": self.registered,
        }


def _pair(name: str, subject: str, classical: str, **second: Any) -> list[Key]:
    return [Key(name, subject, classical, f"{name}-pq"), Key(f"{name}-pq", subject, M65, name, **second)]


KEYS: Final[dict[str, Key]] = {
    key.name: key
    for key in [
        Key("alice", "alice", ED),
        Key("bob", "bob", ED),
        Key("p256", "alice", P256),
        Key("m44", "alice", M44),
        Key("m65", "alice", M65),
        Key("m87", "alice", M87),
        Key("revoked", "mallory", ED, status="revoked"),
        Key("future", "alice", ED, not_before="2099-01-01T00:00:00Z"),
        Key("past", "alice", ED, not_after="2020-01-01T00:00:00Z"),
        Key("stranger", "nobody", ED, registered=False),
        *_pair("hybrid", "alice", ED),
        *_pair("second", "alice", ED),
        *_pair("other", "bob", ED),
        *_pair("curve", "alice", P256),
        *_pair("half-revoked", "carol", ED, status="revoked"),
        *_pair("half-past", "dora", ED, not_after="2020-01-01T00:00:00Z"),
    ]
}
ALGORITHM_OF: Final = {name: ALGORITHMS[key.algorithm] for name, key in KEYS.items()}
SIGNERS: Final = {name: private_key_from_jwk(key.private_jwk) for name, key in KEYS.items()}


class _Sealing:
    """The sealing keys of the world, as `issue` wants them."""

    def __init__(self, epoch: int, key: bytes) -> None:
        self._current = SealingKey(epoch, key)

    def current(self) -> SealingKey:
        return self._current

    def by_epoch(self, _epoch: int) -> SealingKey:
        return self._current


_numbers = itertools.count(1)


def challenge(
    *,
    realm: str = REALM,
    authority: str = AUTHORITY,
    binding: bytes = BINDING,
    issued_ms: int = NOW_MS,
    epoch: int = EPOCH,
    key: bytes = SEALING_KEY,
    relax_grant: bool = False,
    random16: bytes | None = None,
) -> str:
    """Issue a challenge of this world, or of another one, with random bytes that are none."""
    return issue(
        _Sealing(epoch, key),
        realm=realm,
        authority=authority,
        binding32=binding,
        now_ms=issued_ms,
        random16=random16 or hashlib.shake_128(next(_numbers).to_bytes(8)).digest(16),
        relax_grant=relax_grant,
    )


def world_json() -> dict[str, Any]:
    """What world.json says: everything a verifier is set up with."""
    return {
        "now_ms": NOW_MS,
        "nonces_since_ms": NOW_MS - 600_000,
        "realm": REALM,
        "max_age_s": MAX_AGE_S,
        "clock_skew_s": SKEW_S,
        "sealing_keys": [
            {"epoch": EPOCH - 1, "key_hex": FORMER_SEALING_KEY.hex(), "retired_ms": NOW_MS - 30_000},
            {"epoch": EPOCH, "key_hex": SEALING_KEY.hex(), "retired_ms": None},
        ],
        "routes": ROUTES,
    }
