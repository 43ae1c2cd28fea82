"""OpenTelemetry spans, where the extra `otel` is installed and an exporter is named (OBSERVABILITY.md §4, §8).

Without an exporter none of these classes is used: tracing that is off costs no operation anything. Attributes are
those of the log lines, hashed and cut in the same way.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from kms.api_call import ApiCall, ApiCalls, facts_of
from kms.config_values import ConfigError
from kms.error_envelope import as_kms_error
from kms.errors import KmsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.audit_event import AuditEntry, AuditEvent, AuditLog
    from kms.config_sections import KmsConfig
    from kms.messages import Message
    from kms.principal import CallContext
    from kms.providers.provider import Provider

EXPORTERS: Final = "opentelemetry_traces_exporter"
SERVICE: Final = "ron-kms"
MAX_OPEN_SPANS: Final = 4096
FLUSH_MS: Final = 1000
# What a provider's verbs are called in spans; evidence has a name of its own.
VERBS: Final = ("generate", "sign", "agree", "decapsulate", "derive", "wrap", "unwrap", "destroy")


class Tracing:
    """Makes the spans of one process. `exporter`: what takes them."""

    def __init__(self, exporter: Any, config: Callable[[], KmsConfig], *, batched: bool = True) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        version = metadata.version("signet")
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE, "service.version": version}))
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter) if batched else SimpleSpanProcessor(exporter)  # bounded queue, drops
        )
        self.tracer = self._provider.get_tracer("kms")
        self._trace = trace
        self.config = config

    def start(self, name: str, attributes: dict[str, Any]) -> Any:
        """Start a span and make it the current one; the caller leaves the context it gets."""
        return self.tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        )

    def fail(self, span: Any, error: Exception) -> None:
        """Say of a span how it failed: a reason, never a message."""
        typed = error if isinstance(error, KmsError) else as_kms_error(error)
        span.set_attributes({"result": "err", "error.kind": typed.reason})
        span.set_status(self._trace.StatusCode.ERROR)

    def told(self, name: str, attributes: dict[str, Any], took_s: float, now_ns: int) -> None:
        """Record a span of what has just ended."""
        self.tracer.start_span(name, attributes=attributes, start_time=now_ns - int(took_s * 1e9)).end(now_ns)

    def close(self) -> None:
        """Hand over what is left."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


def open_tracing(config: Callable[[], KmsConfig]) -> Tracing | None:
    """Open the exporter that the configuration names, None where it names none. Raises ConfigError."""
    name = config().observability.otel_exporter
    if not name:
        return None
    found = metadata.entry_points(group=EXPORTERS, name=name)
    if not found:
        raise ConfigError(f"observability.otel_exporter: no exporter {name!r} is installed (extra `otel`)")
    try:
        return Tracing(next(iter(found)).load()(), config)
    except ImportError as error:
        raise ConfigError("observability.otel_exporter: the extra `otel` is not installed") from error


class TracedCalls(ApiCalls):
    """Calls with a root span each, `svc.kms.http`, from their headers to their outcome."""

    tracing: Tracing
    _open: dict[str, tuple[Any, Any]]

    def trace_with(self, tracing: Tracing) -> None:
        """Set where spans go; before the first call."""
        self.tracing, self._open = tracing, {}

    def open(self, offered_corr_id: str | None, peer: str, transport: str, method: str) -> ApiCall:
        """Begin a call and its span."""
        call = super().open(offered_corr_id, peer, transport, method)
        if len(self._open) < MAX_OPEN_SPANS:
            ids = {"corr_id": call.corr_id, "request_id": call.request_id}
            context = self.tracing.start("svc.kms.http", {**ids, "transport": transport, "http.request.method": method})
            self._open[call.request_id] = (context, context.__enter__())
        return call

    def close(self, call: ApiCall, status: str, error: KmsError | None, response: Message | None) -> None:
        """End a call and its span."""
        super().close(call, status, error, response)
        context, span = self._open.pop(call.request_id, (None, None))
        if span is None:
            return
        span.set_attributes({"route": call.route, "status": status, "result": "ok"})
        span.set_attributes(span_facts(call, response, self.config()))
        if error is not None:
            self.tracing.fail(span, error)
        context.__exit__(None, None, None)


def span_facts(call: ApiCall, response: Message | None, config: KmsConfig) -> dict[str, Any]:
    """Gather what a span may say of a request: what a log line may.

    A call that no policy was asked for has the service's own mode.
    """
    facts = facts_of(call, response, config.observability.redact_level)
    facts["pq_mode"] = facts["pq_mode"] or config.pq.verify_mode
    facts["attestation_required"] = config.security.attest_require == "required"
    return {name: value for name, value in facts.items() if value is not None}


class TracedDispatcher:
    """A dispatcher with a span for each operation, `svc.kms.<op>`."""

    def __init__(self, dispatcher: Any, tracing: Tracing) -> None:
        self._dispatcher, self._tracing = dispatcher, tracing

    async def call(self, op: str, request: Message, context: CallContext) -> Message:
        """Perform one operation; see `Dispatcher.call`."""
        ids = {"corr_id": context.corr_id, "request_id": context.request_id}
        with self._tracing.start(f"svc.kms.{op}", ids) as span:
            try:
                response: Message = await self._dispatcher.call(op, request, context)
            except KmsError as error:
                self._tracing.fail(span, error)
                raise
            span.set_attribute("result", "ok")
            return response


class TracedAudit:
    """An audit log with a span for each append, `svc.kms.audit.append`."""

    def __init__(self, audit: AuditLog, tracing: Tracing) -> None:
        self._audit, self._tracing = audit, tracing

    async def append(self, event: AuditEvent) -> AuditEntry:
        """Append; see `AuditLog.append`."""
        corr_id = "" if event.context is None else event.context.corr_id
        with self._tracing.start("svc.kms.audit.append", {"op": event.op, "corr_id": corr_id}) as span:
            try:
                return await self._audit.append(event)
            except KmsError as error:
                self._tracing.fail(span, error)
                raise

    def writable(self) -> str | None:
        """Tell why nothing may be appended; see `AuditLog.writable`."""
        return self._audit.writable()


def traced_provider(provider: Provider, tracing: Tracing) -> Provider:
    """Give a provider whose verbs have a span each, `backend.<name>.<verb>`; everything else is as it was."""

    def traced(span_name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        def use(*given: Any) -> Any:
            with tracing.start(span_name, {"backend": provider.name}) as span:
                try:
                    return verb(*given)
                except KmsError as error:
                    tracing.fail(span, error)
                    raise

        return use

    verbs = {verb: traced(f"backend.{provider.name}.{verb}", getattr(provider, verb)) for verb in VERBS}
    verbs["attest"] = traced("svc.kms.attest.refresh", provider.attest)
    return TracedProvider(provider, verbs)


class TracedProvider:
    """A provider with some verbs replaced."""

    def __init__(self, provider: Provider, verbs: dict[str, Callable[..., Any]]) -> None:
        self._provider, self._verbs = provider, verbs

    def __getattr__(self, name: str) -> Any:
        return self._verbs.get(name) or getattr(self._provider, name)
