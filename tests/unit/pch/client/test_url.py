"""Reading URLs without rewriting them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.client.errors import InvalidRequest
from pch.client.limits import MAX_URL_CHARS
from pch.client.url import Origin, parse_url


@pytest.mark.parametrize(
    ("url", "authority", "target"),
    [
        ("https://example.com", "example.com", "/"),
        ("HTTPS://EXAMPLE.com:443/a", "example.com", "/a"),
        ("https://example.com:8443/a?b=c#d", "example.com:8443", "/a?b=c"),
        ("https://example.com?x", "example.com", "/?x"),
        ("http://example.com:80/", "example.com", "/"),
        ("http://example.com:443/", "example.com:443", "/"),
        ("https://[::1]:9/a", "[::1]:9", "/a"),
        ("https://[0:0::1]/", "[::1]", "/"),
        ("https://127.0.0.1/", "127.0.0.1", "/"),
        ("https://bücher.example/ä b", "xn--bcher-kva.example", "/%C3%A4%20b"),
        ("https://h/a/../b//c/%2e%2F", "h", "/a/../b//c/%2e%2F"),
        ("https://h/a\\b|c?q=%zz&r=a\tb", "h", "/a\\b|c?q=%zz&r=a%09b"),
    ],
)
def test_url_gives_the_authority_and_the_target_as_sent(url: str, authority: str, target: str) -> None:
    parsed = parse_url(url)
    assert (parsed.origin.authority, parsed.target) == (authority, target)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/a",
        "ftp://h/",
        "https:///a",
        "https://user@h/",
        "https://user:secret@h/",
        "https://h:0/",
        "https://h:65536/",
        "https://h:x/",
        "https://h h/",
        "https://[::1/",
        "https://[::zz]/",
        "https://.h/",
        "https://a..b/",
        "https://-a/",
        "https://" + "a" * 64 + ".example/",
        "https://h/" + "a" * MAX_URL_CHARS,
    ],
)
def test_unusable_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_url(url)


def test_params_are_appended_to_the_query() -> None:
    assert parse_url("https://h/a", {"b": 1, "c": "ä&"}).target == "/a?b=1&c=%C3%A4%26"
    assert parse_url("https://h/a?x=1", [("x", "2"), ("x", "3")]).target == "/a?x=1&x=2&x=3"


def test_default_port_belongs_to_its_scheme() -> None:
    assert Origin("https", "h", 443).authority == "h"
    assert Origin("https", "h", 80).authority == "h:80"
    assert parse_url("https://h/").origin == parse_url("https://H:443/x").origin


@pytest.mark.parametrize(
    ("reference", "result"),
    [
        ("/b", "https://h:8443/b"),
        ("c?d", "https://h:8443/a/c?d"),
        ("//other/", "https://other/"),
        ("http://h/", "http://h/"),
    ],
)
def test_redirect_reference_is_resolved(reference: str, result: str) -> None:
    assert str(parse_url("https://h:8443/a/b").join(reference)) == result


@given(st.text(max_size=200))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        url = parse_url("https://" + text)
    except InvalidRequest:
        return
    assert url.target.startswith("/")
    assert url.target.isascii()
    assert not set(url.target) & set(" \r\n\t#\x00")
    assert parse_url(str(url)) == url
