"""Attacks on the proof itself; the same over HTTP/1.1 and HTTP/2."""

# ruff: noqa: E501
# One row of a table is one line.

from __future__ import annotations

import base64
import hashlib
import os
import time
from typing import TYPE_CHECKING, Final

from pch.evidence import evidence_digest_field
from pch.httpsig.content_digest import content_digest
from pch.proof import binding_header
from pch.reasons import Reason
from tests.e2e.attack_accepted import BODY, COVERED, noted, old_challenge, post
from tests.e2e.attack_case import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.attack_request import Request
    from tests.e2e.attack_stage import Attacker
    from tests.e2e.attack_wire import Answer

OTHER_BINDING: Final = bytes(range(32))
INPUT, SIGNATURE, BINDING = "signature-input", "signature", "pch-channel-binding"


def edited(a: Attacker, old: str, new: str) -> Request:
    """A signed request whose Signature-Input was edited."""
    return a.signed().editing(INPUT, old, new)


def lone(a: Attacker, name: str) -> Request:
    """A signed request with only one of the two signature fields."""
    return a.signed().without(SIGNATURE if name == INPUT else INPUT)


def with_members(a: Attacker, inputs: bytes, signatures: bytes) -> Request:
    """A signed request with further text behind the members of both fields; `%` stands for the first member."""
    request = a.signed()
    first, second = request.field(INPUT), request.field(SIGNATURE)
    return request.having(INPUT, first + inputs.replace(b"%", first[4:])).having(
        SIGNATURE, second + signatures.replace(b"%", second[4:])
    )


NO_PROOF = (
    refused("no signature", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request())),
    refused("no signature, with content", Reason.MISSING_SIGNATURE, lambda a: a.send(post(a))),
    refused("no signature on a route without binding", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(a.target("/unbound")))),
    refused("only another protocol's signature", Reason.MISSING_SIGNATURE, lambda a: a.send(a.signed(tag="other"))),
    refused("almost the tag", Reason.MISSING_SIGNATURE, lambda a: a.send(a.signed(tag="pch "))),
    refused("tag in capitals", Reason.MISSING_SIGNATURE, lambda a: a.send(a.signed(tag="PCH"))),
    refused("no tag", Reason.MISSING_SIGNATURE, lambda a: a.send(a.signed(tag=None))),
    refused("only the second half", Reason.MISSING_SIGNATURE, lambda a: a.send(a.signed(tag="pch-pq"))),
    refused("tag as token", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, 'tag="pch"', "tag=pch"))),
    refused("bearer token instead", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(headers=(("authorization", b"Bearer x"),)))),
    refused("proof in the query", Reason.MISSING_SIGNATURE, lambda a: a.send(a.request(a.target(rest="?signature=x&signature-input=y")))),
)  # fmt: skip


def foreign_challenge(a: Attacker) -> Answer:
    """Sign another connection's challenge for this one."""
    first = a.session
    return first.send(a.signed(challenge=a.challenge(a.connect())))


def other_connections_proof(a: Attacker) -> Answer:
    """Send on this connection what is good on another one."""
    first, other = a.session, a.connect()
    return first.send(a.signed(binding=other.binding, challenge=a.challenge(other)))


