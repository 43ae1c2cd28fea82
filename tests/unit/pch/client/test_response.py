"""What callers read from an answer."""

from __future__ import annotations

import dataclasses

import pytest

from pch.client.errors import HttpStatusError, PeerFault
from pch.client.response import Headers, Response

RESPONSE = Response(
    status=200,
    headers=Headers((("a", b"1"), ("b", b"\xe4"), ("a", b"2"))),
    content=b'{"x": 1}',
    url="https://h/",
    http_version="2",
    receipt_id=None,
    reason=None,
    challenges=(),
    signed=True,
    sends=1,
)


def with_header(name: str, value: bytes) -> Response:
    return dataclasses.replace(RESPONSE, headers=Headers(((name, value),)))


def test_headers_are_read_by_name() -> None:
    headers = RESPONSE.headers
    assert (headers["A"], headers.get("b"), headers.get("c"), headers.get("c", "d")) == ("1, 2", "ä", None, "d")
    assert "B" in headers
    assert "c" not in headers
    assert 1 not in headers
    with pytest.raises(KeyError):
        _ = headers["c"]


def test_content_is_read_as_json_or_text() -> None:
    assert RESPONSE.json() == {"x": 1}
    assert RESPONSE.text == '{"x": 1}'
    for content in (b"{", b"\xff", b"[" * 200_000):
        with pytest.raises(PeerFault):
            dataclasses.replace(RESPONSE, content=content).json()


@pytest.mark.parametrize("status", [400, 401, 503])
def test_refusal_is_raised_on_request(status: int) -> None:
    refused = dataclasses.replace(RESPONSE, status=status, reason="quota")
    with pytest.raises(HttpStatusError, match="quota") as caught:
        refused.raise_for_status()
    assert caught.value.response is refused


@pytest.mark.parametrize("status", [200, 204, 302, 399])
def test_answer_below_400_is_given_back(status: int) -> None:
    answer = dataclasses.replace(RESPONSE, status=status)
    assert answer.raise_for_status() is answer


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"3", 3),
        (b" 10 ", 10),
        (b"-1", None),
        (b"1.5", None),
        (b"Fri, 31 Dec 1999 23:59:59 GMT", None),
        (b"9" * 10, None),
    ],
)
def test_retry_after_is_whole_seconds_or_none(value: bytes, seconds: int | None) -> None:
    assert with_header("retry-after", value).retry_after_s == seconds
    assert RESPONSE.retry_after_s is None
