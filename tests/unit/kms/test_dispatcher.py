from __future__ import annotations

from kms.messages import GetKeyRequest, RotateKeyRequest
from tests.support.kms_core import running_core


async def test_a_key_is_made_signs_verifies_is_rotated_and_described() -> None:
    async with running_core() as bench:
        kid = await bench.create("ed25519")
        signed = await bench.sign(kid)
        assert [each.alg for each in signed.sigs] == ["ed25519"]
        assert signed.kid == kid
        verified = await bench.verify(signed.sigs, kid)
        assert verified.ok
        assert verified.details.kid == kid
        rotated = await bench.call("rotate", RotateKeyRequest(kid=kid))
        assert (rotated.previous, rotated.kid) == (kid, kid.replace("#v1", "#v2"))
        described = await bench.call("get_key", GetKeyRequest(kid=kid))
        assert described.versions == ["#v1", "#v2"]
        assert (await bench.verify(signed.sigs)).details.kid == kid
        assert [event.op for event in bench.audit.events] == ["create_key", "sign", "verify", "rotate", "verify"]
