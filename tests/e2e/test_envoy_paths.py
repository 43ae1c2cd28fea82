"""The edge and the verifier on paths with more than one reading (PCH §1.2): envoy.yaml on the real Envoy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from pch.errors import AmbiguousPath
from pch.path import MAX_TARGET_BYTES, check_target
from tests.e2e.stack_client import DoubleStack, double_stack
from tools.stack_envoy import ENVOY_YAML, http_connection_manager

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleStack]:
    with double_stack(tmp_path_factory.mktemp("e")) as double:
        yield double


AMBIGUOUS = [
    "/a/../b", "/public/../protected", "/..", "/a/..", "/.", "/a/.", "/a/./b", "/public/..;/protected", "/a/.;x=1/b",
    "//a", "/a//b", "/a//", "/%2e/a", "/%2e%2e/a", "/.%2e/a", "/%2E%2E/a", "/a%2fb", "/a%2Fb", "/a%5cb", "/a%5Cb",
    "/a\\b", "/a%00", "/a%00.jpg", "/%41", "/%7e", "/%7Ea", "/%2da", "/%30", "/a%5f", "/a%", "/a%4", "/a%zz",
    "/a%2", "/a%%41", "/%u002e", "/a%c", "/public/%2e%2e/protected", "/a%2e", "/..?x", "/a/..?x=1",
]  # fmt: skip
PLAIN = [
    "/", "/a", "/a/", "/a/b.c", "/...", "/.well-known/x", "/..a", "/a..", "/a.b/..c/", "/a;b=1/c", "/a:b@c!$&'()*+,;=",
    "/[x]|{y}^`\"<>", "/a%20b", "/%C3%A9", "/a%25b", "/a%3Fb", "/a%23", "/a%3A", "/a?x=//..%2f\\", "/a?%", "/a??",
    "/public?/..", "/a?x=%zz",
]  # fmt: skip


@pytest.mark.parametrize("protocol", ["http1", "http2"])
@pytest.mark.parametrize("target", AMBIGUOUS)
def test_path_with_more_than_one_reading_is_refused_before_the_app(
    edge: DoubleStack, target: str, protocol: str
) -> None:
    with edge.watch() as seen:
        answer = edge.get(target) if protocol == "http1" else edge.http2(target)
    assert answer.status == 400
    assert answer.get("pch-reason") == "ambiguous_path"
    assert answer.get("cache-control") == "no-store"
    assert answer.problem()["reason"] == "ambiguous_path"
    assert not seen.app
    assert [each["path"] for each in seen.checks] == [target], "the filter is asked too: it writes the receipt"


@pytest.mark.parametrize("target", ["/a\x80b", "/\xff/../b", "/a b", "/é"])
def test_path_outside_printable_ascii_never_reaches_the_app(edge: DoubleStack, target: str) -> None:
    with edge.watch() as seen:
        assert edge.get(target).status in {0, 400}
        assert edge.http2(target).status in {0, 400}
    assert not seen.app


@pytest.mark.parametrize("protocol", ["http1", "http2"])
@pytest.mark.parametrize("target", PLAIN)
def test_plain_path_reaches_filter_and_app_unchanged(edge: DoubleStack, target: str, protocol: str) -> None:
    with edge.watch() as seen:
        answer = edge.get(target) if protocol == "http1" else edge.http2(target)
    assert answer.status == 200
    assert [each["path"] for each in seen.checks] == [target]
    assert [each["target"] for each in seen.app] == [target]
    assert [each["authority"] for each in seen.app] == [edge.authority]


def _routes_that_refuse() -> tuple[re.Pattern[str], re.Pattern[str]]:
    document = yaml.safe_load(ENVOY_YAML.read_text())
    manager = http_connection_manager(document["static_resources"]["listeners"][0])
    characters, segments = (each["match"] for each in manager["route_config"]["virtual_hosts"][0]["routes"][:2])
    header = characters["headers"][0]
    assert header["name"] == ":path"
    assert header["invert_match"]
    return re.compile(header["string_match"]["safe_regex"]["regex"]), re.compile(segments["safe_regex"]["regex"])


PLAIN_TARGET, BAD_SEGMENTS = _routes_that_refuse()
PIECES = st.sampled_from([*"/.%;?\\#aAfF0257eE~_-@[", "..", "%2e", "%41", "%C3", "//", "/../", "\x7f", "\x80", " "])


@given(st.lists(PIECES, max_size=12).map("".join))
@example("")
@example("*")
@example("a")
@example("/a#b")
@example("/a?b#c")
def test_edge_and_verifier_agree_on_what_a_plain_path_is(text: str) -> None:
    target = "/" + text if not text.startswith("/") and text not in {"", "*", "a"} else text
    assert len(target) <= MAX_TARGET_BYTES
    edge_refuses = not PLAIN_TARGET.fullmatch(target) or bool(BAD_SEGMENTS.fullmatch(target.partition("?")[0]))
    try:
        check_target(target)
    except AmbiguousPath:
        assert edge_refuses
    else:
        assert not edge_refuses
