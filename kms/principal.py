"""Who calls, as the capability that they hold says (I-3, I-4). Only `kms.capability` builds a Principal."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Scope(StrEnum):
    """What a capability may allow (API.md §1.2)."""

    READ = "kms:read"
    SIGN = "kms:sign"
    VERIFY = "kms:verify"
    WRAP = "kms:wrap"
    UNWRAP = "kms:unwrap"
    ROTATE = "kms:rotate"


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified capability. An empty set of keys, algorithms or paths means that no caveat narrows it.

    `token_id` is public (it names the token in audit records and revocations); `rate_per_s` is None without an `rps=`
    caveat; `tenants` is never empty: a token without a tenant caveat does not authenticate.
    """

    token_id: str
    root_key_id: str
    tenants: frozenset[str]
    scopes: frozenset[Scope]
    keys: frozenset[str]
    algs: frozenset[str]
    paths: frozenset[str]
    rate_per_s: int | None
    expires_at_s: int


@dataclass(slots=True)
class Phase:
    """In which phase of the post-quantum migration a call was decided on; empty until the policy was asked.

    The dispatcher writes it, the call's log line and span tell it (QUANTUM.md §7): `pq` is `off`, `hybrid` or
    `pq-only`, `pq_mode` the mode by which the tenant's signatures verify.
    """

    pq: str | None = None
    pq_mode: str | None = None


@dataclass(frozen=True, slots=True)
class CallContext:
    """What an operation knows of the request beside its body. No field is secret."""

    principal: Principal
    corr_id: str
    request_id: str
    path: str
    peer: str
    transport: str
    phase: Phase = field(default_factory=Phase, compare=False)
