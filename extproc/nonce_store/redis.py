"""The replay guard of several machines: a Redis server.

One task owns one connection. While a round trip is under way, further spends gather, and the next round
trip takes them all, so load makes batches and not connections. The library never retries: a spend that
was not answered in time counts as not known, and repeating it with its token says RETRIED.

A server behind which replicas may take over keeps the promise only up to what it replicated: a failover
is noticed and makes older challenges stale, but two servers that both believe to be the master at the
same moment are not one store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from extproc.nonce_store import (
    EVERY_CHALLENGE_STALE,
    KEEP_BEYOND_MAX_AGE_MS,
    RETRY_WINDOW_MS,
    SKEW_MS,
    TOKEN_BYTES,
    SpendResult,
)
from extproc.nonce_store.envelopes import STORE_FULL, Find
from extproc.nonce_store.redis_envelopes import (
    FIND_SCRIPT,
    FULL,
    KEEP_ANSWERS,
    KEEP_SCRIPT,
    Script,
    find_arguments,
    keep_arguments,
)
from extproc.nonce_store.redis_script import EVICTION_REFUSED, SPEND_SCRIPT, SPEND_SHA1
from pch.errors import StaleChallenge, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from extproc.nonce_store.envelopes import Keep, KeepResult

LOG: Final = logging.getLogger("signet.nonce_store")
MAX_BATCH_SPENDS: Final = 128
MAX_CALLS_PER_BATCH: Final = 16
"""Envelopes kept or found in one round trip between two batches of spends."""
MAX_PENDING_CALLS: Final = 256
"""Envelopes that may wait to be kept or found, at 128 KiB each: apart from the spends, for they come before a proof."""
DEFAULT_MAX_PENDING: Final = 4096
PROBE_INTERVAL_S: Final = 1.0
"""How often an idle connection is tried, so that `problem` tells the truth."""
MIN_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 1.0
"""Longest wait between attempts to connect."""
SPENT_KEY: Final = b"signet:spent"
ORDER_KEY: Final = b"signet:spent:order"

_SPEND: Final = Script(SPEND_SCRIPT, SPEND_SHA1)
_RESULTS: Final = {"F": SpendResult.FRESH, "T": SpendResult.RETRIED, "R": SpendResult.REPLAYED}
_URL_OPTIONS: Final = frozenset({"host", "port", "path", "db", "username", "password", "connection_class"})


@dataclass(slots=True)
class _Pending:
    """A spend that waits."""

    nonce: bytes
    argument: bytes
    future: asyncio.Future[SpendResult]


@dataclass(slots=True)
class _Call:
    """A script that waits to be run by itself."""

    script: Script
    arguments: Sequence[bytes | int]
    future: asyncio.Future[bytes | None]


_Reply: TypeAlias = bytes | ResponseError | None
_Answer = TypeVar("_Answer")
_Waiting = TypeVar("_Waiting", _Pending, _Call)


class RedisNonceStore:
    """A nonce store in one Redis server. Owned by one event loop."""

    def __init__(
        self,
        url: str,
        *,
        max_age_s: int,
        clock_ms: Callable[[], int],
        timeout_s: float,
        max_pending: int = DEFAULT_MAX_PENDING,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`timeout_s`: for one spend, waiting included; and how long the server may be silent before its connection is
        dropped. `max_pending`: spends that may wait.
        """
        self._url = url
        self._clock_ms = clock_ms
        self._timeout_s = timeout_s
        self._max_pending = max_pending
        self._jitter = jitter
        self._keep_ms = max_age_s * 1000 + KEEP_BEYOND_MAX_AGE_MS
        self._pending: deque[_Pending] = deque()
        self._calls: deque[_Call] = deque()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self._connection: Any = None
        self._since_ms = 0
        self._problem: str | None = "the nonce store is not started"

    async def start(self) -> None:
        """Start the owner task and wait for its first attempt to connect, however that ends."""
        self._owner = asyncio.create_task(self._run(), name="nonce store")
        await self._settled.wait()

    async def spend(self, nonce: bytes, token: bytes, issued_ms: int, now_ms: int) -> SpendResult:
        """Spend `nonce`; see `NonceStore`."""
        if len(token) != TOKEN_BYTES:
            raise ValueError("a token is 32 bytes")
        self._check_open(len(self._pending), self._max_pending, "spends")
        future: asyncio.Future[SpendResult] = asyncio.get_running_loop().create_future()
        argument = token + b" %d %d" % (issued_ms, now_ms)
        self._pending.append(_Pending(nonce, argument, future))
        return await self._answer(future)

    async def keep_envelope(self, keep: Keep) -> KeepResult:
        """Keep an envelope; see `NonceStore`."""
        answer = await self._call(KEEP_SCRIPT, keep_arguments(SPENT_KEY, keep))
        if answer == FULL:
            raise StoreUnavailable(STORE_FULL)
        return KEEP_ANSWERS[answer or b""]

    async def find_envelope(self, nonce: bytes, now_ms: int) -> bytes | None:
        """Find an envelope; see `NonceStore`."""
        return await self._call(FIND_SCRIPT, find_arguments(SPENT_KEY, Find(nonce, now_ms)))

    async def _call(self, script: Script, arguments: Sequence[bytes | int]) -> bytes | None:
        self._check_open(len(self._calls), MAX_PENDING_CALLS, "envelopes")
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._calls.append(_Call(script, arguments, future))
        return await self._answer(future)

    async def _answer(self, future: asyncio.Future[_Answer]) -> _Answer:
        """Wait for an answer, in our queue and on the way: who waits in vain says nothing about the connection."""
        self._wake.set()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await future
        except TimeoutError as error:
            raise StoreUnavailable("the nonce store gave no answer in time") from error

    def _check_open(self, waiting: int, most: int, what: str) -> None:
        if self._owner is None or self._connection is None:
            raise StoreUnavailable(self._problem or "the nonce store is not connected")
        if waiting >= most:
            raise StoreUnavailable(f"the nonce store has {most} {what} waiting")

    async def problem(self) -> str | None:
        """Say why spends would fail now, also while every challenge is older than the contents."""
        if self._problem is None and self._clock_ms() < self._since_ms:
            return EVERY_CHALLENGE_STALE
        return self._problem

    async def close(self) -> None:
        """Give up what waits and let go of the connection."""
        if self._owner is not None:
            self._owner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._owner
            self._owner = None
        self._give_up("is closed")

    async def _run(self) -> None:
        """Connect, spend batch after batch, and connect again when something breaks; until cancelled."""
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                await self._connect()
                self._settled.set()
                while True:
                    await self._next_batch()
                    backoff_s = MIN_BACKOFF_S
            except (RedisError, OSError, TimeoutError) as error:
                self._give_up(f"failed with {_cause(error)}")
            except Exception:
                LOG.exception("the nonce store failed")
                self._give_up("failed")
            self._settled.set()
            await asyncio.sleep(backoff_s * (0.5 + self._jitter() / 2))
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _connect(self) -> None:
        connection = open_connection(self._url, self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()
        except BaseException:
            connection._close()
            raise
        self._connection = connection
        await self._round_trip(())
        LOG.info("the nonce store is connected")

    async def _next_batch(self) -> None:
        """Wait for spends, or for the time of a probe, and do one round trip; then those of the waiting calls."""
        if not self._pending and not self._calls:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: until Python 3.12 it can swallow a cancellation that comes with the event.
                async with asyncio.timeout(PROBE_INTERVAL_S):
                    await self._wake.wait()
        batch = _next_of(self._pending, MAX_BATCH_SPENDS)
        try:
            if batch or not self._calls:
                await self._round_trip(batch)
        except BaseException:
            # Unanswered: `_give_up` tells them with the others.
            self._pending.extendleft(reversed(batch))
            raise
        await self._run_calls()

    async def _run_calls(self) -> None:
        """Run the scripts that wait longest, in one round trip."""
        calls = _next_of(self._calls, MAX_CALLS_PER_BATCH)
        if not calls:
            return
        try:
            answers = await self._evaluate_all(calls)
        except BaseException:
            self._calls.extendleft(reversed(calls))
            raise
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, ResponseError):
                _fail(call, StoreUnavailable("nonce store: " + _explain(answer)))
            elif not call.future.done():
                call.future.set_result(answer)

    async def _evaluate_all(self, calls: Sequence[_Call]) -> list[_Reply]:
        """Run scripts in one round trip, and those that the server forgot in one more."""
        answers = await self._ask_all([("EVALSHA", call.script.sha1, *call.arguments) for call in calls])
        forgotten = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if forgotten:
            again = [("EVAL", calls[place].script.text, *calls[place].arguments) for place in forgotten]
            for place, answer in zip(forgotten, await self._ask_all(again), strict=True):
                answers[place] = answer
        return answers

    async def _ask_all(self, commands: Sequence[tuple[bytes | str | int, ...]]) -> list[_Reply]:
        """Send every command, then read every answer; an error of a script is one, and the connection stays usable."""
        async with asyncio.timeout(self._timeout_s):
            await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        answers: list[_Reply] = []
        for _ in commands:
            try:
                # Each its own time: many bytes on a slow line are no silence.
                async with asyncio.timeout(self._timeout_s):
                    answers.append(await self._connection.read_response())
            except ReadOnlyError:
                raise
            except ResponseError as error:
                answers.append(error)
        return answers

    async def _round_trip(self, batch: Sequence[_Pending]) -> None:
        """Spend `batch` and tell the waiting. An answer that is an error of the script leaves the connection usable."""
        arguments: list[bytes | int] = [2, SPENT_KEY, ORDER_KEY]
        arguments += (self._clock_ms(), self._keep_ms, RETRY_WINDOW_MS, SKEW_MS)
        arguments += (part for each in batch for part in (each.nonce, each.argument))
        try:
            # Its own time and not what is left of a spend's: only the server's silence may cost the connection.
            async with asyncio.timeout(self._timeout_s):
                reply = await self._evaluate(_SPEND, *arguments)
        except ReadOnlyError:
            # A master that became a replica: connecting again may find the new master.
            raise
        except ResponseError as error:
            self._problem = "nonce store: " + _explain(error)
            for each in batch:
                _fail(each, StoreUnavailable(self._problem))
            return
        since, _, codes = reply.decode("ascii").partition(" ")
        if len(codes) != len(batch):
            raise RuntimeError("the nonce store gave another number of answers")
        self._since_ms, self._problem = int(since), None
        for each, code in zip(batch, codes, strict=True):
            if each.future.done():
                continue
            if code == "S":
                _fail(each, StaleChallenge("the challenge is older than the nonce store's contents"))
            else:
                each.future.set_result(_RESULTS[code])

    async def _evaluate(self, script: Script, *arguments: bytes | int) -> Any:
        with contextlib.suppress(NoScriptError):
            return await self._ask("EVALSHA", script.sha1, *arguments)
        # The server forgot the script and refused before it began, so this is no retry of a spend.
        return await self._ask("EVAL", script.text, *arguments)

    async def _ask(self, *command: bytes | str | int) -> Any:
        await self._connection.send_packed_command(self._connection.pack_command(*command), check_health=False)
        return await self._connection.read_response()

    def _give_up(self, why: str) -> None:
        """Drop the connection, whose late answers must reach nobody, and refuse all that wait."""
        problem = f"the nonce store {why}"
        if self._problem != problem and self._owner is not None:
            LOG.error("%s", problem)
        self._problem = problem
        if self._connection is not None:
            self._connection._close()
            self._connection = None
        while self._pending:
            _fail(self._pending.popleft(), StoreUnavailable(problem))
        while self._calls:
            _fail(self._calls.popleft(), StoreUnavailable(problem))


