"""The order of the checks, op_ids, deadlines, refusals and the drain (I-2, I-3, I-14, I-17, P-6)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kms.errors import (
    Backpressure,
    BadRequest,
    Conflict,
    Internal,
    KmsError,
    NoCapability,
    NotFound,
    PolicyDenied,
    StoreUnavailable,
    Timeout,
)
from kms.messages import (
    GetKeyRequest,
    KidSelector,
    RotateKeyRequest,
    SignBatchRequest,
    SignRequest,
    VerifyBatchRequest,
    VerifyRequest,
    WrapRequest,
)
from kms.policy import PolicyDecision, PolicyQuestion
from kms.principal import Scope
from kms.refusals import REFUSALS_PER_S
from tests.support.kms_core import DIGEST, Bench, config_of, principal, running_core
from tests.support.kms_providers import StagedProvider

OP_ID = "8f9a2c34-0000-4000-8000-00000000000c"


def sign_request(kid: str, digest: str = DIGEST, **more: Any) -> SignRequest:
    return SignRequest(kid_or_set=KidSelector(kid=kid), payload_b3=digest, **more)


async def until_began(provider: StagedProvider) -> None:
    assert await asyncio.to_thread(provider.began.wait, 5)


async def test_a_key_is_made_signs_verifies_is_rotated_and_described() -> None:
    async with running_core() as bench:
        kid = await bench.create("ed25519")
        signed = await bench.sign(kid)
        assert [each.alg for each in signed.sigs] == ["ed25519"]
        assert signed.kid == kid
        verified = await bench.verify(signed.sigs, kid)
        assert verified.ok
        rotated = await bench.call("rotate", RotateKeyRequest(kid=kid))
        assert (rotated.previous, rotated.kid) == (kid, kid.replace("#v1", "#v2"))
        described = await bench.call("get_key", GetKeyRequest(kid=kid))
        assert described.versions == ["#v1", "#v2"]
        assert [event.op for event in bench.audit.events] == ["create_key", "sign", "verify", "rotate"]
        assert {event.context.corr_id for event in bench.audit.events if event.context} == {"corr"}


SCOPES = {
    "sign": Scope.SIGN,
    "verify": Scope.VERIFY,
    "wrap": Scope.WRAP,
    "get_key": Scope.READ,
    "rotate": Scope.ROTATE,
}


def request_for(op: str, kid: str) -> Any:
    return {
        "sign": sign_request(kid),
        "verify": VerifyRequest(payload_b3=DIGEST, sigs=[], kid_or_set=KidSelector(kid=kid)),
        "wrap": WrapRequest(kid=kid, size=32),
        "get_key": GetKeyRequest(kid=kid),
        "rotate": RotateKeyRequest(kid=kid),
    }[op]


@pytest.mark.parametrize("op", list(SCOPES))
async def test_without_its_scope_nothing_is_looked_up_and_no_key_is_touched(op: str) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        provider.calls.clear()
        for who in (
            principal("core", scopes=frozenset(Scope) - {SCOPES[op]}),
            principal("acme"),
            principal("core", keys=frozenset({kid[:-1] + "9"})),
            principal("core", algs=frozenset({"ml-dsa"})),
            principal("core", paths=frozenset({"/v1/kms/other"})),
        ):
            for asked in (kid, kid.replace("/audit/", "/nowhere/")):
                with pytest.raises(NoCapability) as refused:
                    await bench.call(op, request_for(op, asked), who=who)
                assert refused.value.http_status == 403
        assert provider.calls == []


async def test_verify_with_kms_read_is_a_deployments_choice() -> None:
    reader = principal("core", scopes=frozenset({Scope.READ}))
    async with running_core() as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        request = VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs, kid_or_set=KidSelector(kid=kid))
        with pytest.raises(NoCapability):
            await bench.call("verify", request, who=reader)
        bench.core.reload(config_of(security={"verify_with_read": True}))
        assert (await bench.call("verify", request, who=reader)).ok
        with pytest.raises(NoCapability):
            await bench.call("sign", sign_request(kid), who=reader)


async def test_a_refusal_is_audited_and_counted_with_its_reason() -> None:
    async with running_core() as bench:
        kid = await bench.create()
        with pytest.raises(NotFound):
            await bench.sign(kid.replace("#v1", "#v9"), op_id=OP_ID)
        event = bench.audit.events[-1]
        assert (event.op, event.result, event.reason) == ("sign", "NotFound", "not_found")
        assert (event.tenant, event.payload_b3, event.op_id) == ("core", DIGEST, OP_ID)
        assert bench.metric("kms_ops_total", op="sign", alg="ed25519", result="err") == 1
        assert bench.metric("rejected_total", reason="not_found") == 1
        assert bench.metric("kms_reject_total", reason="not_found") == 1


async def test_a_flood_of_refusals_is_summed_up_in_the_audit_log() -> None:
    async with running_core() as bench:
        kid = await bench.create(tenant="acme")
        for _ in range(10 * REFUSALS_PER_S):
            with pytest.raises(NoCapability):
                await bench.call("sign", sign_request(kid), who=principal("core"))
        assert len(bench.audit.of("sign")) == REFUSALS_PER_S
        bench.hand.now_s += 1.5
        await bench.core.keeper.beat()
        (summary,) = bench.audit.of("refusals")
        assert summary.detail == {"sign:unauth": str(9 * REFUSALS_PER_S)}


async def test_while_the_audit_log_takes_nothing_nothing_is_signed_or_changed() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        provider.calls.clear()
        bench.audit.fault = "integrity"
        for op in ("sign", "wrap", "rotate"):
            with pytest.raises(StoreUnavailable) as refused:
                await bench.call(op, request_for(op, kid))
            assert (refused.value.reason, refused.value.retry_after_s) == ("audit_unavailable", 5)
        assert (provider.calls, bench.store.epoch) == ([], 1)
        assert (await bench.call("get_key", GetKeyRequest(kid=kid))).kid == kid


@pytest.mark.parametrize("error", [StoreUnavailable("disk"), Backpressure("full"), Timeout("slow")])
async def test_no_signature_leaves_without_its_event_on_disk(error: KmsError) -> None:
    async with running_core() as bench:
        kid = await bench.create()
        bench.audit.error = error
        with pytest.raises(type(error)):
            await bench.sign(kid)


async def test_an_answer_waits_for_its_event() -> None:
    async with running_core() as bench:
        kid = await bench.create()
        bench.audit.gate = asyncio.Event()
        task = asyncio.create_task(bench.sign(kid))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        bench.audit.gate.set()
        assert (await task).kid == kid


async def test_the_rate_is_enforced_before_any_work() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, security={"sign_rate_limit_rps": 150}) as bench:
        kid = await bench.create()
        provider.calls.clear()
        signed = None
        with pytest.raises(Backpressure):
            for _ in range(1000):
                signed = await bench.sign(kid)
        assert signed is not None
        assert 100 < provider.calls.count("sign") < 200
        assert (await bench.verify(signed.sigs, kid)).ok
        await bench.create(tenant="acme")


async def test_a_capabilitys_and_a_policys_rate_are_enforced(tmp_path: Any) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[default]\n[tenants.acme]\nrate_per_s = 4\n")
    async with running_core(policy={"path": policy}) as bench:
        kid = await bench.create()
        slow = principal("core", rate_per_s=3)
        for _ in range(3):
            await bench.call("get_key", GetKeyRequest(kid=kid), who=slow)
        with pytest.raises(Backpressure):
            await bench.call("get_key", GetKeyRequest(kid=kid), who=slow)
        other = await bench.create(tenant="acme")
        for _ in range(3):
            await bench.sign(other)
        with pytest.raises(Backpressure):
            await bench.sign(other)


async def test_a_full_queue_refuses_at_once_and_leaves_other_tenants_their_places() -> None:
    """CONCURRENCY §10's backpressure law, and I-17."""
    provider = StagedProvider(in_process=False)
    async with running_core(
        provider=provider, queues={"sign": 40}, service={"worker_threads": 1, "backend": "inmem"}
    ) as bench:
        kid, other = await bench.create(), await bench.create(tenant="acme")
        provider.hold = threading.Event()
        flood = [asyncio.create_task(bench.sign(kid)) for _ in range(60)]
        await until_began(provider)
        await asyncio.sleep(0)
        refused = [task for task in flood if task.done()]
        assert len(refused) == 30
        assert all(isinstance(task.exception(), Backpressure) for task in refused)
        mine = [asyncio.create_task(bench.sign(other)) for _ in range(2)]
        await asyncio.sleep(0)
        assert bench.core.dispatcher.under_way == 32
        assert bench.metric("queue_depth", queue="sign") == 32
        assert bench.metric("busy_rejections_total", queue="sign") == 30
        provider.hold.set()
        await asyncio.gather(*mine, *(task for task in flood if task not in refused))
        assert bench.core.dispatcher.under_way == 0


