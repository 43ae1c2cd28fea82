"""One filter worker: puts the parts together, serves one socket, drains when told.

Lifecycle: open stores → serve → every second write pending summaries and the status file → on SIGTERM, or when the
supervisor is gone, drain: finish calls, record outcomes, flush summaries, close the stores. SIGHUP loads the
configuration again.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import signal
import time
import uuid
from typing import TYPE_CHECKING, Final

import uvloop
from prometheus_client import REGISTRY

from extproc import breaker_bank
from extproc.access_log import AccessLog
from extproc.body_telemetry import BodyTelemetry
from extproc.body_verdict import BodyVerdicts
from extproc.breaker_share import BreakerShare
from extproc.challenge_supply import ChallengeSupply
from extproc.config import ConfigError, FilterConfig
from extproc.custody import degraded_text, open_sealing_keys
from extproc.evidence import EvidenceDesk, EvidenceParts
from extproc.evidence_log import EvidenceLog
from extproc.ext_authz import ExtAuthz
from extproc.ext_proc import ExtProc
from extproc.keyring import KeyringFile
from extproc.ml_dsa_provider import algorithms_by
from extproc.nonce_store.choice import open_nonce_store
from extproc.outcome_recorder import OutcomeRecorder
from extproc.outcome_telemetry import OutcomeTelemetry
from extproc.pipeline import Parts, Pipeline
from extproc.policy_upkeep import PolicyUpkeep
from extproc.readiness import store_problem
from extproc.rules_source import RulesSource
from extproc.server import MAX_EDGE_BODY_BYTES, FilterServer
from extproc.stress_desk import StressDesk, StressTelemetry
from extproc.telemetry import Telemetry, keep_values_as
from receipts.errors import StoreError
from receipts.open_store import open_store
from receipts.receipt_id import ID_RANDOM_BYTES, WriterId, new_receipt_id
from receipts.refusals import RefusalLimiter
from receipts.writer import ReceiptWriter

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from extproc.rules import Rules

LOG: Final = logging.getLogger("signet.worker")
TICK_S: Final = 1.0
"""How often summaries are written and the status file is renewed."""
FAILING_TIMEOUT_S: Final = 0.3
"""How long a request waits for its receipt while the store fails. With the spend before it, less than the 0.6 s that
envoy.yaml gives one try of a Check: the client hears that the store is not available, and not that nobody answered."""
OUTCOME_DRAIN_S: Final = 1.0
"""How long a draining worker goes on recording outcomes."""
MAX_CANCELS: Final = 4
CANCEL_WAIT_S: Final = 0.25
"""How often a task is told to end, and how long each time is waited for it."""


PARTS: Final = ("nonce_store", "receipts", "keyring", "sealing")
"""What a worker depends on, as health components and in its status file."""


GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Allocations between collections. What is loaded at start is frozen, and a request leaves no cycles unless it is
refused, so the default of 700 spent a third of the CPU on looking at the same objects (measured)."""


def now_ms() -> int:
    """Read the wall clock in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


async def end_tasks(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks that run for ever and see them end, within `MAX_CANCELS` times `CANCEL_WAIT_S`.

    More than once: a client that is about to connect may take the cancelling for its connection's end.
    """
    pending = set(tasks)
    for _ in range(MAX_CANCELS):
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=CANCEL_WAIT_S)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                LOG.error("a task of the worker had ended: %s", type(error).__name__)
        if not pending:
            return
    LOG.error("%d tasks of the worker do not end; it goes on without them", len(pending))