CONNECTION = (
    refused("signed for another connection", Reason.BINDING_MISMATCH, lambda a: a.send(a.signed(binding=OTHER_BINDING))),
    refused("binding of zeros", Reason.BINDING_MISMATCH, lambda a: a.send(a.signed(binding=bytes(32)))),
    refused("another connection's binding and challenge", Reason.BINDING_MISMATCH, other_connections_proof),
    refused("another connection's challenge", Reason.STALE_CHALLENGE, foreign_challenge),
    refused("challenge of the route without binding", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=a.stage.mint(bytes(32))))),
    refused("binding field absent though covered", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed().without(BINDING))),
    refused("binding field absent and not covered", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed(binding=None))),
    refused("binding field empty", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(BINDING, b""))),
    refused("binding field twice", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed()).adding(BINDING, r.field(BINDING)))),
    refused("binding field twice in one line", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed()).having(BINDING, r.field(BINDING) + b", " + r.field(BINDING)))),
    refused("binding of 31 bytes", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed(binding=OTHER_BINDING[:31]))),
    refused("binding of 33 bytes", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed(binding=OTHER_BINDING + b"!"))),
    refused("binding in hexadecimal", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(BINDING, b"tls-exporter=:" + a.session.binding.hex().encode() + b":"))),
    refused("binding without its kind", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(BINDING, b":" + base64.b64encode(a.session.binding) + b":"))),
    refused("binding of another kind", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().editing(BINDING, "tls-exporter", "tls-unique"))),
    refused("binding with a parameter", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed()).having(BINDING, r.field(BINDING) + b";a"))),
    refused("right binding behind a wrong one", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed(binding=OTHER_BINDING).adding(BINDING, binding_header(a.session.binding)))),
    refused("binding on the route without one", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target("/unbound")), challenge=a.stage.mint(bytes(32))))),
)  # fmt: skip


TARGET = (
    refused("authority of another host", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed().but(authority="app.test"))),
    refused("signed for another host", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(a.request().but(authority="app.test")))),
    refused("signed for another port", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(a.request().but(authority="127.0.0.1")))),
    refused("path of another case", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target(rest="/a"))).but(target=a.target(rest="/A")))),
    refused("other escape of the same byte", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target(rest="/%c3%a9"))).but(target=a.target(rest="/%C3%A9")))),
    refused("trailing slash", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed().but(target=a.target(rest="/")))),
    refused("queries in another order", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target(rest="?a=1&b=2"))).but(target=a.target(rest="?b=2&a=1")))),
    refused("query dropped", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target(rest="?a=1"))).but(target=a.target()))),
    refused("path moved to another guarded route", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed().but(target=a.target("/strict")))),
    refused("method HEAD for GET", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(method="HEAD")).but(method="GET"))),
    refused("method outside the route", Reason.NO_ROUTE, lambda a: a.send(a.signed(a.request(a.target("/get-only"), "POST")))),
    refused("no route", Reason.NO_ROUTE, lambda a: a.send(a.signed(a.request(a.target("/elsewhere"))))),
    refused("subject that the route does not name", Reason.POLICY_DENIED, lambda a: a.send(a.signed(a.request(a.target("/alice"))))),
)  # fmt: skip

