"""Requests that have to pass, and the ways to spoil each of them."""

# ruff: noqa: E501
# One row of a table is one line.

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pch.httpsig.component import ComponentId
from pch.httpsig.content_digest import content_digest
from pch.reasons import Reason
from tests.e2e.attack_case import BOTH, HTTP1, HTTP2
from tests.e2e.attack_request import REQUEST_LINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.attack_request import Request
    from tests.e2e.attack_stage import Attacker

BODY: Final = bytes(range(256)) * 3
COVERED: Final = (*REQUEST_LINE, "pch-channel-binding")
FORGED: Final = (
    ("x-signet-subject", b"root"),
    ("x-signet-key-id", b"k"),
    ("x-signet-receipt", b"r"),
    ("x-signet-role", b"a name that the verifier does not write over"),
)
OVERRIDES: Final = (
    ("x-http-method-override", b"DELETE"),
    ("x-original-url", b"/public/x"),
    ("x-rewrite-url", b"/public/x"),
    ("x-forwarded-host", b"app.test"),
    ("x-envoy-original-path", b"/public/x"),
    ("x-envoy-upstream-alt-stat-name", b"x"),
)
NOT_FOR_THE_APP: Final = frozenset(name for name, _ in OVERRIDES) | {"connection", "upgrade", "http2-settings"}
"""What a client may have sent with a good signature and the app does not get."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that passes. `subject`, `alg` and `binding`: what the app is told. `content`: whether it has any."""

    name: str
    build: Callable[[Attacker], Request]
    protocols: tuple[str, ...] = BOTH
    subject: str = "demo"
    alg: str = "ed25519"
    binding: str = "tls-exporter"
    content: bool = False


def post(a: Attacker, body: bytes = BODY, prefix: str = "/protected", framing: str = "length") -> Request:
    """An unsigned POST."""
    return a.request(a.target(prefix), "POST", body=body, framing=framing)


def noted(a: Attacker, component: str | ComponentId = "x-note") -> Request:
    """A request whose signature covers a field of its own."""
    request = a.request(headers=(("x-note", b"a=1, b=2"),))
    return a.signed(request, components=(*COVERED, component))


def with_foreign(request: Request) -> Request:
    """Add a signature that is none of this protocol's business, and pass on as it is."""
    return request.having(
        "signature-input", request.field("signature-input") + b', other=("@method");tag="other"'
    ).having("signature", request.field("signature") + b", other=:AAAA:")


def unbound(a: Attacker) -> Request:
    """A request on the route that wants no binding."""
    return a.signed(a.request(a.target("/unbound")), binding=None, challenge=a.stage.mint(bytes(32)))


