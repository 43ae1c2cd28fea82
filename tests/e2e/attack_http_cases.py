"""Attacks with the HTTP around the proof: paths, framing, header fields, upgrades; each protocol its own."""

# ruff: noqa: E501
# One row of a table is one line.

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pch.httpsig.content_digest import content_digest
from pch.reasons import Reason
from tests.e2e.attack_accepted import BODY, COVERED, FORGED, post
from tests.e2e.attack_case import HTTP1, HTTP2, by_edge, refused
from tests.e2e.attack_wire import Http1Session, Http2Session

if TYPE_CHECKING:
    from tests.e2e.attack_request import Field, Request
    from tests.e2e.attack_stage import Attacker
    from tests.e2e.attack_wire import Answer


def http1(a: Attacker, data: bytes, method: str = "GET") -> Answer:
    """Send raw HTTP/1.1; `%p` stands for the path, `%h` for the authority."""
    assert isinstance(a.session, Http1Session)
    filled = data.replace(b"%p", a.target().encode()).replace(b"%h", a.stage.authority.encode())
    return a.session.raw(filled, method=method)


def http2(a: Attacker, *fields: Field, body: bytes | None = None, trailers: tuple[Field, ...] = ()) -> Answer:
    """Send raw HTTP/2 fields."""
    assert isinstance(a.session, Http2Session)
    return a.session.raw(fields, body, trailers)


def pseudo(a: Attacker, method: bytes = b"GET") -> tuple[Field, ...]:
    """The usual pseudo-header fields."""
    return (
        (":method", method),
        (":scheme", b"https"),
        (":authority", a.stage.authority.encode()),
        (":path", a.target().encode()),
    )


def edited_head(a: Attacker, request: Request, old: bytes, new: bytes) -> Answer:
    """Send a signed request over HTTP/1.1 with text replaced in its head; the text has to be there."""
    data = request.http1()
    assert old in data
    return http1(a, data.replace(old, new, 1), request.method)


AMBIGUOUS_TAILS: Final = (
    "/../x", "/..", "/.", "/./x", "//x", "//", "/%2e%2e/x", "/.%2E/x", "/a%2fb", "/a%5Cb", "/a%00", "/%41", "/a%",
    "/a%zz", "/..;/x", "/.;a=1/x", "/%2e", "\\x", "/a%2Fb?q", "/%7Ex",
)  # fmt: skip
PATHS = (
    *(
        refused(f"signed ambiguous path {tail}", Reason.AMBIGUOUS_PATH, lambda a, tail=tail: a.send(a.signed(a.request(a.target(rest=tail)))))
        for tail in AMBIGUOUS_TAILS
    ),
    refused("open route, then out of it", Reason.AMBIGUOUS_PATH, lambda a: a.send(a.request(f"/public/../protected/{a.marker}"))),
    refused("open route, then out of it, encoded", Reason.AMBIGUOUS_PATH, lambda a: a.send(a.request(f"/public/%2e%2e/protected/{a.marker}"))),
    refused("open route, then out of it, with a parameter", Reason.AMBIGUOUS_PATH, lambda a: a.send(a.request(f"/public/..;/protected/{a.marker}"))),
    refused("path that only begins like the open route", Reason.NO_ROUTE, lambda a: a.send(a.request(f"/publicity/{a.marker}"))),
    refused("open route in capitals", Reason.NO_ROUTE, lambda a: a.send(a.request(f"/PUBLIC/{a.marker}"))),
    refused("guarded route in capitals", Reason.NO_ROUTE, lambda a: a.send(a.request(f"/PROTECTED/{a.marker}"))),
    *(
        refused(f"path of bytes that are not ASCII {tail!a}", Reason.AMBIGUOUS_PATH, lambda a, tail=tail: a.send(a.request(a.target(rest=tail))), HTTP2)
        for tail in ("/caf\xe9", "/\xff/../x", "?caf\xe9", "/caf\xc3\xa9", "/\xc0\xae\xc0\xae/x")
    ),
    *(
        refused(f"signed with {tail!a}, sent with other bytes", Reason.AMBIGUOUS_PATH, lambda a, tail=tail: a.send((r := a.signed(a.request(a.target(rest=tail)))).but(target=r.target.replace("!", "\xe9"))), HTTP2)
        for tail in ("/caf!", "?caf!")
    ),
    *(
        by_edge(f"target with {tail!a}", 400, lambda a, tail=tail: a.send(a.request(a.target(rest=tail))), HTTP1)
        for tail in ("/caf\xe9", "?caf\xe9", "/\x7f", "/a b", "/\x01", "/a#b", "?a#b")
    ),
    by_edge("target with '#'", 400, lambda a: a.send(a.request(a.target(rest="/a#b"))), HTTP2),
    by_edge("target with a blank", 0, lambda a: a.send(a.request(a.target(rest="/a b"))), HTTP2),
    refused("path of 9000 bytes", Reason.AMBIGUOUS_PATH, lambda a: a.send(a.request(a.target(rest="/" + "a" * 9000)))),
)  # fmt: skip

