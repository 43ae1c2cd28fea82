"""The policy's states: no phase, mode and rollout give an answer that cannot be kept (QUANTUM.md §5, §6, K-G8)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import PolicyDenied, PqPolicy
from kms.messages import VerifyMode
from kms.policy import (
    PolicyDecision,
    PolicyQuestion,
    StaticPolicy,
    TenantRules,
    TenantTable,
    ask,
    check_bundle_may_pass,
    demands_every_part,
    demands_post_quantum,
    in_rollout,
    stricter_mode,
)

MODES: tuple[VerifyMode, ...] = ("or", "and", "pq_only")
modes = st.sampled_from(MODES)
labels = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
QUESTION = PolicyQuestion("sign", "core", "audit", "ed25519")


def policy(table: TenantTable | None = None, **phase: Any) -> StaticPolicy:
    settings: dict[str, Any] = {"produce_hybrid": True, "verify_mode": "and", "rollout_percent": 100, **phase}
    return StaticPolicy(table or TenantTable({}, TenantRules()), **settings)


@given(mode=modes, produce=st.booleans(), percent=st.integers(0, 100), tenant=labels)
async def test_no_decision_asks_to_verify_what_it_does_not_let_be_signed(
    mode: VerifyMode, produce: bool, percent: int, tenant: str
) -> None:
    decided = await policy(produce_hybrid=produce, verify_mode=mode, rollout_percent=percent).decide(
        PolicyQuestion("sign", tenant, "", "")
    )
    if decided.verify_mode == "and":
        assert decided.produce_hybrid
    if in_rollout(tenant, percent):
        assert decided.verify_mode == mode
    else:
        assert (decided.verify_mode, decided.produce_hybrid) == ("or", False)
    assert decided.requires_post_quantum == (decided.verify_mode != "or")


@given(ours=modes, callers=st.none() | modes)
def test_a_caller_can_only_ask_for_more(ours: VerifyMode, callers: VerifyMode | None) -> None:
    mode = stricter_mode(ours, callers)
    for demands in (demands_every_part, demands_post_quantum):
        assert demands(mode) == (demands(ours) or (callers is not None and demands(callers)))


def test_stricter_modes_are_a_chain() -> None:
    table = {(ours, callers): stricter_mode(ours, callers) for ours, callers in itertools.product(MODES, MODES)}
    assert table == {
        ("or", "or"): "or",
        ("or", "and"): "and",
        ("or", "pq_only"): "pq_only",
        ("and", "or"): "and",
        ("and", "and"): "and",
        ("and", "pq_only"): "and",
        ("pq_only", "or"): "pq_only",
        ("pq_only", "and"): "and",
        ("pq_only", "pq_only"): "pq_only",
    }


@given(tenant=labels, percent=st.integers(0, 100), more=st.integers(0, 100))
def test_a_tenant_that_is_rolled_out_stays_so_while_the_share_grows(tenant: str, percent: int, more: int) -> None:
    if in_rollout(tenant, percent):
        assert in_rollout(tenant, max(percent, more))
    assert not in_rollout(tenant, 0)
    assert in_rollout(tenant, 100)


def test_a_rollout_of_half_is_about_half_of_the_tenants() -> None:
    share = sum(in_rollout(f"tenant-{number}", 50) for number in range(2000))
    assert 900 < share < 1100


@pytest.mark.parametrize("mode", ["and", "pq_only"])
def test_a_classical_bundle_is_refused_where_a_post_quantum_signature_is_wanted(mode: VerifyMode) -> None:
    with pytest.raises(PqPolicy) as refused:
        check_bundle_may_pass(mode, has_post_quantum=False)
    assert (refused.value.reason, refused.value.http_status) == ("pq_policy", 403)
    check_bundle_may_pass(mode, has_post_quantum=True)
    check_bundle_may_pass("or", has_post_quantum=False)


@pytest.mark.parametrize(
    ("rules", "question", "allowed"),
    [
        (TenantRules(), QUESTION, True),
        (TenantRules(allow=False), QUESTION, False),
        (TenantRules(ops=frozenset({"sign"})), QUESTION, True),
        (TenantRules(ops=frozenset({"verify"})), QUESTION, False),
        (TenantRules(purposes=frozenset({"audit"})), QUESTION, True),
        (TenantRules(purposes=frozenset({"kem"})), QUESTION, False),
        (TenantRules(algs=frozenset({"ml-dsa"})), QUESTION, False),
        (TenantRules(algs=frozenset({"ml-dsa"})), PolicyQuestion("verify", "core", "", ""), True),
    ],
)
async def test_a_tenants_row_says_what_it_may(rules: TenantRules, question: PolicyQuestion, *, allowed: bool) -> None:
    table = TenantTable({"core": rules})
    if allowed:
        assert isinstance(await policy(table).decide(question), PolicyDecision)
        return
    with pytest.raises(PolicyDenied) as refused:
        await policy(table).decide(question)
    assert refused.value.reason == "policy_denied"


async def test_a_tenant_without_a_row_is_refused_unless_there_is_a_default() -> None:
    stranger = PolicyQuestion("sign", "stranger", "audit", "ed25519")
    with pytest.raises(PolicyDenied):
        await policy(TenantTable({"core": TenantRules()})).decide(stranger)
    await policy(TenantTable({"core": TenantRules()}, TenantRules())).decide(stranger)


async def test_a_row_overrides_the_service_and_is_decided_the_same_each_time() -> None:
    rules = TenantRules(produce_hybrid=False, verify_mode="pq_only", rate_per_s=7)
    static = policy(TenantTable({"core": rules}))
    decided = await static.decide(QUESTION)
    assert decided == PolicyDecision(produce_hybrid=False, verify_mode="pq_only", rate_per_s=7)
    assert await static.decide(QUESTION) is decided
    out = policy(TenantTable({"core": TenantRules(in_rollout=False)}))
    assert await out.decide(QUESTION) == PolicyDecision(produce_hybrid=False, verify_mode="or")


class Failing:
    def __init__(self, failure: object) -> None:
        self._failure = failure

    async def decide(self, question: PolicyQuestion) -> PolicyDecision:
        if isinstance(self._failure, Exception):
            raise self._failure
        return self._failure  # type: ignore[return-value]


@pytest.mark.parametrize("failure", [RuntimeError("x"), TimeoutError(), ConnectionError(), None, "allow", True])
async def test_a_policy_that_gives_no_usable_answer_denies(failure: object) -> None:
    with pytest.raises(PolicyDenied) as refused:
        await ask(Failing(failure), QUESTION)
    assert refused.value.reason == "policy_unavailable"


async def test_a_policys_own_refusal_is_passed_on() -> None:
    with pytest.raises(PolicyDenied) as refused:
        await ask(Failing(PolicyDenied("no", reason="because")), QUESTION)
    assert refused.value.reason == "because"
