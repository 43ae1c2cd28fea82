"""gRPC mirrors the HTTP messages field for field (API.md appendix C)."""

import asyncio
import contextlib
import json
import types
import typing

import grpc
import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor

from kms import messages
from kms.config_sections import KmsConfig
from kms.config_values import DurationMs
from kms.error_envelope import ErrorEnvelope
from kms.errors import BadRequest, Conflict, StoreUnavailable
from kms.grpc_api import SERVICE, build_grpc_server
from kms.grpc_codec import MAX_NESTED_MESSAGES, request_from_bytes, response_to_bytes
from kms.http_body import BodyBudget
from kms.messages import (
    AttestationEvidence,
    CreateKeyRequest,
    GetKeyResponse,
    KidSelector,
    Message,
    PublicMaterial,
    PublicPart,
    RotateResponse,
    Signature,
    SignPolicy,
    SignRequest,
    SignResponse,
    VerifyDetails,
    VerifyResponse,
)
from kms.operation_table import OPERATIONS
from kms.proto.ron.kms.v1 import kms_pb2
from tests.support.kms_edge import DIGEST, KID, EdgeParts

SIGNED = SignResponse(sigs=[Signature(alg="ed25519", signature_b64="AA==")], kid=KID)
SIGN = kms_pb2.SignRequest(kid_or_set={"kid": KID}, payload_b3=DIGEST)
GOOD = (("authorization", "Bearer good"),)
HTTP_ONLY = {"RotateRequest", "KeyStateRequest"}
"""Bodies whose kid is in the path: gRPC has RotateKeyRequest and ChangeKeyStateRequest for them."""
SCALARS = {str: FieldDescriptor.TYPE_STRING, int: FieldDescriptor.TYPE_INT64, bool: FieldDescriptor.TYPE_BOOL}


def all_messages():
    found = [each for each in vars(messages).values() if isinstance(each, type) and issubclass(each, Message)]
    return [each for each in found if each is not Message and each.__name__ not in HTTP_ONLY] + [ErrorEnvelope]


def plain(kind):
    """Take annotations, None and UNSET off a type."""
    while typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        [kind] = [each for each in typing.get_args(kind) if each not in (type(None), msgspec.UnsetType)]
        return plain(kind)
    return kind