COMPONENTS = (
    *(
        refused(f"without {name}", Reason.MISSING_COMPONENT, lambda a, name=name: a.send(a.signed(components=[c for c in COVERED if c != name])))
        for name in COVERED
    ),
    refused("nothing covered", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed(components=()))),
    refused("component stripped after signing", Reason.MISSING_COMPONENT, lambda a: a.send(edited(a, ' "@query"', ""))),
    refused("further component stripped after signing", Reason.BAD_SIGNATURE, lambda a: a.send(noted(a).editing(INPUT, ' "x-note"', ""))),
    refused("component added after signing", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(headers=(("x-note", b"n"),))).editing(INPUT, '"@query"', '"@query" "x-note"'))),
    refused("absent component added after signing", Reason.MISSING_COMPONENT, lambda a: a.send(edited(a, '"@query"', '"@query" "x-note"'))),
    refused("components in another order", Reason.BAD_SIGNATURE, lambda a: a.send(edited(a, '"@method" "@authority"', '"@authority" "@method"'))),
    refused("required component with a parameter", Reason.MISSING_COMPONENT, lambda a: a.send(edited(a, '"pch-channel-binding")', '"pch-channel-binding";sf)'))),
    refused("target-uri instead of its parts", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed(components=("@method", "@target-uri", "pch-channel-binding")))),
    refused("@request-target", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" "@request-target"'))),
    refused("@status of a request", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" "@status"'))),
    refused("component of the request of a request", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" "@method";req'))),
    refused("component of the trailers", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" "x-a";tr'))),
    refused("component twice", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" "@query"'))),
    refused("component in capitals", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" "Host"'))),
    refused("component nobody knows", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" "@nothing"'))),
    refused("33 components", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@query"', '"@query" ' + " ".join(f'"x-{n}"' for n in range(28))))),
    refused("covered field altered", Reason.BAD_SIGNATURE, lambda a: a.send(noted(a).having("x-note", b"a=1, b=3"))),
    refused("covered field absent", Reason.MISSING_COMPONENT, lambda a: a.send(noted(a).without("x-note"))),
    refused("covered field twice", Reason.BAD_SIGNATURE, lambda a: a.send(noted(a).adding("x-note", b"a=1, b=2"))),
    refused("covered field not ASCII", Reason.MISSING_COMPONENT, lambda a: a.send(noted(a).having("x-note", b"\xff"))),
    refused("evidence that is not covered", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed().adding("pch-evidence", b":e30=:"))),
    refused("relaxation without its digest", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().adding("pch-relaxed", b"?1"))),
    refused("evidence digest without relaxation", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().adding("pch-evidence-digest", evidence_digest_field(None)))),
)  # fmt: skip


def sha512_only(body: bytes) -> str:
    """A Content-Digest that lacks the member that has to be there."""
    return "sha-512=:" + base64.b64encode(hashlib.sha512(body).digest()).decode() + ":"


CONTENT = (
    refused("digest of other content", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a), digest=content_digest(b"other")))),
    refused("digest without sha-256", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a), digest=sha512_only(BODY)))),
    refused("right sha-256 beside a wrong sha-512", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a), digest=content_digest(BODY) + ", " + sha512_only(b"other")))),
    refused("digest of 31 bytes", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a), digest="sha-256=:" + "A" * 42 + "==:"))),
    refused("digest that is none", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a), digest="sha-256"))),
    refused("digest twice, first wrong", Reason.BAD_CONTENT_DIGEST, lambda a: a.send(a.signed(post(a), digest=content_digest(b"other") + ", " + content_digest(BODY)))),
    refused("digest replaced", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(post(a)).having("content-digest", content_digest(b"other").encode()).but(body=b"other"))),
    refused("digest doubled", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(post(a)).adding("content-digest", content_digest(b"other").encode()))),
    refused("digest not covered", Reason.MISSING_COMPONENT, lambda a: a.send(a.signed(post(a), components=COVERED))),
    refused("content cut short", Reason.BAD_CONTENT_DIGEST, lambda a: a.send((r := a.signed(post(a))).but(body=r.body[:-1]))),
    refused("content extended", Reason.BAD_CONTENT_DIGEST, lambda a: a.send((r := a.signed(post(a))).but(body=r.body + b"x"))),
    refused("content over the route's limit", Reason.BODY_TOO_LARGE, lambda a: a.send(a.signed(post(a, b"123456789", "/small")))),
    refused("content over the route's limit, without a length", Reason.BODY_TOO_LARGE, lambda a: a.send(a.signed(post(a, b"123456789", "/small", "chunked")))),
)  # fmt: skip

TIMES = (
    refused("created in the future", Reason.EXPIRED_SIGNATURE, lambda a: a.send(a.signed(created_in_s=4))),
    refused("expired", Reason.EXPIRED_SIGNATURE, lambda a: a.send(a.signed(created_in_s=-70))),
    refused("good for too long", Reason.EXPIRED_SIGNATURE, lambda a: a.send(a.signed(lifetime_s=61))),
    refused("good for ever", Reason.EXPIRED_SIGNATURE, lambda a: a.send(a.signed(expires=999_999_999_999_999))),
    refused("expires before created", Reason.EXPIRED_SIGNATURE, lambda a: a.send(a.signed(lifetime_s=-1))),
    refused("created in 1970", Reason.EXPIRED_SIGNATURE, lambda a: a.send(a.signed(created=0))),
    refused("created as decimal", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, ";expires=", ".5;expires="))),
    refused("created negative", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, "created=", "created=-"))),
    refused("created with 16 digits", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, "created=", "created=111111"))),
    *(
        refused(f"without parameter {name}", Reason.MALFORMED_SIGNATURE, lambda a, name=name: a.send(a.signed(**{name: None})))
        for name in ("created", "expires", "keyid", "alg", "nonce")
    ),
    refused("parameter nobody knows", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, ';tag="pch"', ';tag="pch";x=1'))),
    refused("parameter twice", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, ';tag="pch"', ';tag="other";tag="pch"'))),
)  # fmt: skip

