"""What policy is asked and what it answers: the contract every engine keeps.

An engine denies by returning a verdict with `allow` false. It raises `PolicyError` when it has no usable answer;
the caller then refuses the request. There is no third way out.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class PolicyError(Exception):
    """The engine gave no usable answer: it failed, was late, or answered something undefined."""


class PolicyInput(msgspec.Struct, frozen=True, kw_only=True):
    """The complete input of one evaluation, stored in the receipt so that it can be replayed.

    `v`: schema version. `time_ms`: milliseconds since the epoch. `algorithms`: those of the verified signatures.
    `body_bytes`: length of the content that arrived.
    """

    v: int = 1
    time_ms: int
    route: str
    method: str
    authority: str
    path: str
    subject: str
    key_ids: tuple[str, ...]
    algorithms: tuple[str, ...]
    binding: str
    mode: str
    evidence: bool
    body_bytes: int


class PolicyVerdict(msgspec.Struct, frozen=True):
    """Whether the request may pass. `rule`: the name of the rule that decided, for operators and receipts."""

    allow: bool
    rule: str


class PolicyEvaluator(Protocol):
    """An engine. Safe for concurrent use by one event loop."""

    @property
    def digest(self) -> str:
        """Give the SHA-256 of the policy in force, lower-case hex."""
        ...

    async def evaluate(self, policy_input: PolicyInput) -> PolicyVerdict:
        """Decide one request. Raises `PolicyError` if there is no usable answer."""
        ...
