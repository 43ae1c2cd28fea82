"""What a verifier has to accept: a strict verifier that refuses too much is no verifier of PCH either."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

from pch.httpsig.component import ComponentId
from pch.httpsig.content_digest import content_digest
from tests.conformance.definitions.step import BOUND, Case, Step, case, signed, unsigned
from tests.conformance.definitions.world import (
    EPOCH,
    FORMER_SEALING_KEY,
    NOW_MS,
    challenge,
)

OK = "allowed"


def component(name: str, /, **params: str | bool) -> ComponentId:
    return ComponentId(name, tuple(params.items()))


def with_foreign(step: Step, *, first: bool) -> Step:
    """Put another protocol's signature beside ours."""
    theirs, value = 'other=("@method");created=1;tag="other"', "other=:AAAA:"
    for field, member in (("signature-input", theirs), ("signature", value)):
        ours = step.field(field)
        step = step.having(field, f"{member}, {ours}" if first else f"{ours}, {member}")
    return step


def split_lines(step: Step, name: str, *values: bytes) -> Step:
    """Send a field as several lines instead of one."""
    kept = tuple(line for line in step.headers if line[0] != name)
    return step.but(headers=(*kept, *((name, value) for value in values)))


NOTE = (("x-note", b"n"),)
LISTED = (("x-list", b"a"), ("x-list", b"b"))
CASES: tuple[Case, ...] = (
    case("§3", "ed25519", OK, signed()),
    case("§3 Algorithms", "ecdsa-p256-sha256", OK, signed("p256")),
    case("§3 Algorithms", "ml-dsa-44", OK, signed("m44")),
    case("§3 Algorithms", "ml-dsa-65", OK, signed("m65")),
    case("§3 Algorithms", "ml-dsa-87", OK, signed("m87")),
    case("§3 Hybrids", "ed25519+ml-dsa-65, mode and", OK, signed(("hybrid", "hybrid-pq"), target="/hybrid/a")),
    case("§3 Hybrids", "ecdsa-p256-sha256+ml-dsa-65, mode and", OK, signed(("curve", "curve-pq"), target="/hybrid/a")),
    case("§3 Hybrids", "a hybrid where single algorithms are listed too", OK, signed(("hybrid", "hybrid-pq"))),
    case("§3 Hybrids", "both halves, mode or", OK, signed(("hybrid", "hybrid-pq"), target="/either")),
    case("§3 Hybrids", "both halves, mode or, nothing else listed", OK, signed(("hybrid", "hybrid-pq"), target="/either-listed")),
    case("§3 Hybrids", "both halves, mode pq_only", OK, signed(("hybrid", "hybrid-pq"), target="/pq")),
    case("§3 Hybrids", "classical half alone, mode or", OK, signed("hybrid", target="/either")),
    case("§3 Hybrids", "ML-DSA half alone under pch, mode or", OK, signed("hybrid-pq", target="/either")),
    case("§3 Hybrids", "ML-DSA half alone under pch, mode pq_only", OK, signed("hybrid-pq", target="/pq")),
    case("§3 Hybrids", "ML-DSA key without partner, mode pq_only", OK, signed("m65", target="/pq")),
    case("§3 Hybrids", "good half of a hybrid whose other key is revoked, mode or", OK, signed("half-revoked", target="/either")),
    case("§3 Hybrids", "hybrid with content", OK, signed(("hybrid", "hybrid-pq"), target="/hybrid/a", body=b"hello")),
    case("§3 Hybrids", "the members of a hybrid in the other order", OK, signed(("hybrid", "hybrid-pq"), target="/hybrid/a", labels=("z", "a"))),
    case("§3 Selection", "any label", OK, signed(labels=("sig1", "sig2"))),
    case("§3 Selection", "the tag decides, not the label", OK, signed(labels=("pch-pq", "pch"))),
    case("§3 Selection", "another protocol's signature behind", OK, with_foreign(signed(), first=False)),
    case("§3 Selection", "another protocol's signature in front", OK, with_foreign(signed(), first=True)),
    case("§3 Components", "another order", OK, signed(components=tuple(reversed(BOUND)))),
    case("§3 Components", "a further field", OK, signed(headers=NOTE, cover=("x-note",))),
    case("§3 Components", "an empty field", OK, signed(headers=(("x-note", b""),), cover=("x-note",))),
    case("§3 Components", "blanks around a value", OK, signed(headers=NOTE, cover=("x-note",)).having("x-note", " \tn  ")),
    case("§3 Components", "a field of two lines", OK, signed(headers=LISTED, cover=("x-list",))),
    case("§3 Components", "two lines joined on the way", OK, split_lines(signed(headers=LISTED, cover=("x-list",)), "x-list", b"a, b")),
    case("§3 Components", "a field covered as bytes", OK, signed(headers=LISTED, cover=(component("x-list", bs=True),))),
    case("§3 Components", "a structured field", OK, signed(headers=(("priority", b"u=1,   i"),), cover=(component("priority", sf=True),))),
    case("§3 Components", "a dictionary's member", OK, signed(headers=(("x-d", b"a=1, b=2"),), cover=(component("x-d", key="b"),))),
    case("§3 Components", "one query parameter", OK, signed(target="/protected?a=1&b=2", cover=(component("@query-param", name="b"),))),
    case("§3 Components", "@scheme and @target-uri", OK, signed(cover=("@scheme", "@target-uri"))),
    case("§3 Components", "32 components", OK, signed(headers=tuple((f"x-{n}", b"v") for n in range(27)), cover=tuple(f"x-{n}" for n in range(27)))),
    case("§3 Components", "a field that is not covered", OK, signed().adding("x-other", "anything")),
    case("§3 Components", "bytes above ASCII in a field that is not covered", OK, signed().adding("x-other", b"\xff")),
    case("§1.1", "a route without binding", OK, signed(target="/unbound/a", sent_binding=None)),
    case("§1.1", "a route without binding on a connection without one", OK, signed(target="/unbound/a", sent_binding=None, binding=None)),
    case("§3 Components", "query with escapes, as sent", OK, signed(target="/protected/x?a=%2F&b=%20+")),
    case("§3 Components", "no query and an empty one are the same", OK, signed().but(target="/protected?")),
    case("§3 Components", "reserved characters in the path", OK, signed(target="/protected/a!$&'()*+,;=:@b/~-._")),
    case("§1.2", "lower-case escapes of other characters", OK, signed(target="/protected/a%20b%c3%a9")),
    case("§3 Components", "authority in capitals", OK, signed(authority="APP.Example")),
    case("§3 Components", "the default port", OK, signed(nonce=challenge()).but(authority="app.example:443")),
    case("§3 Components", "another port", OK, signed(authority="app.example:8443")),
    case("§3 Components", "an IPv6 authority", OK, signed(authority="[2001:db8::1]:8443")),
    case("§3 Components", "an unknown method", OK, signed(method="BREW")),
    case("§3 Components", "a method in lower case is another method, and signed as such", OK, signed(method="get")),
    case("§3 Content", "content", OK, signed(body=b"hello")),
    case("§3 Content", "content of a GET", OK, signed(method="GET", body=b"hello")),
    case("§3 Content", "content with sha-512 beside sha-256", OK, signed(body=b"hello", digest=content_digest(b"hello", ("sha-512", "sha-256")))),
    case("§3 Content", "an unknown digest beside sha-256", OK, signed(body=b"hello", digest=content_digest(b"hello") + ", sha=:AAAA:")),
    case("§3 Content", "digest of zero bytes without content", OK, signed(digest=content_digest(b""))),
    case("§3 Content", "digest of zero bytes without content, not covered", OK, signed().adding("content-digest", content_digest(b""))),
    case("§3 Content", "as long as the route allows", OK, signed(body=b"12345678", target="/small")),
    case("§3 Parameters", "created two seconds ahead", OK, signed(created_in_s=2)),
    case("§3 Parameters", "expired two seconds ago", OK, signed(created_in_s=-62)),
    case("§3 Parameters", "expires with created", OK, signed(lifetime_s=0)),
    case("§3 Parameters", "the longest life", OK, signed(lifetime_s=60)),
    case("§2", "a challenge as old as it may be", OK, signed(nonce=challenge(issued_ms=NOW_MS - 60_000))),
    case("§2", "a challenge from a clock two seconds ahead", OK, signed(nonce=challenge(issued_ms=NOW_MS + 2_000))),
    case("§2", "a challenge of the former sealing key", OK, signed(nonce=challenge(issued_ms=NOW_MS - 40_000, epoch=EPOCH - 1, key=FORMER_SEALING_KEY))),
    case("§2", "a challenge with the relax grant, not used", OK, signed(nonce=challenge(relax_grant=True))),
    case("§1.2", "an upgrade that the route permits", OK, signed(target="/socket", headers=(("connection", b"upgrade"), ("upgrade", b"websocket")), cover=("upgrade",))),
    case("§4", "an open route asks for nothing", "unguarded", unsigned("/public/a")),
    case("§4", "an open route looks at no proof", "unguarded", signed(target="/public/a").flipped()),
    case("§4", "a listed subject", OK, signed(target="/alice")),
)  # fmt: skip
