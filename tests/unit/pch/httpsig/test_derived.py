"""Derived components, RFC 9421 §2.2; examples are the RFC's unless they are attacks."""

from urllib.parse import parse_qsl

import pytest

from pch.httpsig import derived
from pch.httpsig.component import ComponentId
from pch.httpsig.derived import MAX_QUERY_PARAMETERS, derived_value, normalised_authority
from pch.httpsig.errors import ComponentError
from pch.httpsig.message import RequestMessage, ResponseMessage


def request(
    target: str = "/path?param=value",
    *,
    method: str = "POST",
    scheme: str = "https",
    authority: str = "www.example.com",
) -> RequestMessage:
    return RequestMessage(method, scheme, authority, target, ())


def value(message: RequestMessage | ResponseMessage, name: str) -> str:
    return derived_value(message, ComponentId(name))


def query_param(target: str, name: str) -> str:
    return derived_value(request(target), ComponentId("@query-param", (("name", name),)))


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("@method", request(), "POST"),
        ("@method", request(method="get"), "get"),
        ("@target-uri", request(), "https://www.example.com/path?param=value"),
        ("@target-uri", request("", scheme="http", authority="A.example:80"), "http://a.example/"),
        ("@target-uri", request("/a?"), "https://www.example.com/a?"),
        ("@scheme", request(scheme="HTTP"), "http"),
        ("@request-target", request(), "/path?param=value"),
        ("@request-target", request("*", method="OPTIONS"), "*"),
        ("@path", request(), "/path"),
        ("@path", request(""), "/"),
        ("@path", request("?x=1"), "/"),
        ("@path", request("/%7Euser/a%2Fb;p=1"), "/%7Euser/a%2Fb;p=1"),
        ("@path", request("//a"), "//a"),
        ("@query", request(), "?param=value"),
        ("@query", request("/path"), "?"),
        ("@query", request("/path?"), "?"),
        ("@query", request("/path??"), "??"),
        ("@query", request("/path?queryString"), "?queryString"),
        ("@query", request("/path?a=%41+b&&c"), "?a=%41+b&&c"),
        ("@status", ResponseMessage(200, ()), "200"),
    ],
)
def test_derived_value(name: str, message: RequestMessage | ResponseMessage, expected: str) -> None:
    assert value(message, name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("@method", request(method="")),
        ("@method", request(method="GET\n")),
        ("@method", request(method="GE T")),
        ("@method", request(method="G" * 65)),
        ("@scheme", request(scheme="ftp")),
        ("@scheme", request(scheme="")),
        ("@scheme", request(scheme="https\n")),
        ("@authority", request(scheme="wss")),
        ("@target-uri", request(scheme="wss")),
        ("@request-target", request("")),
        ("@request-target", request("/a b")),
        ("@request-target", request("/a\n")),
        ("@path", request("*")),
        ("@path", request("a/b")),
        ("@path", request("http://other.example/a")),
        ("@path", request("www.example.com:443")),
        ("@path", request("/a#b")),
        ("@path", request("/a\r\nb")),
        ("@path", request("/a\n")),
        ("@path", request("/é")),
        ("@path", request("/a\x7f")),
        ("@query", request("/a?b c")),
        ("@query", request("/a?b\tc")),
        ("@query", request("/a?\x00")),
        ("@query", request("*?a")),
        ("@status", request()),
        ("@method", ResponseMessage(200, ())),
        ("@path", ResponseMessage(200, ())),
        ("@status", ResponseMessage(99, ())),
        ("@status", ResponseMessage(1000, ())),
    ],
)
def test_derived_value_is_refused(name: str, message: RequestMessage | ResponseMessage) -> None:
    with pytest.raises(ComponentError):
        value(message, name)


@pytest.mark.parametrize("message", [request(), ResponseMessage(200, ())], ids=["request", "response"])
def test_component_of_the_related_request_is_refused(message: RequestMessage | ResponseMessage) -> None:
    with pytest.raises(ComponentError):
        derived_value(message, ComponentId("@method", (("req", True),)))


@pytest.mark.parametrize(
    ("received", "scheme", "expected"),
    [
        ("www.example.com", "https", "www.example.com"),
        ("WWW.Example.COM", "https", "www.example.com"),
        ("example.com:443", "https", "example.com"),
        ("example.com:80", "http", "example.com"),
        ("example.com:80", "https", "example.com:80"),
        ("example.com:443", "http", "example.com:443"),
        ("example.com:8443", "https", "example.com:8443"),
        ("example.com:65535", "https", "example.com:65535"),
        ("example.com:", "https", "example.com"),
        ("example.com.", "https", "example.com."),
        ("under_score.example", "https", "under_score.example"),
        ("127.0.0.1:8443", "https", "127.0.0.1:8443"),
        ("[::1]:443", "https", "[::1]"),
        ("[2001:DB8::A]:8443", "https", "[2001:db8::a]:8443"),
    ],
)
def test_authority_is_lower_case_without_the_default_port(received: str, scheme: str, expected: str) -> None:
    assert normalised_authority(received, scheme) == expected
    assert value(request(authority=received, scheme=scheme), "@authority") == expected


