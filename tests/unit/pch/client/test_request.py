"""What a caller may ask for, and what a redirect makes of it."""

from __future__ import annotations

import pytest

from pch.client.errors import InvalidRequest
from pch.client.limits import MAX_REQUEST_BODY_BYTES, MAX_REQUEST_HEADERS
from pch.client.request import make_request
from pch.client.url import parse_url

URL = "https://h/a"


def test_request_is_read_as_given() -> None:
    request = make_request("post", URL, headers={"X-A": "ä", "x-b": b"\xff"}, content="ü", params={"q": "1"})
    assert (request.method, request.url.target, request.body) == ("POST", "/a?q=1", "ü".encode())
    assert request.headers == (("x-a", b"\xe4"), ("x-b", b"\xff"))
    message = request.message()
    assert (message.scheme, message.authority, message.target) == ("https", "h", "/a?q=1")


@pytest.mark.parametrize(
    "name",
    [
        "PCH-Channel-Binding",
        "pch-anything",
        "Content-Digest",
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "Expect",
        "TE",
        "Trailer",
        "Keep-Alive",
        "bad name",
        "",
        "x:",
    ],
)
def test_field_of_the_clients_own_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        make_request("GET", URL, headers={name: "x"})


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\x00", " a", "a ", "\ta", "€"])
def test_field_value_out_of_grammar_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest):
        make_request("GET", URL, headers=[("x-a", value)])


@pytest.mark.parametrize("value", ["", "a", "a b\tc", "ä"])
def test_field_value_in_grammar_is_kept(value: str) -> None:
    assert make_request("GET", URL, headers=[("x-a", value)]).headers[0][1] == value.encode("latin-1")


@pytest.mark.parametrize("method", ["", "GE T", "CONNECT", "connect", "G\n"])
def test_unusable_method_is_refused(method: str) -> None:
    with pytest.raises(InvalidRequest):
        make_request(method, URL)


def test_sizes_are_bounded() -> None:
    with pytest.raises(InvalidRequest):
        make_request("GET", URL, headers=[("x-a", "b")] * (MAX_REQUEST_HEADERS + 1))
    with pytest.raises(InvalidRequest):
        make_request("GET", URL, headers=[("x-a", "b" * 49_200)])
    with pytest.raises(InvalidRequest):
        make_request("POST", URL, content=b"x" * (MAX_REQUEST_BODY_BYTES + 1))


@pytest.mark.parametrize(
    ("method", "content", "asks_first", "idempotent"),
    [
        ("GET", b"", False, True),
        ("HEAD", b"", False, True),
        ("GET", b"x", True, True),
        ("PUT", b"", True, True),
        ("POST", b"", True, False),
        ("PATCH", b"x", True, False),
        ("REPORT", b"", True, False),
    ],
)
def test_what_asks_for_a_challenge_first(method: str, content: bytes, asks_first: bool, idempotent: bool) -> None:
    request = make_request(method, URL, content=content)
    assert (request.asks_first, request.is_idempotent) == (asks_first, idempotent)
    probe = make_request(method, URL, headers={"cookie": "c"}, content=content).probe()
    assert (probe.method, probe.headers, probe.body, probe.url) == ("HEAD", (), b"", request.url)


@pytest.mark.parametrize(
    ("status", "method", "then", "keeps_content"),
    [
        (301, "POST", "GET", False),
        (302, "POST", "GET", False),
        (303, "PUT", "GET", False),
        (303, "HEAD", "HEAD", True),
        (307, "POST", "POST", True),
        (308, "PUT", "PUT", True),
        (301, "PUT", "PUT", True),
        (302, "GET", "GET", True),
    ],
)
def test_redirect_keeps_or_drops_content(status: int, method: str, then: str, keeps_content: bool) -> None:
    request = make_request(method, URL, headers={"content-type": "text/plain", "x-a": "b"}, content=b"x")
    following = request.redirected(parse_url("https://h/b"), status)
    assert (following.method, bool(following.body), following.url.target) == (then, keeps_content, "/b")
    assert ("content-type" in dict(following.headers)) == keeps_content
    assert ("x-a", b"b") in following.headers


def test_redirect_to_another_origin_takes_no_evidence_along_nor_from_there_on() -> None:
    request = make_request("GET", "https://h/a")
    assert request.carries_evidence
    assert request.redirected(parse_url("https://h/b"), 307).carries_evidence
    for other in ("https://h:444/", "https://g/", "http://h/"):
        away = request.redirected(parse_url(other), 307)
        assert not away.carries_evidence
        assert not away.redirected(parse_url(other), 307).carries_evidence
        assert not away.redirected(parse_url("https://h/b"), 307).carries_evidence


def test_redirect_to_another_origin_takes_no_credentials_along() -> None:
    headers = {"authorization": "a", "cookie": "c", "signature": "sig=:eA==:", "signature-input": "sig=()", "x-a": "b"}
    request = make_request("GET", URL, headers=headers)
    assert request.redirected(parse_url("https://h:444/"), 307).headers == (("x-a", b"b"),)
    assert len(request.redirected(parse_url("https://h/"), 307).headers) == len(headers)