INTERNALS = tuple(
    refused(f"to the insides: {path}", Reason.NO_ROUTE, lambda a, path=path: a.send(a.request(f"{path}/{a.marker}", "POST")))
    for path in (
        "/envoy.service.auth.v3.Authorization/Check",
        "/grpc.health.v1.Health/Check",
        "/receipts/latest",
        "/metrics",
        "/config_dump",
        "/readyz",
        "/.well-known/pch/evidence",
    )
)  # fmt: skip

CONTENT = (
    refused("unsigned content on a signed GET", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed().but(body=b"x"))),
    refused("unsigned content without a length on a signed GET", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed().but(body=b"x", framing="chunked"))),
    refused("unsigned content on a GET", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(body=b"x", framing="chunked"))),
    refused("unsigned content on a signed DELETE", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed(a.request(method="DELETE")).but(body=b"x", framing="chunked"))),
    refused("unsigned content of 60 KB on a signed GET", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed().but(body=b"x" * 60000, framing="chunked"))),
    refused("signed content, nothing sent", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a)).but(body=b""))),
    refused("signed empty, content sent", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a, b""), components=(*COVERED, "content-digest"), digest=content_digest(b"")).but(body=b"x"))),
    *(
        refused(f"content of {size} bytes, {framing}", Reason.BODY_TOO_LARGE, lambda a, size=size, framing=framing: a.send(a.signed(post(a, b"x" * size, framing=framing))))
        for size in (65537, 200_000)
        for framing in ("length", "chunked")
    ),
    by_edge("Content-Length 0 before DATA", 0, lambda a: http2(a, *pseudo(a), *a.signed().headers, ("content-length", b"0"), body=b"x"), HTTP2),
    by_edge("Content-Length below the DATA", 0, lambda a: http2(a, *pseudo(a, b"POST"), *a.signed(post(a)).headers, ("content-length", b"5"), body=BODY), HTTP2),
    by_edge("Content-Length above the DATA", 0, lambda a: http2(a, *pseudo(a, b"POST"), *a.signed(post(a)).headers, ("content-length", b"5000"), body=BODY), HTTP2),
)  # fmt: skip


