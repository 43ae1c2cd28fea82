"""What goes on beside the requests: are the providers there, are all changes audited, are refusals summed up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from kms.errors import KmsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kms.custody import Custody
    from kms.dispatcher import Dispatcher
    from kms.refusals import Refusals
    from kms.telemetry import Telemetry

PERIOD_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 1.0


class Keeper:
    """One task, started with the service and ended with it. A provider has one probe under way at most."""

    def __init__(
        self,
        custody: Custody,
        dispatcher: Dispatcher,
        refusals: Refusals,
        telemetry: Telemetry,
        tidy: Callable[[], None],
    ) -> None:
        """Make it; `tidy` begins what is to be done again now and then, and waits for nothing."""
        self._custody, self._dispatcher, self._refusals, self._tidy = custody, dispatcher, refusals, tidy
        self._spawned = telemetry.tasks_spawned.labels("keeper")
        self._aborted = telemetry.tasks_aborted.labels("keeper")
        self._sessions = telemetry.backend_sessions
        self._probes: dict[str, asyncio.Future[None]] = {}
        self._up: dict[str, bool] = {}
        # Told of each backend when it first answers, and whenever that changes.
        self.on_session: Callable[[str, bool], None] = lambda _backend, _up: None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task; once."""
        self._spawned.inc()
        self._task = asyncio.create_task(self._run(), name="kms-keeper")

    async def stop(self) -> None:
        """End the task and write what refusals are left. A second call does nothing."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._refusals.flush(now=True)

    async def beat(self) -> None:
        """Do everything once."""
        await asyncio.gather(*(self._probe(name) for name in self._custody.names))
        # What cannot be audited now is tried again with the next beat.
        with contextlib.suppress(KmsError):
            await self._dispatcher.settle()
        await self._refusals.flush()
        self._tidy()

    async def _run(self) -> None:
        while True:
            await self._survive(self.beat)
            await asyncio.sleep(PERIOD_S)

    async def _survive(self, work: Callable[[], Awaitable[None]]) -> None:
        """Go on whatever happens: a watch that ended by a fault would take every outage for health."""
        try:
            await work()
        except Exception:  # noqa: BLE001 - counted; the next beat begins anew
            self._aborted.inc()

    async def _probe(self, name: str) -> None:
        """Ask a provider whether it is there. One that does not answer in time is away until it does."""
        probe = self._probes.get(name)
        if probe is None or probe.done():
            provider = self._custody.provider(name)
            probe = self._probes[name] = asyncio.ensure_future(asyncio.to_thread(provider.check))
        done, _ = await asyncio.wait([probe], timeout=PROBE_TIMEOUT_S)
        answered = bool(done) and probe.exception() is None
        self._custody.note(name, answered=answered, probed=True)
        self._sessions.labels(name, "connected").set(answered)
        self._sessions.labels(name, "error").set(not answered)
        if self._up.get(name) is not answered:
            self._up[name] = answered
            self.on_session(name, answered)
