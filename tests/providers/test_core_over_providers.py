"""The operations over every real provider: what each can do is done, and what it cannot is refused, not faked."""

from __future__ import annotations

import base64

import pytest

from kms.errors import BadRequest, Conflict, NotFound, StoreUnavailable, Unsupported
from kms.messages import ChangeKeyStateRequest, RotateKeyRequest, UnwrapRequest, WrapRequest
from kms.primitive import KEY_ALGORITHMS
from kms.providers.provider import Provider
from tests.support.kms_core import running_core

SECRET = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize("alg", sorted(KEY_ALGORITHMS))
async def test_create_use_rotate_destroy(provider: Provider, alg: str) -> None:
    algorithm = KEY_ALGORITHMS[alg]
    service = {"multi_backends": (provider.name,), "backend": provider.name}
    async with running_core(provider=provider, service=service) as bench:
        if not provider.primitives.issuperset(algorithm.parts):
            with pytest.raises(Unsupported):
                await bench.create(alg)
            return
        kid = await bench.create(alg)
        if algorithm.signs:
            first = await bench.sign(kid)
            await bench.call("rotate", RotateKeyRequest(kid=kid, op_id=None), "core")
            second = await bench.sign(kid.replace("#v1", "#v2"))
            assert (await bench.verify(first.sigs, kid)).ok
            assert (await bench.verify(second.sigs, kid.replace("#v1", "#v2"))).ok
            assert not (await bench.verify(first.sigs, kid.replace("#v1", "#v2"))).ok
        if algorithm.is_kem:
            wrapped = await bench.call("wrap", WrapRequest(kid=kid, plaintext_key_b64=SECRET), "core")
            opened = await bench.call("unwrap", UnwrapRequest(kid=kid, wrapped_b64=wrapped.wrapped_b64), "core")
            assert opened.plaintext_key_b64 == SECRET
            other = await bench.create(alg)
            with pytest.raises(BadRequest):
                await bench.call("unwrap", UnwrapRequest(kid=other, wrapped_b64=wrapped.wrapped_b64), "core")
        await bench.call("destroy", ChangeKeyStateRequest(kid=kid.partition("#")[0]), "core")
        if algorithm.signs:
            with pytest.raises((Conflict, NotFound, StoreUnavailable)):
                await bench.sign(kid)
