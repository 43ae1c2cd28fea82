"""The Check service over a real socket: whatever goes wrong inside, Envoy hears a whole refusal."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from extproc.decision import Answer
from extproc.ext_authz import MAX_EDGE_NAME_CHARS, ExtAuthz
from extproc.request import EdgeRequest
from extproc.response import serialise
from extproc.server import FilterServer
from tests.support.check_calls import (
    CALL_TIMEOUT_S,
    CHECK,
    challenge_of,
    check_of,
    reason_of,
    receipt_of,
    refusal,
    unsigned,
)
from tests.support.filter_parts import FilterParts, KeyPair, signed_message

EDGE = "x-signet-edge-instance"


class Bench:
    """A server with real parts, whose pipeline a test may replace."""

    def __init__(self, folder: Path) -> None:
        self.key = KeyPair.new("alice")
        self.parts = FilterParts(folder, {"alice": self.key})
        self.asked: list[EdgeRequest] = []
        self.answering: Callable[[EdgeRequest], Awaitable[Answer]] = self.parts.pipeline.answer
        self.socket = folder / "signet-0.sock"
        service = ExtAuthz(self, self.parts.parts.telemetry)
        self.server = FilterServer(service, self.socket, max_body_bytes=1024, socket_mode=0o600)

    async def answer(self, request: EdgeRequest) -> Answer:
        self.asked.append(request)
        return await self.answering(request)

    async def check(self, request: CheckRequest, *metadata: tuple[str, str]) -> CheckResponse:
        return CheckResponse.FromString(await self.raw(request.SerializeToString(), *metadata))

    async def raw(self, request: bytes, *metadata: tuple[str, str]) -> bytes:
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            answer = await channel.unary_unary(CHECK)(request, timeout=CALL_TIMEOUT_S, metadata=metadata)
        return bytes(answer)

    def metric(self, name: str) -> float | None:
        return self.parts.registry.get_sample_value(name)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        made = Bench(Path(folder))
        await made.parts.start()
        await made.server.start()
        yield made
        await made.server.stop(0)
        await made.parts.stop()


async def test_signed_request_passes_with_its_identity_and_says_so_in_metadata(bench: Bench) -> None:
    challenge = challenge_of(await bench.check(check_of(unsigned())))
    response = await bench.check(check_of(signed_message(bench.key, challenge), stream_id="2"), (EDGE, "edge-7"))
    assert reason_of(response) == "allowed"
    headers = {option.header.key: option.header.value for option in response.ok_response.headers}
    assert headers["x-signet-subject"] == "alice"
    assert headers["x-signet-receipt"] == receipt_of(response)
    metadata = dict(response.dynamic_metadata.items())
    assert metadata == {
        "decision": "allow",
        "receipt": receipt_of(response),
        "route": "protected",
        "subject": "alice",
    }
    assert bench.asked[-1].edge_instance == "edge-7"
    assert bench.metric("signet_check_seconds_count") == 2


async def test_open_route_passes_and_says_so_in_metadata(bench: Bench) -> None:
    response = await bench.check(check_of(unsigned("/public")))
    assert reason_of(response) == "allowed"
    metadata = dict(response.dynamic_metadata.items())
    stored = bench.parts.store.get(metadata.pop("receipt"))
    assert stored is not None
    assert (stored.decision, stored.reason) == ("allow", "unguarded")
    assert metadata == {"decision": "allow", "route": "open"}


async def test_same_challenge_on_another_edge_with_the_same_stream_id_is_a_replay(bench: Bench) -> None:
    challenge = challenge_of(await bench.check(check_of(unsigned())))
    signed = check_of(signed_message(bench.key, challenge))
    first = await bench.check(signed, (EDGE, "edge-1"))
    retried = await bench.check(signed, (EDGE, "edge-1"))
    elsewhere = await bench.check(signed, (EDGE, "edge-2"))
    assert [reason_of(each) for each in (first, retried, elsewhere)] == ["allowed", "allowed", "nonce_replay"]
    assert receipt_of(first) == receipt_of(retried) != receipt_of(elsewhere)


async def test_name_of_the_edge_is_bounded_and_empty_without_metadata(bench: Bench) -> None:
    await bench.check(check_of(unsigned()), ("x-other", "a"), (EDGE, "e" * 1000))
    await bench.check(check_of(unsigned()), ("x-other", "a"))
    assert [len(each.edge_instance) for each in bench.asked] == [MAX_EDGE_NAME_CHARS, 0]


@pytest.mark.parametrize("unnamed", [(), ((EDGE, ""),), ((EDGE, "-"),)], ids=["absent", "empty", "unset in Envoy"])
async def test_edge_without_a_name_is_told_of_once(
    bench: Bench, caplog: pytest.LogCaptureFixture, unnamed: tuple[tuple[str, str], ...]
) -> None:
    await bench.check(check_of(unsigned()), (EDGE, "edge-1"))
    assert "SIGNET_EDGE_INSTANCE" not in caplog.text
    for _ in range(3):
        assert reason_of(await bench.check(check_of(unsigned()), *unnamed)) == "missing_signature"
    told = [each for each in caplog.records if "SIGNET_EDGE_INSTANCE" in each.getMessage()]
    assert [each.levelname for each in told] == ["WARNING"]
    assert [each.edge_instance for each in bench.asked] == ["edge-1", "", "", ""]


UNDECODABLE = {
    "nothing at all": CheckRequest(),
    "no raw header lines": CheckRequest(
        attributes={"request": {"http": {"id": "1", "method": "GET", "path": "/", "headers": {"a": "b"}}}}
    ),
}


@pytest.mark.parametrize("name", UNDECODABLE)
async def test_check_that_cannot_be_decoded_is_refused_and_counted(bench: Bench, name: str) -> None:
    response = await bench.check(UNDECODABLE[name])
    assert response.denied_response.status.code == 503
    assert refusal(response)["pch-reason"] == "internal"
    assert bench.metric("signet_undecodable_checks_total") == 1
    assert not bench.asked


async def test_bytes_that_are_no_message_are_an_error_of_the_call(bench: Bench) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await bench.raw(b"\xff\xff\xff")
    assert reason_of(await bench.check(check_of(unsigned()))) == "missing_signature"


async def test_decoder_that_breaks_is_a_refusal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> EdgeRequest:
        raise RecursionError

    monkeypatch.setattr("extproc.ext_authz.decode_check", broken)
    assert reason_of(await bench.check(check_of(unsigned()))) == "internal"


async def test_pipeline_that_breaks_is_a_refusal(bench: Bench) -> None:
    async def broken(_request: EdgeRequest) -> Answer:
        raise RuntimeError("a secret")

    bench.answering = broken
    response = await bench.check(check_of(unsigned()))
    assert reason_of(response) == "internal"
    assert b"secret" not in response.SerializeToString()


async def test_answer_that_cannot_be_built_is_a_refusal(bench: Bench) -> None:
    async def nothing(_request: EdgeRequest) -> Answer:
        return None  # type: ignore[return-value]

    bench.answering = nothing
    assert reason_of(await bench.check(check_of(unsigned()))) == "internal"


def struct(**values: str) -> Struct:
    made = Struct()
    made.update(values)
    return made


OK, DENIED = Status(code=0), Status(code=7)
SAID = struct(decision="allow")
NOT_WHOLE = {
    "no answer": None,
    "bytes": b"",
    "empty": CheckResponse(),
    "a status alone, OK": CheckResponse(status=OK),
    "a status alone, denied": CheckResponse(status=DENIED),
    "denied without an HTTP status": CheckResponse(status=DENIED, denied_response=DeniedHttpResponse()),
    "denied with 200": CheckResponse(
        status=DENIED,
        denied_response=DeniedHttpResponse(status=HttpStatus(code=200)),
    ),
    "denied with status OK": CheckResponse(
        status=OK,
        denied_response=DeniedHttpResponse(status=HttpStatus(code=403)),
    ),
    "denied without a status": CheckResponse(denied_response=DeniedHttpResponse(status=HttpStatus(code=403))),
    "passed with a bad status": CheckResponse(status=DENIED, ok_response=OkHttpResponse(), dynamic_metadata=SAID),
    "passed without saying so": CheckResponse(status=OK, ok_response=OkHttpResponse()),
    "passed saying otherwise": CheckResponse(
        status=OK, ok_response=OkHttpResponse(), dynamic_metadata=struct(decision="deny")
    ),
    "an error response": CheckResponse(status=OK, error_response=DeniedHttpResponse()),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
async def test_what_envoy_could_take_for_a_pass_goes_out_as_a_refusal(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("extproc.ext_authz.check_response", lambda _answer: NOT_WHOLE[name])
    response = await bench.check(check_of(unsigned()))
    assert refusal(response)["pch-reason"] == "internal"
    assert response.denied_response.status.code == 503


@given(
    status=st.none() | st.integers(0, 16),
    kind=st.sampled_from([None, "ok_response", "denied_response", "error_response"]),
    http=st.sampled_from([0, 100, 200, 204, 302, 400, 401, 403, 503]),
    said=st.none() | st.sampled_from(["allow", "deny", ""]),
)
def test_nothing_but_a_whole_pass_or_a_whole_refusal_ever_leaves(
    status: int | None, kind: str | None, http: int, said: str | None
) -> None:
    response = CheckResponse()
    if status is not None:
        response.status.code = status
    if kind == "ok_response":
        response.ok_response.SetInParent()
    elif kind is not None:
        getattr(response, kind).status.code = http
    if said is not None:
        response.dynamic_metadata.update({"decision": said})
    sent = CheckResponse.FromString(serialise(response))
    if sent.WhichOneof("http_response") == "ok_response":
        assert (status or 0, kind, said) == (0, "ok_response", "allow")
        assert sent == response
    else:
        assert sent.WhichOneof("http_response") == "denied_response"
        assert sent.status.code != 0
        # The verifier's own 204 is a denial too: Envoy answers it and asks no one else.
        assert sent.denied_response.status.code >= 400 or (sent == response and http == 204)
