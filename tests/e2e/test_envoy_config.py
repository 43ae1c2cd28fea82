"""envoy/envoy.yaml on the real Envoy: what the edge refuses and removes on every route (PCH §1.2).

The filter is a stand-in that allows everything unless told otherwise, so every refusal seen here is the edge's own.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.e2e.stack_client import DoubleStack, double_stack
from tools.stack_certs import ensure_server_certificate
from tools.stack_envoy import ENVOY_YAML, TLS_MODULE, envoy_binary, http_connection_manager
from tools.stack_parts import build_tls_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleStack]:
    with double_stack(tmp_path_factory.mktemp("e")) as double:
        yield double


@pytest.fixture(scope="module")
def edge_to_http2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleStack]:
    with double_stack(tmp_path_factory.mktemp("e"), upstream="http2") as double:
        yield double


def test_the_committed_file_is_valid_as_it_stands(tmp_path: Path) -> None:
    build_tls_module()
    ensure_server_certificate(tmp_path)
    command = [str(envoy_binary()), "--mode", "validate", "-c", str(ENVOY_YAML)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(TLS_MODULE.parent)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "deprecated" not in done.stderr.lower()


def test_admin_is_on_loopback_and_the_filter_cannot_fail_open() -> None:
    document = yaml.safe_load(ENVOY_YAML.read_text())
    assert document["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 9901}
    manager = http_connection_manager(document["static_resources"]["listeners"][0])
    filters = [each["name"] for each in manager["http_filters"]]
    assert filters[0] == "envoy.filters.http.dynamic_modules"
    bodies = ["signet.body", "signet.body_length", "signet.body_in_hand"]
    assert filters[-6:] == [
        "envoy.filters.http.ext_authz",
        "envoy.filters.http.rbac",
        *bodies,
        "envoy.filters.http.router",
    ]
    authz = manager["http_filters"][-6]["typed_config"]
    assert not authz["failure_mode_allow"]
    proc = _ext_proc(manager["http_filters"][-4])
    assert not proc["failure_mode_allow"]
    assert not proc["allow_mode_override"]
    assert "request_attributes" not in proc
    told = {each["key"]: each["value"] for each in authz["grpc_service"]["initial_metadata"]}
    assert told["x-signet-edge-body-bytes"] == str(authz["with_request_body"]["max_request_bytes"])
    assert "filter_enabled" not in authz
    disabled = [
        route["name"]
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]
        for settings in route.get("typed_per_filter_config", {}).values()
        if settings.get("disabled")
    ]
    assert disabled == ["early_data"], "only a route that answers by itself may leave the filter out"


def _ext_proc(composite: dict[str, Any]) -> dict[str, Any]:
    tree = composite["typed_config"]["xds_matcher"]["matcher_tree"]
    (action,) = tree["exact_match_map"]["map"].values()
    config: dict[str, Any] = action["action"]["typed_config"]["typed_config"]["typed_config"]
    return config


# -- headers

FORGED = [
    "x-signet-subject", "X-Signet-Subject", "x-signet-key-id", "x-signet-body", "x-signet-receipt", "x-signet-anything",
    "x-original-url", "x-original-uri", "x-rewrite-url", "x-http-method-override", "x-http-method",
    "x-method-override", "x-forwarded-host",
    "x-forwarded-prefix", "x-forwarded-port", "x-original-host", "x-host", "forwarded", "proxy", "x-envoy-retry-on",
    "x-envoy-max-retries", "x-envoy-original-path", "x-envoy-upstream-rq-timeout-ms", "x-envoy-internal",
    "x-envoy-auth-partial-body",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/protected/a", "/public/a"])
@pytest.mark.parametrize("name", FORGED)
def test_header_that_is_not_the_clients_to_send_reaches_neither_filter_nor_app(
    edge: DoubleStack, name: str, path: str
) -> None:
    with edge.watch() as seen:
        first = edge.get(path, f"{name}: forged", f"{name}: forged")
        second = edge.http2(path, [(name.lower(), "forged")])
    assert (first.status, second.status) == (200, 200)
    assert len(seen.app) == len(seen.checks) == 2
    for each in [*seen.app, *seen.checks]:
        assert not [value for _, value in each["headers"] if "forged" in value]


def test_ordinary_headers_pass_as_raw_lines(edge: DoubleStack) -> None:
    with edge.watch() as seen:
        edge.get("/a", "X-Twice: one", "X-Twice: two, three", "X-Latin: caf\xe9", "X-Empty:")
    (check,) = seen.checks
    lines = [(name, value) for name, value in check["headers"] if name.startswith("x-")]
    assert ("x-twice", "one") in lines
    assert ("x-twice", "two, three") in lines
    assert ("x-latin", "caf\xe9") in lines
    assert ("x-empty", "") in lines
    assert not check["plain_headers"], "the merged map is not sent beside the raw lines"


def test_app_sees_the_filters_identity_header_even_if_connection_names_it(edge: DoubleStack) -> None:
    with edge.watch() as seen:
        edge.get("/a", "Connection: close, x-signet-subject", "x-signet-subject: forged")
        edge.get("/a", "Connection: x-signet-subject, keep-alive", "Keep-Alive: x")
    for each in seen.app:
        assert [value for name, value in each["headers"] if name == "x-signet-subject"] == ["from-the-filter"]
        assert "connection" not in dict(each["headers"])
    assert len(seen.app) == 2


@pytest.mark.parametrize("name", ["x_signet_subject", "X_Signet-Subject", "a_b"])
@pytest.mark.parametrize("path", ["/protected", "/public"])
def test_header_name_with_underscore_is_refused(edge: DoubleStack, name: str, path: str) -> None:
    with edge.watch() as seen:
        assert edge.get(path, f"{name}: forged").status == 400
        assert edge.http2(path, [(name.lower(), "forged")]).status in {0, 400}
    assert not seen.checks
    assert not seen.app


TRAILERS = [("x-signet-subject", "forged"), ("x-other", "forged")]


def test_request_trailers_end_at_the_edge(edge: DoubleStack, edge_to_http2: DoubleStack) -> None:
    chunked = (
        "POST /protected HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-signet-subject\r\n\r\n"
        "1\r\nb\r\n0\r\nx-signet-subject: forged\r\n\r\n"
    )
    for double in (edge, edge_to_http2):
        with double.watch() as seen:
            assert double.http1(chunked.encode()).status in {200, 400}
            assert double.http2("/protected", method="POST", body=b"b", trailers=TRAILERS).status == 200
            assert double.http2("/public", method="POST", trailers=TRAILERS).status == 200
        assert len(seen.app) >= 2
        for each in seen.app:
            assert not [value for _, value in [*each["headers"], *each["trailers"]] if "forged" in value]


def test_answer_of_the_app_cannot_speak_for_the_verifier(edge: DoubleStack) -> None:
    names = ["alt-svc", "pch-receipt", "pch-reason", "pch-relax", "accept-signature", "pch-challenge", "x-app"]
    query = "&".join(f"header={name}:forged" for name in names)
    for path in ("/protected", "/public"):
        answer = edge.get(f"{path}?{query}")
        assert [name for name, value in answer.headers if value == "forged"] == ["x-app"]
        assert answer.all("pch-challenge") == ['"from-the-filter"']


# -- requests of a kind that has no place here


@pytest.mark.parametrize("path", ["/protected", "/public"])
def test_early_data_is_too_early_and_spends_nothing(edge: DoubleStack, path: str) -> None:
    with edge.watch() as seen:
        answers = [edge.get(path, "Early-Data: 1"), edge.http2(path, [("early-data", "1")])]
    assert [answer.status for answer in answers] == [425, 425]
    assert answers[0].problem()["status"] == 425
    assert not seen.checks
    assert not seen.app


@pytest.mark.parametrize(
    "lines",
    [
        ["Connection: Upgrade", "Upgrade: websocket"],
        ["Connection: keep-alive, upgrade", "Upgrade: WebSocket"],
        ["Connection: upgrade, x-signet-subject", "Upgrade: foo"],
        ["Connection: Upgrade", "Upgrade: TLS/1.3"],
    ],
)
@pytest.mark.parametrize("path", ["/protected", "/public"])
def test_upgrade_is_refused(edge: DoubleStack, lines: list[str], path: str) -> None:
    with edge.watch() as seen:
        answer = edge.get(path, *lines)
    assert answer.status == 403
    assert answer.get("pch-reason") == "upgrade_refused"
    assert answer.problem()["reason"] == "upgrade_refused"
    assert not seen.app


def test_upgrade_to_cleartext_http2_is_not_made(edge: DoubleStack) -> None:
    lines = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    with edge.watch() as seen:
        answer = edge.get("/protected", *lines)
    assert answer.status in {200, 403}
    for each in seen.app:
        assert not {"upgrade", "http2-settings", "connection"} & {name for name, _ in each["headers"]}


def test_connect_is_refused(edge: DoubleStack) -> None:
    extended = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", "/protected"),
    ]
    with edge.watch() as seen:
        answer = edge.http1(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", method="CONNECT")
        plain = edge.http2("", pseudo=[(":method", "CONNECT"), (":authority", "example.org:443")])
        assert edge.http2("", pseudo=extended).status in {0, 403}
    for each in (answer, plain):
        assert each.status == 403
        assert each.get("pch-reason") == "upgrade_refused"
    assert not seen.app


MALFORMED = {
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nbody",
    "length and chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunked twice": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost: a\r\nX-A : b\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n",
    "two hosts in one": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "user in host": b"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n",
    "path in host": b"GET / HTTP/1.1\r\nHost: a/../b\r\n\r\n",
    "absolute form of another connection": b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_request_is_refused_without_the_app(edge: DoubleStack, raw: bytes) -> None:
    with edge.watch() as seen:
        answer = edge.http1(raw)
    assert answer.status in {0, 400, 403, 404, 426, 501}
    assert answer.get("pch-reason") in {None, "ambiguous_path"}
    if answer.body:
        assert answer.problem()["status"] == answer.status
    assert not seen.app


@pytest.mark.parametrize("authority", ["a,b", "u@h", "", "a b"])
def test_authority_that_is_not_one_host_is_refused_over_http2(edge: DoubleStack, authority: str) -> None:
    pseudo = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", authority)]
    with edge.watch() as seen:
        assert edge.http2("/", pseudo=pseudo).status in {0, 400}
    assert not seen.app


@pytest.mark.parametrize("authority", ["a", "A.example:8443", "[::1]:443", "127.0.0.1", "a_b.test"])
def test_ordinary_authority_reaches_filter_and_app_unchanged(edge: DoubleStack, authority: str) -> None:
    with edge.watch() as seen:
        assert edge.http1(f"GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()).status == 200
    assert [each["host"] for each in seen.checks] == [each["authority"] for each in seen.app] == [authority]


@pytest.mark.parametrize("value", ["b\r\n c", "b\rc", "b\tc"])
def test_odd_white_space_reads_the_same_to_filter_and_app(edge: DoubleStack, value: str) -> None:
    with edge.watch() as seen:
        edge.http1(f"GET / HTTP/1.1\r\nHost: a\r\nX-A: {value}\r\n\r\n".encode())
    assert [dict(each["headers"])["x-a"] for each in seen.checks] == [dict(each["headers"])["x-a"] for each in seen.app]


def test_absolute_form_gives_filter_and_app_the_same_authority(edge: DoubleStack) -> None:
    with edge.watch() as seen:
        edge.http1(b"GET http://inner.test/protected HTTP/1.1\r\nHost: outer.test\r\n\r\n")
    hosts = {each["host"] for each in seen.checks} | {each["authority"] for each in seen.app}
    assert len(hosts) <= 1
    assert all(each["target"] == "/protected" for each in seen.app)


def test_expect_continue_is_answered_and_the_request_goes_through(edge: DoubleStack) -> None:
    with edge.watch() as seen:
        answer = edge.get("/protected", "Expect: 100-continue", method="POST", body=b"body")
    assert answer.status == 200
    assert [each["body_bytes"] for each in seen.app] == [4]


# -- what the app may believe about the connection


def test_app_and_filter_see_https_and_the_real_peer(edge: DoubleStack) -> None:
    with edge.watch() as seen:
        edge.get("/a", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: http", "X-Request-Id: chosen-by-client")
        edge.http2("/a", [("x-forwarded-proto", "http")])
    for each in seen.app:
        headers = dict(each["headers"])
        assert headers["x-forwarded-proto"] == "https"
        assert not headers["x-forwarded-for"].endswith("203.0.113.9")
        assert headers["x-request-id"] != "chosen-by-client"
        assert "x-envoy-internal" not in headers
    for each in seen.checks:
        assert each["scheme"] == "https"
        assert re.fullmatch("[0-9a-f]{64}", each["binding"]["signet.tls"]["tls_exporter"])


def test_edge_names_itself_and_each_stream_to_the_filter(edge: DoubleStack) -> None:
    with edge.watch() as seen:
        edge.get("/a")
        edge.get("/a")
    first, second = seen.checks
    assert first["call"]["x-signet-edge-instance"] == second["call"]["x-signet-edge-instance"]
    assert re.fullmatch(r"[0-9a-f-]{36}", first["call"]["x-signet-edge-instance"])
    assert first["id"] != second["id"]
    edge.stack.restart_part("envoy")
    with edge.watch() as later:
        edge.get("/a")
    assert later.checks[0]["call"]["x-signet-edge-instance"] != first["call"]["x-signet-edge-instance"]


def test_access_log_holds_no_query_and_no_header_but_says_what_happened(edge: DoubleStack) -> None:
    edge.get("/a?secret=1", "Authorization: secret")
    edge.get("/a/../b?secret=1")
    log = edge.stack.files.logs / "envoy.log"
    edge.stack.stop_part("envoy")  # flushes
    edge.stack.start_part("envoy")
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert "secret" not in log.read_text()
    assert ("/a", 200) in {(line["path"], line["status"]) for line in lines}
    refused = [line for line in lines if line["path"] == "/a/../b"]
    assert refused[-1]["status"] == 400
    assert refused[-1]["reason"] == "ambiguous_path"
