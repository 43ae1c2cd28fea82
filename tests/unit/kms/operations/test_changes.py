"""Create, rotate, disable, enable, destroy, derive: one effect, audited, durable, erased (I-5, I-14, PQ-I5)."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kms.erasures import RETRY_S
from kms.errors import BadRequest, Conflict, KmsError, NoCapability, NotFound, StoreUnavailable, Unsupported
from kms.kid import parse_kid
from kms.messages import (
    MAX_HINTS_BYTES,
    ChangeKeyStateRequest,
    CreateKeyRequest,
    DeriveRequest,
    GetKeyRequest,
    RotateKeyRequest,
    UnwrapRequest,
    WrapRequest,
)
from kms.operations.derive import child_name, derivation_info
from kms.primitive import KEY_ALGORITHMS, Primitive
from tests.support.kms_core import Bench, principal, running_core
from tests.support.kms_providers import StagedProvider

OP_ID = "8f9a2c34-0000-4000-8000-00000000000A"
HYBRID = {"pq": {"produce_hybrid": True, "verify_mode": "and"}}


async def rotate(bench: Bench, kid: str, **more: Any) -> Any:
    return await bench.call("rotate", RotateKeyRequest(kid=kid, **more))


async def change(bench: Bench, verb: str, kid: str, **more: Any) -> Any:
    return await bench.call(verb, ChangeKeyStateRequest(kid=kid, **more))


@pytest.mark.parametrize("alg", list(KEY_ALGORITHMS))
async def test_a_key_of_every_algorithm_is_made_with_its_parts_and_described(alg: str) -> None:
    async with running_core() as bench:
        request = CreateKeyRequest(tenant="core", purpose="audit", alg=alg, policy_hints={"rotate_days": 30})
        made = await bench.call("create_key", request)
        kid = parse_kid(made.kid)
        assert (kid.name.tenant, kid.name.purpose, kid.name.alg, kid.version) == ("core", "audit", alg, 1)
        record = bench.store.keys.find(kid.name)
        assert tuple(part.primitive for part in record.newest.parts) == KEY_ALGORITHMS[alg].parts
        assert record.policy_hints == (("rotate_days", 30),)
        assert base64.b64decode(made.public.pubkey_b64) == record.newest.parts[0].public
        assert len(made.public.parts) == (0 if len(record.newest.parts) == 1 else len(record.newest.parts))
        described = await bench.call("get_key", GetKeyRequest(kid=made.kid))
        assert (described.kid, described.alg, described.versions) == (made.kid, alg, ["#v1"])
        assert (described.public, described.state, described.min_version) == (made.public, "enabled", 1)
        (event,) = bench.audit.events
        assert (event.kid, event.detail["epoch"], event.detail["digest"]) == (made.kid, "1", bench.store.state_digest())
        assert bench.store.unaudited() == []


async def test_a_failure_in_the_middle_leaves_no_half_made_key() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid = await bench.create("ed25519")
        bench.core.reload(_hybrid())
        provider.fails_at = Primitive.ML_DSA_65
        held = provider.keys_held
        with pytest.raises(StoreUnavailable):
            await bench.create("hybrid")
        with pytest.raises(StoreUnavailable):
            await rotate(bench, kid)
        assert provider.keys_held == held
        assert len(bench.store.keys.find(parse_kid(kid).name).versions) == 1
        provider.fails_at = None
        rotated = await rotate(bench, kid)
        parts = bench.store.keys.find(parse_kid(kid).name).newest.parts
        assert [part.primitive for part in parts] == [Primitive.ED25519, Primitive.ML_DSA_65]
        assert rotated.kid.endswith("#v2")


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "Core"},
        {"tenant": "a/b"},
        {"purpose": ""},
        {"purpose": "x" * 64},
        {"purpose": "tlog"},
    ],
)
async def test_names_that_are_none_are_refused(fields: dict[str, str]) -> None:
    async with running_core() as bench:
        request = CreateKeyRequest(**{"tenant": "core", "purpose": "audit", "alg": "ed25519", **fields})  # type: ignore[arg-type]
        with pytest.raises(BadRequest):
            await bench.call("create_key", request)
        assert bench.store.epoch == 0


async def test_a_backend_makes_only_what_it_claims() -> None:
    provider = StagedProvider()
    provider.primitives = frozenset({Primitive.ED25519})
    async with running_core(provider=provider) as bench:
        kid = await bench.create("ed25519")
        with pytest.raises(Unsupported):
            await bench.create("ml-dsa")
        bench.core.reload(_hybrid())
        with pytest.raises(Unsupported):
            await rotate(bench, kid)


async def test_rotations_at_once_make_one_version_each_without_gaps() -> None:
    async with running_core() as bench:
        kid = await bench.create()
        outcomes = await asyncio.gather(*(rotate(bench, kid) for _ in range(8)))
        name = kid.partition("#")[0]
        assert sorted(each.kid for each in outcomes) == [f"{name}#v{number}" for number in range(2, 10)]
        assert {each.previous for each in outcomes} == {f"{name}#v{number}" for number in range(1, 9)}
        assert bench.metric("kms_key_version_head", kid=parse_kid(kid).name.hash8) == 9
        assert len(bench.core.services.locks) == 0


@pytest.mark.parametrize(
    ("op", "request_type"),
    [("rotate", RotateKeyRequest), ("disable", ChangeKeyStateRequest), ("get_key", GetKeyRequest)],
)
async def test_unknown_keys_and_versions_are_not_found(op: str, request_type: Any) -> None:
    async with running_core() as bench:
        kid = await bench.create()
        for unknown in (kid[:-1] + "2", kid.replace("/audit/", "/other/")):
            with pytest.raises(NotFound):
                await bench.call(op, request_type(kid=unknown))
        with pytest.raises(BadRequest):
            await bench.call(op, request_type(kid="core/audit"))
        with pytest.raises(NoCapability):
            await bench.call(op, request_type(kid=kid.replace("core/", "acme/")))


async def test_states_follow_one_another_and_a_destroyed_key_is_erased() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid = await bench.create("hybrid")
        await rotate(bench, kid)
        assert (await change(bench, "disable", kid)).state == "disabled"
        for use in (bench.sign(kid), rotate(bench, kid)):
            with pytest.raises(Conflict) as refused:
                await use
            assert refused.value.reason == "key_disabled"
        assert (await change(bench, "enable", kid)).state == "enabled"
        await bench.sign(kid)
        assert provider.keys_held == 4
        destroyed = await change(bench, "destroy", kid, min_version=3)
        assert (destroyed.state, destroyed.min_version) == ("destroyed", 3)
        assert provider.keys_held == 0
        for refused_use in (bench.sign(kid), rotate(bench, kid), change(bench, "enable", kid)):
            with pytest.raises(Conflict):
                await refused_use
        assert (await bench.call("get_key", GetKeyRequest(kid=kid))).state == "destroyed"
        assert [event.op for event in bench.audit.events if event.result == "ok"][-2:] == ["sign", "destroy"]


async def test_a_key_destroyed_while_its_provider_is_away_is_erased_at_the_next_start(tmp_path: Path) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        kid = await bench.create()
        provider.away = True
        assert (await change(bench, "destroy", kid)).state == "destroyed"
        with pytest.raises(Conflict):
            await bench.sign(kid)
        assert provider.keys_held == 1
    provider.away = False
    async with running_core(provider=provider, directory=tmp_path, started=True) as bench:
        async with asyncio.timeout(5):
            while provider.keys_held:
                await asyncio.sleep(0)
        assert bench.metric("kms_keys_total", tenant="core", purpose="audit", alg="ed25519") == 1


async def test_a_key_destroyed_while_its_provider_is_away_is_erased_when_it_is_there_again() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid, other = await bench.create(), await bench.create()
        provider.away = True
        await change(bench, "destroy", kid)
        assert bench.audit.of("destroy")[-1].detail["erased"] == "false"
        erasures = bench.core.services.erasures
        for away in (True, False):
            provider.away = away
            bench.hand.now_s += RETRY_S
            await bench.core.keeper.beat()
            async with asyncio.timeout(5):
                while erasures.under_way:
                    await asyncio.sleep(0)
            assert (provider.keys_held, len(erasures)) == ((2, 1) if away else (1, 0))
        await bench.sign(other)
        await change(bench, "destroy", other)
        assert bench.audit.of("destroy")[-1].detail["erased"] == "true"
        assert len(erasures) == 0


@pytest.mark.parametrize("op", ["create_key", "rotate", "disable", "destroy", "derive"])
async def test_a_repeated_change_has_one_effect_also_after_a_restart(op: str, tmp_path: Path) -> None:
    """I-14: the same op_id and request give the same answer; another request under it conflicts."""
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        kid = await bench.create("hkdf" if op == "derive" else "ed25519")
        request, other = _requests(op, kid)
        first = await bench.call(op, request)
        epoch = bench.store.epoch
        assert await bench.call(op, request) == first
        together = await asyncio.gather(*(bench.call(op, request) for _ in range(4)))
        assert together == [first] * 4
        with pytest.raises(Conflict) as refused:
            await bench.call(op, other)
        assert refused.value.reason == "op_id_reused"
        assert bench.store.epoch == epoch
        assert [event.detail.get("replayed") for event in bench.audit.of(op) if event.result == "ok"][-5:] == [
            "true"
        ] * 5
    async with running_core(provider=provider, directory=tmp_path) as bench:
        assert await bench.call(op, request) == first
        with pytest.raises(Conflict):
            await bench.call(op, other)
        assert bench.store.epoch == epoch


def _requests(op: str, kid: str) -> tuple[Any, Any]:
    if op == "create_key":
        fields: dict[str, Any] = {"tenant": "core", "purpose": "audit", "op_id": OP_ID}
        return CreateKeyRequest(alg="ed25519", **fields), CreateKeyRequest(alg="ml-dsa", **fields)
    if op == "derive":
        return (
            DeriveRequest(kid=kid, context="a", alg="ed25519", op_id=OP_ID),
            DeriveRequest(kid=kid, context="b", alg="ed25519", op_id=OP_ID),
        )
    if op == "rotate":
        return RotateKeyRequest(kid=kid, op_id=OP_ID), RotateKeyRequest(kid=kid.partition("#")[0], op_id=OP_ID)
    return ChangeKeyStateRequest(kid=kid, op_id=OP_ID), ChangeKeyStateRequest(kid=kid, op_id=OP_ID, min_version=2)


async def test_a_change_whose_event_failed_is_answered_only_once_it_is_audited() -> None:
    async with running_core() as bench:
        bench.audit.error = StoreUnavailable("disk")
        request = CreateKeyRequest(tenant="core", purpose="audit", alg="ed25519", op_id=OP_ID)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await bench.call("create_key", request)
        assert (bench.store.epoch, len(bench.store.unaudited())) == (1, 1)
        bench.audit.error = None
        made = await bench.call("create_key", request)
        (event,) = bench.audit.of("create_key")
        assert (event.kid, event.detail) == (made.kid, {"epoch": "1", "digest": bench.store.state_digest()})
        assert (bench.store.epoch, bench.store.unaudited()) == (1, [])


async def test_a_change_whose_request_died_is_audited_by_itself() -> None:
    async with running_core() as bench:
        bench.audit.error = StoreUnavailable("disk")
        with pytest.raises(StoreUnavailable):
            await bench.create()
        bench.audit.error = None
        await bench.core.keeper.beat()
        assert bench.audit.of("create_key") == []
        await bench.core.keeper.beat()
        (event,) = bench.audit.of("create_key")
        assert (event.context, event.detail["settled"], event.detail["epoch"]) == (None, "true", "1")
        assert event.detail["actor"] == "t-core"
        await bench.core.keeper.beat()
        assert len(bench.audit.of("create_key")) == 1


async def test_what_a_crash_left_unaudited_is_audited_before_anything_is_served(tmp_path: Path) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        bench.audit.error = StoreUnavailable("killed before the append")
        with pytest.raises(StoreUnavailable):
            await bench.create()
    async with running_core(provider=provider, directory=tmp_path, started=True) as bench:
        (event,) = bench.audit.events
        assert (event.op, event.detail["settled"], event.detail["digest"]) == (
            "create_key",
            "true",
            bench.store.state_digest(),
        )
        assert bench.store.unaudited() == []


async def test_a_child_is_the_same_for_the_same_root_context_and_algorithm(tmp_path: Path) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        root = await bench.create("hkdf")

        async def derive(kid: str, context: str, alg: str) -> Any:
            return await bench.call("derive", DeriveRequest(kid=kid, context=context, alg=alg))  # type: ignore[arg-type]

        child = await derive(root, "tree/1", "ed25519")
        assert await derive(root, "tree/1", "ed25519") == child
        assert bench.store.epoch == 2
        rotated = await rotate(bench, root)
        others = [
            await derive(root, "tree/2", "ed25519"),
            await derive(root, "tree/1", "hybrid"),
            await derive(root, "tree/1", "ml-kem"),
            await derive(root, "tree/1", "hkdf"),
            await derive(rotated.kid, "tree/1", "ed25519"),
        ]
        assert len({each.kid for each in (child, *others)}) == 6
        assert len({each.public.pubkey_b64 for each in (child, *others)} - {""}) == 5
        signed = await bench.sign(child.kid)
        assert (await bench.verify(signed.sigs, child.kid)).ok
        wrapped = await bench.call("wrap", WrapRequest(kid=others[2].kid, size=32))
        await bench.call("unwrap", UnwrapRequest(kid=others[2].kid, wrapped_b64=wrapped.wrapped_b64))
        record = bench.store.keys.find(parse_kid(child.kid).name)
        assert record.derived_from == root
        grandchild = await derive(others[3].kid, "leaf", "ed25519")
        assert grandchild.kid not in {child.kid, root}


async def test_a_child_has_the_key_that_hkdf_gives() -> None:
    """Derived anew with info = ron-kms::tenant::purpose::context#alg, the public half is the same."""
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        root = await bench.create("hkdf")
        child = await bench.call("derive", DeriveRequest(kid=root, context="a", alg="ed25519"))
        source = bench.store.keys.find(parse_kid(root).name).newest.parts[0]
        name = child_name(parse_kid(root), "a", "ed25519")
        assert str(name.version(1)) == child.kid
        assert derivation_info(name, "a") == b"ron-kms::core::audit::a#ed25519"
        again = provider.derive(source.handle, b"ron-kms::core::audit::a#ed25519", Primitive.ED25519, name.version(1))
        assert base64.b64encode(again.public).decode() == child.public.pubkey_b64