@pytest.mark.parametrize(
    "received",
    [
        "",
        ":443",
        "user@example.com",
        "example.com,other.example",
        "example.com, other.example",
        "example.com/",
        "example.com:0",
        "example.com:0443",
        "example.com:00443",
        "example.com:65536",
        "example.com:99999",
        "example.com:100000",
        "example.com:+443",
        "example.com:４４３",
        "example.com:443:443",
        "example.com\n",
        "example.com:443\n",
        " example.com",
        "exa mple.com",
        "ex%61mple.com",
        "exämple.com",
        "example.com\x00",
        "[::1",
        "::1",
        "[]",
        "[::1%25eth0]",
        "[::g]",
        "[::1]x",
        "a" * 256,
    ],
)
def test_authority_with_two_readings_is_refused(received: str) -> None:
    with pytest.raises(ComponentError):
        normalised_authority(received, "https")


@pytest.mark.parametrize(
    ("target", "name", "expected"),
    [
        ("/path?param=value&foo=bar&baz=batman&qux=", "baz", "batman"),
        ("/path?param=value&foo=bar&baz=batman&qux=", "qux", ""),
        ("/path?param=value&foo=bar&baz=batman&qux=", "param", "value"),
        ("/path?flag", "flag", ""),
        ("/path?=nameless", "", "nameless"),
        ("/path?a=b=c", "a", "b%3Dc"),
        ("/path?&&a=1&&", "a", "1"),
        ("/path?a=1;b=2", "a", "1%3Bb%3D2"),
        ("/parameters?var=this%20is%20a%20big%0Amultiline%20value", "var", "this%20is%20a%20big%0Amultiline%20value"),
        ("/parameters?bar=with+plus+whitespace", "bar", "with%20plus%20whitespace"),
        ("/parameters?fa%C3%A7ade%22%3A%20=something", "fa%C3%A7ade%22%3A%20", "something"),
        # The form encoding set: *-._ stay, everything else that is not alphanumeric is encoded.
        ("/path?a=*-._~!'()%41", "a", "*-._%7E%21%27%28%29A"),
        ("/path?a=%zz%", "a", "%25zz%25"),
        ("/path?n~=1", "n%7E", "1"),
    ],
)
def test_query_param_is_decoded_and_encoded_again(target: str, name: str, expected: str) -> None:
    assert query_param(target, name) == expected


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/path", "a"),
        ("/path?", "a"),
        ("/path?", ""),
        ("/path?A=1", "a"),
        ("/path?a=1&a=1", "a"),
        ("/path?a=1&%61=2", "a"),
        ("/path?a=1&a", "a"),
        ("/path?with+plus=1", "with+plus"),
        ("/path?with+plus=1", "with plus"),
        ("/path?a=1", "%61"),
        ("/path?n~=1", "n~"),
        ("/path?fa%C3%A7=1", "fa%c3%a7"),
        ("/path?a=%FF", "a"),
        ("/path?a=1&b=%C3", "a"),
        ("/path?%FF=1", "%EF%BF%BD"),
        ("/path?%FF=1", "%FF"),
    ],
)
def test_query_param_without_one_safe_value_is_refused(target: str, name: str) -> None:
    with pytest.raises(ComponentError):
        query_param(target, name)


def test_query_param_is_bounded_in_the_number_of_parameters() -> None:
    most = "/path?a=1" + "&b=2" * (MAX_QUERY_PARAMETERS - 1)
    assert query_param(most, "a") == "1"
    with pytest.raises(ComponentError):
        query_param(most + "&b=2", "a")


def test_a_query_is_parsed_once_for_all_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def counting(query: str, **options: object) -> list[tuple[str, str]]:
        parsed.append(query)
        return parse_qsl(query, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(derived, "parse_qsl", counting)
    query = "&".join(f"once{number}={number}" for number in range(28))
    assert [query_param(f"/path?{query}", f"once{number}") for number in range(28)] == [str(n) for n in range(28)]
    assert parsed == [query]


def test_query_param_does_not_apply_to_a_response() -> None:
    with pytest.raises(ComponentError):
        derived_value(ResponseMessage(200, ()), ComponentId("@query-param", (("name", "a"),)))
