"""One serving process: opens the parts, listens, reloads, drains (CONCURRENCY.md §2 and §6, CONFIG.md §5)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import uvloop
from prometheus_client import ProcessCollector

from kms.api_call import ApiCalls
from kms.audit_log import ChainedAuditLog
from kms.clock import SYSTEM_CLOCK
from kms.config import ConfigError, config_digest, load_config
from kms.config_proof import prove_openable
from kms.config_reload import changed_keys, needs_restart
from kms.correlation import IdSource
from kms.dispatch_build import open_policy
from kms.errors import KmsError
from kms.events import EventBus
from kms.grpc_api import build_grpc_server
from kms.http_api import HttpApi
from kms.http_connection import ConnectionRules
from kms.http_server import HttpServer
from kms.logs import LibraryHandler, LogWriter, places_of
from kms.monitoring import Monitoring
from kms.notices import Notices
from kms.openapi import openapi_json
from kms.readiness import Readiness, ReadyPayload
from kms.reloads import Reloads
from kms.rules_in_force import RulesInForce
from kms.service_parts import ServiceParts, open_parts
from kms.service_probes import ServiceState, service_probes, snapshot_of
from kms.spans import TracedCalls, TracedDispatcher, open_tracing
from kms.tls import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from kms.config import LoadedConfig
    from kms.config_sections import KmsConfig
    from kms.config_values import SocketAddress
    from kms.listeners import Listeners
    from kms.policy import PolicyClient
    from kms.process_hardening import Hardening
    from kms.providers.open_provider import ProviderSet
    from kms.telemetry import Telemetry

LOOK_INTERVAL_S: Final = 0.5
CLOSE_GRACE_S: Final = 1.0
SERVING: Final = b"1"
"""What the supervisor is told once connections are answered."""
EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


class KmsServer:
    """One process's service. Everything runs on one event loop; blocking work is in the parts' own threads."""

    def __init__(
        self,
        loaded: LoadedConfig,
        flags: Mapping[str, str],
        environ: Mapping[str, str],
        listeners: Listeners,
        telemetry: Telemetry,
        providers: Future[ProviderSet],
    ) -> None:
        self._config = loaded.config
        self._flags, self._environ = flags, environ
        self._listeners = listeners
        self._clock = SYSTEM_CLOCK
        self.telemetry, self._providers = telemetry, providers
        section = loaded.config.observability
        self.log = LogWriter(sys.stderr, self._clock.wall_ms, section.log_level, section.log_format)
        self._state = ServiceState()
        self._state.config_ok = loaded.current
        self._stop = asyncio.Event()
        self._servers: list[HttpServer] = []
        self._grpc: Any = None
        self._tls: TlsFiles | None = None
        self._tracing = open_tracing(lambda: self._config)
        self._addresses = listeners.addresses()
        for note in loaded.notes:
            self.log.event("info", "config_defaults", message=note)
        for warning in loaded.warnings:
            self.log.event("warn", "config_warning", message=warning)

    async def run(self, lifeline_fd: int | None, restarts: int) -> int:
        """Serve until told to stop, or until the process at the other end of the lifeline is gone."""
        self.telemetry.service_restarts.inc(restarts)
        ProcessCollector(registry=self.telemetry.registry)  # memory, CPU time, descriptors: RUNBOOK.md §4 watches them
        self.telemetry.verify_cache_ttl.set(self._config.audit.verify_cache_ttl_ms)
        # What comes over the bus takes the way of an operator's signals.
        tell = partial(_tell_process, os.getpid() if lifeline_fd is None else os.getppid())
        url = self._config.bus.redis_url
        bus = EventBus(url, self.telemetry, partial(tell, signal.SIGHUP), partial(tell, signal.SIGTERM))
        self._notices = Notices(bus, self._tracing, self._clock, self.log)
        parts = open_parts(self._config, self._providers, self.telemetry, self._clock, self._tracing)
        if isinstance(parts.audit, ChainedAuditLog):
            parts.audit.on_checkpoint = self._notices.checkpoint
        parts.core.services.attestations.on_refresh = self._notices.attestation
        parts.core.keeper.on_session = self._notices.session
        try:
            await self._serve(parts, lifeline_fd, bus)
        finally:
            await asyncio.to_thread(parts.close)
            await bus.stop()
            if self._tracing is not None:
                await asyncio.to_thread(self._tracing.close)
            self.log.event("info", "stopped", pid=os.getpid())
            self.log.close()
        return EXIT_OK

    async def _serve(self, parts: ServiceParts, lifeline_fd: int | None, bus: EventBus) -> None:
        ids = IdSource(self._clock.wall_ms)
        calls = self._make_calls(parts, ids)
        probes = service_probes(self._state, parts, lambda: self._config, self._clock)
        self._readiness = Readiness(probes, lambda: snapshot_of(parts, lambda: self._config), self._tell_readiness)
        calls.on_refused = parts.core.refusals.count_outside
        calls.clock_ok = lambda: "clock_ok" not in self._readiness.payload.missing
        await parts.core.start()
        rules = RulesInForce(
            parts.audit, parts.authority, lambda: self._config, lambda: parts.core.dispatcher.settings.policy
        )
        await rules.look()
        await self._listen(calls)
        self._state.listening = True
        self._readiness.look()
        # What is there now stays: the collector need not look at it again.
        gc.freeze()
        gc.enable()
        self.log.event(
            "info",
            "serving",
            pid=os.getpid(),
            addresses=self._addresses,
            config_digest=config_digest(self._config),
        )
        self._notices.health(ok=True)
        self._notices.config(self._config)
        reloads = Reloads(partial(self._reload, parts))
        self._take_signals(reloads, lifeline_fd)
        bus.start()
        watch = asyncio.create_task(self._watch(parts, rules), name="kms-watch")
        try:
            await self._stop.wait()
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            await reloads.stop()
            await self._drain(calls, parts)

    def _make_calls(self, parts: ServiceParts, ids: IdSource) -> ApiCalls:
        rest = (self.telemetry, self.log, ids, self._clock, lambda: self._config)
        if self._tracing is None:
            return ApiCalls(parts.authority, parts.core.dispatcher, *rest)
        traced = TracedCalls(parts.authority, TracedDispatcher(parts.core.dispatcher, self._tracing), *rest)
        traced.trace_with(self._tracing)
        return traced

    async def _listen(self, calls: ApiCalls) -> None:
        config = self._config
        self._tls = TlsFiles(config.tls) if config.tls.enabled else None
        context = None if self._tls is None else self._tls.context
        api = HttpApi(calls, openapi_json())
        plain, unix = self._rules(unix=False), self._rules(unix=True)
        self._servers = [HttpServer(api, self._listeners.http, plain, context)]
        if self._listeners.unix is not None:
            self._servers.append(HttpServer(api, self._listeners.unix, unix, None))
        monitoring = Monitoring(self.telemetry, self._readiness)
        self._servers.append(HttpServer(monitoring, self._listeners.metrics, plain, None))
        for server in self._servers:
            await server.start()
        if config.grpc_addr is not None:
            self._grpc = build_grpc_server(calls, config)
            self._bind_grpc(config.grpc_addr)
            await self._grpc.start()

    def _bind_grpc(self, address: SocketAddress) -> None:
        try:
            if self._tls is None:
                port = self._grpc.add_insecure_port(str(address))
            else:
                port = self._grpc.add_secure_port(str(address), self._tls.grpc_credentials())
        except RuntimeError as error:
            raise ConfigError(f"grpc_addr: {address}: cannot be bound") from error
        self._addresses["grpc"] = f"{address.host}:{port}"

    def _rules(self, *, unix: bool) -> ConnectionRules:
        return ConnectionRules(lambda: self._config, self.telemetry, self._clock.wall_ms, unix)

    def _take_signals(self, reloads: Reloads, lifeline_fd: int | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, reloads.ask)
        # The supervisor started us with it blocked, so that one that came early is not lost.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        if lifeline_fd is not None:
            # Nothing is ever written there for us: it becomes readable when the supervisor is gone.
            with contextlib.suppress(OSError):
                os.write(lifeline_fd, SERVING)
            loop.add_reader(lifeline_fd, self._supervisor_gone, lifeline_fd)

    def _supervisor_gone(self, lifeline_fd: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline_fd)
        self.log.event("warn", "supervisor_gone")
        self._stop.set()

    async def _reload(self, parts: ServiceParts) -> None:
        """Take over what a reload may change, all or nothing; requests under way end under the former settings.

        What is read and tried of the disk is on a thread: requests go on meanwhile.
        """
        try:
            fresh, policy = await asyncio.to_thread(self._read_anew)
            changed = changed_keys(self._config, fresh)
            waits = needs_restart(changed)
            parts.authority.reload()
            if self._tls is not None and self._tls.refresh():
                self.log.event("info", "certificate_reloaded")
            if not waits:
                parts.core.reload(fresh, policy)
        except (ConfigError, KmsError) as error:
            self._state.config_ok = False
            self.log.event("error", "config_refused", message=str(error))
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the configuration of before stays in force
            self._state.config_ok = False
            self.log.event("error", "config_refused", trace=places_of(error))
            return
        # Where there is a supervisor, only what it could not take over either gets here with such a change.
        self._state.config_ok = not waits
        if waits:
            self.log.event("warn", "config_needs_restart", changed=waits)
            return
        self._config = fresh
        self.log.configure(fresh.observability.log_level, fresh.observability.log_format)
        self.telemetry.verify_cache_ttl.set(fresh.audit.verify_cache_ttl_ms)
        self.log.event("info", "config_updated", changed=changed)
        self._notices.config(fresh)

    def _read_anew(self) -> tuple[KmsConfig, PolicyClient]:
        """Read the configuration and the tenants' table, and try what only a restart takes over. Blocks."""
        fresh = load_config(self._flags, self._environ).config
        if needs_restart(changed_keys(self._config, fresh)):
            prove_openable(fresh)
        return fresh, open_policy(fresh)

    async def _watch(self, parts: ServiceParts, rules: RulesInForce) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self._readiness.look()
            await rules.look()
            self._notices.roots(due=parts.authority.rotation_due(self._clock.wall_ms() // 1000))
            if self._tls is None:
                continue
            try:
                if self._tls.refresh():
                    self.log.event("info", "certificate_reloaded")
            except ConfigError as error:
                self.log.event("error", "certificate_refused", message=str(error))

    async def _drain(self, calls: ApiCalls, parts: ServiceParts) -> None:
        """Refuse what is new, finish what is under way within its deadline, then close the connections."""
        calls.draining = True
        self._state.listening = False
        self._readiness.look()
        drain_s = self._config.deadlines.drain_ms / 1000
        self.log.event("info", "draining")
        self._notices.health(ok=False, reason="draining")
        stops: list[Any] = [parts.core.stop(drain_s)]
        if self._grpc is not None:
            stops.append(self._grpc.stop(drain_s))
        left = (await asyncio.gather(*stops))[0]
        if left:
            self.log.event("warn", "drain_deadline", count=left)
        await asyncio.gather(*(server.stop(CLOSE_GRACE_S) for server in self._servers))

    def _tell_readiness(self, payload: ReadyPayload) -> None:
        self.telemetry.ready.set(payload.ready)
        self._notices.ready(payload)


def _tell_process(pid: int, number: signal.Signals) -> None:
    """Signal this process or its supervisor; another that has got the supervisor's place is left alone."""
    if pid in (os.getpid(), os.getppid()):
        os.kill(pid, number)


def run_service(
    loaded: LoadedConfig,
    flags: Mapping[str, str],
    environ: Mapping[str, str],
    listeners: Listeners,
    lifeline_fd: int | None,
    restarts: int,
    hardening: Hardening,
    telemetry: Telemetry,
    providers: Future[ProviderSet],
) -> int:
    """Serve in this process. Returns the exit status; raises ConfigError.

    `hardening`: what the OS granted, before `providers` began to be opened.
    """

    async def main() -> int:
        server = KmsServer(loaded, flags, environ, listeners, telemetry, providers)
        logging.basicConfig(handlers=[LibraryHandler(server.log)], level=logging.WARNING, force=True)
        for warning in hardening.warnings:
            server.log.event("warn", "hardening", message=warning)
        try:
            return await server.run(lifeline_fd, restarts)
        except KmsError as error:
            server.log.event("error", "cannot_start", reason=error.reason, message=error.message)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor starts us again
            server.log.event("error", "service_failed", trace=places_of(error))
        server.log.close()
        return EXIT_FAILED

    status: int = uvloop.run(main())
    return status
