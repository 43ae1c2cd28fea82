"""POST /verify: versions, fences, modes, the search without a kid, and that it goes on in every outage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kms.errors import BadRequest, Conflict, NoCapability, NotFound, PqPolicy, StoreUnavailable
from kms.key_index import MAX_CANDIDATES
from kms.messages import ChangeKeyStateRequest, KidSelector, RotateKeyRequest, Signature, VerifyPolicy, VerifyRequest
from tests.support.kms_core import DIGEST, HandClock, config_of, principal, running_core
from tests.support.kms_providers import StagedProvider

OTHER_DIGEST = DIGEST[::-1]


def forged(sigs: list[Signature]) -> list[Signature]:
    def altered(text: str) -> str:
        return ("B" if text.startswith("A") else "A") + text[1:]

    return [Signature(alg=each.alg, signature_b64=altered(each.signature_b64)) for each in sigs]


@pytest.mark.parametrize("alg", ["ed25519", "ecdsa-p256-sha256", "ml-dsa", "ml-dsa-44", "ml-dsa-87", "hybrid"])
async def test_what_was_signed_verifies_and_nothing_else_does(alg: str) -> None:
    async with running_core() as bench:
        kid, other = await bench.create(alg), await bench.create(alg)
        signed = await bench.sign(kid)
        good = await bench.verify(signed.sigs, kid)
        assert (good.ok, good.details.kid, good.details.satisfied_mode) == (True, kid, "or")
        assert good.details.checked == [each.alg for each in signed.sigs]
        for bad in (
            await bench.verify(signed.sigs, kid, digest=OTHER_DIGEST),
            await bench.verify(signed.sigs, other),
            await bench.verify(forged(signed.sigs), kid),
        ):
            assert (bad.ok, bad.details.kid, bad.details.satisfied_mode) == (False, None, None)
        assert [event.detail["ok"] for event in bench.audit.of("verify")] == ["true", "false", "false", "false"]


async def test_every_version_goes_on_verifying_and_the_fence_ends_it() -> None:
    """I-5: v1…vN by name and by number; below min_version nothing verifies."""
    async with running_core() as bench:
        kid = await bench.create()
        name = kid.partition("#")[0]
        signed = [await bench.sign(kid)]
        for _ in range(3):
            rotated = await bench.call("rotate", RotateKeyRequest(kid=name))
            signed.append(await bench.sign(rotated.kid))
        for number, each in enumerate(signed, 1):
            assert (await bench.verify(each.sigs, name)).details.kid == f"{name}#v{number}"
            assert (await bench.verify(each.sigs, f"{name}#v{number}")).ok
            assert not (await bench.verify(each.sigs, f"{name}#v{number % 4 + 1}")).ok
            assert (await bench.verify(each.sigs)).details.kid == f"{name}#v{number}"
        await bench.call("enable", ChangeKeyStateRequest(kid=name, min_version=3))
        assert [(await bench.verify(each.sigs, name)).ok for each in signed] == [False, False, True, True]
        assert [(await bench.verify(each.sigs)).ok for each in signed] == [False, False, True, True]
        with pytest.raises(Conflict) as fenced:
            await bench.verify(signed[0].sigs, f"{name}#v1")
        assert fenced.value.reason == "version_fenced"


@pytest.mark.parametrize("verb", ["disable", "destroy"])
async def test_a_key_that_signs_no_more_goes_on_verifying(verb: str) -> None:
    async with running_core() as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        await bench.call(verb, ChangeKeyStateRequest(kid=kid))
        assert (await bench.verify(signed.sigs, kid)).ok
        assert (await bench.verify(signed.sigs)).ok
        await bench.call(verb, ChangeKeyStateRequest(kid=kid, min_version=2))
        assert not (await bench.verify(signed.sigs)).ok


async def test_without_a_kid_only_the_capabilitys_tenants_keys_are_tried() -> None:
    async with running_core() as bench:
        kid = await bench.create(tenant="acme")
        signed = await bench.sign(kid)
        assert not (await bench.verify(signed.sigs, tenant="core")).ok
        assert (await bench.verify(signed.sigs, tenant="acme")).details.kid == kid
        both = principal("acme", "core")
        found = await bench.call("verify", VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs), who=both)
        assert found.details.kid == kid
        with pytest.raises(NoCapability):
            await bench.call(
                "verify",
                VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs, kid_or_set=KidSelector(kid=kid)),
                who=principal("core"),
            )
        many = principal(*(f"t{number}" for number in range(9)))
        with pytest.raises(BadRequest):
            await bench.call("verify", VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs), who=many)


async def test_the_search_without_a_kid_ends_after_64_versions() -> None:
    async with running_core() as bench:
        oldest = await bench.create()
        signed = await bench.sign(oldest)
        for number in range(MAX_CANDIDATES):
            assert (await bench.verify(signed.sigs)).ok
            bench.hand.now_s += 1
            last = await bench.create(purpose=f"p{number}")
        assert not (await bench.verify(signed.sigs)).ok
        assert (await bench.verify(signed.sigs, oldest)).ok
        assert (await bench.verify((await bench.sign(last)).sigs)).details.kid == last


async def test_a_hybrid_bundle_is_found_by_either_half() -> None:
    async with running_core() as bench:
        kid = await bench.create("hybrid")
        signed = await bench.sign(kid)
        await bench.create("ed25519")
        await bench.create("ml-dsa")
        assert (await bench.verify(signed.sigs)).details.kid == kid
        assert (await bench.verify(signed.sigs[1:])).details.kid == kid
        mixed = [forged(signed.sigs)[0], signed.sigs[1]]
        assert (await bench.verify(mixed)).ok
        assert not (await bench.verify(mixed, policy=VerifyPolicy(mode="and"))).ok
        assert (await bench.verify(mixed, policy=VerifyPolicy(mode="pq_only"))).details.checked == ["ml-dsa"]


async def test_of_a_set_any_key_may_have_signed_and_unknown_ones_do_not_matter_unless_all_are() -> None:
    async with running_core() as bench:
        first, second = await bench.create(), await bench.create()
        signed = await bench.sign(second)
        unknown = first[:-1] + "9"

        async def verify_set(*kids: str) -> Any:
            request = VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs, kid_or_set=KidSelector(kid_set=list(kids)))
            return await bench.call("verify", request)

        assert (await verify_set(unknown, first, second)).details.kid == second
        assert not (await verify_set(first)).ok
        with pytest.raises(NotFound):
            await verify_set(unknown)


@pytest.mark.parametrize("mode", ["and", "pq_only"])
async def test_a_classical_bundle_is_refused_with_pq_policy_where_more_is_wanted(mode: Any) -> None:
    """PQ-I4: no downgrade, and the refusal says what it is for."""
    async with running_core() as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        with pytest.raises(PqPolicy):
            await bench.verify(signed.sigs, kid, policy=VerifyPolicy(mode=mode))
        bench.core.reload(config_of(pq={"verify_mode": mode, "produce_hybrid": True}))
        for callers in (None, VerifyPolicy(mode="or")):
            with pytest.raises(PqPolicy) as refused:
                await bench.verify(signed.sigs, kid, policy=callers)
        assert refused.value.reason == "pq_policy"
        assert bench.metric("kms_reject_total", reason="pq_policy") == 3


async def test_a_post_quantum_signature_pasted_to_a_classical_one_helps_nothing() -> None:
    async with running_core() as bench:
        classical, foreign = await bench.create("ed25519"), await bench.create("ml-dsa")
        bundle = [*(await bench.sign(classical)).sigs, *(await bench.sign(foreign)).sigs]
        assert (await bench.verify(bundle, classical)).ok
        for mode in ("and", "pq_only"):
            assert not (await bench.verify(bundle, classical, policy=VerifyPolicy(mode=mode))).ok


async def test_it_goes_on_while_the_provider_is_away_and_says_how_old_its_keys_are() -> None:
    """I-18, I-19, G-6, G-11."""
    provider = StagedProvider()
    async with running_core(provider=provider, audit={"verify_cache_ttl_ms": 1000}) as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        assert not isinstance((await bench.verify(signed.sigs, kid)).cache_age_ms, int)
        await bench.core.keeper.beat()
        provider.away = True
        bench.hand.now_s += 0.5
        await bench.core.keeper.beat()
        with pytest.raises(StoreUnavailable):
            await bench.sign(kid)
        in_outage = await bench.verify(signed.sigs, kid)
        assert (in_outage.ok, in_outage.cache_age_ms) == (True, 500)
        assert not (await bench.verify(forged(signed.sigs), kid)).ok
        bench.hand.now_s += 1.0
        assert (await bench.verify(signed.sigs)).cache_age_ms == 1500
        bench.hand.now_s += 1.0
        with pytest.raises(StoreUnavailable):
            await bench.verify(signed.sigs, kid)


async def test_it_goes_on_without_the_audit_log_and_nothing_else_does() -> None:
    """G-13: verify stays available while the log refuses writes."""
    async with running_core() as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        bench.audit.fault = "integrity"
        assert (await bench.verify(signed.sigs, kid)).ok
        assert bench.audit.of("verify") == []
        with pytest.raises(StoreUnavailable) as refused:
            await bench.sign(kid)
        assert refused.value.reason == "audit_unavailable"
        bench.audit.fault = None
        bench.audit.error = StoreUnavailable("disk")
        assert (await bench.verify(signed.sigs, kid)).ok


async def test_a_bundle_that_cannot_be_read_is_refused() -> None:
    async with running_core() as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        for bad in ([*signed.sigs, *signed.sigs], [Signature(alg="ed25519", signature_b64="!")]):
            with pytest.raises(BadRequest):
                await bench.verify(bad, kid)


async def test_a_key_whose_backend_is_not_there_is_no_reason_to_refuse_what_another_key_signed(tmp_path: Path) -> None:
    hand, former, backend = HandClock(), StagedProvider("former"), StagedProvider("backend")
    async with running_core(provider=former, directory=tmp_path, hand=hand) as bench:
        lost = await bench.create()
        signed_by_lost = await bench.sign(lost)
    hand.now_s += 10
    async with running_core(provider=backend, directory=tmp_path, hand=hand) as bench:
        # Nothing but keys that may not be used: their refusal.
        for selector in (lost, None):
            with pytest.raises(StoreUnavailable) as refused:
                await bench.verify(signed_by_lost.sigs, selector)
            assert refused.value.reason == "verify_cache_expired"
        bench.core.services.random_bytes(100)
        kid = await bench.create()
        signed = await bench.sign(kid)
        assert (await bench.verify(signed.sigs)).details.kid == kid
        both = VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs, kid_or_set=KidSelector(kid_set=[lost, kid]))
        assert (await bench.call("verify", both)).details.kid == kid
        assert not (await bench.verify(forged(signed.sigs), kid)).ok
        for sigs, selector in ((forged(signed.sigs), None), (signed_by_lost.sigs, None), (signed.sigs, lost)):
            # Nobody can tell whether the key that may not be used made it.
            with pytest.raises(StoreUnavailable):
                await bench.verify(sigs, selector)