ACCEPTED: Final = (
    Accepted("plain GET", lambda a: a.signed()),
    Accepted("HEAD", lambda a: a.signed(a.request(method="HEAD"))),
    Accepted("DELETE", lambda a: a.signed(a.request(method="DELETE"))),
    Accepted("query", lambda a: a.signed(a.request(a.target(rest="/x?a=1&b=%2F&b=..//")))),
    Accepted("empty query", lambda a: a.signed(a.request(a.target(rest="?")))),
    Accepted("odd path", lambda a: a.signed(a.request(a.target(rest="/;b=1/%C3%A9/...!$&'()*+,=:@%20")))),
    Accepted("P-256", lambda a: a.signed(key="p256"), alg="ecdsa-p256-sha256"),
    Accepted("content", lambda a: a.signed(post(a)), content=True),
    Accepted("content without a length", lambda a: a.signed(post(a, framing="chunked")), content=True),
    Accepted("content as large as a route takes", lambda a: a.signed(post(a, b"x" * 65536)), content=True),
    Accepted("content with both digests", lambda a: a.signed(post(a), digest=content_digest(BODY, ("sha-512", "sha-256"))), content=True),
    Accepted("empty content, chunked", lambda a: a.signed(post(a, b"", framing="chunked"))),
    Accepted("further component", noted),
    Accepted("further component by key", lambda a: noted(a, ComponentId("x-note", (("key", "a"),)))),
    Accepted("foreign signature beside", lambda a: with_foreign(a.signed())),
    Accepted("another label", lambda a: a.signed(label="sig1")),
    Accepted("short lifetime", lambda a: a.signed(lifetime_s=20)),
    Accepted("subject that the route names", lambda a: a.signed(a.request(a.target("/alice")), "alice"), subject="alice"),
    Accepted("route without binding", unbound, binding="none"),
    Accepted("40 KB of header fields", lambda a: a.signed(a.request(a.target("/wide"), headers=(("x-big", b"b" * 40000),)))),
    Accepted("authority in capitals", lambda a: a.signed(a.request().but(authority=a.stage.authority.replace("127.0.0.1", "LocalHost")), challenge=a.stage.mint(a.session.binding, authority=a.stage.authority.replace("127.0.0.1", "localhost")))),
    Accepted("Expect: 100-continue", lambda a: a.signed(post(a)).adding("expect", b"100-continue"), HTTP1, content=True),
    Accepted("request within the content", lambda a: a.signed(post(a, f"GET {a.target()} HTTP/1.1\r\nHost: a\r\n\r\n".encode())), content=True),
    Accepted("forged identity headers", lambda a: (r := a.signed()).but(headers=(*FORGED, *r.headers, *FORGED))),
    Accepted("forged identity in trailers", lambda a: a.signed(post(a, framing="chunked")).but(trailers=FORGED), content=True),
    Accepted("Connection names the identity", lambda a: a.signed().adding("connection", b"x-signet-subject, keep-alive"), HTTP1),
    Accepted("overrides of method, path and host", lambda a: (r := a.signed()).but(headers=(*OVERRIDES, *r.headers))),
    Accepted("offer of cleartext HTTP/2", lambda a: a.signed().adding("connection", b"Upgrade, HTTP2-Settings").adding("upgrade", b"h2c").adding("http2-settings", b"AAMAAABkAAQAAP__"), HTTP1),
    Accepted("Connection: upgrade without an upgrade", lambda a: a.signed().adding("connection", b"upgrade"), HTTP1),
    Accepted("host beside the authority", lambda a: a.signed().adding("host", b"app.test"), HTTP2),
)  # fmt: skip

IN_THE_SKEW: Final = (
    Accepted("created a second ahead", lambda a: a.signed(created_in_s=1)),
    Accepted("expires now", lambda a: a.signed(created_in_s=-60)),
)
"""Good for two more seconds, so they are sent at once."""


def old_challenge(a: Attacker, age_s: int) -> str:
    """A challenge of this connection that was issued `age_s` seconds ago."""
    return a.stage.mint(a.session.binding, issued_ms=time.time_ns() // 1_000_000 - age_s * 1000)


@dataclass(frozen=True, slots=True)
class Spoiling:
    """A change that turns a request of the list above into one that has to be refused."""

    name: str
    reason: Reason
    change: Callable[[Request], Request]
    applies: Callable[[Accepted], bool] = lambda _: True


def _other_method(request: Request) -> Request:
    return request.but(method="PATCH")


def _longer_path(request: Request) -> Request:
    path, mark, query = request.target.partition("?")
    return request.but(target=f"{path}x{mark}{query}")


def _flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


def _shift_created(request: Request) -> Request:
    value = request.field("signature-input").decode()
    before, _, rest = value.partition("created=")
    number = rest.partition(";")[0]
    return request.having("signature-input", f"{before}created={int(number) + 1}{rest[len(number) :]}".encode())


SPOILED: Final = (
    Spoiling("signature", Reason.BAD_SIGNATURE, lambda r: r.flipped()),
    Spoiling("method", Reason.BAD_SIGNATURE, _other_method),
    Spoiling("path", Reason.BAD_SIGNATURE, _longer_path),
    Spoiling("query", Reason.BAD_SIGNATURE, lambda r: r.but(target=r.target + ("&" if "?" in r.target else "?") + "z=1")),
    Spoiling("created", Reason.BAD_SIGNATURE, _shift_created),
    Spoiling("binding stripped", Reason.MISSING_COMPONENT, lambda r: r.without("pch-channel-binding"), lambda row: row.binding != "none"),
    Spoiling("signature stripped", Reason.MALFORMED_SIGNATURE, lambda r: r.without("signature")),
    Spoiling("digest stripped", Reason.MISSING_COMPONENT, lambda r: r.without("content-digest"), lambda row: row.content),
    Spoiling("content added", Reason.MISSING_COMPONENT, lambda r: r.but(body=b"x"), lambda row: not row.content),
)  # fmt: skip

OTHER_CONTENT: Final = Spoiling("content", Reason.BAD_CONTENT_DIGEST, lambda r: r.but(body=_flip_last(r.body)))
"""The only change that leaves the signature good."""