KEYS = (
    refused("unknown key", Reason.UNKNOWN_KEY, lambda a: a.send(a.signed(key="stranger"))),
    refused("key id of nobody", Reason.UNKNOWN_KEY, lambda a: a.send(a.signed(keyid="A" * 43))),
    refused("empty key id", Reason.UNKNOWN_KEY, lambda a: a.send(a.signed(keyid=""))),
    refused("key id of 4000 characters", Reason.UNKNOWN_KEY, lambda a: a.send(a.signed(keyid="A" * 4000))),
    refused("key not valid yet", Reason.UNKNOWN_KEY, lambda a: a.send(a.signed(key="future"))),
    refused("key not valid any more", Reason.UNKNOWN_KEY, lambda a: a.send(a.signed(key="past"))),
    refused("revoked key", Reason.KEY_REVOKED, lambda a: a.send(a.signed(key="revoked"))),
    refused("revoked key, spoilt signature", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(key="revoked").flipped())),
    refused("another subject's key id", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(key="stranger", keyid=a.stage.keys["demo"].signer.key_id))),
    refused("key id of a key of another type", Reason.ALG_NOT_ALLOWED, lambda a: a.send(a.signed(keyid=a.stage.keys["p256"].signer.key_id))),
    refused("algorithm that contradicts the key", Reason.ALG_NOT_ALLOWED, lambda a: a.send(edited(a, 'alg="ed25519"', 'alg="ecdsa-p256-sha256"'))),
    refused("algorithm outside the route's list", Reason.ALG_NOT_ALLOWED, lambda a: a.send(a.signed(a.request(a.target("/p256"))))),
    refused("algorithm none", Reason.ALG_NOT_ALLOWED, lambda a: a.send(edited(a, 'alg="ed25519"', 'alg="none"'))),
    refused("algorithm hmac-sha256", Reason.ALG_NOT_ALLOWED, lambda a: a.send(edited(a, 'alg="ed25519"', 'alg="hmac-sha256"'))),
    refused("algorithm that the route does not list", Reason.ALG_NOT_ALLOWED, lambda a: a.send(edited(a, 'alg="ed25519"', 'alg="ml-dsa-65"'))),
    refused("algorithm in capitals", Reason.ALG_NOT_ALLOWED, lambda a: a.send(edited(a, 'alg="ed25519"', 'alg="Ed25519"'))),
)  # fmt: skip

ED25519_ORDER: Final = 2**252 + 27742317777372353535851937790883648493


def malleated(request: Request) -> Request:
    """Add the group order to S: the same signature to a verifier that does not check its range (RFC 8032 §8.4)."""
    signature = base64.b64decode(request.field(SIGNATURE)[5:-1])
    s = int.from_bytes(signature[32:], "little") + ED25519_ORDER
    changed = base64.b64encode(signature[:32] + s.to_bytes(32, "little"))
    return request.having(SIGNATURE, b"pch=:" + changed + b":")


def with_signature(a: Attacker, value: bytes, key: str = "demo") -> Request:
    """A signed request with other signature bytes."""
    return a.signed(key=key).having(SIGNATURE, b"pch=:" + base64.b64encode(value) + b":")