async def test_a_deadline_ends_the_wait_and_not_the_place_of_the_thread() -> None:
    provider = StagedProvider(in_process=False)
    async with running_core(
        provider=provider, deadlines={"sign_ms": 20}, service={"worker_threads": 1, "backend": "inmem"}
    ) as bench:
        kid = await bench.create()
        provider.hold = threading.Event()
        for _ in range(2):
            with pytest.raises(Timeout) as refused:
                await bench.sign(kid)
            assert refused.value.http_status == 504
        assert bench.metric("io_timeouts_total", op="sign") == 2
        assert provider.calls.count("sign") == 1
        assert bench.core.dispatcher.under_way == 0
        provider.hold.set()
        bench.core.reload(config_of())
        await bench.sign(kid)


async def test_the_event_loop_is_never_held_by_a_provider() -> None:
    provider = StagedProvider(in_process=False)
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        provider.hold = threading.Event()
        task = asyncio.create_task(bench.sign(kid))
        await until_began(provider)
        assert (await bench.call("get_key", GetKeyRequest(kid=kid))).kid == kid
        assert not task.done()
        provider.hold.set()
        await task


async def test_a_repeated_sign_has_the_same_answer_and_another_request_conflicts() -> None:
    async with running_core() as bench:
        kid = await bench.create("ml-dsa")
        first = await bench.sign(kid, op_id=OP_ID)
        assert await bench.sign(kid, op_id=OP_ID.upper()) == first
        assert (await bench.sign(kid)).sigs != first.sigs
        with pytest.raises(Conflict) as refused:
            await bench.sign(kid, digest=DIGEST[::-1], op_id=OP_ID)
        assert refused.value.reason == "op_id_reused"
        assert [event.detail.get("replayed") for event in bench.audit.of("sign")][:2] == [None, "true"]
        other = await bench.create("ml-dsa", tenant="acme")
        assert (await bench.sign(other, op_id=OP_ID)).kid == other


