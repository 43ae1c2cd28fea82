"""The other engine: a real OPA server, asked over its REST interface for each request."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
from opa_client.errors import PolicyNotFoundError  # type: ignore[import-untyped]
from opa_client.opa_async import AsyncOpaClient  # type: ignore[import-untyped]

from policy.bundle import COMMIT, PolicyBundle, bundle_bytes, bundle_digest
from policy.evaluator import PolicyError, PolicyInput, PolicyVerdict
from policy.verdict import ENTRYPOINT, verdict_from

MAX_IN_FLIGHT: Final = 256
"""Questions under way to the server; one more is refused instead of queued."""
MAX_POLICIES: Final = 100
MAX_BUNDLE_AGE_S: Final = 5.0
"""How old the `bundle` that an answer goes with may be; who calls `refresh` more often keeps that off the questions."""
_PACKAGE, _, _RULE = ENTRYPOINT.rpartition("/")
_FAILURES: Final = (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError)


class _Manifest(msgspec.Struct, frozen=True):
    revision: str = ""


class _Loaded(msgspec.Struct, frozen=True):
    """A bundle that the server loaded, of `data.system.bundles`."""

    manifest: _Manifest


class OpaPolicy:
    """One OPA server. Owned by one event loop; the first question connects, `close` lets go.

    `timeout_s`: of one question, connecting included, and once more where it waits for the policy to be read. The
    server's policies and data are read with the first question and whenever `refresh` is called; `bundle` is what was
    read last. An answer does not name the policy that it is by (a revision has only what the server itself loaded as a
    bundle): after a change on the server answers go with the former digest until the next `refresh`,
    `MAX_BUNDLE_AGE_S` at the most. `commit`: the git commit that the policy is of, where the server does not say it as
    its bundle's revision.
    """

    def __init__(self, host: str, port: int, *, timeout_s: float, commit: str | None = None) -> None:
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._said_commit = self._commit = commit
        self._client: Any = None
        self._connecting, self._refreshing = asyncio.Lock(), asyncio.Lock()
        self._in_flight = 0
        self._bundle = b""
        self._read_s = 0.0

    async def close(self) -> None:
        """Let go of the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close_connection()

    @property
    def bundle(self) -> bytes:
        """Give the policies and the data read last as one document; empty before."""
        return self._bundle

    @property
    def digest(self) -> str:
        """Give the SHA-256 of `bundle`, lower-case hex."""
        return bundle_digest(self._bundle)

    @property
    def commit(self) -> str | None:
        """Give the git commit that the policy read last is said to be of; None where nobody said."""
        return self._commit

    async def refresh(self) -> None:
        """Read the policies and the data that the server has now. Raises PolicyError."""
        asked_s = asyncio.get_running_loop().time()
        client = await self._connected()
        try:
            async with asyncio.timeout(self._timeout_s):
                names = sorted(await client.get_policies_list())
                if len(names) > MAX_POLICIES:
                    raise PolicyError("the OPA server has too many policies")
                # Those of a bundle begin with its path on the server, whose first slash a URL's path would lose.
                sources = [await client.get_policy(quote(name, safe="")) for name in names]
                routes = await _data(client, "signet/routes")
                bundles = await _data(client, "system/bundles")
            modules = {name: source["result"]["raw"] for name, source in zip(names, sources, strict=True)}
        except _FAILURES as error:
            raise PolicyError("the OPA server did not tell its policy") from error
        data = msgspec.json.encode({"signet": {"routes": routes}}, order="deterministic")
        self._commit = _revision(bundles) or self._said_commit
        read = PolicyBundle(engine="opa", modules=modules, data=msgspec.Raw(data), commit=self._commit)
        self._bundle = bundle_bytes(read)
        self._read_s = asked_s

    async def evaluate(self, policy_input: PolicyInput) -> PolicyVerdict:
        """Ask the server. Raises PolicyError when it is late, away, overloaded, or answers no verdict."""
        if self._in_flight >= MAX_IN_FLIGHT:
            raise PolicyError("too many questions to the OPA server are under way")
        self._in_flight += 1
        try:
            if self._is_aged():
                # A server that hangs is waited for once, however many questions wait for the first one's reading.
                async with asyncio.timeout(self._timeout_s), self._refreshing:
                    if self._is_aged():
                        await self.refresh()
            async with asyncio.timeout(self._timeout_s):
                client = await self._connected()
                answer = await client.query_rule(
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

    def _is_aged(self) -> bool:
        return not self._bundle or asyncio.get_running_loop().time() - self._read_s > MAX_BUNDLE_AGE_S

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None:
                # No retries: the library's would outlast the time that a request has.
                client = AsyncOpaClient(host=self._host, port=self._port, retries=0, timeout=self._timeout_s)
                self._client = await client.__aenter__()
            return self._client


async def _data(client: Any, path: str) -> object:
    try:
        return (await client.get_data(path)).get("result")
    except PolicyNotFoundError:
        return None


def _revision(bundles: object) -> str | None:
    """Give the git commit that the server's one bundle states as its revision (`opa build --revision`)."""
    try:
        (only,) = msgspec.convert(bundles, dict[str, _Loaded]).values()
    except (msgspec.ValidationError, ValueError):
        return None
    revision = only.manifest.revision
    return revision if COMMIT.fullmatch(revision) else None


def read_bundle(host: str, port: int, *, timeout_s: float, commit: str | None = None) -> bytes:
    """Read a server's policies and data once, from a thread without an event loop. Raises PolicyError."""

    async def read() -> bytes:
        engine = OpaPolicy(host, port, timeout_s=timeout_s, commit=commit)
        try:
            await engine.refresh()
            return engine.bundle
        finally:
            await engine.close()

    return asyncio.run(read())
