"""Routing: the first route that matches host, path and method decides."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.route import Route, RouteTable
from extproc.route_pattern import MAX_STARS, compile_path, parse_host
from pch.errors import NoRoute


def naive_match(pattern: str, path: str) -> bool:
    """Match as the rules are written: segment by segment, star by star, trying everything."""

    def text(glob: str, rest: str) -> bool:
        if not glob:
            return not rest
        if glob[0] == "*":
            return any(text(glob[1:], rest[taken:]) for taken in range(len(rest) + 1))
        return bool(rest) and glob[0] == rest[0] and text(glob[1:], rest[1:])

    globs, segments = pattern.split("/")[1:], path.split("/")[1:]
    if globs[-1] == "**":
        head = globs[:-1]
        return len(segments) >= len(head) and all(map(text, head, segments[: len(head)]))
    return len(globs) == len(segments) and all(map(text, globs, segments))


SEGMENT = st.text("ab*", max_size=6).filter(lambda text: "**" not in text)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    segments = draw(st.lists(SEGMENT.filter(bool), max_size=3))
    last = draw(st.one_of(SEGMENT, st.just("**")))
    return "/" + "/".join([*segments, last])


@given(patterns(), st.lists(st.text("ab", max_size=8), min_size=1, max_size=5).map(lambda s: "/" + "/".join(s)))
def test_a_glob_matches_as_the_naive_reference_does(pattern: str, path: str) -> None:
    if pattern.count("*") <= MAX_STARS:
        # "/**" also stands for the empty path, which no request has.
        assert bool(compile_path(pattern).fullmatch(path)) == naive_match(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "matches", "refuses"),
    [
        ("/", ["/"], ["/a", "//"]),
        ("/**", ["/", "/a", "/a/b/", "/a\nb"], []),
        ("/a", ["/a"], ["/a/", "/A", "/ab", "/", "/%61"]),
        ("/a/", ["/a/"], ["/a", "/a/b"]),
        ("/a/**", ["/a", "/a/", "/a/b", "/a/b/c/"], ["/ab", "/", "/A/b", "/x/a/b"]),
        ("/a/*", ["/a/", "/a/b"], ["/a", "/a/b/", "/a/b/c"]),
        ("/a*", ["/a", "/abc"], ["/b", "/ab/c"]),
        ("/*/x", ["/a/x", "//x"], ["/x", "/a/b/x"]),
        ("/a*b*c", ["/abc", "/aXbYc", "/abbcc"], ["/ab", "/acb", "/abcX"]),
        ("/v1.0", ["/v1.0"], ["/v1x0"]),
        ("/caf%C3%a9", ["/caf%C3%A9", "/caf%c3%a9"], ["/caf%C3%A8", "/cafC3A9"]),
        ("/a;v=1", ["/a;v=1"], ["/a", "/a%3Bv=1"]),
        ("/(a+)$", ["/(a+)$"], ["/aa"]),
    ],
)
def test_path_globs(pattern: str, matches: list[str], refuses: list[str]) -> None:
    expression = compile_path(pattern)
    assert [path for path in matches if not expression.fullmatch(path)] == []
    assert [path for path in refuses if expression.fullmatch(path)] == []


@pytest.mark.parametrize(
    "pattern",
    ["", "a", "*", "**", "/a/**/b", "/a**", "/**a", "/a//b", "/./a", "/a/..", "/a?b", "/a#b", "/a b", "/é",
     "/a\\b", "/a%2", "/a%zz", "/%2F", "/%5c", "/%00", "/%61", "/[a]",
     "/" + "*/" * (MAX_STARS + 1), "/" + "a" * 1024],
)  # fmt: skip
def test_a_path_glob_that_could_not_mean_what_it_says_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"must|may"):
        compile_path(pattern)


def test_a_hostile_path_does_not_make_a_glob_slow() -> None:
    expression = compile_path("/" + "*a" * (MAX_STARS - 1) + "*b/c")
    started = time.process_time()
    assert expression.fullmatch("/" + "a" * 49_152) is None
    assert expression.fullmatch("/" + "a" * 49_152 + "/c") is None
    # A backtracking glob would take longer than the age of the universe here.
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("pattern", "matches", "refuses"),
    [
        ("*", ["a", "a.b", "a:8443", "[::1]", "[::1]:8443", "a."], []),
        ("a.b", ["a.b", "a.b:8443", "a.b."], ["x.a.b", "a.b.c", "ab"]),
        ("*.a.b", ["x.a.b", "x.y.a.b", "x.a.b:1", "x.a.b."], ["a.b", "xa.b"]),
        ("a:8443", ["a:8443", "a.:8443"], ["a", "a:443", "a:84430"]),
        ("a:443", ["a"], ["a:8443", "a:80"]),
        ("*.b:8443", ["a.b:8443"], ["a.b", "b:8443"]),
        ("*:8443", ["a:8443", "[::1]:8443"], ["a"]),
        ("[::1]", ["[::1]", "[::1]:8443"], ["[::2]", "::1"]),
        ("[::1]:8443", ["[::1]:8443", "[0:0::1]:8443"], ["[::1]"]),
        ("[::1]", ["[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::0.0.0.1]"], ["[::10]", "[1::]", "[::1", "[:::1]"]),
        ("[2001:db8:0:0:1::1]", ["[2001:db8::1:0:0:1]", "[2001:0db8:0:0:1:0:0:1]"], ["[2001:db8::1:1]"]),
        ("[::ffff:192.0.2.1]", ["[::ffff:c000:201]", "[::ffff:192.0.2.1]"], ["192.0.2.1", "[::192.0.2.1]"]),
        ("*", ["[::1]", "[1:2:3:4:5:6:7:8]"], ["[::1::2]", "[1:2:3]", "[12345::]", "[1.2.3.4]", "[..]"]),
    ],
)
def test_host_rules(pattern: str, matches: list[str], refuses: list[str]) -> None:
    table = RouteTable([Route(name="r", path="/**", hosts=(pattern,))])
    for host in matches:
        assert table.match(host, "/", "GET").name == "r", host
    for host in refuses:
        with pytest.raises(NoRoute):
            table.match(host, "/", "GET")


@pytest.mark.parametrize(
    "pattern",
    ["", "A", "a b", "a.*", "*a", "*.", ".a", "a.", "a..b", "a:", "a:0", "a:65536", "a:x", ":1", "a/b", "u@a",
     "[::1", "[::1]x", "[:::1]", "[1:2:3]", "[12345::]", "[1.2.3.4]", "[::1::2]:8443", "*.*.a", "a" * 2000],
)  # fmt: skip
def test_a_host_rule_that_is_not_a_host_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_host(pattern)


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("", "/"),
        ("a b", "/"),
        ("A", "/"),
        ("user@a", "/"),
        ("a:0443", "/"),
        ("a:", "/"),
        ("a..", "/"),
        ("a\n", "/"),
        ("é", "/"),
        ("a", ""),
        ("a", "*"),
        ("a", "a"),
        ("a", "/a?b"),
        ("a", "/a#b"),
    ],
)
def test_a_request_that_is_not_well_formed_has_no_route_not_even_a_catch_all(host: str, path: str) -> None:
    with pytest.raises(NoRoute):
        RouteTable([Route(name="all", path="/**", guard="open")]).match(host, path, "GET")


def test_the_first_match_wins_and_a_method_that_does_not_match_goes_on() -> None:
    table = RouteTable(
        [
            Route(name="read", path="/a/**", methods=("GET", "HEAD")),
            Route(name="narrow", path="/a/b", hosts=("x", "y")),
            Route(name="write", path="/a/**", methods=("POST",)),
            Route(name="open", path="/pub", guard="open"),
        ]
    )
    assert table.match("x", "/a/b", "GET").name == "read"
    assert table.match("x", "/a/b", "POST").name == "narrow"
    assert table.match("z", "/a/b", "POST").name == "write"
    assert not table.match("z", "/pub", "TRACE").guarded
    for host, path, method in (("z", "/a/b", "PUT"), ("z", "/a/b", "get"), ("z", "/b", "GET")):
        with pytest.raises(NoRoute):
            table.match(host, path, method)


def test_no_routes_match_nothing() -> None:
    with pytest.raises(NoRoute):
        RouteTable([]).match("a", "/", "GET")


def test_a_route_is_guarded_and_bound_unless_it_says_otherwise() -> None:
    plain = Route(name="r", path="/")
    assert plain.guarded
    assert plain.bound
    assert not Route(name="r", path="/", guard="open").guarded
    assert not Route(name="r", path="/", binding="none").bound