def worker_share(per_s: int, workers: int) -> int:
    """Divide what all workers may do per second; at least one each, unless it is none at all."""
    return max(1, per_s // workers) if per_s else 0


class Worker:
    """One worker process. Made and run inside its event loop, which owns it."""

    def __init__(self, config_path: Path, index: int, environ: Mapping[str, str], accepted: Path | None) -> None:
        self._index = index
        self._source = RulesSource(config_path, environ, accepted)
        self._rules: Rules = self._source.first()
        config = self._rules.config
        self._upkeep = PolicyUpkeep(lambda: self._rules.policy)
        self._telemetry = Telemetry(REGISTRY)
        self._keyring = KeyringFile(config.keyring.path, algorithms_by(config.keyring.ml_dsa_provider))
        self._sealing_keys = open_sealing_keys(config, now_ms)
        self._nonce_store = open_nonce_store(config, now_ms)
        self._store = open_store(config.receipts.url)
        self._writer = ReceiptWriter(
            self._store, writer_id=WriterId(str(uuid.uuid4())), failing_timeout_s=FAILING_TIMEOUT_S
        )
        self._refusals = RefusalLimiter(worker_share(config.receipts.max_refusal_receipts_per_s, config.filter.workers))
        self._evidence_log = EvidenceLog(config.log.dir, config.log.origin)
        evidence = EvidenceParts(
            nonce_store=self._nonce_store,
            sealing_keys=self._sealing_keys,
            log=self._evidence_log,
            writer=self._writer,
            telemetry=self._telemetry,
            random_bytes=secrets.token_bytes,
        )
        stress_telemetry = StressTelemetry(REGISTRY)
        self._stress = StressDesk(config, stress_telemetry, index=index, now_ms=now_ms, random_below=secrets.randbelow)
        self._share = BreakerShare(
            config.nonce_store.url,
            lambda: self._stress.peers,
            stress_telemetry,
            interval_ms=config.filter.breaker_share_interval_ms,
            now_ms=now_ms,
            random_below=secrets.randbelow,
        )
        parts = Parts(
            rules=lambda: self._rules,
            keyring=lambda: self._keyring.current,
            sealing_keys=self._sealing_keys,
            nonce_store=self._nonce_store,
            writer=self._writer,
            refusals=self._refusals,
            supply=ChallengeSupply(config.plan, now_ms),
            telemetry=self._telemetry,
            evidence=EvidenceDesk(evidence),
            clock_ms=now_ms,
            random_bytes=secrets.token_bytes,
            stress=self._stress,
        )
        outcome_telemetry = OutcomeTelemetry(REGISTRY)
        self._outcomes = OutcomeRecorder(
            self._store,
            self._writer,
            outcome_telemetry,
            timeout_s=lambda: self.config.receipts.timeout_ms / 1000,
            clock_ms=now_ms,
            random_bytes=secrets.token_bytes,
            observer=self._stress,
        )
        verdicts = BodyVerdicts(
            self._store,
            self._writer,
            timeout_s=lambda: self.config.receipts.timeout_ms / 1000,
            clock_ms=now_ms,
            random_bytes=secrets.token_bytes,
        )
        self._socket_path = config.filter.socket_dir / f"signet-{index}.sock"
        self._server = FilterServer(
            ExtAuthz(Pipeline(parts), self._telemetry),
            self._socket_path,
            max_body_bytes=MAX_EDGE_BODY_BYTES,
            socket_mode=config.filter.socket_mode,
            outcomes=AccessLog(self._outcomes, outcome_telemetry),
            bodies=ExtProc(verdicts, BodyTelemetry(REGISTRY), lambda: self.config.filter.retry_after_s),
        )

    @property
    def config(self) -> FilterConfig:
        """Give the configuration in force."""
        return self._rules.config

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        # The supervisor starts us with SIGHUP blocked: until the line above it would have ended us.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        self._writer.start()
        await self._nonce_store.start()
        await self._server.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        LOG.info("worker %d serves on %s", self._index, self._socket_path.name)
        watching = asyncio.create_task(self._keyring.watch(self.config.keyring.poll_interval_ms / 1000))
        ticking = asyncio.create_task(self._tick_forever())
        recording = asyncio.create_task(self._outcomes.run())
        steering = asyncio.create_task(self._steer_forever())
        sharing = asyncio.create_task(self._share.run())
        try:
            await stop.wait()
        finally:
            await self._drain(watching, ticking, recording, steering, sharing)

    async def _drain(self, *tasks: asyncio.Task[None]) -> None:
        LOG.info("worker %d drains", self._index)
        await self._server.stop(self.config.filter.drain_timeout_s)
        await end_tasks(tasks)
        await self._outcomes.drain(OUTCOME_DRAIN_S)
        await self._write_summaries(final=True)
        await self._nonce_store.close()
        await self._upkeep.close()
        await asyncio.to_thread(self._evidence_log.close)
        await self._writer.aclose(self.config.filter.drain_timeout_s)
        self._store.close()
        self._status_path().unlink(missing_ok=True)

    def reload(self) -> None:
        """Load the configuration again; a bad one is reported and the old one stays in force."""
        try:
            rules = self._source.again(self.config)
        except (ConfigError, OSError) as error:
            self._telemetry.reloads.labels("refused").inc()
            LOG.error("configuration not reloaded, the old one stays in force: %s", error)
            return
        self._upkeep.retire(self._rules.policy)
        self._rules = rules
        self._stress.load(rules.config)
        self._telemetry.reloads.labels("loaded").inc()
        LOG.info("configuration reloaded, digest %s", rules.config.digest)

    async def _steer_forever(self) -> None:
        while True:
            try:
                self._stress.tick()
            except Exception:
                LOG.exception("the breakers could not be moved on; it is tried again")
            await asyncio.sleep(breaker_bank.TICK_S)

    async def _tick_forever(self) -> None:
        while True:
            try:
                await self._write_summaries(final=False)
                await self._outcomes.tell_dropped()
                await self._renew_status()
                await self._upkeep.tick()
            except Exception:
                LOG.exception("the periodic work failed; it is tried again")
            await asyncio.sleep(TICK_S)

    async def _write_summaries(self, *, final: bool) -> None:
        for summary in self._refusals.flush() if final else self._refusals.due(now_ms()):
            draft = summary.draft(new_receipt_id(now_ms(), secrets.token_bytes(ID_RANDOM_BYTES)), now_ms())
            try:
                await self._writer.append(draft, self.config.receipts.timeout_ms / 1000)
            except StoreError as error:
                self._refusals.put_back(summary)
                LOG.error("a summary receipt could not be written: %s", error.code)
            else:
                self._telemetry.refusals_summarised.inc(sum(summary.counts.values()))

    async def problems(self) -> dict[str, str]:
        """List what is not well, by part; empty when all is well."""
        # Without requests no one else looks at the file.
        self._sealing_keys.reload()
        found = {
            "nonce_store": await self._nonce_store.problem(),
            "receipts": await asyncio.to_thread(store_problem, self._store),
            "keyring": self._keyring.problem,
            "sealing": self._sealing_keys.problem,
        }
        return {part: problem for part, problem in found.items() if problem}

    async def _renew_status(self) -> None:
        problems = await self.problems()
        self._telemetry.problems.set(len(problems))
        self._telemetry.keys.set(len(self._keyring.current))
        for part in PARTS:
            await self._server.set_serving(serving=part not in problems, component=f"signet.{part}")
        status = {"index": self._index, "pid": os.getpid(), "time_ms": now_ms(), "problems": problems}
        if (degraded := degraded_text(self._sealing_keys)) is not None:
            status["degraded"] = {"sealing": degraded}
        temporary = self._status_path().with_suffix(".tmp")
        temporary.write_text(json.dumps(status))
        temporary.replace(self._status_path())

    def _status_path(self) -> Path:
        return self._socket_path.with_suffix(".status.json")


async def _run(config_path: Path, index: int, lifeline_fd: int | None, accepted: Path | None) -> None:
    """Run a worker until SIGTERM, SIGINT, or the end of the lifeline: the supervisor's end of a pipe closes with it."""
    worker = Worker(config_path, index, os.environ, accepted)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if lifeline_fd is not None:
        loop.add_reader(lifeline_fd, stop.set)
    await worker.run(stop)


def run_worker(config_path: Path, index: int, lifeline_fd: int | None, accepted: Path | None) -> int:
    """Run one worker until it is told to stop. Returns the exit status.

    `accepted`: where the supervisor keeps what it accepted last; a worker that starts or loads again takes that, the
    policy's files included, and not what they happen to hold by then.
    """
    keep_values_as(index)
    uvloop.run(_run(config_path, index, lifeline_fd, accepted))
    return 0