SMUGGLING = (
    by_edge("length and chunked", 400, lambda a: edited_head(a, a.signed(post(a)), b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), HTTP1),
    by_edge("chunked and length", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"), HTTP1),
    by_edge("two lengths", 400, lambda a: edited_head(a, a.signed(post(a)), b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n"), HTTP1),
    by_edge("two lengths in one", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nContent-Length: 4, 4\r\n\r\nbody"), HTTP1),
    by_edge("signed length", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nContent-Length: +4\r\n\r\nbody"), HTTP1),
    by_edge("negative length", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nContent-Length: -1\r\n\r\n"), HTTP1),
    by_edge("length over 64 bits", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nContent-Length: 18446744073709551617\r\n\r\nb"), HTTP1),
    by_edge("chunked twice", 501, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"), HTTP1),
    by_edge("coding nobody knows", 501, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"), HTTP1),
    by_edge("blank before the colon of a coding", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"), HTTP1),
    by_edge("broken chunk size", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nb\r\n0\r\n\r\n"), HTTP1),
    by_edge("length in hexadecimal", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nContent-Length: 0x4\r\n\r\nbody"), HTTP1),
    by_edge("identity and chunked", 501, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"), HTTP1),
    by_edge("two codings", 501, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"), HTTP1),
    by_edge("control character before a coding", 400, lambda a: http1(a, b"POST %p HTTP/1.1\r\nHost: %h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"), HTTP1),
    by_edge("line feed alone behind a chunk size", 400, lambda a: edited_head(a, a.signed(post(a, b"hello", framing="chunked")), b"5\r\nhello", b"5\nhello"), HTTP1),
    refused("unsigned content, tab before its coding", Reason.MISSING_COMPONENT, lambda a: http1(a, a.signed(a.request()).http1()[:-2] + b"Transfer-Encoding:\tchunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"), HTTP1),
    by_edge("two lengths", 0, lambda a: http2(a, *pseudo(a, b"POST"), *a.signed(post(a)).headers, ("content-length", b"768"), ("content-length", b"768"), body=BODY), HTTP2),
    by_edge("path in the trailers", 0, lambda a: http2(a, *pseudo(a, b"POST"), *a.signed(post(a)).headers, body=BODY, trailers=((":path", b"/public/x"),)), HTTP2),
    by_edge("transfer coding over HTTP/2", 0, lambda a: http2(a, *pseudo(a, b"POST"), ("transfer-encoding", b"chunked"), body=b"0\r\n\r\n"), HTTP2),
    by_edge("connection field over HTTP/2", 0, lambda a: http2(a, *pseudo(a), ("connection", b"close")), HTTP2),
)  # fmt: skip

HEADS = (
    by_edge("no host", 400, lambda a: http1(a, b"GET %p HTTP/1.1\r\n\r\n"), HTTP1),
    refused("two hosts", Reason.NO_ROUTE, lambda a: edited_head(a, a.signed(), b"\r\n", b"\r\nHost: app.test\r\n"), HTTP1),
    refused("the same host twice", Reason.NO_ROUTE, lambda a: edited_head(a, a.signed(), b"\r\n", b"\r\nHost: %h\r\n"), HTTP1),
    refused("user in the host", Reason.NO_ROUTE, lambda a: edited_head(a, a.signed(), b"Host: ", b"Host: u@"), HTTP1),
    by_edge("two authorities", 0, lambda a: http2(a, *pseudo(a), (":authority", b"app.test"), *a.signed().headers), HTTP2),
    by_edge("user in the authority", 0, lambda a: a.send(a.signed().but(authority="u@" + a.stage.authority)), HTTP2),
    by_edge("HTTP/1.0", 426, lambda a: edited_head(a, a.signed(), b"HTTP/1.1", b"HTTP/1.0"), HTTP1),
    by_edge("HTTP/1.2", 426, lambda a: edited_head(a, a.signed(), b"HTTP/1.1", b"HTTP/1.2"), HTTP1),
    by_edge("HTTP/0.9", 426, lambda a: http1(a, b"GET %p\r\n\r\n"), HTTP1),
    by_edge("blank before a colon", 400, lambda a: edited_head(a, a.signed(), b"signature-input:", b"signature-input :"), HTTP1),
    by_edge("NUL in a value", 400, lambda a: edited_head(a, a.signed(), b"tls-exporter", b"tls\0exporter"), HTTP1),
    by_edge("NUL in a value", 0, lambda a: http2(a, *pseudo(a), ("x-note", b"a\0b")), HTTP2),
    by_edge("line feed in a value", 0, lambda a: http2(a, *pseudo(a), ("x-note", b"a\r\nx-signet-subject: demo")), HTTP2),
    by_edge("field name in capitals", 0, lambda a: http2(a, *pseudo(a), ("X-Note", b"a")), HTTP2),
    by_edge("no path", 0, lambda a: http2(a, *(p for p in pseudo(a) if p[0] != ":path")), HTTP2),
    by_edge("two paths", 0, lambda a: http2(a, *pseudo(a), (":path", b"/public/x")), HTTP2),
    by_edge("pseudo-header behind a field", 0, lambda a: http2(a, *pseudo(a)[:3], ("x-note", b"a"), *pseudo(a)[3:]), HTTP2),
    by_edge("pseudo-header nobody knows", 0, lambda a: http2(a, *pseudo(a), (":x", b"y"), *a.signed().headers), HTTP2),
    by_edge("no scheme", 0, lambda a: http2(a, *(f for f in a.signed().http2()[0] if f[0] != ":scheme")), HTTP2),
    by_edge("no method", 0, lambda a: http2(a, *a.signed().http2()[0][1:]), HTTP2),
    by_edge("empty path", 0, lambda a: http2(a, *pseudo(a)[:3], (":path", b"")), HTTP2),
    by_edge("request line in the path", 0, lambda a: http2(a, *pseudo(a)[:3], (":path", b"/public/x HTTP/1.1\r\nHost: a\r\n\r\nGET /x")), HTTP2),
    by_edge("request line in the method", 0, lambda a: http2(a, *pseudo(a, b"GET /public/x HTTP/1.1\r\nx:")), HTTP2),
    by_edge("slash in the authority", 0, lambda a: http2(a, *pseudo(a)[:2], (":authority", b"a/b"), *pseudo(a)[3:]), HTTP2),
    by_edge("field name that holds a field", 0, lambda a: http2(a, *pseudo(a), ("x-signet-subject: demo\r\nx", b"y")), HTTP2),
    by_edge("empty field name", 0, lambda a: http2(a, *pseudo(a), ("", b"y")), HTTP2),
    by_edge("line without a colon", 400, lambda a: edited_head(a, a.signed(), b"\r\n\r\n", b"\r\nnonsense\r\n\r\n"), HTTP1),
    by_edge("first line folded", 400, lambda a: edited_head(a, a.signed(), b"\r\nHost", b"\r\n x: y\r\nHost"), HTTP1),
    by_edge("preface of HTTP/2", 400, lambda a: http1(a, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), HTTP1),
    by_edge("asterisk form", 404, lambda a: http1(a, b"OPTIONS * HTTP/1.1\r\nHost: %h\r\n\r\n"), HTTP1),
    by_edge("asterisk form", 404, lambda a: http2(a, *pseudo(a, b"OPTIONS")[:3], (":path", b"*")), HTTP2),
    refused("absolute form of another host", Reason.STALE_CHALLENGE, lambda a: edited_head(a, a.signed(), b"GET /", b"GET http://app.test/"), HTTP1),
    by_edge("absolute form of another scheme", 403, lambda a: edited_head(a, a.signed(), b"GET /", b"GET https://app.test/"), HTTP1),
    refused("unsigned preflight", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(method="OPTIONS", headers=(("origin", b"https://evil.test"), ("access-control-request-method", b"GET"))))),
    refused("unsigned TRACE", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(method="TRACE"))),
    by_edge("method in small letters", 400, lambda a: edited_head(a, a.signed(), b"GET", b"get"), HTTP1),
    refused("method in small letters", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed().but(method="get")), HTTP2),
    by_edge("method nobody knows", 400, lambda a: edited_head(a, a.signed(), b"GET", b"BREW"), HTTP1),
    refused("folded signature that unfolds to two blanks", Reason.MALFORMED_SIGNATURE, lambda a: edited_head(a, a.signed(), b'" "@query"', b'" \r\n "@query"'), HTTP1),
    by_edge("early data of a proxy before us", 425, lambda a: a.send(a.signed().adding("early-data", b"1"))),
)  # fmt: skip

IDENTITY = (
    refused("identity claimed by header", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(headers=FORGED))),
    refused("identity claimed by header, bad signature", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(headers=FORGED)).flipped())),
    refused("identity claimed in trailers", Reason.MISSING_SIGNATURE, lambda a: a.send(post(a, framing="chunked").but(trailers=FORGED))),
    refused("proof sent in trailers", Reason.MISSING_SIGNATURE, lambda a: a.send((r := a.signed(post(a, framing="chunked"))).but(headers=(), trailers=r.headers))),
    refused("signature sent in trailers", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed(post(a, framing="chunked"))).without("signature").but(trailers=(("signature", r.field("signature")),)))),
    refused("signature covers a claimed identity", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed(a.request(headers=FORGED[:1]), components=(*COVERED, "x-signet-subject")))),
    *(
        by_edge(f"identity with an underscore: {name}", 400, lambda a, name=name: a.send(a.signed().adding(name, b"demo")), HTTP1)
        for name in ("x_signet_subject", "X-Signet_Subject", "signature_input")
    ),
    by_edge("identity with an underscore", 0, lambda a: a.send(a.signed().adding("x_signet_subject", b"demo")), HTTP2),
    refused("method override", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(method="DELETE")).but(method="POST").adding("x-http-method-override", b"DELETE"))),
    refused("path override", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(headers=(("x-original-url", b"/public/x"), ("x-rewrite-url", b"/public/x"), ("x-envoy-original-path", b"/public/x"))))),
    refused("host override", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(headers=(("x-forwarded-host", b"app.test"),)).but(authority="app.test")).but(authority=a.stage.authority))),
    refused("edge's own words from outside", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(headers=(("x-envoy-internal", b"true"), ("x-envoy-auth-partial-body", b"false"), ("x-signet-edge-instance", b"e"))))),
    refused("binding in the edge's own name", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(headers=(("signet.tls", b"00" * 32), ("tls-exporter", b"00" * 32))))),
)  # fmt: skip