@pytest.mark.parametrize(
    ("make", "kid_form", "alg", "error"),
    [
        ("ed25519", "{}", "ed25519", Unsupported),
        ("hkdf", "{name}", "ed25519", BadRequest),
        ("hkdf", "{name}#v2", "ed25519", NotFound),
    ],
)
async def test_only_a_named_version_of_a_root_derives(
    make: Any, kid_form: str, alg: Any, error: type[KmsError]
) -> None:
    async with running_core() as bench:
        kid = await bench.create(make)
        text = kid_form.format(kid, name=kid.partition("#")[0])
        with pytest.raises(error):
            await bench.call("derive", DeriveRequest(kid=text, context="a", alg=alg))


async def test_derived_keys_are_renewed_through_their_root_and_never_come_back() -> None:
    async with running_core() as bench:
        root = await bench.create("hkdf")
        request = DeriveRequest(kid=root, context="a", alg="ed25519")
        child = await bench.call("derive", request)
        with pytest.raises(Conflict) as refused:
            await rotate(bench, child.kid)
        assert refused.value.reason == "derived_key"
        await change(bench, "destroy", child.kid)
        with pytest.raises(Conflict):
            await bench.call("derive", request)


async def test_a_root_for_tree_heads_and_a_child_that_is_not_allowed_are_refused() -> None:
    async with running_core(service={"allowed_algs": ("hkdf", "ed25519"), "backend": "inmem"}) as bench:
        root = await bench.create("hkdf")
        with pytest.raises(Unsupported):
            await bench.call("derive", DeriveRequest(kid=root, context="a", alg="hybrid"))
        await change(bench, "disable", root)
        with pytest.raises(Conflict):
            await bench.call("derive", DeriveRequest(kid=root, context="a", alg="ed25519"))


