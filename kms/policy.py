"""What a tenant may do and under which phase of the post-quantum migration (QUANTUM.md §5, IDB.md §3.11).

The service asks a policy for each operation; a policy that fails in any way denies (K-G8). The one here is a table of
tenants read from a file (`kms.policy_file`); another client may ask elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from blake3 import blake3

from kms.errors import PolicyDenied, PqPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kms.messages import VerifyMode

ROLLOUT_STEPS: Final = 100


@dataclass(frozen=True, slots=True)
class PolicyQuestion:
    """One operation on one tenant's keys. `purpose` and `alg` are "" where no single key is meant."""

    op: str
    tenant: str
    purpose: str
    alg: str


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """What is in force for a tenant. `rate_per_s` None: only the service's own rate holds.

    Under `and` every signature is a hybrid one, whatever else was said: without a post-quantum half nothing that is
    signed would ever verify.
    """

    produce_hybrid: bool
    verify_mode: VerifyMode
    rate_per_s: int | None = None

    def __post_init__(self) -> None:
        if self.verify_mode == "and" and not self.produce_hybrid:
            object.__setattr__(self, "produce_hybrid", True)

    @property
    def requires_post_quantum(self) -> bool:
        """Tell whether pure classical proofs are refused (PQ-I1)."""
        return self.verify_mode != "or"

    @property
    def pq(self) -> str:
        """Name what is signed, as log lines do (QUANTUM.md §7)."""
        return "pq-only" if self.verify_mode == "pq_only" else "hybrid" if self.produce_hybrid else "off"


class PolicyClient(Protocol):
    """Whoever is asked."""

    async def decide(self, question: PolicyQuestion) -> PolicyDecision:
        """Allow, with what is in force. Raises PolicyDenied; anything else it raises denies as well."""
        ...


async def ask(client: PolicyClient, question: PolicyQuestion) -> PolicyDecision:
    """Ask, and deny when there is no usable answer. Raises PolicyDenied."""
    try:
        decision = await client.decide(question)
    except PolicyDenied:
        raise
    except Exception as error:
        raise PolicyDenied("the policy could not be asked", reason="policy_unavailable") from error
    if not isinstance(decision, PolicyDecision):
        raise PolicyDenied("the policy gave no usable answer", reason="policy_unavailable")
    return decision


def in_rollout(tenant: str, percent: int) -> bool:
    """Tell whether a tenant is in the rollout. A tenant that is in stays in while the percentage grows."""
    return int.from_bytes(blake3(tenant.encode()).digest(length=4), "big") % ROLLOUT_STEPS < percent


# What each mode asks of a verification: every part of the key, a post-quantum part.
_DEMANDS: Final[dict[VerifyMode, tuple[bool, bool]]] = {
    "or": (False, False),
    "pq_only": (False, True),
    "and": (True, True),
}


def stricter_mode(ours: VerifyMode, callers: VerifyMode | None) -> VerifyMode:
    """Give the mode that asks for all that either asks for: `or`, then `pq_only`, then `and`."""
    if callers is None:
        return ours
    wanted = tuple(mine or theirs for mine, theirs in zip(_DEMANDS[ours], _DEMANDS[callers], strict=True))
    return next(mode for mode, demands in _DEMANDS.items() if demands == wanted)


def demands_every_part(mode: VerifyMode) -> bool:
    """Tell whether every part of the key must have signed."""
    return _DEMANDS[mode][0]


def demands_post_quantum(mode: VerifyMode) -> bool:
    """Tell whether a post-quantum part must have signed."""
    return _DEMANDS[mode][1]


def check_bundle_may_pass(mode: VerifyMode, *, has_post_quantum: bool) -> None:
    """Refuse a bundle that cannot satisfy the mode whatever its bytes are (PQ-I4). Raises PqPolicy."""
    if demands_post_quantum(mode) and not has_post_quantum:
        raise PqPolicy(
            f"verify mode '{mode}' wants a post-quantum signature", hint="sign with a hybrid or an ml-dsa key"
        )


@dataclass(frozen=True, slots=True)
class TenantRules:
    """A tenant's row. None: the service's own setting holds. An empty set allows all."""

    allow: bool = True
    produce_hybrid: bool | None = None
    verify_mode: VerifyMode | None = None
    in_rollout: bool | None = None
    ops: frozenset[str] = frozenset()
    purposes: frozenset[str] = frozenset()
    algs: frozenset[str] = frozenset()
    rate_per_s: int | None = None


@dataclass(frozen=True, slots=True)
class TenantTable:
    """The rows, and the one for tenants without their own (None: such tenants are refused).

    `file_sha256`: of the file that it was read from, hex; "" where there is none.
    """

    tenants: Mapping[str, TenantRules] = field(default_factory=dict)
    default: TenantRules | None = None
    file_sha256: str = ""


class StaticPolicy:
    """Decides by a table and the service's own phase. Immutable: a reload makes another one.

    A tenant outside the rollout is in phase 0: classical signatures, verified under `or`.
    """

    def __init__(
        self, table: TenantTable, *, produce_hybrid: bool, verify_mode: VerifyMode, rollout_percent: int
    ) -> None:
        self._table = table
        self._produce_hybrid = produce_hybrid
        self._verify_mode = verify_mode
        self._rollout_percent = rollout_percent
        self._decisions: dict[str, PolicyDecision] = {}

    @property
    def file_sha256(self) -> str:
        """Name the table that it decides by: the SHA-256 of its file, hex, "" without one."""
        return self._table.file_sha256

    async def decide(self, question: PolicyQuestion) -> PolicyDecision:
        """Decide one operation; see `PolicyClient`."""
        rules = self._table.tenants.get(question.tenant, self._table.default)
        if rules is None or not rules.allow:
            raise PolicyDenied("the policy does not allow this tenant")
        for allowed, asked, what in (
            (rules.ops, question.op, "operation"),
            (rules.purposes, question.purpose, "purpose"),
            (rules.algs, question.alg, "algorithm"),
        ):
            if allowed and asked and asked not in allowed:
                raise PolicyDenied(f"the policy does not allow this {what}")
        return self._decision(question.tenant, rules)

    def _decision(self, tenant: str, rules: TenantRules) -> PolicyDecision:
        known = self._decisions.get(tenant)
        if known is None:
            known = self._compute(tenant, rules)
            if len(self._decisions) < _MAX_KNOWN_TENANTS:
                self._decisions[tenant] = known
        return known

    def _compute(self, tenant: str, rules: TenantRules) -> PolicyDecision:
        rolled_out = in_rollout(tenant, self._rollout_percent) if rules.in_rollout is None else rules.in_rollout
        produce = rules.produce_hybrid
        mode = rules.verify_mode
        if produce is None:
            produce = self._produce_hybrid and rolled_out
        if mode is None:
            mode = self._verify_mode if rolled_out else "or"
        return PolicyDecision(produce, mode, rules.rate_per_s)


_MAX_KNOWN_TENANTS: Final = 4096
