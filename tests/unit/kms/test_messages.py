"""The bounds of what a body may hold beside what the operations check."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kms.errors import BadRequest
from kms.grpc_codec import request_from_bytes
from kms.messages import MAX_HINT_CHARS, MAX_HINTS, CreateKeyRequest
from kms.proto.ron.kms.v1 import kms_pb2


def body(hints: Any) -> bytes:
    return msgspec.json.encode({"tenant": "core", "purpose": "app", "alg": "ed25519"})[:-1] + (
        b',"policy_hints":' + hints + b"}"
    )


@pytest.mark.parametrize(
    "hints",
    [
        {"n": 2**63 - 1, "m": -(2**63), "on": True, "": ""},
        {"x" * MAX_HINT_CHARS: "é" * MAX_HINT_CHARS},
        {str(number): number for number in range(MAX_HINTS)},
    ],
)
def test_hints_at_their_bounds_are_taken(hints: dict[str, Any]) -> None:
    assert msgspec.json.decode(body(msgspec.json.encode(hints)), type=CreateKeyRequest).policy_hints == hints


@pytest.mark.parametrize(
    "hints",
    [
        b'{"n":9223372036854775808}',
        b'{"n":18446744073709551616}',
        b'{"n":1000000000000000000000000000000}',
        b'{"n":-9223372036854775809}',
        b'{"n":1.5}',
        b'{"n":null}',
        b'{"n":["x"]}',
        b'{"n":"' + b"x" * (MAX_HINT_CHARS + 1) + b'"}',
        b'{"' + b"x" * (MAX_HINT_CHARS + 1) + b'":1}',
        msgspec.json.encode({str(number): number for number in range(MAX_HINTS + 1)}),
    ],
)
def test_hints_beyond_them_are_refused(hints: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body(hints), type=CreateKeyRequest)


def test_they_are_the_same_over_grpc() -> None:
    form = kms_pb2.CreateKeyRequest(tenant="core", purpose="app", alg="ed25519")
    form.policy_hints["text"].text = "x" * (MAX_HINT_CHARS + 1)
    with pytest.raises(BadRequest):
        request_from_bytes(form.SerializeToString(), CreateKeyRequest)
