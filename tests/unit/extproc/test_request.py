"""Decoding Envoy's Check: raw lines in, one frozen request out."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from extproc.request import UndecodableRequest, decode_check

HEX = "00" * 31 + "ff"
PSEUDO = [(":method", b"GET"), (":path", b"/a?b=c"), (":authority", b"App.example:443")]


def check(headers: list[tuple[str, bytes]] | None = None, exporter: object = HEX, **http: Any) -> CheckRequest:
    request = CheckRequest()
    values = {"id": "77", "scheme": "https"} | http
    for name, value in values.items():
        setattr(request.attributes.request.http, name, value)
    lines = [("x-a", b"1")] if headers is None else headers
    given = {name for name, _ in lines}
    for name, value in [*(each for each in PSEUDO if each[0] not in given), *lines]:
        request.attributes.request.http.header_map.headers.add(key=name, raw_value=value)
    if exporter is not None:
        request.attributes.metadata_context.filter_metadata["signet.tls"].update({"tls_exporter": exporter})
    return request


def test_decodes_what_the_edge_vouches_for() -> None:
    request = decode_check(check(), "edge-1")
    assert request.message.method == "GET"
    assert request.message.target == "/a?b=c"
    assert request.message.authority == "App.example:443"
    assert request.message.headers == (("x-a", b"1"),)
    assert (request.stream_id, request.edge_instance) == ("77", "edge-1")
    assert request.binding == bytes(31) + b"\xff"
    assert not request.has_content


def test_repeated_lines_stay_apart_and_in_order_with_their_raw_bytes() -> None:
    lines = [("x-a", b"1"), ("x-b", b"\xff\xfe"), ("x-a", b" 2")]
    assert decode_check(check(lines), "").message.headers == tuple(lines)


@pytest.mark.parametrize(
    "exporter", [None, "", HEX[:-1], HEX + "0", HEX.upper(), HEX[:-1] + "g", " " + HEX[1:], HEX + "\n", 7.0, True]
)
def test_anything_but_64_lower_hex_digits_is_no_binding(exporter: object) -> None:
    assert decode_check(check(exporter=exporter), "").binding is None


def test_binding_is_never_taken_from_another_namespace_or_a_header() -> None:
    request = check([("x-signet-tls", HEX.encode()), ("tls_exporter", HEX.encode())], exporter=None)
    request.attributes.metadata_context.filter_metadata["signet.other"].update({"tls_exporter": HEX})
    request.attributes.metadata_context.filter_metadata["signet.tls"].update({"other": HEX})
    assert decode_check(request, "").binding is None


@pytest.mark.parametrize(("value", "streamed"), [(None, False), ("", False), ("whole", False), ("streamed", True)])
def test_the_edge_tells_which_of_its_routes_stream_content(value: str | None, streamed: bool) -> None:
    request = check([("signet_content", b"streamed"), ("x-signet-content", b"streamed")])
    if value is not None:
        request.attributes.context_extensions["signet_content"] = value
    assert decode_check(request, "").streamed is streamed


@pytest.mark.parametrize("request_", [check(id=""), check([(":method", b"")]), check([(":path", b"")]), CheckRequest()])
def test_check_without_its_essentials_is_undecodable(request_: CheckRequest) -> None:
    with pytest.raises(UndecodableRequest):
        decode_check(request_, "")


def test_check_without_raw_header_lines_is_undecodable() -> None:
    """With encode_raw_headers off there are only strings, which are not what goes upstream."""
    lossy = CheckRequest()
    http = lossy.attributes.request.http
    http.id, http.method, http.path, http.host = "1", "GET", "/a", "app.example"
    http.headers["x-a"] = "1"
    with pytest.raises(UndecodableRequest):
        decode_check(lossy, "")


@pytest.mark.parametrize("name", [":path", ":method", ":authority"])
def test_pseudo_header_twice_is_undecodable(name: str) -> None:
    with pytest.raises(UndecodableRequest):
        decode_check(check([(name, b"/a"), (name, b"/b")]), "")


def test_target_and_authority_are_the_raw_bytes_and_not_envoys_lossy_strings() -> None:
    made = check(
        [(":path", b"/caf\xe9"), (":authority", b"a\xff.example")], path="/caf!", host="a!.example", method="POST"
    )
    message = decode_check(made, "").message
    assert message.target == "/caf\u00e9"
    assert message.authority == "a\u00ff.example"
    assert message.method == "GET"


@pytest.mark.parametrize(
    ("lines", "body", "content"),
    [
        ([("x", b"")], b"", False),
        ([("content-length", b"0")], b"", False),
        ([("content-length", b"5")], b"", True),
        ([("x", b"")], b"z", True),
        ([("x-envoy-auth-partial-body", b"false")], b"", False),
        ([("x-envoy-auth-partial-body", b"true")], b"", True),
        ([("x-envoy-auth-partial-body", b"")], b"", True),
        ([("x-envoy-auth-partial-body", b"false"), ("x-envoy-auth-partial-body", b"true")], b"", True),
    ],
)
def test_content_exists_unless_the_edge_proves_otherwise(
    lines: list[tuple[str, bytes]], body: bytes, content: bool
) -> None:
    request = decode_check(check([(":method", b"GET"), *lines], raw_body=body), "")
    assert request.has_content is content
    assert not request.message.lines("x-envoy-auth-partial-body")


@pytest.mark.parametrize("value", [b"", b"-1", b"+1", b"1 ", b"0x1", b"9" * 19, "\u0661".encode()])
def test_content_length_that_is_no_number_is_undecodable(value: bytes) -> None:
    with pytest.raises(UndecodableRequest):
        decode_check(check([("content-length", value)]), "")


def test_header_bytes_are_names_values_and_four_each() -> None:
    lines = [(":method", b"GET"), (":path", b"/a"), (":authority", b"h"), ("ab", b"cde")]
    assert decode_check(check(lines), "").header_bytes == (7 + 3 + 4) + (5 + 2 + 4) + (10 + 1 + 4) + (2 + 3 + 4)


@pytest.mark.parametrize(
    ("value", "trace_id"),
    [
        (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", "a" * 32),
        (b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01", None),
        (b"00-" + b"A" * 32 + b"-" + b"b" * 16 + b"-01", None),
        (b"garbage", None),
        (b"\xff" * 40, None),
        (b"x" * 200, None),
    ],
)
def test_trace_id_comes_from_a_valid_traceparent_only(value: bytes, trace_id: str | None) -> None:
    assert decode_check(check([("traceparent", value)]), "").trace_id == trace_id


@pytest.mark.parametrize(
    ("value", "is_grpc"), [(b"application/grpc", True), (b"application/grpc+proto", True), (b"application/json", False)]
)
def test_grpc_is_told_by_its_content_type(value: bytes, is_grpc: bool) -> None:
    assert decode_check(check([("content-type", value)]), "").is_grpc is is_grpc