def upgrade(a: Attacker, connection: bytes, protocol: bytes) -> Answer:
    """Send a signed request that wants another protocol."""
    return a.send(a.signed().adding("connection", connection).adding("upgrade", protocol))


UPGRADES = (
    by_edge("upgrade", 403, lambda a: upgrade(a, b"Upgrade", b"websocket"), HTTP1, Reason.UPGRADE_REFUSED),
    by_edge("upgrade to a made-up protocol", 403, lambda a: upgrade(a, b"upgrade", b"anything"), HTTP1, Reason.UPGRADE_REFUSED),
    by_edge("upgrade that names an identity header", 403, lambda a: upgrade(a, b"upgrade, x-signet-subject", b"websocket"), HTTP1, Reason.UPGRADE_REFUSED),
    by_edge("upgrade without a signature", 403, lambda a: a.send(a.request(headers=(("connection", b"upgrade"), ("upgrade", b"websocket")))), HTTP1, Reason.UPGRADE_REFUSED),
    by_edge("CONNECT", 403, lambda a: http1(a, b"CONNECT %h HTTP/1.1\r\nHost: %h\r\n\r\n", "CONNECT"), HTTP1, Reason.UPGRADE_REFUSED),
    by_edge("CONNECT to the app itself", 403, lambda a: http1(a, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % a.stage.stack.settings.ports.app, "CONNECT"), HTTP1, Reason.UPGRADE_REFUSED),
    by_edge("CONNECT", 403, lambda a: http2(a, (":method", b"CONNECT"), (":authority", a.stage.authority.encode())), HTTP2, Reason.UPGRADE_REFUSED),
    by_edge("extended CONNECT", 0, lambda a: http2(a, *pseudo(a, b"CONNECT"), (":protocol", b"websocket"), *a.signed().headers), HTTP2),
    by_edge("upgrade over HTTP/2", 0, lambda a: http2(a, *pseudo(a), ("connection", b"upgrade"), ("upgrade", b"websocket")), HTTP2),
)  # fmt: skip

