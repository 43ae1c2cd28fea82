"""The other engine: a real OPA server, asked over its REST interface for each request."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Any, Final

import aiohttp
import msgspec
from opa_client.errors import PolicyNotFoundError  # type: ignore[import-untyped]
from opa_client.opa_async import AsyncOpaClient  # type: ignore[import-untyped]

from policy.evaluator import PolicyError, PolicyInput, PolicyVerdict
from policy.verdict import ENTRYPOINT, verdict_from

LOG: Final = logging.getLogger("signet.policy")
MAX_IN_FLIGHT: Final = 256
"""Questions under way to the server; one more is refused instead of queued."""
MAX_POLICIES: Final = 100
_PACKAGE, _, _RULE = ENTRYPOINT.rpartition("/")
_FAILURES: Final = (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError)


class OpaPolicy:
    """One OPA server. Owned by one event loop: `start` it there and `close` it there.

    `timeout_s`: of one question, connecting included. The server's policies and data are read at `start` and whenever
    `refresh` is called; `digest` is over what was read last.
    """

    def __init__(self, host: str, port: int, *, timeout_s: float) -> None:
        # No retries: the library's would outlast the time that a request has.
        self._client: Any = AsyncOpaClient(host=host, port=port, retries=0, timeout=timeout_s)
        self._timeout_s = timeout_s
        self._in_flight = 0
        self._digest = ""

    async def start(self) -> None:
        """Connect and read the policy in force. Raises PolicyError when the server is not there."""
        await self._client.__aenter__()
        try:
            await self.refresh()
        except PolicyError:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close_connection()

    @property
    def digest(self) -> str:
        """Give the SHA-256 of the policies and the data read last, lower-case hex."""
        if not self._digest:
            raise PolicyError("the policy in force is not known yet")
        return self._digest

    async def refresh(self) -> None:
        """Read the policies and the data that the server has now. Raises PolicyError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                names = sorted(await self._client.get_policies_list())
                if len(names) > MAX_POLICIES:
                    raise PolicyError("the OPA server has too many policies")
                sources = [await self._client.get_policy(name) for name in names]
                routes = await self._routes()
            modules = {name: source["result"]["raw"] for name, source in zip(names, sources, strict=True)}
        except _FAILURES as error:
            raise PolicyError("the OPA server did not tell its policy") from error
        told = msgspec.json.encode({"modules": modules, "routes": routes}, order="deterministic")
        self._digest = hashlib.sha256(told).hexdigest()

    async def _routes(self) -> object:
        try:
            return (await self._client.get_data("signet/routes")).get("result")
        except PolicyNotFoundError:
            return None

    async def evaluate(self, policy_input: PolicyInput) -> PolicyVerdict:
        """Ask the server. Raises PolicyError when it is late, away, overloaded, or answers no verdict."""
        if self._in_flight >= MAX_IN_FLIGHT:
            raise PolicyError("too many questions to the OPA server are under way")
        self._in_flight += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.query_rule(
                    input_data=msgspec.to_builtins(policy_input), package_path=_PACKAGE, rule_name=_RULE
                )
        except _FAILURES as error:
            raise PolicyError("the OPA server gave no answer") from error
        finally:
            self._in_flight -= 1
        # Undefined comes as {}: no `result`.
        if not isinstance(answer, dict) or "result" not in answer:
            raise PolicyError("the policy's answer is undefined")
        return verdict_from(answer["result"])
