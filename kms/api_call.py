"""One call from its headers to its outcome, the same for HTTP and gRPC: who asks, may they, what came of it.

The order keeps refusals cheap: a caller without a capability, or with one of another scope, costs no body and no
crypto beyond one HMAC chain. Everything that depends on the body is the dispatcher's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from kms.error_envelope import as_kms_error
from kms.errors import Internal, KmsError, NoCapability, StoreUnavailable, Unauthenticated
from kms.http_body import BodyBudget
from kms.kid import kid_hash
from kms.logs import places_of
from kms.principal import CallContext, Phase, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.clock import Clock
    from kms.config_sections import KmsConfig
    from kms.correlation import IdSource
    from kms.logs import LogWriter
    from kms.messages import Message
    from kms.operation_table import Operation
    from kms.principal import Principal
    from kms.telemetry import Telemetry

OTHER_ROUTE: Final = "other"
CLOCK_RETRY_AFTER_S: Final = 5
# What a capability that ended a moment ago could do no harm with: reading and verifying go on (I-18).
_NEED_NO_CLOCK: Final = frozenset({Scope.READ, Scope.VERIFY})
METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "GRPC"})


class Authenticates(Protocol):
    """What verifies capabilities (`kms.capability.Authority`)."""

    def authenticate(self, authorization_value: str | None, now_s: int) -> Principal:
        """Verify the value of an Authorization field, or raise."""
        ...


class Dispatches(Protocol):
    """What performs operations (`kms.dispatcher.Dispatcher`)."""

    async def call(self, op: str, request: Message, context: CallContext) -> Message:
        """Perform one operation, or raise KmsError."""
        ...


@dataclass(slots=True)
class ApiCall:
    """One call under way. Owned by its task."""

    corr_id: str
    request_id: str
    peer: str
    transport: str
    method: str
    began_s: float
    operation: Operation | None = None
    principal: Principal | None = None
    request: Message | None = None
    phase: Phase = field(default_factory=Phase)
    body_bytes: int = 0

    @property
    def route(self) -> str:
        """Give the label of metrics and logs."""
        return OTHER_ROUTE if self.operation is None else self.operation.route


class ApiCalls:
    """Opens, performs and closes calls. One event loop owns it.

    `config`: gives the configuration in force, which a reload swaps.
    """

    def __init__(
        self,
        authority: Authenticates,
        dispatcher: Dispatches,
        telemetry: Telemetry,
        log: LogWriter,
        ids: IdSource,
        clock: Clock,
        config: Callable[[], KmsConfig],
    ) -> None:
        self._authority, self._dispatcher = authority, dispatcher
        self._telemetry, self._log, self._ids = telemetry, log, ids
        self.clock, self.config = clock, config
        self.bodies = BodyBudget()
        self.draining = False
        # False while the wall clock is known to have been stepped: the end of a capability cannot be judged then.
        self.clock_ok: Callable[[], bool] = lambda: True
        # Told of what was refused before it was an operation, by its name and reason: the audit log counts it.
        self.on_refused: Callable[[str, str], None] = lambda _op, _reason: None
        self._spawned = telemetry.tasks_spawned.labels("request")
        self._counters: dict[tuple[str, str, str], Any] = {}
        self._routes: dict[tuple[str, str], tuple[Any, Any]] = {}

    def open(self, offered_corr_id: str | None, peer: str, transport: str, method: str) -> ApiCall:
        """Begin a call."""
        corr_id = self._ids.corr_id(offered_corr_id, self.config().observability.correlation_id_mode)
        self._spawned.inc()
        known = method if method in METHODS else OTHER_ROUTE
        return ApiCall(corr_id, self._ids.request_id(), peer, transport, known, self.clock.monotonic_s())

    def admit(self, call: ApiCall, operation: Operation, authorization: str | None) -> None:
        """Check the capability and its scope, before any body. Raises KmsError."""
        call.operation = operation
        self._metrics(call)[1].inc()
        if self.draining:
            raise StoreUnavailable("the service is shutting down", reason="draining", retry_after_s=1)
        principal = self._authority.authenticate(authorization, self.clock.wall_ms() // 1000)
        call.principal = principal
        scopes = principal.scopes
        if operation.scope not in _NEED_NO_CLOCK and not self.clock_ok():
            raise StoreUnavailable("the clock was stepped", reason="clock_skew", retry_after_s=CLOCK_RETRY_AFTER_S)
        if operation.scope in scopes:
            return
        with_read = self.config().security.verify_with_read
        if not (operation.scope is Scope.VERIFY and with_read and Scope.READ in scopes):
            wanted = operation.scope.value
            raise NoCapability(f"scope '{wanted}' required", hint=f"attach macaroon with {wanted}")

    async def perform(self, call: ApiCall, request: Message, path: str) -> Message:
        """Let the dispatcher do it. `path`: as in HTTP, percent-decoded. Raises KmsError."""
        assert call.principal is not None and call.operation is not None  # noqa: PT018 - admit was called
        call.request = request
        context = CallContext(
            call.principal, call.corr_id, call.request_id, path, call.peer, call.transport, call.phase
        )
        try:
            return await self._dispatcher.call(call.operation.op, request, context)
        except KmsError:
            raise
        except asyncio.CancelledError:
            self._telemetry.tasks_canceled.labels("request").inc()
            raise
        except Exception as error:
            self._log.event(
                "error", "internal", corr_id=call.corr_id, request_id=call.request_id, trace=places_of(error)
            )
            raise Internal("an internal fault; the log has it under request_id") from error

    def refused(self, call: ApiCall, error: Exception) -> KmsError:
        """Count and type what ended a call before or in the dispatcher."""
        typed = as_kms_error(error)
        if typed is not error:
            self._log.event(
                "error", "internal", corr_id=call.corr_id, request_id=call.request_id, trace=places_of(error)
            )
        if isinstance(typed, Unauthenticated):
            self._telemetry.auth_failures.inc()
        if call.request is None:
            # The dispatcher counts what it refuses by itself.
            self._telemetry.rejected.labels(typed.reason).inc()
            self._telemetry.reject.labels(typed.reason).inc()
            self.on_refused(OTHER_ROUTE if call.operation is None else call.operation.op, typed.reason)
        return typed

    def close(self, call: ApiCall, status: str, error: KmsError | None, response: Message | None) -> None:
        """Count and log the outcome. `status`: the HTTP or gRPC status."""
        took_s = self.clock.monotonic_s() - call.began_s
        latency, inflight = self._metrics(call)
        if call.operation is not None:
            inflight.dec()
        latency.observe(took_s)
        key = (call.route, call.method, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._telemetry.http_requests.labels(*key)
        counter.inc()
        self._log_result(call, took_s, status, error, response)

    def _metrics(self, call: ApiCall) -> tuple[Any, Any]:
        key = (call.route, call.method)
        found = self._routes.get(key)
        if found is None:
            telemetry = self._telemetry
            found = (telemetry.request_latency.labels(*key), telemetry.inflight_requests.labels(call.route))
            self._routes[key] = found
        return found

    def _log_result(
        self, call: ApiCall, took_s: float, status: str, error: KmsError | None, response: Message | None
    ) -> None:
        event = "request_result" if call.operation is None else f"{call.operation.op}_result"
        level = "info" if error is None or error.http_status < 500 else "warn"
        self._log.event(
            level,
            event,
            corr_id=call.corr_id,
            request_id=call.request_id,
            peer_addr=call.peer,
            route=call.route,
            transport=call.transport,
            status=status,
            latency_ms=round(took_s * 1000, 3),
            result="ok" if error is None else "err",
            reason=None if error is None else error.reason,
            body_bytes=call.body_bytes or None,
            **facts_of(call, response, self.config().observability.redact_level),
        )


def facts_of(call: ApiCall, response: Message | None, redact_level: str) -> dict[str, Any]:
    """Gather what a log line may say of a request and its answer: hashes, versions and names."""
    request = call.request
    selector = getattr(request, "kid_or_set", None)
    kid = getattr(response, "kid", None) or getattr(request, "kid", None) or getattr(selector, "kid", None)
    phase = call.phase
    facts: dict[str, Any] = {"op_id": getattr(request, "op_id", None), "pq": phase.pq, "pq_mode": phase.pq_mode}
    if call.principal is not None:
        facts["token_id"] = call.principal.token_id  # what `revoke` takes, and what audit records name
        if len(call.principal.tenants) == 1:
            facts["tenant"] = next(iter(call.principal.tenants))
    if kid is not None:
        name, _, version = kid.partition("#v")
        segments = name.split("/")
        facts["kid_hash"] = kid_hash(name)
        if version.isdigit():
            facts["kid_version"] = int(version)
        if len(segments) == 4 and response is not None:
            facts["tenant"], facts["alg"] = segments[0], segments[2]
    if redact_level == "hashes":
        facts["payload_b3"] = getattr(request, "payload_b3", None)
    attestation = getattr(response, "attestation", None)
    if attestation is not None:
        facts["attestation_class"] = attestation.class_
    cache_age_ms = getattr(response, "cache_age_ms", None)
    if isinstance(cache_age_ms, int):
        facts["cache_age_ms"] = cache_age_ms
    return facts