async def test_a_capability_for_the_root_alone_does_not_derive() -> None:
    async with running_core() as bench:
        root = await bench.create("hkdf")
        narrow = principal("core", keys=frozenset({root}))
        with pytest.raises(NoCapability):
            await bench.call("derive", DeriveRequest(kid=root, context="a", alg="ed25519"), who=narrow)


def _hybrid() -> Any:
    from tests.support.kms_core import config_of

    return config_of(**HYBRID)


@pytest.mark.parametrize("verb", ["rotate", "disable", "enable", "destroy"])
async def test_a_capability_for_one_version_does_nothing_to_the_whole_key(verb: str) -> None:
    async with running_core() as bench:
        kid = await bench.create("ed25519")
        make = RotateKeyRequest if verb == "rotate" else ChangeKeyStateRequest
        before = bench.store.state_digest()
        with pytest.raises(NoCapability, match="not for this key"):
            await bench.call(verb, make(kid=kid), who=principal(keys=frozenset({kid})))
        assert bench.store.state_digest() == before
        name = str(parse_kid(kid).name)
        await bench.call(verb, make(kid=kid), who=principal(keys=frozenset({name})))
        with pytest.raises(NotFound):
            await bench.call(verb, make(kid=f"{name}#v9"), who=principal(keys=frozenset({name})))


