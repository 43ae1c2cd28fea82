"""What can be added to envoy.yaml: a CORS policy and a permitted upgrade, each without opening anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.stack_client import DoubleStack, change, double_stack, manager_of, to_app

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

ORIGIN = "https://page.test"
PREFLIGHT = [f"Origin: {ORIGIN}", "Access-Control-Request-Method: POST"]


def with_options(document: dict[str, Any]) -> None:
    policy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": ORIGIN}],
        "allow_methods": "GET, POST",
    }
    guarded = manager_of(document)["route_config"]["virtual_hosts"][0]["routes"][-1]
    guarded.setdefault("typed_per_filter_config", {})["envoy.filters.http.cors"] = policy
    to_app(document, upgrade_configs=[{"upgrade_type": "websocket"}])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleStack]:
    with double_stack(tmp_path_factory.mktemp("o")) as double:
        yield double


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleStack]:
    with double_stack(tmp_path_factory.mktemp("o")) as double:
        change(double, with_options)
        yield double


def test_preflight_without_a_policy_is_asked_about_like_any_request(plain: DoubleStack) -> None:
    with plain.watch() as seen:
        plain.get("/protected", *PREFLIGHT, method="OPTIONS")
    assert len(seen.checks) == 1


def test_edge_answers_the_preflight_of_an_allowed_origin_by_itself(opened: DoubleStack) -> None:
    with opened.watch() as seen:
        answer = opened.get("/protected", *PREFLIGHT, method="OPTIONS")
    assert answer.status == 200
    assert answer.get("access-control-allow-origin") == ORIGIN
    assert not seen.checks
    assert not seen.app


@pytest.mark.parametrize("lines", [["Origin: https://other.test", PREFLIGHT[1]], PREFLIGHT[:1], []])
def test_other_options_requests_are_asked_about(opened: DoubleStack, lines: list[str]) -> None:
    opened.filter_will("deny")
    try:
        with opened.watch() as seen:
            answer = opened.get("/protected", *lines, method="OPTIONS")
    finally:
        opened.filter_will("allow")
    assert answer.status == 401
    assert len(seen.checks) == 1
    assert not seen.app


def test_permitted_upgrade_shows_the_filter_what_would_go_upstream(opened: DoubleStack) -> None:
    opened.filter_will("deny")
    try:
        with opened.watch() as seen:
            answer = opened.get("/protected", "Connection: upgrade, x-signet-subject", "Upgrade: websocket")
    finally:
        opened.filter_will("allow")
    assert answer.status == 401
    (check,) = seen.checks
    headers = dict(check["headers"])
    assert headers["upgrade"] == "websocket"
    assert headers["connection"] == "upgrade, x-signet-subject", "and the filter refuses all but exactly `upgrade`"
    assert not seen.app


def test_other_upgrades_stay_refused(opened: DoubleStack) -> None:
    extended = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", "a")]
    with opened.watch() as seen:
        assert opened.get("/protected", "Connection: upgrade", "Upgrade: other").status == 403
        assert opened.http2("", pseudo=[*extended, (":path", "/protected")]).status in {0, 403}
        connect = opened.http1(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", method="CONNECT")
    assert connect.status == 403
    assert not seen.app
