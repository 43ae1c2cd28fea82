"""What policy is asked and what it answers: the contract every engine keeps.

An engine denies by returning a verdict with `allow` false. It raises `PolicyError` when it has no usable answer;
the caller then refuses the request. There is no third way out.
"""

from __future__ import annotations

from typing import Annotated, Final, Protocol, runtime_checkable

import msgspec

MAX_RULE_CHARS: Final = 128


class PolicyError(Exception):
    """The engine gave no usable answer: it failed, was late, or answered something undefined."""


class StressFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan did with the request and what it followed from; shares in thousandths.

    Added to the stored input after the policy was asked, for the verdict has a say in it: the policy itself sees null.
    `crowd_limit`: requests at once that the app could finish in time, where it had them all; 0 otherwise.
    """

    action: str
    epoch: int
    errors_permille: int
    slowness_permille: int
    dwell_ms: int
    crowd_limit: int = 0


class PolicyInput(msgspec.Struct, frozen=True, kw_only=True):
    """The complete input of one evaluation, stored in the receipt so that it can be replayed.

    `v`: schema version. `time_ms`: milliseconds since the epoch. `algorithms`: those of the verified signatures.
    `body_bytes`: length of the content that arrived. `fallback`: only the classical half of a hybrid was there, which
    the breaker's action would accept. `phase`: the breaker's, `closed`, `open` or `half_open`. `policy_commit`: the git
    commit that the policy in force is said to be of.
    """

    v: int = 3
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
    fallback: bool = False
    phase: str = "closed"
    policy_commit: str | None = None
    stress: StressFacts | None = None


class PolicyVerdict(msgspec.Struct, frozen=True):
    """Whether the request may pass, and what is permitted on its route while the app is not well.

    `rule`: the name of the rule that decided, for operators and receipts. `floor_share`: of the arrivals while the
    breaker is open. `fallback_classic`: the classical half of a hybrid is enough then.
    """

    allow: bool
    rule: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_RULE_CHARS)]
    floor_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    fallback_classic: bool = False


class PolicyEvaluator(Protocol):
    """An engine. Safe for concurrent use by one event loop."""

    @property
    def digest(self) -> str:
        """Give the SHA-256 of `bundle`, lower-case hex."""
        ...

    @property
    def bundle(self) -> bytes:
        """Give the policy in force as one document (`policy.bundle`); empty while it is not known."""
        ...

    @property
    def commit(self) -> str | None:
        """Give the git commit that the policy in force is said to be of, lower-case hex; None where nobody said."""
        ...

    async def evaluate(self, policy_input: PolicyInput) -> PolicyVerdict:
        """Decide one request. Raises `PolicyError` if there is no usable answer."""
        ...


@runtime_checkable
class RemotePolicy(Protocol):
    """An engine whose policy is elsewhere and may change by itself. Safe for concurrent use by one event loop."""

    async def refresh(self) -> None:
        """Read again what `bundle` is of. Raises `PolicyError`."""
        ...

    async def close(self) -> None:
        """Let go of the connections; a question that comes later all the same connects again."""
        ...
