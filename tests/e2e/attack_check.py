"""Checks sent straight to one worker's socket, as its own Envoy would send them, with a stream id of our choice."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.auth.v3 import external_auth_pb2 as auth
from envoy.service.auth.v3 import external_auth_pb2_grpc as auth_grpc

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.attack_request import Request

TIMEOUT_S = 10.0
EDGE_METADATA = "x-signet-edge-instance"
EDGE_BODY_BYTES = ("x-signet-edge-body-bytes", "131072")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason`: `allowed` or the refusal's. `subject`: what the app would be told."""

    reason: str
    receipt_id: str
    subject: str | None


def check_request(request: Request, binding: bytes | None, stream_id: str) -> auth.CheckRequest:
    """Put `request` as Envoy puts it."""
    check = auth.CheckRequest()
    http = check.attributes.request.http
    http.id, http.method, http.path, http.host = stream_id, request.method, request.target, request.authority
    http.scheme, http.protocol, http.raw_body = "https", "HTTP/2", request.body
    pseudo = ((":method", request.method), (":path", request.target), (":authority", request.authority))
    lines = [*((name, value.encode()) for name, value in pseudo), *request.headers]
    http.header_map.headers.extend(HeaderValue(key=name, raw_value=value) for name, value in lines)
    if binding is not None:
        check.attributes.metadata_context.filter_metadata["signet.tls"].update({"tls_exporter": binding.hex()})
    return check


def send_check(
    socket: Path, request: Request, binding: bytes | None, stream_id: str, edge: str = "edge-of-the-test"
) -> Verdict:
    """Ask one worker. Raises `grpc.RpcError` when it does not answer."""
    with contextlib.closing(grpc.insecure_channel(f"unix:{socket}")) as channel:
        stub = auth_grpc.AuthorizationStub(channel)
        message = check_request(request, binding, stream_id)
        response = stub.Check(message, timeout=TIMEOUT_S, metadata=((EDGE_METADATA, edge), EDGE_BODY_BYTES))
    return _verdict(response)


def _verdict(response: auth.CheckResponse) -> Verdict:
    allowed = response.status.code == 0
    assert response.WhichOneof("http_response") == ("ok_response" if allowed else "denied_response")
    options = response.ok_response.response_headers_to_add if allowed else response.denied_response.headers
    told = {each.header.key: each.header.value for each in options}
    identity = {each.header.key: each.header.value for each in response.ok_response.headers}
    if not allowed:
        assert response.denied_response.status.code >= 400
    reason = "allowed" if allowed else told["pch-reason"]
    return Verdict(reason, told["pch-receipt"].strip('"'), identity.get("x-signet-subject"))
