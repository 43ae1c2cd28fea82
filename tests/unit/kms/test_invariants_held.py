"""Invariants and gates that no single module holds: PQ-I3, G-14."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import KmsError
from kms.messages import ChangeKeyStateRequest, RotateKeyRequest, SignResponse, UnwrapRequest, WrapRequest
from kms.readiness import ClockProbe
from tests.support.kms_core import running_core
from tests.support.kms_edge import DIGEST, KID, EdgeParts

KEY_B64 = base64.b64encode(bytes(range(32))).decode()
TOLERANCE_MS = 2000
SIGN = {"kid_or_set": {"kid": KID}, "payload_b3": DIGEST}


async def test_what_was_wrapped_long_ago_is_wrapped_anew_under_the_newest_version():
    """PQ-I3: re-encryption needs no plaintext at rest, and the fence then closes the former version."""
    async with running_core() as bench:
        first = await bench.create("x25519", purpose="kem")
        name = first.partition("#")[0]
        old = await bench.call("wrap", WrapRequest(kid=name, plaintext_key_b64=KEY_B64))
        newest = (await bench.call("rotate", RotateKeyRequest(kid=name))).kid
        key = await bench.call("unwrap", UnwrapRequest(kid=first, wrapped_b64=old.wrapped_b64))
        new = await bench.call("wrap", WrapRequest(kid=name, plaintext_key_b64=key.plaintext_key_b64))
        assert new.kid == newest
        assert new.wrapped_b64 != old.wrapped_b64
        await bench.call("disable", ChangeKeyStateRequest(kid=name, min_version=2))
        await bench.call("enable", ChangeKeyStateRequest(kid=name))
        with pytest.raises(KmsError):
            await bench.call("unwrap", UnwrapRequest(kid=first, wrapped_b64=old.wrapped_b64))
        again = await bench.call("unwrap", UnwrapRequest(kid=newest, wrapped_b64=new.wrapped_b64))
        assert again.plaintext_key_b64 == KEY_B64


@given(skew_ms=st.integers(-600_000, 600_000))
async def test_a_clock_stepped_beyond_the_tolerance_refuses_and_counts_and_one_within_does_not(skew_ms):
    """G-14: over HTTP, with the probe that the service uses; verifying goes on either way (I-18)."""
    parts = EdgeParts(SignResponse(sigs=[], kid=KID))
    moved = {"ms": 0, "s": 0.0}
    probe = ClockProbe(lambda: 10_000_000 + moved["ms"], lambda: moved["s"], lambda: TOLERANCE_MS)
    parts.calls.clock_ok = lambda: probe().ok
    assert (await parts.ask(body=SIGN)).status == 200
    moved["s"] += 10.0
    moved["ms"] += 10_000 + skew_ms
    answer = await parts.ask(body=SIGN)
    beyond = abs(skew_ms) > TOLERANCE_MS
    assert answer.status == (503 if beyond else 200)
    assert parts.counted("rejected_total", reason="clock_skew") == float(beyond)
    assert parts.counted("kms_reject_total", reason="clock_skew") == float(beyond)
    if beyond:
        assert answer.error["code"] == "StoreUnavailable"
        assert int(answer.headers["retry-after"]) >= 1
    verify = {"payload_b3": DIGEST, "sigs": [{"alg": "ed25519", "signature_b64": "AA=="}]}
    assert (await parts.ask(path="/v1/kms/verify", body=verify)).status == 200
    parts.log.close()
