"""Spans: the tree of one request, what its attributes may hold, and failures; with the SDK's exporter in memory."""

import msgspec
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from kms.audit_event import AuditEvent
from kms.config_sections import KmsConfig
from kms.config_values import ConfigError
from kms.correlation import IdSource
from kms.errors import KmsError, StoreUnavailable
from kms.http_api import HttpApi
from kms.providers.inmem import InMemoryProvider
from kms.spans import MAX_OPEN_SPANS, TracedAudit, TracedCalls, TracedDispatcher, Tracing, open_tracing, traced_provider
from tests.support.kms_core import DIGEST, ListedAudit, running_core
from tests.support.kms_edge import EdgeParts

CORR_ID = "0190b5a4-0000-7000-8000-000000000001"


def traced_edge(dispatcher, tracing, config):
    """An HTTP interface whose calls have spans."""
    parts = EdgeParts(None, config=config)
    ids = IdSource(lambda: 0)
    rest = (parts.telemetry, parts.log, ids, parts.calls.clock, lambda: config)
    calls = TracedCalls(parts.authority, TracedDispatcher(dispatcher, tracing), *rest)
    calls.trace_with(tracing)
    parts.calls, parts.api = calls, HttpApi(calls, b"{}")
    return parts


@pytest.mark.parametrize("alg", ["ed25519", "ml-dsa"])
async def test_one_request_is_one_tree_with_one_correlation_id(alg):
    """On the loop (ed25519) and on a thread (ml-dsa)."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, KmsConfig, batched=False)
    provider = traced_provider(InMemoryProvider(), tracing)
    log = ListedAudit()
    async with running_core(provider=provider, log=TracedAudit(log, tracing)) as bench:
        kid = await bench.create(alg)
        exporter.clear()
        edge = traced_edge(bench.core.dispatcher, tracing, KmsConfig())
        body = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}
        answer = await edge.ask(body=body, x_corr_id=CORR_ID)
        assert answer.status == 200
        edge.log.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"svc.kms.http", "svc.kms.sign", "backend.inmem.sign", "svc.kms.audit.append"}
    ids = {name: span.context.span_id for name, span in spans.items()}
    parents = {name: None if span.parent is None else span.parent.span_id for name, span in spans.items()}
    assert parents == {
        "svc.kms.http": None,
        "svc.kms.sign": ids["svc.kms.http"],
        "backend.inmem.sign": ids["svc.kms.sign"],
        "svc.kms.audit.append": ids["svc.kms.sign"],
    }
    assert len({span.context.trace_id for span in spans.values()}) == 1
    for name in ("svc.kms.http", "svc.kms.sign", "svc.kms.audit.append"):
        assert spans[name].attributes["corr_id"] == CORR_ID
    root = spans["svc.kms.http"].attributes
    assert {"tenant", "route", "kid_hash", "kid_version", "alg", "pq_mode", "attestation_required"} <= set(root)
    assert kid.partition("#")[0] not in str([dict(span.attributes) for span in spans.values()])
    tracing.close()


async def test_a_failure_has_its_reason_and_no_message():
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, KmsConfig, batched=False)
    async with running_core() as bench:
        edge = traced_edge(bench.core.dispatcher, tracing, KmsConfig())
        missing = "core/app/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"
        answer = await edge.ask(body={"kid_or_set": {"kid": missing}, "payload_b3": DIGEST})
        assert answer.status == 404
        assert (await edge.ask(authorization="Bearer secret-of-mine")).status == 401
        edge.log.close()
    spans = exporter.get_finished_spans()
    kinds = [(span.name, span.attributes.get("error.kind"), span.status.status_code.name) for span in spans]
    assert kinds == [
        ("svc.kms.sign", "not_found", "ERROR"),
        ("svc.kms.http", "not_found", "ERROR"),
        ("svc.kms.http", "unauth", "ERROR"),
    ]
    assert all(not span.events and span.status.description is None for span in spans)
    assert missing not in str([span.to_json() for span in spans])
    assert "secret-of-mine" not in str([span.to_json() for span in spans])


async def test_a_lost_backend_and_a_refused_append_are_told():
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, KmsConfig, batched=False)
    provider = traced_provider(InMemoryProvider(), tracing)
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        provider.close()
        with pytest.raises(KmsError):
            await bench.sign(kid)
    audit = TracedAudit(ListedAudit(error=StoreUnavailable("full", reason="audit_disk")), tracing)
    with pytest.raises(StoreUnavailable):
        await audit.append(AuditEvent("sign", "ok", "", "core", "", "", "", "", None))
    failed = [span for span in exporter.get_finished_spans() if span.status.status_code.name == "ERROR"]
    assert [span.name for span in failed] == ["backend.inmem.sign", "svc.kms.audit.append"]
    assert failed[1].attributes["error.kind"] == "audit_disk"


async def test_spans_under_way_are_bounded():
    tracing = Tracing(InMemorySpanExporter(), KmsConfig, batched=False)
    edge = traced_edge(None, tracing, KmsConfig())
    calls = [edge.calls.open(None, "", "http", "GET") for _ in range(MAX_OPEN_SPANS + 5)]
    assert len(edge.calls._open) == MAX_OPEN_SPANS
    for call in reversed(calls):
        edge.calls.close(call, "200", None, None)
    assert edge.calls._open == {}
    edge.log.close()


def test_a_wrapped_provider_is_what_it_was():
    inner = InMemoryProvider()
    outer = traced_provider(inner, Tracing(InMemorySpanExporter(), KmsConfig, batched=False))
    for name in ("name", "attestation_class", "primitives", "wraps_itself", "in_process", "max_keys", "check"):
        assert getattr(outer, name) == getattr(inner, name)


def test_without_an_exporter_there_is_no_tracing_and_an_unknown_one_is_refused():
    assert open_tracing(KmsConfig) is None
    config = KmsConfig()
    config = msgspec.structs.replace(
        config, observability=msgspec.structs.replace(config.observability, otel_exporter="none-such")
    )
    with pytest.raises(ConfigError, match="otel_exporter"):
        open_tracing(lambda: config)
