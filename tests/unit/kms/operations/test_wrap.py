"""POST /wrap and /unwrap: whole round trips, and that nothing of a key stays anywhere (I-1, I-16)."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kms.errors import BadRequest, Conflict, KmsError, StoreUnavailable, Unsupported
from kms.messages import ChangeKeyStateRequest, RotateKeyRequest, UnwrapRequest, WrapRequest
from tests.support.kms_core import Bench, running_core
from tests.support.kms_providers import StagedProvider, WrappingProvider

KEY = bytes(range(32))
KEY_B64 = base64.b64encode(KEY).decode()
OP_ID = "8f9a2c34-0000-4000-8000-00000000000b"


async def unwrap(bench: Bench, kid: str, wrapped_b64: str) -> bytes:
    answer = await bench.call("unwrap", UnwrapRequest(kid=kid, wrapped_b64=wrapped_b64))
    return base64.b64decode(answer.plaintext_key_b64)


@pytest.mark.parametrize("alg", ["x25519", "ml-kem"])
async def test_a_wrapped_key_is_got_back_with_its_version_and_no_other(alg: str) -> None:
    async with running_core() as bench:
        kid = await bench.create(alg, purpose="kem")
        wrapped = await bench.call("wrap", WrapRequest(kid=kid.partition("#")[0], plaintext_key_b64=KEY_B64))
        assert (wrapped.kid, wrapped.alg) == (kid, "hybrid(x25519+ml-kem)")
        assert await unwrap(bench, kid, wrapped.wrapped_b64) == KEY
        rotated = await bench.call("rotate", RotateKeyRequest(kid=kid))
        assert await unwrap(bench, kid, wrapped.wrapped_b64) == KEY
        with pytest.raises(BadRequest) as refused:
            await unwrap(bench, rotated.kid, wrapped.wrapped_b64)
        assert refused.value.reason == "unwrap_failed"
        for half in ("x25519", "ml-kem"):
            assert bench.metric("kms_ops_total", op="wrap", alg=half, result="ok") == 1


async def test_a_made_key_is_had_by_unwrapping_only() -> None:
    async with running_core() as bench:
        kid = await bench.create("x25519")
        first, second = [await bench.call("wrap", WrapRequest(kid=kid, size=32)) for _ in range(2)]
        keys = [await unwrap(bench, kid, each.wrapped_b64) for each in (first, second)]
        assert [len(key) for key in keys] == [32, 32]
        assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": 32, "plaintext_key_b64": KEY_B64},
        {"plaintext_key_b64": base64.b64encode(bytes(15)).decode()},
        {"plaintext_key_b64": base64.b64encode(bytes(4097)).decode()},
        {"plaintext_key_b64": "!"},
        {"plaintext_key_b64": ""},
    ],
)
async def test_a_request_is_for_one_key_of_a_bounded_size(fields: dict[str, Any]) -> None:
    async with running_core() as bench:
        kid = await bench.create("x25519")
        with pytest.raises(BadRequest):
            await bench.call("wrap", WrapRequest(kid=kid, **fields))


@pytest.mark.parametrize("alg", ["ed25519", "hybrid", "hkdf"])
async def test_other_keys_do_not_wrap(alg: str) -> None:
    async with running_core() as bench:
        kid = await bench.create(alg)
        with pytest.raises(Unsupported):
            await bench.call("wrap", WrapRequest(kid=kid, size=32))
        with pytest.raises(Unsupported):
            await unwrap(bench, kid, "AAAA")


async def test_a_half_that_is_no_longer_allowed_neither_wraps_nor_unwraps(tmp_path: Any) -> None:
    provider = StagedProvider()
    async with running_core(provider=provider, directory=tmp_path) as bench:
        kid = await bench.create("x25519")
    only = {"allowed_algs": ("x25519",), "backend": "inmem"}
    async with running_core(provider=provider, directory=tmp_path, service=only) as bench:
        with pytest.raises(Unsupported):
            await bench.call("wrap", WrapRequest(kid=kid, size=32))


async def test_a_fenced_or_disabled_version_neither_wraps_nor_unwraps() -> None:
    async with running_core() as bench:
        kid = await bench.create("x25519")
        wrapped = await bench.call("wrap", WrapRequest(kid=kid, size=32))
        await bench.call("disable", ChangeKeyStateRequest(kid=kid))
        for use in (bench.call("wrap", WrapRequest(kid=kid, size=32)), unwrap(bench, kid, wrapped.wrapped_b64)):
            with pytest.raises(Conflict):
                await use
        await bench.call("enable", ChangeKeyStateRequest(kid=kid, min_version=2))
        with pytest.raises(Conflict):
            await unwrap(bench, kid, wrapped.wrapped_b64)


async def test_nothing_is_wrapped_to_a_key_whose_provider_is_away() -> None:
    provider = StagedProvider()
    async with running_core(provider=provider) as bench:
        kid = await bench.create("x25519")
        wrapped = await bench.call("wrap", WrapRequest(kid=kid, size=32))
        provider.away = True
        with pytest.raises(StoreUnavailable):
            await unwrap(bench, kid, wrapped.wrapped_b64)
        with pytest.raises(StoreUnavailable) as refused:
            await bench.call("wrap", WrapRequest(kid=kid, size=32))
        assert refused.value.retry_after_s == 1
        provider.away = False
        await bench.core.keeper.beat()
        await unwrap(bench, kid, wrapped.wrapped_b64)


async def test_a_repeated_wrap_has_the_same_envelope_and_an_unwrapped_key_is_kept_nowhere() -> None:
    async with running_core() as bench:
        kid = await bench.create("x25519")
        request = WrapRequest(kid=kid, plaintext_key_b64=KEY_B64, op_id=OP_ID)
        wrapped = await bench.call("wrap", request)
        assert await bench.call("wrap", request) == wrapped
        with pytest.raises(Conflict):
            await bench.call("wrap", WrapRequest(kid=kid, size=32, op_id=OP_ID))
        answer = await bench.call("unwrap", UnwrapRequest(kid=kid, wrapped_b64=wrapped.wrapped_b64))
        assert KEY_B64 not in repr(answer)
        assert KEY_B64 not in repr(request)
        kept = repr([(event.detail, event.kid, event.payload_b3) for event in bench.audit.events])
        kept += repr(bench.core.dispatcher._answers._tenants)
        assert KEY_B64 not in kept
        assert KEY.hex() not in kept
        assert "op_id" not in UnwrapRequest.__struct_fields__


async def test_a_provider_that_wraps_by_itself_is_bound_to_the_kid_too() -> None:
    provider = WrappingProvider(in_process=False)
    async with running_core(provider=provider) as bench:
        kid, other = await bench.create("x25519"), await bench.create("x25519")
        wrapped = await bench.call("wrap", WrapRequest(kid=kid, plaintext_key_b64=KEY_B64))
        assert wrapped.alg == "provider"
        assert base64.b64decode(wrapped.wrapped_b64)[0] == 2
        assert await unwrap(bench, kid, wrapped.wrapped_b64) == KEY
        for bad in (
            unwrap(bench, other, wrapped.wrapped_b64),
            unwrap(bench, kid, base64.b64encode(b"\x01" + bytes(1200)).decode()),
            unwrap(bench, kid, ""),
        ):
            with pytest.raises(KmsError) as refused:
                await bad
            assert refused.value.reason == "unwrap_failed"
