"""Checks as Envoy sends them, and calls to a filter's socket."""

from __future__ import annotations

from pathlib import Path

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pch.httpsig.message import RequestMessage
from tests.support.filter_parts import BINDING

CHECK = "/envoy.service.auth.v3.Authorization/Check"
CALL_TIMEOUT_S = 10.0


def check_of(message: RequestMessage, *, stream_id: str = "1001", binding: bytes | None = BINDING) -> CheckRequest:
    """Wrap `message` as Envoy would."""
    check = CheckRequest()
    http = check.attributes.request.http
    http.id, http.method, http.path = stream_id, message.method, message.target
    http.host, http.scheme = message.authority, message.scheme
    pseudo = ((":method", message.method), (":path", message.target), (":authority", message.authority))
    lines = [*((name, value.encode()) for name, value in pseudo), *message.headers]
    for name, value in lines:
        http.header_map.headers.add(key=name, raw_value=value)
    if binding is not None:
        check.attributes.metadata_context.filter_metadata["signet.tls"].update({"tls_exporter": binding.hex()})
    return check


def unsigned(target: str = "/protected", method: str = "GET") -> RequestMessage:
    return RequestMessage(method, "https", "app.example", target, ())


def refusal(response: CheckResponse) -> dict[str, str]:
    """Give the headers of a refusal; fails on a pass."""
    assert response.WhichOneof("http_response") == "denied_response", response
    assert response.status.code != 0
    assert response.denied_response.status.code >= 400
    return {option.header.key: option.header.value for option in response.denied_response.headers}


def reason_of(response: CheckResponse) -> str:
    """Give the reason code of a refusal, or `allowed`."""
    if response.WhichOneof("http_response") == "ok_response":
        assert response.status.code == 0
        return "allowed"
    return refusal(response)["pch-reason"]


def challenge_of(response: CheckResponse) -> str:
    return refusal(response)["pch-challenge"].split('"')[1]


def receipt_of(response: CheckResponse) -> str:
    """Give the receipt id that the client would see."""
    options = response.denied_response.headers or response.ok_response.response_headers_to_add
    (value,) = (each.header.value for each in options if each.header.key == "pch-receipt")
    return str(value).strip('"')


class FilterCalls:
    """Blocking calls to one filter worker."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self.raw = self._channel.unary_unary(CHECK)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> FilterCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def check(self, request: CheckRequest, **options: object) -> CheckResponse:
        return CheckResponse.FromString(self.start(request, **options).result())

    def start(self, request: CheckRequest, *, edge: str = "edge-1") -> grpc.Future:
        """Begin a call; `result()` gives the answer's bytes."""
        metadata = (("x-signet-edge-instance", edge), ("x-signet-edge-body-bytes", "131072"))
        return self.raw.future(request.SerializeToString(), CALL_TIMEOUT_S, metadata, wait_for_ready=True)

    def health(self, service: str = "") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = self._health.Check(request, timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