async def test_destroying_a_record_that_names_another_keys_handle_does_not_erase_that_key() -> None:
    async with running_core() as bench:
        mine, victim = await bench.create("ed25519"), await bench.create("ed25519")
        record, other = (bench.store.keys.find(parse_kid(kid).name) for kid in (mine, victim))
        bench.store.keys.put(replace(record, versions=other.versions))
        await change(bench, "destroy", mine)
        assert (await bench.sign(victim)).kid == victim


async def test_hints_that_are_too_long_together_make_no_key() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        fitting: dict[str, str | int | bool] = {f"{number:04}": "x" * 252 for number in range(16)}
        assert sum(len(name) + len(str(text)) for name, text in fitting.items()) == MAX_HINTS_BYTES
        await bench.create(policy_hints=fitting)
        for hints in ({**fitting, "0000": "x" * 253}, {f"{number}": "é" * 200 for number in range(16)}):
            with pytest.raises(BadRequest):
                await bench.create(policy_hints=hints)
        assert (bench.store.epoch, provider.keys_held) == (1, 1)


@pytest.mark.parametrize("op", ["create_key", "rotate", "derive"])
async def test_a_tenant_takes_at_most_half_of_its_backends_room(op: str) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        provider.max_keys = 8
        kid = await bench.create("hkdf" if op == "derive" else "hybrid")
        await bench.create("ed25519")
        requests = {
            "create_key": CreateKeyRequest(tenant="core", purpose="audit", alg="hybrid"),
            "rotate": RotateKeyRequest(kid=kid),
            "derive": DeriveRequest(kid=kid, context="a", alg="hybrid"),
        }
        spare = await bench.create("ed25519") if op == "derive" else None
        made = list(provider.calls)
        with pytest.raises(StoreUnavailable) as refused:
            await bench.call(op, requests[op])
        assert (refused.value.reason, provider.calls) == ("key_limit", made)
        for _ in range(4):
            await bench.create("ed25519", tenant="acme")
        await change(bench, "disable", kid)
        await change(bench, "enable", kid)
        await change(bench, "destroy", spare or kid)
        await bench.create("ed25519")


async def test_two_at_once_do_not_pass_the_half_together() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        provider.max_keys = 8
        outcomes = await asyncio.gather(*(bench.create("hybrid") for _ in range(5)), return_exceptions=True)
        assert [isinstance(each, StoreUnavailable) for each in outcomes].count(False) == 2
        assert provider.keys_held == 4