async def test_requests_at_once_with_one_op_id_are_signed_once() -> None:
    provider = StagedProvider(in_process=False)
    async with running_core(provider=provider) as bench:
        kid = await bench.create("ml-dsa")
        answers = await asyncio.gather(*(bench.sign(kid, op_id=OP_ID) for _ in range(6)))
        assert answers == [answers[0]] * 6
        assert provider.calls.count("sign") == 1


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["1", "2", "3"]), st.sampled_from([DIGEST, DIGEST[::-1]])), min_size=1, max_size=12
    )
)
async def test_an_op_id_means_its_first_request_for_ever(steps: list[tuple[str, str]]) -> None:
    async with running_core() as bench:
        kid = await bench.create("ecdsa-p256-sha256")
        model: dict[str, tuple[str, Any]] = {}
        for suffix, digest in steps:
            op_id = OP_ID[:-1] + suffix
            if op_id in model and model[op_id][0] != digest:
                with pytest.raises(Conflict):
                    await bench.sign(kid, digest=digest, op_id=op_id)
                continue
            answer = await bench.sign(kid, digest=digest, op_id=op_id)
            assert model.setdefault(op_id, (digest, answer))[1] == answer


class Policy:
    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.questions: list[PolicyQuestion] = []

    async def decide(self, question: PolicyQuestion) -> PolicyDecision:
        self.questions.append(question)
        if self.failure is not None:
            raise self.failure
        return PolicyDecision(produce_hybrid=False, verify_mode="or")


async def test_the_policy_is_asked_for_each_operation_and_its_failure_denies() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        policy = Policy()
        _set_policy(bench, policy)
        await bench.sign(kid)
        assert policy.questions == [PolicyQuestion("sign", "core", "audit", "ed25519")]
        provider.calls.clear()
        for failure in (RuntimeError("down"), PolicyDenied("no")):
            _set_policy(bench, Policy(failure))
            with pytest.raises(PolicyDenied):
                await bench.sign(kid)
            with pytest.raises(PolicyDenied):
                await bench.call("get_key", GetKeyRequest(kid=kid))
        assert provider.calls == []
        # Also for a request that was answered before.
        _set_policy(bench, Policy())
        await bench.sign(kid, op_id=OP_ID)
        _set_policy(bench, Policy(PolicyDenied("no")))
        with pytest.raises(PolicyDenied):
            await bench.sign(kid, op_id=OP_ID)


def _set_policy(bench: Bench, policy: Policy) -> None:
    from dataclasses import replace

    bench.core.dispatcher.settings = replace(bench.core.dispatcher.settings, policy=policy)


async def test_a_reload_with_a_bad_policy_file_changes_nothing(tmp_path: Any) -> None:
    bad = tmp_path / "policy.toml"
    bad.write_text("[tenants.core]\nallowed = true\n")
    async with running_core() as bench:
        before = bench.core.dispatcher.settings
        with pytest.raises(PolicyDenied):
            bench.core.reload(config_of(policy={"path": bad}, pq={"verify_mode": "and"}))
        assert bench.core.dispatcher.settings is before
        assert bench.metric("kms_pq_mode", mode="or") == 1
        bench.core.reload(config_of(pq={"verify_mode": "pq_only", "rollout_percent": 30}))
        assert [bench.metric("kms_pq_mode", mode=mode) for mode in ("or", "and", "pq_only")] == [0, 0, 1]
        assert bench.metric("kms_pq_rollout_percent") == 30