SECOND_HALF: Final = b', b=("@method");created=1;expires=2;keyid="k";alg="ml-dsa-65";nonce="n";tag="pch-pq"'
SIGNATURES = (
    refused("two signatures of one tag", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, b", b=%", b", b=%"))),
    refused("second half that says something else", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, SECOND_HALF, b", b=:AAAA:"))),
    refused("label twice", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, b", pch=%", b""))),
    refused("label twice in Signature", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, b"", b", pch=%"))),
    refused("fields twice", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed()).adding(INPUT, r.field(INPUT)).adding(SIGNATURE, r.field(SIGNATURE)))),
    refused("signature without its parameters", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, b"", b", b=:AAAA:"))),
    refused("parameters without their signature", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, b", b=%", b""))),
    refused("foreign parameters without a signature", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, b', b=("@method");tag="x"', b""))),
    refused("nine labels", Reason.MALFORMED_SIGNATURE, lambda a: a.send(with_members(a, b"".join(b', l%d=("@method")' % n for n in range(8)), b"".join(b", l%d=:AA==:" % n for n in range(8))))),
    refused("Signature alone", Reason.MALFORMED_SIGNATURE, lambda a: a.send(lone(a, SIGNATURE))),
    refused("Signature-Input alone", Reason.MALFORMED_SIGNATURE, lambda a: a.send(lone(a, INPUT))),
    refused("empty Signature-Input", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(INPUT, b""))),
    refused("empty Signature", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(SIGNATURE, b""))),
    refused("giant Signature-Input", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target("/wide"))).having(INPUT, b"pch=(" + b'"a" ' * 8000 + b")"))),
    refused("giant Signature", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target("/wide"))).having(SIGNATURE, b"pch=:" + b"A" * 40000 + b":"))),
    refused("giant Signature that is no base64", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed(a.request(a.target("/wide"))).having(SIGNATURE, b"pch=:" + b"A" * 40001 + b":"))),
    refused("Signature over its budget", Reason.HEADER_BUDGET, lambda a: a.send(a.signed().having(SIGNATURE, b"pch=:" + b"A" * 7000 + b":"))),
    refused("deep nonsense", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(INPUT, b"pch=" + b"(" * 4000))),
    refused("Signature-Input not ASCII", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed()).having(INPUT, r.field(INPUT) + b"\xc3\xa9"))),
    refused("Signature-Input in UTF-16", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed()).having(INPUT, r.field(INPUT).replace(b"pch=", b"\xfe\xff")))),
    refused("Signature not ASCII", Reason.MALFORMED_SIGNATURE, lambda a: a.send((r := a.signed()).having(SIGNATURE, r.field(SIGNATURE).replace(b"=:", b"=:\xff", 1)))),
    refused("not canonical: two blanks", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@method" "', '"@method"  "'))),
    refused("not canonical: blank before a parameter", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, ";keyid=", "; keyid="))),
    refused("not canonical: leading zero", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, "created=", "created=0"))),
    refused("not canonical: needless escape", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, '"@method"', '"\\@method"'))),
    refused("parameters on the member's signature", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().editing(SIGNATURE, ":", ":;x=1:"))),
    refused("signature as string", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(SIGNATURE, b'pch="abc"'))),
    refused("signature as inner list", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(SIGNATURE, b"pch=(:AAAA:)"))),
    refused("signature in base64url", Reason.MALFORMED_SIGNATURE, lambda a: a.send(a.signed().having(SIGNATURE, b"pch=:" + b"-_" * 43 + b"==:"))),
    refused("signature of no bytes", Reason.BAD_SIGNATURE, lambda a: a.send(with_signature(a, b""))),
    refused("signature of zeros", Reason.BAD_SIGNATURE, lambda a: a.send(with_signature(a, bytes(64)))),
    refused("signature of 63 bytes", Reason.BAD_SIGNATURE, lambda a: a.send(with_signature(a, bytes(63)))),
    refused("signature of 65 bytes", Reason.BAD_SIGNATURE, lambda a: a.send(with_signature(a, bytes(65)))),
    refused("signature with S over the order", Reason.BAD_SIGNATURE, lambda a: a.send(malleated(a.signed()))),
    refused("P-256 signature of zeros", Reason.BAD_SIGNATURE, lambda a: a.send(with_signature(a, bytes(64), "p256"))),
    refused("P-256 signature in DER", Reason.BAD_SIGNATURE, lambda a: a.send(with_signature(a, b"\x30\x06\x02\x01\x01\x02\x01\x01", "p256"))),
    refused("another request's signature", Reason.BAD_SIGNATURE, lambda a: a.send(a.signed().having(SIGNATURE, a.signed().field(SIGNATURE)))),
)  # fmt: skip


