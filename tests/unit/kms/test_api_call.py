"""What a call's log line and span say of the phase that it was decided in (QUANTUM.md §7)."""

from __future__ import annotations

import pytest

from kms.api_call import ApiCalls
from kms.config_sections import KmsConfig
from kms.correlation import IdSource
from kms.http_api import HttpApi
from kms.messages import VerifyRequest
from kms.principal import CallContext
from kms.spans import span_facts
from tests.support.kms_core import DIGEST, Bench, principal, running_core
from tests.support.kms_edge import EdgeParts


def edge_over(bench: Bench) -> EdgeParts:
    """The HTTP interface over a real core."""
    parts = EdgeParts(None)  # type: ignore[arg-type]
    rest = (parts.telemetry, parts.log, IdSource(lambda: 0), parts.calls.clock, lambda: parts.config)
    parts.calls = ApiCalls(parts.authority, bench.core.dispatcher, *rest)
    parts.api = HttpApi(parts.calls, b"{}")
    return parts


@pytest.mark.parametrize(
    ("pq", "alg", "said"),
    [
        ({"produce_hybrid": False, "verify_mode": "or"}, "ed25519", ("off", "or")),
        ({"produce_hybrid": True, "verify_mode": "or"}, "ed25519", ("hybrid", "or")),
        ({"produce_hybrid": False, "verify_mode": "and"}, "hybrid", ("hybrid", "and")),
        ({"produce_hybrid": False, "verify_mode": "pq_only"}, "ml-dsa", ("pq-only", "pq_only")),
        ({"produce_hybrid": True, "verify_mode": "and", "rollout_percent": 0}, "ed25519", ("off", "or")),
    ],
)
async def test_a_line_says_the_phase_that_was_in_force_for_its_tenant(
    pq: dict[str, object], alg: str, said: tuple[str, str]
) -> None:
    async with running_core(pq=pq) as bench:
        kid = await bench.create(alg)
        parts = edge_over(bench)
        answer = await parts.ask(body={"kid_or_set": {"kid": kid}, "payload_b3": DIGEST})
        assert answer.status == 200
        assert (await parts.ask(body={"kid_or_set": {"kid": kid.replace("core/", "other/")}})).status == 400
        line, refused = parts.lines()
    assert (line["event"], line["pq"], line["pq_mode"]) == ("sign_result", *said)
    assert "pq_mode" not in refused, "no policy was asked"


async def test_a_refusal_by_the_phase_says_which() -> None:
    async with running_core(pq={"produce_hybrid": False, "verify_mode": "or"}) as bench:
        kid = await bench.create()
        bench.core.reload(KmsConfig())
        parts = edge_over(bench)
        assert (await parts.ask(body={"kid_or_set": {"kid": kid}, "payload_b3": DIGEST})).status == 403
        [line] = parts.lines()
    assert (line["reason"], line["pq"], line["pq_mode"]) == ("pq_policy", "hybrid", "and")


async def test_a_span_has_the_tenants_mode_and_without_one_the_services() -> None:
    async with running_core(pq={"verify_mode": "or"}) as bench:
        kid = await bench.create()
        parts = edge_over(bench)
        call = parts.calls.open(None, "", "http", "POST")
        assert span_facts(call, None, parts.config)["pq_mode"] == parts.config.pq.verify_mode == "and"
        call.phase.pq_mode = "or"
        assert span_facts(call, None, parts.config)["pq_mode"] == "or"
        await parts.ask(body={"kid_or_set": {"kid": kid}, "payload_b3": DIGEST})
        parts.log.close()


@pytest.mark.parametrize(("tenants", "mode"), [(("core",), "or"), (("core", "other"), None)])
async def test_of_several_tenants_no_one_phase_is_told(tenants: tuple[str, ...], mode: str | None) -> None:
    async with running_core() as bench:
        signed = await bench.sign(await bench.create())
        context = CallContext(principal(*tenants), "corr", "req", "/v1/kms/verify", "peer", "test")
        request = VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs)
        await bench.core.dispatcher.call("verify", request, context)
        assert context.phase.pq_mode == mode


async def test_what_is_refused_before_it_is_an_operation_is_told_for_the_audit_log() -> None:
    async with running_core() as bench:
        kid = await bench.create()
        parts = edge_over(bench)
        told: list[tuple[str, str]] = []
        parts.calls.on_refused = lambda op, reason: told.append((op, reason))
        signing = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}
        assert (await parts.ask(body=signing)).status == 200
        assert (await parts.ask(body=signing | {"payload_b3": "00"})).status == 400
        assert (await parts.ask(body=signing, authorization="Bearer forged")).status == 401
        assert (await parts.ask(path="/v1/kms/nowhere")).status == 404
        assert (await parts.ask(body=signing, content_length="99999999")).status == 413
        assert told == [("sign", "bad_request"), ("sign", "unauth"), ("other", "not_found"), ("sign", "too_large")]
        missing = signing | {"kid_or_set": {"kid": kid.replace("#v1", "#v9")}}
        assert (await parts.ask(body=missing)).status == 404
        assert len(told) == 4, "the dispatcher's own refusals have records of their own"
        assert parts.counted("tasks_spawned_total", kind="request") == 6, "each request is a task, whatever comes of it"
        parts.log.close()