def _next_of(waiting: deque[_Waiting], most: int) -> list[_Waiting]:
    """Take those that wait longest, but none that was given up: it was late in our queue, and not at the server."""
    taken: list[_Waiting] = []
    while waiting and len(taken) < most:
        each = waiting.popleft()
        if not each.future.done():
            taken.append(each)
    return taken


def _fail(pending: _Pending | _Call, error: Exception) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)


def _cause(error: BaseException) -> str:
    """Name the error below those that the library wraps it in; its text may quote an address or a user."""
    while (below := error.__cause__ or error.__context__) is not None and isinstance(below, RedisError | OSError):
        error = below
    return type(error).__name__


def _explain(error: ResponseError) -> str:
    """Name a script's failure without quoting the server."""
    if str(error).startswith(EVICTION_REFUSED):
        return "the server's maxmemory-policy must be noeviction"
    return f"the server answers {type(error).__name__}"


def open_connection(url: str, timeout_s: float) -> Any:
    """Build a connection that never retries, whatever the URL says; TLS options of the URL are kept."""
    options: dict[str, Any] = {
        name: value for name, value in parse_url(url).items() if name in _URL_OPTIONS or name.startswith("ssl_")
    }
    connection_class = options.pop("connection_class", Connection)
    return connection_class(
        **options,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,
        socket_connect_timeout=timeout_s,
        driver_info=None,
    )