NOMINATED = tuple(
    refused(
        f"Connection names {name}",
        reason,
        lambda a, name=name: a.send(a.signed().adding("connection", b"close, " + name.encode())),
        HTTP1,
    )
    for name, reason in (
        ("signature", Reason.MALFORMED_SIGNATURE),
        ("pch-channel-binding", Reason.MISSING_COMPONENT),
    )
)

LIMITS = (
    refused("header fields over the hard cap", Reason.HEADER_TOO_LARGE, lambda a: a.send(a.signed(a.request(headers=(("x-big", b"b" * 49152),))))),
    refused("cookies over the hard cap", Reason.HEADER_TOO_LARGE, lambda a: a.send(a.signed().adding("cookie", b"c=" + b"k" * 50000))),
    by_edge("header fields over the edge's limit", 431, lambda a: a.send(a.signed(a.request(headers=(("x-big", b"b" * 70000),)))), HTTP1, Reason.HEADER_TOO_LARGE),
    by_edge("header fields over the edge's limit", 0, lambda a: a.send(a.signed(a.request(headers=(("x-big", b"b" * 70000),)))), HTTP2),
    by_edge("129 header fields", 431, lambda a: a.send(a.signed(a.request(headers=tuple((f"x-{n}", b"n") for n in range(129))))), HTTP1, Reason.HEADER_TOO_LARGE),
    by_edge("129 header fields", 0, lambda a: a.send(a.signed(a.request(headers=tuple((f"x-{n}", b"n") for n in range(129))))), HTTP2),
)  # fmt: skip

HTTP_CASES: Final = (
    *PATHS,
    *INTERNALS,
    *CONTENT,
    *SMUGGLING,
    *HEADS,
    *IDENTITY,
    *UPGRADES,
    *NOMINATED,
    *LIMITS,
)
