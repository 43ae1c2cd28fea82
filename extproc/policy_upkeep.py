"""What a policy that is elsewhere needs of a worker: to be read again, and to be let go of when it is replaced."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from policy.evaluator import PolicyError, RemotePolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.evaluator import PolicyEvaluator

LOG: Final = logging.getLogger("signet.policy")
RETIRE_AFTER_S: Final = 10.0
"""How long a replaced policy keeps its connections: longer than any request that began under it may take."""


class PolicyUpkeep:
    """Look after the policy in force and those before it. Owned by one event loop.

    `current`: the policy in force. A policy in this process needs nothing and gets nothing.
    """

    def __init__(self, current: Callable[[], PolicyEvaluator]) -> None:
        self._current = current
        self._retired: dict[asyncio.Task[None], RemotePolicy] = {}
        self._is_well = True

    async def tick(self) -> None:
        """Read the policy in force again, so that receipts name the one that decides. What fails is tried again."""
        policy = self._current()
        if not isinstance(policy, RemotePolicy):
            return
        try:
            await policy.refresh()
        except PolicyError as error:
            if self._is_well:
                LOG.error("the policy in force cannot be read: %s", error)
            self._is_well = False
        else:
            self._is_well = True

    def retire(self, policy: PolicyEvaluator) -> None:
        """Let go of a policy that was replaced, once no request is under way that began with it."""
        if isinstance(policy, RemotePolicy):
            task = asyncio.create_task(_close_later(policy))
            self._retired[task] = policy
            task.add_done_callback(lambda ended: self._retired.pop(ended, None))

    async def close(self) -> None:
        """Let go of all policies, those that wait included."""
        waiting, policies = tuple(self._retired), [*self._retired.values()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        current = self._current()
        if isinstance(current, RemotePolicy):
            policies.append(current)
        for policy in policies:
            await policy.close()


async def _close_later(policy: RemotePolicy) -> None:
    await asyncio.sleep(RETIRE_AFTER_S)
    await policy.close()
