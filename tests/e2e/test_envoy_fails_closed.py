"""envoy/envoy.yaml on the real Envoy: bodies, limits, faults of filter and app, retries, and Envoy's own answers."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.stack_client import TIMEOUT_S, Answer, DoubleStack, change, double_stack, manager_of, read_http1
from tools.stack_envoy import http_connection_manager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

LIMIT_BYTES = 131072
GRPC = ("content-type", "application/grpc")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleStack]:
    with double_stack(tmp_path_factory.mktemp("e")) as double:
        yield double


@pytest.fixture
def edge(running: DoubleStack) -> Iterator[DoubleStack]:
    running.filter_will("allow")
    yield running
    running.filter_will("allow")


@pytest.fixture
def broken_edge(tmp_path: Path) -> Iterator[DoubleStack]:
    """A stack of its own, for tests that kill parts of it."""
    with double_stack(tmp_path) as double:
        yield double


def marked_cut(check: dict[str, object]) -> bool:
    return ["x-envoy-auth-partial-body", "true"] in check["headers"]  # type: ignore[operator]


def body_of(check: dict[str, object]) -> bytes:
    return base64.b64decode(str(check["body_base64"]))


# -- bodies


@pytest.mark.parametrize("size", [0, 1, 1000, 16384, LIMIT_BYTES - 1, LIMIT_BYTES])
def test_whole_body_of_a_guarded_request_goes_with_the_question(edge: DoubleStack, size: int) -> None:
    body = os.urandom(size)
    chunked = f"{size:x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if size else b"0\r\n\r\n"
    head = b"POST /protected HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with edge.watch() as seen:
        answers = [
            edge.get("/protected", method="POST", body=body),
            edge.http1(head + chunked),
            edge.http2("/protected", method="POST", body=body),
        ]
    assert [answer.status for answer in answers] == [200] * 3
    assert [body_of(check) for check in seen.checks] == [body] * 3
    assert not any(marked_cut(check) for check in seen.checks)
    assert [each["body_bytes"] for each in seen.app] == [size] * 3


@pytest.mark.parametrize("size", [LIMIT_BYTES + 1, LIMIT_BYTES + 2000, 2 * LIMIT_BYTES, 3 * LIMIT_BYTES, 1_000_000])
@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_of_a_body_over_the_limit_the_filter_gets_just_so_much(edge: DoubleStack, size: int, protocol: str) -> None:
    body = os.urandom(size)
    with edge.watch() as seen:
        if protocol == "http1":
            edge.get("/protected", method="POST", body=body)
        else:
            edge.http2("/protected", method="POST", body=body)
    (check,) = seen.checks
    assert body_of(check) == body[:LIMIT_BYTES]


def test_body_that_fills_the_limit_is_not_marked_although_more_follows(edge: DoubleStack) -> None:
    """Why the filter takes no body of unknown length for whole unless it is below the limit."""
    head = b"POST /protected HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with edge.watch() as seen, edge.tls("http/1.1") as connection:
        before, deadline = len(edge.checks()), time.monotonic() + TIMEOUT_S
        connection.sendall(head + b"%x\r\n" % LIMIT_BYTES + bytes(LIMIT_BYTES) + b"\r\n")
        while len(edge.checks()) == before:
            assert time.monotonic() < deadline, "the filter is not asked before the body's end"
            time.sleep(0.02)
        connection.sendall(b"5\r\nextra\r\n0\r\n\r\n")
        answer = read_http1(connection, "POST")
    assert answer.status == 200
    (check,) = seen.checks
    assert len(body_of(check)) == LIMIT_BYTES
    assert not marked_cut(check)
    assert [each["body_bytes"] for each in seen.app] == [LIMIT_BYTES + 5]


def test_edge_that_hands_over_no_cut_bodies_refuses_with_a_reason(broken_edge: DoubleStack) -> None:
    """For those who let nothing stream: the mappers of local_reply_config hold there too."""

    def whole_only(document: dict[str, Any]) -> None:
        (authz,) = [each for each in manager_of(document)["http_filters"] if each["name"].endswith("ext_authz")]
        authz["typed_config"]["with_request_body"]["allow_partial_message"] = False

    change(broken_edge, whole_only)
    body = bytes(1_000_000)
    with broken_edge.watch() as seen:
        answers = [
            broken_edge.get("/protected", method="POST", body=body),
            broken_edge.http2("/protected", method="POST", body=body),
        ]
        grpc = broken_edge.http2("/protected", [GRPC], method="POST", body=body)
    for answer in answers:
        assert (answer.status, answer.get("pch-reason")) == (413, "body_too_large")
        assert answer.problem()["reason"] == "body_too_large"
    assert grpc.get("grpc-status") == "8"
    assert not seen.checks
    assert not seen.app


# -- bodies that are to be seen through


def uploads(edge: DoubleStack, body: bytes) -> list[Answer]:
    return [edge.get("/protected", method="POST", body=body), edge.http2("/protected", method="POST", body=body)]


def test_body_that_the_filter_sees_through_arrives(edge: DoubleStack) -> None:
    edge.filter_will("order")
    body = os.urandom(1_000_000)
    with edge.watch() as seen:
        assert [answer.status for answer in uploads(edge, body)] == [200, 200]
    assert [each["body_bytes"] for each in seen.app] == [len(body)] * 2


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_stream_that_ends_without_a_word_at_the_header_lets_nothing_through(edge: DoubleStack, size: int) -> None:
    """Envoy takes it for a pass: what stands in the way is the filter behind."""
    edge.filter_will("order_close_header")
    with edge.watch() as seen:
        for answer in uploads(edge, bytes(size)):
            refused_as_unavailable(answer)
    assert not seen.app


def test_stream_that_ends_without_an_error_amid_a_body_lets_the_rest_through(edge: DoubleStack) -> None:
    """The trap that the filter keeps out of by ending every stream it did not finish in an error: nothing at the edge
    would stop a request that goes on with a hole in its body."""
    edge.filter_will("order_close_body")
    body = bytes(1_000_000)
    with edge.watch() as seen:
        answer = edge.http1(
            b"POST /protected HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
            method="POST",
        )
    assert answer.status == 200
    assert [each["body_bytes"] < len(body) for each in seen.app] == [True]


def test_content_of_a_get_is_shown_to_the_filter(edge: DoubleStack) -> None:
    chunked = b"GET /protected HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    with edge.watch() as seen:
        edge.http1(chunked)
        edge.http2("/protected", body=b"hello")
        edge.get("/protected", "Content-Length: 5", body=b"")
    assert [body_of(check) for check in seen.checks[:2]] == [b"hello", b"hello"]


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_open_route_streams_and_still_shows_that_there_is_content(edge: DoubleStack, protocol: str) -> None:
    body = os.urandom(5_000_000)
    with edge.watch() as seen:
        if protocol == "http1":
            answer = edge.get("/public?bytes=5000000", method="POST", body=body)
        else:
            answer = edge.http2("/public?bytes=5000000", method="POST", body=body)
    assert answer.status == 200
    assert len(answer.body) == 5_000_000
    assert [each["body_bytes"] for each in seen.app] == [len(body)]
    (check,) = seen.checks
    assert marked_cut(check)
    assert len(body_of(check)) == 1


def test_one_byte_on_an_open_route_is_whole(edge: DoubleStack) -> None:
    with edge.watch() as seen:
        edge.get("/public", method="POST", body=b"b")
        edge.get("/publicity", method="POST", body=b"not under /public")
    assert [body_of(check) for check in seen.checks] == [b"b", b"not under /public"]


# -- header limits


def test_headers_up_to_the_filters_own_cap_reach_the_filter(edge: DoubleStack) -> None:
    value = "v" * 52_000  # the filter refuses past 49152, with a receipt
    with edge.watch() as seen:
        edge.get("/protected", f"X-Long: {value}")
        edge.http2("/protected", [("x-long", value)])
    assert len(seen.checks) == 2
    assert all(dict(check["headers"])["x-long"] == value for check in seen.checks)


@pytest.mark.parametrize("lines", [["X-Long: " + "v" * 70_000], [f"X-{number}: v" for number in range(150)]])
def test_headers_past_the_edges_limit_are_431_without_the_filter(edge: DoubleStack, lines: list[str]) -> None:
    pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    with edge.watch() as seen:
        answer = edge.get("/protected", *lines)
        assert edge.http2("/protected", pairs).status in {0, 431}
    assert answer.status == 431
    assert answer.get("pch-reason") == "header_too_large"
    assert answer.problem()["reason"] == "header_too_large"
    assert not seen.checks
    assert not seen.app


# -- the filter's answers


def test_refusal_passes_exactly_as_the_filter_wrote_it(edge: DoubleStack) -> None:
    edge.filter_will("deny")
    with edge.watch() as seen:
        answer = edge.get("/protected")
        head = edge.get("/protected", method="HEAD")
        edge.http2("/public")
    assert not seen.app
    assert answer.status == 401
    assert answer.get("www-authenticate") == 'PCH realm="signet"'
    assert answer.all("pch-reason") == ["missing_signature"]
    assert answer.problem() == {"title": "Unauthorized", "status": 401, "reason": "missing_signature"}
    assert (head.status, head.body) == (401, b"")


def refused_as_unavailable(answer: Answer) -> None:
    assert answer.status == 503
    assert answer.get("pch-reason") == "internal"
    assert answer.get("retry-after") == "1"
    assert answer.get("cache-control") == "no-store"
    assert answer.problem()["reason"] == "internal"


@pytest.mark.parametrize("path", ["/protected", "/public"])
@pytest.mark.parametrize(
    "behaviour", ["error", "bad_mutation", "hang", "empty", "no_status", "undecided", "wrongly_decided"]
)
def test_answer_that_is_not_a_decision_lets_nothing_through(edge: DoubleStack, behaviour: str, path: str) -> None:
    edge.filter_will(behaviour)
    began = time.monotonic()
    with edge.watch() as seen:
        answer = edge.get(path)
    refused_as_unavailable(answer)
    assert not seen.app
    assert time.monotonic() - began < 5


def test_without_its_guards_the_same_edge_lets_all_of_it_through(tmp_path: Path) -> None:
    """The twin: with these settings taken out, what the tests here and in test_envoy_config refuse reaches the app."""
    with double_stack(tmp_path, upstream="http2") as open_edge:
        config = open_edge.stack.files.envoy
        document = json.loads(config.read_text())
        manager = http_connection_manager(document["static_resources"]["listeners"][0])
        guards = {"envoy.filters.http.rbac", "envoy.filters.http.header_mutation"}
        manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] not in guards]
        del manager["early_header_mutation_extensions"]
        manager["common_http_protocol_options"].pop("headers_with_underscores_action")
        (host,) = manager["route_config"]["virtual_hosts"]
        host["routes"] = [route for route in host["routes"] if "route" in route]
        config.write_text(json.dumps(document))
        open_edge.stack.restart_part("envoy")
        for behaviour in ("empty", "no_status", "undecided", "wrongly_decided"):
            open_edge.filter_will(behaviour)
            with open_edge.watch() as seen:
                assert open_edge.get("/protected").status == 200
            assert len(seen.app) == 1
        open_edge.filter_will("allow")
        with open_edge.watch() as seen:
            forged = [("x-original-url", "forged"), ("x_signet_subject", "forged"), ("early-data", "1")]
            trailers = [("x-signet-subject", "forged")]
            open_edge.http2("/a/../b", forged, method="POST", body=b"b", trailers=trailers)
        (request,) = seen.app
        assert request["target"] == "/a/../b"
        assert [tuple(each) for each in request["headers"] if tuple(each) in forged] == forged
        assert [tuple(each) for each in request["trailers"]] == trailers


@pytest.mark.parametrize("path", ["/protected", "/public"])
def test_dead_filter_lets_nothing_through_and_comes_back(broken_edge: DoubleStack, path: str) -> None:
    broken_edge.stack.stop_part("filter")
    with broken_edge.watch() as seen:
        for _ in range(3):
            refused_as_unavailable(broken_edge.get(path))
        grpc = broken_edge.http2(path, [GRPC], method="POST", body=b"b")
    assert grpc.get("grpc-status") == "14"
    assert not seen.app
    broken_edge.stack.start_part("filter")
    deadline = time.monotonic() + 10
    while (answer := broken_edge.get(path)).status != 200:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)


def _many(double: DoubleStack, requests: int) -> list[Answer]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda number: double.get(f"/protected/{number}"), range(requests)))


def _kill_soon(pid: int) -> None:
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)


def test_killed_worker_costs_no_request(broken_edge: DoubleStack) -> None:
    with broken_edge.watch() as seen, ThreadPoolExecutor(1) as killer:
        killed = killer.submit(_kill_soon, broken_edge.worker_pids()[0])
        answers = _many(broken_edge, 400)
        killed.result()
        answers += _many(broken_edge, 50)
    assert [answer.status for answer in answers] == [200] * 450
    assert len(seen.app) == 450, "no request reached the app twice"
    asked_twice = len(seen.checks) - len({check["id"] for check in seen.checks})
    assert len({check["id"] for check in seen.checks}) == 450, "a retried Check carries its stream id"
    assert {check["worker"] for check in seen.checks} == set(broken_edge.worker_pids())
    print(f"asked twice: {asked_twice}")


def test_stopped_worker_costs_time_but_no_request(broken_edge: DoubleStack) -> None:
    victim = broken_edge.worker_pids()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        began = time.monotonic()
        answers = _many(broken_edge, 40)
    finally:
        os.kill(victim, signal.SIGCONT)
    assert [answer.status for answer in answers] == [200] * 40
    assert time.monotonic() - began < 10


# -- the app's faults


@pytest.mark.parametrize(
    ("method", "times"), [("GET", 3), ("HEAD", 3), ("PUT", 3), ("DELETE", 3), ("POST", 1), ("PATCH", 1)]
)
def test_only_idempotent_requests_are_ever_sent_twice(edge: DoubleStack, method: str, times: int) -> None:
    with edge.watch() as seen:
        answer = edge.get("/protected?drop=1", "X-Envoy-Retry-On: 5xx,reset", "X-Envoy-Max-Retries: 9", method=method)
    assert answer.status == 503
    assert len(seen.app) == times
    assert len(seen.checks) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_error_of_the_app_is_not_retried_and_passes_as_it_is(edge: DoubleStack, method: str) -> None:
    with edge.watch() as seen:
        answer = edge.get("/protected?status=503&bytes=3", method=method)
    assert (answer.status, answer.body) == (503, b"xxx")
    assert answer.get("pch-reason") is None
    assert len(seen.app) == 1


def test_dead_app_is_503(broken_edge: DoubleStack) -> None:
    broken_edge.stack.stop_part("app")
    refused_as_unavailable(broken_edge.get("/protected"))


# -- gRPC (PCH §8)


def test_edges_own_refusal_has_the_right_grpc_status(edge: DoubleStack) -> None:
    answer = edge.http2("/a/../b", [GRPC], method="POST", body=b"b")
    assert answer.get("grpc-status") == "3"
    assert answer.get("pch-reason") == "ambiguous_path"


def test_grpc_over_http1_with_headers_too_large_is_resource_exhausted(edge: DoubleStack) -> None:
    answer = edge.get("/protected", "Content-Type: application/grpc", "X-Long: " + "v" * 70_000, method="POST")
    assert answer.status == 431 or answer.get("grpc-status") == "8"
    assert answer.get("pch-reason") == "header_too_large"