def respelt(a: Attacker, change: Callable[[str], str]) -> Answer:
    """Sign a good challenge under another spelling of it."""
    return a.send(a.signed(challenge=change(a.challenge())))


def standard_base64(a: Attacker) -> Answer:
    """Sign a challenge that has a `-` or `_`, spelt with `+` and `/`."""
    while not {"-", "_"} & set(challenge := a.stage.mint(a.session.binding)):
        pass
    return a.send(a.signed(challenge=challenge.replace("-", "+").replace("_", "/")))


def changed_byte(challenge: str, index: int, mask: int = 1) -> str:
    """Flip bits of one of the 45 bytes."""
    token = bytearray(base64.urlsafe_b64decode(challenge))
    token[index] ^= mask
    return base64.urlsafe_b64encode(token).decode()


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


CHALLENGES = (
    refused("forged challenge", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge="A" * 60))),
    refused("forged challenge with a fresh time", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=base64.urlsafe_b64encode(b"\x01" + (1).to_bytes(4, "big") + now_ms().to_bytes(8, "big") + os.urandom(32)).decode()))),
    refused("expired challenge", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=old_challenge(a, 61)))),
    refused("challenge from the future", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=old_challenge(a, -4)))),
    refused("challenge of another realm", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=a.stage.mint(a.session.binding, realm="other")))),
    refused("challenge of another authority", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=a.stage.mint(a.session.binding, authority="app.test")))),
    refused("challenge of another verifier", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=a.stage.mint(a.session.binding, keys=a.stage.foreign_sealing_keys())))),
    *(
        refused(f"challenge with another {name}", Reason.STALE_CHALLENGE, lambda a, index=index: respelt(a, lambda c: changed_byte(c, index)))
        for name, index in (("version", 0), ("epoch", 4), ("time", 10), ("random", 20), ("seal", 44))
    ),
    refused("challenge that grants itself relaxation", Reason.STALE_CHALLENGE, lambda a: respelt(a, lambda c: changed_byte(c, 0, 0x80))),
    refused("challenge in standard base64", Reason.STALE_CHALLENGE, standard_base64),
    refused("challenge with padding", Reason.STALE_CHALLENGE, lambda a: respelt(a, lambda c: c + "====")),
    refused("challenge with a character more", Reason.STALE_CHALLENGE, lambda a: respelt(a, lambda c: c + "A")),
    refused("challenge with a character less", Reason.STALE_CHALLENGE, lambda a: respelt(a, lambda c: c[:-1])),
    refused("challenge behind a blank", Reason.STALE_CHALLENGE, lambda a: respelt(a, lambda c: " " + c)),
    refused("challenge with a blank for a character", Reason.STALE_CHALLENGE, lambda a: respelt(a, lambda c: c[:59] + " ")),
    refused("challenge in capitals", Reason.STALE_CHALLENGE, lambda a: respelt(a, str.upper)),
    refused("two challenges in one", Reason.STALE_CHALLENGE, lambda a: respelt(a, lambda c: c + c)),
    refused("empty challenge", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge=""))),
    refused("giant challenge", Reason.STALE_CHALLENGE, lambda a: a.send(a.signed(challenge="A" * 6000))),
    refused("challenge as byte sequence", Reason.MALFORMED_SIGNATURE, lambda a: a.send(edited(a, 'nonce="', "nonce=:").editing(INPUT, '";tag', ":;tag"))),
)  # fmt: skip

PROOF_CASES: Final = (
    *NO_PROOF,
    *CONNECTION,
    *TARGET,
    *COMPONENTS,
    *CONTENT,
    *TIMES,
    *KEYS,
    *SIGNATURES,
    *CHALLENGES,
)
