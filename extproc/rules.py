"""The rules in force: one immutable value, swapped whole when the configuration is loaded again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extproc.plan import PLAN, plan_digest
from extproc.route import RouteTable
from policy.route_table import RouteTablePolicy

if TYPE_CHECKING:
    from extproc.config import FilterConfig
    from policy.evaluator import PolicyEvaluator


@dataclass(frozen=True, slots=True)
class Rules:
    """Configuration, routes, policy and plan, as one request sees them from start to end.

    `plan_digest`: SHA-256, lower-case hex, of what steered the decision beside policy.
    """

    config: FilterConfig
    routes: RouteTable
    policy: PolicyEvaluator
    plan_digest: str


def rules_of(config: FilterConfig) -> Rules:
    """Build the rules that `config` states."""
    policy = RouteTablePolicy({route.name: route.subjects for route in config.routes})
    digest = hashlib.sha256(f"{plan_digest(PLAN)}\n{config.digest}\n".encode()).hexdigest()
    return Rules(config, RouteTable(config.routes), policy, digest)
