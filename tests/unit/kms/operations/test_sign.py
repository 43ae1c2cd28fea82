"""POST /sign: halves, versions, sets, attestation, and that nothing signs in another's place."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from kms.errors import (
    AttestationMissing,
    BadRequest,
    Conflict,
    KmsError,
    NotFound,
    PolicyDenied,
    PqPolicy,
    StoreUnavailable,
    Unsupported,
)
from kms.messages import ChangeKeyStateRequest, KidSelector, RotateKeyRequest, SignPolicy, SignRequest
from kms.primitive import PRIMITIVES_BY_WIRE_NAME
from kms.providers.provider import Attestation
from kms.public_keys import check_signature, load_verifying_key
from tests.support.kms_core import DIGEST, Bench, running_core
from tests.support.kms_providers import StagedProvider

HYBRID = {"pq": {"produce_hybrid": True, "verify_mode": "and", "rollout_percent": 100}}


def algs(signed: Any) -> list[str]:
    return [each.alg for each in signed.sigs]


async def sign_set(bench: Bench, *kids: str) -> Any:
    return await bench.call("sign", SignRequest(kid_or_set=KidSelector(kid_set=list(kids)), payload_b3=DIGEST))


@pytest.mark.parametrize(
    ("alg", "halves"),
    [
        ("ed25519", ["ed25519"]),
        ("ecdsa-p256-sha256", ["ecdsa-p256-sha256"]),
        ("ml-dsa", ["ml-dsa"]),
        ("ml-dsa-44", ["ml-dsa-44"]),
        ("ml-dsa-87", ["ml-dsa-87"]),
        ("hybrid", ["ed25519", "ml-dsa"]),
    ],
)
async def test_every_algorithm_signs_the_digest_itself(alg: str, halves: list[str]) -> None:
    async with running_core() as bench:
        kid = await bench.create(alg)
        signed = await bench.sign(kid)
        assert algs(signed) == halves
        version = bench.store.keys.newest("core", PRIMITIVES_BY_WIRE_NAME[halves[0]])[0][1]
        for each in signed.sigs:
            primitive = PRIMITIVES_BY_WIRE_NAME[each.alg]
            part = version.part(primitive)
            assert part is not None
            key = load_verifying_key(primitive, part.public)
            check_signature(key, base64.b64decode(each.signature_b64), bytes.fromhex(DIGEST))
        (event,) = bench.audit.of("sign")
        assert (event.kid, event.payload_b3, event.detail["algs"]) == (kid, DIGEST, ",".join(halves))
        assert [bench.metric("kms_ops_total", op="sign", alg=half, result="ok") for half in halves] == [1] * len(halves)


@pytest.mark.parametrize("alg", ["x25519", "ml-kem", "hkdf"])
async def test_keys_for_other_things_do_not_sign(alg: str) -> None:
    async with running_core() as bench:
        kid = await bench.create(alg)
        with pytest.raises(Unsupported):
            await bench.sign(kid)


async def test_under_a_hybrid_policy_a_classical_kid_signs_with_both_halves() -> None:
    async with running_core(**HYBRID) as bench:
        kid = await bench.create("ed25519")
        assert "/ed25519/" in kid
        signed = await bench.sign(kid)
        assert algs(signed) == ["ed25519", "ml-dsa"]
        assert (await bench.verify(signed.sigs, kid)).details.satisfied_mode == "and"


async def test_a_classical_version_is_refused_under_a_hybrid_policy_until_it_is_rotated() -> None:
    """PQ-I1, PQ-I5: no pure classical signature, and the rotation brings both halves at once."""
    async with running_core() as bench:
        kid = await bench.create("ed25519")
        bench.core.reload(_config(**HYBRID))
        with pytest.raises(PqPolicy) as refused:
            await bench.sign(kid)
        assert refused.value.reason == "pq_policy"
        assert bench.metric("kms_reject_total", reason="pq_policy") == 1
        rotated = await bench.call("rotate", RotateKeyRequest(kid=kid))
        assert algs(await bench.sign(rotated.kid)) == ["ed25519", "ml-dsa"]
        with pytest.raises(PqPolicy):
            await bench.sign(kid)


async def test_a_caller_may_ask_for_a_hybrid_signature_and_not_for_less() -> None:
    async with running_core(pq={"produce_hybrid": True, "verify_mode": "or"}) as bench:
        kid = await bench.create("ed25519")
        assert algs(await bench.sign(kid, policy=SignPolicy(produce_hybrid=False))) == ["ed25519", "ml-dsa"]
        bench.core.reload(_config(pq={"produce_hybrid": False, "verify_mode": "or"}))
        assert algs(await bench.sign(kid)) == ["ed25519"]
        assert algs(await bench.sign(kid, policy=SignPolicy(produce_hybrid=True))) == ["ed25519", "ml-dsa"]
        plain = await bench.create("ed25519")
        with pytest.raises(PqPolicy):
            await bench.sign(plain, policy=SignPolicy(produce_hybrid=True))


async def test_a_kid_without_a_version_means_the_newest_one_and_a_version_means_itself() -> None:
    async with running_core() as bench:
        kid = await bench.create()
        rotated = await bench.call("rotate", RotateKeyRequest(kid=kid))
        assert (await bench.sign(kid.partition("#")[0])).kid == rotated.kid
        assert (await bench.sign(kid)).kid == kid


@pytest.mark.parametrize(
    ("suffix", "error"),
    [("#v3", NotFound), ("#v0", BadRequest), ("#v01", BadRequest), ("#", BadRequest), ("#v1000001", BadRequest)],
)
async def test_other_versions_are_refused(suffix: str, error: type[KmsError]) -> None:
    async with running_core() as bench:
        kid = await bench.create()
        with pytest.raises(error):
            await bench.sign(kid.partition("#")[0] + suffix)


async def test_of_a_set_the_first_that_may_sign_does() -> None:
    async with running_core() as bench:
        first, second, kem = await bench.create(), await bench.create(), await bench.create("x25519")
        assert (await sign_set(bench, first, second)).kid == first
        await bench.call("disable", ChangeKeyStateRequest(kid=first))
        assert (await sign_set(bench, kem, first, second)).kid == second
        await bench.call("disable", ChangeKeyStateRequest(kid=second))
        with pytest.raises(Conflict):
            await sign_set(bench, first, second)


async def test_a_set_is_refused_whole_when_the_capability_does_not_cover_one_of_it() -> None:
    async with running_core() as bench:
        first, foreign = await bench.create(), await bench.create(tenant="acme")
        with pytest.raises(KmsError):
            await sign_set(bench, first, foreign)
        with pytest.raises(BadRequest):
            await sign_set(bench, first, first)


@pytest.mark.parametrize("selector", [KidSelector(), KidSelector(kid="a", kid_set=["a"])])
async def test_a_selector_has_exactly_one_member(selector: KidSelector) -> None:
    async with running_core() as bench:
        with pytest.raises(BadRequest):
            await bench.call("sign", SignRequest(kid_or_set=selector, payload_b3=DIGEST))


async def test_keys_of_purpose_tlog_sign_nothing_here() -> None:
    async with running_core() as bench:
        kid = await bench.create("hybrid", purpose="tlog")
        with pytest.raises(PolicyDenied) as refused:
            await bench.sign(kid)
        assert refused.value.reason == "tlog_only"


async def test_an_algorithm_that_is_no_longer_allowed_signs_no_more(tmp_path: Any) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        kid = await bench.create("ecdsa-p256-sha256")
    async with running_core(
        provider=provider, directory=tmp_path, service={"allowed_algs": ("ed25519",), "backend": "inmem"}
    ) as bench:
        with pytest.raises(Unsupported) as refused:
            await bench.sign(kid)
        assert refused.value.reason == "alg_not_allowed"


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize("alg", ["ed25519", "ml-dsa"])
async def test_a_provider_that_is_away_gives_503_and_no_signature(alg: str, *, in_process: bool) -> None:
    provider = StagedProvider(in_process=in_process)
    async with running_core(provider=provider) as bench:
        kid = await bench.create(alg)
        provider.away = True
        with pytest.raises(StoreUnavailable) as refused:
            await bench.sign(kid)
        assert (refused.value.http_status, refused.value.retry_after_s) == (503, 3)
        assert bench.core.services.custody.outage_ms("staged") is not None
        assert [event.result for event in bench.audit.of("sign")] == ["StoreUnavailable"]
        provider.away = False
        await bench.sign(kid)
        await bench.core.keeper.beat()
        assert bench.core.services.custody.outage_ms("staged") is None


async def test_a_backend_that_fails_its_probe_signs_and_makes_nothing_even_with_keys_in_memory() -> None:
    """OBSERVABILITY §2.3: what signs fails closed while the backend is not ready."""
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        provider.away = True
        await bench.core.keeper.beat()
        provider.calls.clear()
        for use in (bench.sign(kid), bench.create(), bench.call("rotate", RotateKeyRequest(kid=kid))):
            with pytest.raises(StoreUnavailable) as refused:
                await use
            assert refused.value.retry_after_s == 1
        assert provider.calls == []
        assert (await bench.verify(signed.sigs, kid)).ok
        provider.away = False
        await bench.core.keeper.beat()
        await bench.sign(kid)


async def test_a_key_of_another_backend_does_not_sign_silently() -> None:
    """G-12: the key stays where it was made; the new authority does not sign for it."""
    hsm, file = StagedProvider("pkcs11"), StagedProvider("file")
    async with running_core(provider=file) as bench:
        kid = await bench.create()
        record = next(iter(bench.store.keys))
        async with running_core(provider=hsm, others=(file,)) as moved:
            moved.store.keys.put(record)
            with pytest.raises(PolicyDenied) as refused:
                await moved.sign(kid)
            assert refused.value.reason == "not_authoritative"
            assert hsm.calls == []
            signed = await bench.sign(kid)
            assert (await moved.verify(signed.sigs, kid)).ok


async def test_attestation_is_answered_where_it_is_to_be_had() -> None:
    provider = StagedProvider(class_="tpm-2.0")
    async with running_core(provider=provider) as bench:
        kid = await bench.create()
        signed = await bench.sign(kid)
        assert signed.attestation is not None
        assert (signed.attestation.class_, base64.b64decode(signed.attestation.evidence)) == ("tpm-2.0", b"evidence")
        assert bench.audit.of("sign")[0].detail["attestation"] == "tpm-2.0"


@pytest.mark.parametrize(
    ("require", "class_", "evidence", "signs"),
    [
        ("never", "tpm", Attestation("tpm", b"e"), True),
        ("if-available", None, None, True),
        ("if-available", "tpm", None, True),
        ("if-available", "tpm", StoreUnavailable("away"), True),
        ("required", None, None, False),
        ("required", "tpm", None, False),
        ("required", "tpm", StoreUnavailable("away"), False),
        ("required", "tpm", Attestation("tpm", b"e"), True),
    ],
)
async def test_attestation_gates_signing_as_it_is_required(
    require: str, class_: str | None, evidence: object, *, signs: bool
) -> None:
    provider = StagedProvider(class_=class_)

    def give() -> Attestation | None:
        if isinstance(evidence, Exception):
            raise evidence
        return evidence  # type: ignore[return-value]

    provider.evidence = give
    async with running_core(provider=provider, security={"attest_require": require}) as bench:
        kid = await bench.create()
        if signs:
            signed = await bench.sign(kid)
            assert (signed.attestation is not None) == (require != "never" and isinstance(evidence, Attestation))
            assert ("attest" in provider.calls) == (require != "never" and class_ is not None)
            return
        with pytest.raises(AttestationMissing) as refused:
            await bench.sign(kid)
        assert refused.value.http_status == 403
        assert "sign" not in provider.calls
        assert bench.metric("kms_reject_total", reason="attest_missing") == 1


@pytest.mark.parametrize("rotations", range(4))
async def test_a_signature_taken_while_the_key_is_rotated_is_whole(rotations: int) -> None:
    """G-4: whichever step of a rotation a signature falls in, it is by one version, with that version's parts."""
    provider = StagedProvider(in_process=False)
    async with running_core(provider=provider, **HYBRID) as bench:
        kid = await bench.create("ed25519")
        name = kid.partition("#")[0]
        tasks = [asyncio.create_task(bench.sign(name)) for _ in range(3)]
        for _ in range(rotations):
            tasks.append(asyncio.create_task(bench.call("rotate", RotateKeyRequest(kid=name))))
            tasks += [asyncio.create_task(bench.sign(name)) for _ in range(3)]
        outcomes = await asyncio.gather(*tasks)
        signed = [each for each in outcomes if hasattr(each, "sigs")]
        for each in signed:
            verified = await bench.verify(each.sigs, each.kid)
            assert (verified.ok, verified.details.satisfied_mode) == (True, "and")
        rotated = [each for each in outcomes if hasattr(each, "previous")]
        assert [each.kid for each in rotated] == [f"{name}#v{number}" for number in range(2, rotations + 2)]
        assert [each.previous for each in rotated] == [f"{name}#v{number}" for number in range(1, rotations + 1)]


def _config(**sections: dict[str, Any]) -> Any:
    from tests.support.kms_core import config_of

    return config_of(**sections)