@pytest.mark.parametrize("kind", all_messages(), ids=lambda kind: kind.__name__)
def test_proto_fields_are_the_messages_fields(kind):
    descriptor = kms_pb2.DESCRIPTOR.message_types_by_name[kind.__name__]
    assert {field.name for field in descriptor.fields} == {field.encode_name for field in msgspec.structs.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        form = descriptor.fields_by_name[field.encode_name]
        expected = plain(hints[field.name])
        origin = typing.get_origin(expected)
        assert form.is_repeated == (origin in (list, dict))
        if origin is list:
            expected = plain(typing.get_args(expected)[0])
        if origin is dict:
            assert form.message_type.GetOptions().map_entry
        elif isinstance(expected, type) and issubclass(expected, msgspec.Struct):
            assert form.message_type.name == expected.__name__
        else:
            scalar = str if typing.get_origin(expected) is typing.Literal else expected
            assert form.type == SCALARS[scalar]
            assert form.has_presence or form.is_repeated


def test_the_proto_has_no_message_and_no_method_of_its_own():
    assert set(kms_pb2.DESCRIPTOR.message_types_by_name) == {each.__name__ for each in all_messages()} | {"PolicyHint"}
    service = kms_pb2.DESCRIPTOR.services_by_name["Kms"]
    assert service.full_name == SERVICE
    expected = {operation.rpc: (operation.request.__name__, operation.response.__name__) for operation in OPERATIONS}
    assert {each.name: (each.input_type.name, each.output_type.name) for each in service.methods} == expected


def test_a_request_is_the_same_message_from_protobuf_and_from_json():
    form = kms_pb2.SignRequest(kid_or_set={"kid_set": [KID, "b"]}, payload_b3=DIGEST, policy={"produce_hybrid": False})
    selector = KidSelector(kid_set=[KID, "b"])
    expected = SignRequest(kid_or_set=selector, payload_b3=DIGEST, policy=SignPolicy(produce_hybrid=False))
    assert request_from_bytes(form.SerializeToString(), SignRequest) == expected
    hints = {"a": kms_pb2.PolicyHint(text="x"), "b": kms_pb2.PolicyHint(number=0), "c": kms_pb2.PolicyHint(flag=False)}
    made = kms_pb2.CreateKeyRequest(tenant="core", purpose="app", alg="hybrid", policy_hints=hints)
    expected_key = CreateKeyRequest(
        tenant="core", purpose="app", alg="hybrid", policy_hints={"a": "x", "b": 0, "c": False}
    )
    assert request_from_bytes(made.SerializeToString(), CreateKeyRequest) == expected_key


NESTED = kms_pb2.SignBatchRequest(items=[SIGN] * (MAX_NESTED_MESSAGES // 2))


@pytest.mark.parametrize(
    ("raw", "kind", "why"),
    [
        (b"\xff\xff", SignRequest, "not valid protobuf"),
        (SIGN.SerializeToString()[:-1], SignRequest, "not valid protobuf"),
        (SIGN.SerializeToString() + b"\x98\x06\x01", SignRequest, "unknown field"),
        (b"\x0a\x03\x98\x06\x01" + SIGN.SerializeToString(), SignRequest, "unknown field"),
        (b"", SignRequest, "missing required field 'kid_or_set'"),
        (kms_pb2.SignRequest(kid_or_set={}, payload_b3="zz").SerializeToString(), SignRequest, "payload_b3"),
        (NESTED.SerializeToString(), messages.SignBatchRequest, "too many messages"),
        (
            kms_pb2.CreateKeyRequest(policy_hints={"a": kms_pb2.PolicyHint()}).SerializeToString(),
            CreateKeyRequest,
            "a policy hint must have one value",
        ),
    ],
)
def test_a_message_that_breaks_the_contract_is_refused(raw, kind, why):
    with pytest.raises(BadRequest, match=why):
        request_from_bytes(raw, kind)


@pytest.mark.parametrize(
    "response",
    [
        SignResponse(sigs=SIGNED.sigs, kid=KID, attestation=AttestationEvidence(class_="tpm", evidence="AA==")),
        VerifyResponse(ok=False, details=VerifyDetails(checked=["ed25519"], satisfied_mode="or"), cache_age_ms=0),
        VerifyResponse(ok=True, details=VerifyDetails(checked=["ml-dsa"])),
        GetKeyResponse(
            kid=KID,
            alg="hybrid",
            versions=["#v1"],
            public=PublicMaterial(alg="a", pubkey_b64="b", parts=[PublicPart(alg="c", pubkey_b64="d")]),
        ),
    ],
)
def test_a_response_has_the_members_of_its_json(response):
    form = getattr(kms_pb2, type(response).__name__).FromString(response_to_bytes(response))
    assert request_from_bytes(form.SerializeToString(), type(response)) == response


@pytest.fixture
async def ask():
    servers, channels = [], []

    async def start(parts):
        server = build_grpc_server(parts.calls, parts.config)
        port = start.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        channels.append(channel)

        async def call(rpc, request, metadata=GOOD, **rest):
            method = channel.unary_unary(f"/{SERVICE}/{rpc}")
            raw = request if isinstance(request, bytes) else request.SerializeToString()
            under_way = method(raw, metadata=metadata, timeout=5, **rest)
            answer = await under_way
            return answer, dict(await under_way.trailing_metadata())

        return call

    yield start
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(0)


async def test_a_call_reaches_the_operation_and_its_answer_comes_back(ask):
    parts = EdgeParts(SIGNED)
    call = await ask(parts)
    corr_id = "0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"
    raw, trailer = await call("Sign", SIGN, (*GOOD, ("x-corr-id", corr_id)))
    assert kms_pb2.SignResponse.FromString(raw).kid == KID
    assert trailer["x-corr-id"] == corr_id
    [(op, _, context)] = parts.dispatcher.asked
    assert (op, context.path, context.transport, context.corr_id) == ("sign", "/v1/kms/sign", "grpc", corr_id)
    assert parts.counted("http_requests_total", route="/v1/kms/sign", method="GRPC", status="OK") == 1.0


async def test_the_path_that_caveats_see_is_the_one_of_http(ask):
    parts = EdgeParts(RotateResponse(kid=KID, previous=KID))
    call = await ask(parts)
    await call("Rotate", kms_pb2.RotateKeyRequest(kid=KID))
    assert parts.dispatcher.asked[0][2].path == f"/v1/kms/keys/{KID}/rotate"


async def test_without_a_capability_the_message_is_not_even_parsed(ask):
    parts = EdgeParts(SIGNED)
    call = await ask(parts)
    for metadata in ((), (("authorization", "Bearer bad"),), (*GOOD, *GOOD)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call("Sign", b"\xff\xff", metadata)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call("Sign", b"\xff\xff")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert parts.dispatcher.asked == []


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Conflict("taken"), grpc.StatusCode.ABORTED, None),
        (StoreUnavailable("away", retry_after_s=3), grpc.StatusCode.UNAVAILABLE, "3"),
        (RuntimeError("swordfish"), grpc.StatusCode.INTERNAL, None),
    ],
)
async def test_an_error_has_its_status_and_the_envelope_in_the_trailer(ask, error, status, retry_after):
    call = await ask(EdgeParts(error))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call("Sign", SIGN)
    trailer = dict(refused.value.trailing_metadata())
    assert refused.value.code() is status
    envelope = json.loads(trailer["kms-error-bin"])["error"]
    assert envelope["message"] == refused.value.details()
    assert "swordfish" not in envelope["message"]
    assert trailer.get("retry-after") == retry_after


async def test_the_age_of_cached_keys_is_in_the_trailer_too(ask):
    call = await ask(EdgeParts(VerifyResponse(ok=True, details=VerifyDetails(checked=[]), cache_age_ms=742)))
    form = kms_pb2.VerifyRequest(payload_b3=DIGEST, sigs=[{"alg": "ed25519", "signature_b64": "AA=="}])
    raw, trailer = await call("Verify", form)
    assert kms_pb2.VerifyResponse.FromString(raw).cache_age_ms == 742
    assert trailer["x-kms-cache-age"] == "742"


async def test_bounds_of_messages_and_compression(ask):
    parts = EdgeParts(SIGNED)
    parts.set("limits", max_body_bytes=2048)
    call = await ask(parts)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call("Sign", b"x" * 2049)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call("Sign", SIGN, compression=grpc.Compression.Gzip)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call("Export", SIGN)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert parts.dispatcher.asked == []


async def open_calls(port, count, metadata):
    """Begin calls that send no message."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    calls = [channel.stream_unary(f"/{SERVICE}/Sign")(metadata=metadata) for _ in range(count)]
    for each in calls:
        await each.wait_for_connection()
    return channel, calls


async def status_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with asyncio.timeout(3):
            await call
    return refused.value.code()


@pytest.mark.parametrize(
    ("metadata", "status"),
    [((), grpc.StatusCode.UNAUTHENTICATED), (GOOD, grpc.StatusCode.DEADLINE_EXCEEDED)],
    ids=["without-a-capability", "with-one"],
)
async def test_calls_whose_message_never_comes_do_not_take_the_places_of_others(ask, metadata, status):
    parts = EdgeParts(SIGNED, msgspec.structs.replace(KmsConfig(), max_conns=4, read_timeout_ms=DurationMs(300)))
    call = await ask(parts)
    channel, calls = await open_calls(ask.port, 4, metadata)
    assert [await status_of(each) for each in calls] == [status] * 4
    raw, _ = await call("Sign", SIGN)
    assert kms_pb2.SignResponse.FromString(raw).kid == KID
    assert len(parts.dispatcher.asked) == 1
    await channel.close()


async def test_connections_are_at_most_max_conns(ask):
    parts = EdgeParts(SIGNED, msgspec.structs.replace(KmsConfig(), max_conns=2))
    await ask(parts)
    kept = [await asyncio.open_connection("127.0.0.1", ask.port) for _ in range(2)]
    for reader, _ in kept:
        async with asyncio.timeout(3):
            assert await reader.readexactly(1)  # the server's settings: this one is served
    reader, writer = await asyncio.open_connection("127.0.0.1", ask.port)
    async with asyncio.timeout(3):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    for _, each in [*kept, (reader, writer)]:
        each.close()


async def test_messages_under_way_share_the_bound_of_bodies(ask):
    parts = EdgeParts(SIGNED)
    call = await ask(parts)
    size_bytes = len(SIGN.SerializeToString())
    parts.calls.bodies = BodyBudget(size_bytes - 1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call("Sign", SIGN)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert parts.dispatcher.asked == []
    parts.calls.bodies = BodyBudget(size_bytes)
    for _ in range(2):
        await call("Sign", SIGN)
    assert parts.calls.bodies.taken_bytes == 0


async def test_a_call_that_ends_without_a_message_is_refused(ask):
    parts = EdgeParts(SIGNED)
    await ask(parts)
    channel, [call] = await open_calls(ask.port, 1, GOOD)
    await call.done_writing()
    assert await status_of(call) is grpc.StatusCode.INVALID_ARGUMENT
    assert parts.dispatcher.asked == []
    await channel.close()
