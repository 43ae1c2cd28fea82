"""Policy as the route table states it: who may use which route."""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from policy.evaluator import PolicyError, PolicyVerdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.evaluator import PolicyInput


class RouteTablePolicy:
    """Allow a subject on a route if the route lists it, or lists nobody.

    `subjects`: route name to the subjects it admits; an empty list admits every registered subject.
    """

    def __init__(self, subjects: Mapping[str, Sequence[str]]) -> None:
        self._admitted = MappingProxyType({name: frozenset(admitted) for name, admitted in subjects.items()})
        canonical = msgspec.json.encode({name: sorted(self._admitted[name]) for name in sorted(self._admitted)})
        self._digest = hashlib.sha256(canonical).hexdigest()

    @property
    def digest(self) -> str:
        """Give the SHA-256 of the table, lower-case hex."""
        return self._digest

    async def evaluate(self, policy_input: PolicyInput) -> PolicyVerdict:
        """Decide one request. Raises `PolicyError` for a route that the table does not know."""
        admitted = self._admitted.get(policy_input.route)
        if admitted is None:
            raise PolicyError("the policy does not know this route")
        if not admitted or policy_input.subject in admitted:
            return PolicyVerdict(allow=True, rule="route.subjects")
        return PolicyVerdict(allow=False, rule="route.subjects")