async def test_what_nobody_expected_is_internal_and_says_nothing() -> None:
    provider = StagedProvider()

    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        provider.evidence = lambda: None
        secret = "the key is 42"

        def broken(*_: object) -> bytes:
            raise RuntimeError(secret)

        provider.sign = broken  # type: ignore[method-assign]
        with pytest.raises(Internal) as refused:
            await bench.sign(kid)
        assert secret not in refused.value.message
        assert secret not in repr(bench.audit.events[-1])
        assert bench.audit.events[-1].result == "Internal"


async def test_a_drain_begins_nothing_new_and_waits_for_what_is_under_way() -> None:
    provider = StagedProvider(in_process=False)
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        assert await bench.core.dispatcher.drain(0.01) == 0
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        provider.hold = threading.Event()
        provider.began.clear()
        task = asyncio.create_task(bench.sign(kid))
        await until_began(provider)
        assert await bench.core.dispatcher.drain(0.01) == 1
        with pytest.raises(StoreUnavailable) as refused:
            await bench.sign(kid)
        assert (refused.value.reason, refused.value.retry_after_s) == ("draining", 1)
        provider.hold.set()
        assert await bench.core.dispatcher.drain(5) == 0
        assert (await task).kid == kid


async def test_what_is_left_at_the_drains_deadline_is_counted() -> None:
    provider = StagedProvider(in_process=False)
    async with running_core(provider=provider, started=True) as bench:
        kid = await bench.create()
        provider.hold = threading.Event()
        task = asyncio.create_task(bench.sign(kid))
        provider.began.clear()
        await asyncio.to_thread(provider.began.wait, 1)
        assert await bench.core.stop(0.01) == 1
        assert bench.metric("tasks_aborted_total", kind="request") == 1
        provider.hold.set()
        await task


async def test_items_of_a_batch_are_answered_and_refused_one_by_one() -> None:
    async with running_core() as bench:
        kid, other = await bench.create("hybrid"), await bench.create()
        unknown = kid.replace("#v1", "#v7")
        items = [sign_request(each) for each in (kid, unknown, other, "nonsense")]
        signed = await bench.call("sign_batch", SignBatchRequest(items=items))
        assert [each.result.kid if each.result else each.error.code for each in signed.items] == [
            kid,
            "NotFound",
            other,
            "BadRequest",
        ]
        assert signed.items[1].error.request_id == "req"
        assert [event.result for event in bench.audit.of("sign")].count("ok") == 2
        bundles = [
            VerifyRequest(payload_b3=digest, sigs=each.result.sigs)
            for digest, each in zip((DIGEST, DIGEST[::-1]), (signed.items[0], signed.items[2]), strict=True)
        ]
        verified = await bench.call("verify_batch", VerifyBatchRequest(items=bundles))
        assert [each.result.ok for each in verified.items] == [True, False]
        narrow = principal("core", keys=frozenset({other}))
        partly = await bench.call("sign_batch", SignBatchRequest(items=items[:3]), who=narrow)
        assert [each.error.code if each.error else "ok" for each in partly.items] == [
            "NoCapability",
            "NoCapability",
            "ok",
        ]


async def test_a_batch_is_refused_whole_without_any_item_that_is_covered_or_read_or_over_two_tenants() -> None:
    async with running_core() as bench:
        kid, foreign = await bench.create(), await bench.create(tenant="acme")
        for items, who, error in (
            ([sign_request("x"), sign_request("y")], principal("core"), BadRequest),
            ([sign_request(kid), sign_request(foreign)], principal("core", "acme"), BadRequest),
            ([sign_request(kid)], principal("acme"), NoCapability),
            ([sign_request(kid)], principal("core", scopes=frozenset({Scope.VERIFY})), NoCapability),
        ):
            with pytest.raises(error):
                await bench.call("sign_batch", SignBatchRequest(items=items), who=who)


async def test_a_batch_takes_the_rate_of_all_its_items() -> None:
    async with running_core(security={"sign_rate_limit_rps": 128}) as bench:
        kid = await bench.create()
        batch = SignBatchRequest(items=[sign_request(kid)] * 100)
        assert len((await bench.call("sign_batch", batch)).items) == 100
        with pytest.raises(Backpressure):
            await bench.call("sign_batch", batch)


async def test_a_started_core_keeps_watch_and_shows_its_keys(tmp_path: Any) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        await bench.create()
    provider.away = True
    async with running_core(provider=provider, directory=tmp_path, started=True) as bench:
        assert bench.metric("kms_keys_total", tenant="core", purpose="audit", alg="ed25519") == 1
        async with asyncio.timeout(5):
            while bench.core.services.custody.outage_ms("staged") is None:
                await asyncio.sleep(0.005)
        assert bench.metric("tasks_spawned_total", kind="keeper") == 1
