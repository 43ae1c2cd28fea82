"""The rules in force: one immutable value, swapped whole when the configuration is loaded again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from extproc.config import ConfigError
from extproc.plan import plan_digest
from extproc.policy_engine import open_engine
from extproc.route import RouteTable
from policy.evaluator import PolicyError

if TYPE_CHECKING:
    from extproc.config import FilterConfig
    from extproc.policy_engine import PolicyFiles
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


def rules_of(config: FilterConfig, files: PolicyFiles | None = None) -> Rules:
    """Build the rules that `config` states. Raises ConfigError when the policy that it names cannot be used.

    `files`: of a compiled policy, where they were read before.
    """
    try:
        policy = open_engine(config, files)
    except PolicyError as error:
        raise ConfigError(f"{config.path}: policy: {error}") from error
    digest = hashlib.sha256(f"{plan_digest(config.plan)}\n{config.digest}\n".encode()).hexdigest()
    return Rules(config, RouteTable(config.routes), policy, digest)
