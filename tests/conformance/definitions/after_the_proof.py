"""§3 "Content" and steps 9 to 11 of §4; and their order: the first failure decides."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

from pch.httpsig.content_digest import content_digest
from tests.conformance.definitions.step import Case, Step, case, signed, unsigned
from tests.conformance.definitions.world import NOW_MS, OTHER_BINDING, challenge

OK, REPLAY, DIGEST = "allowed", "nonce_replay", "bad_content_digest"
NONCE, CONTENT, ORDER = "§4 step 9", "§3 Content", "§4"


def several(title: str, *steps: tuple[Step, str]) -> Case:
    """Requests to one verifier, in this order."""
    return Case(NONCE, title, steps)


def twice(title: str, step: Step, reason: str, **changes: object) -> Case:
    """A good request, and then the same one with changes."""
    return several(title, (step, OK), (step.but(**changes), reason))


NONCE_ONE, NONCE_TWO = challenge(), challenge()
GOOD = signed()
CASES: tuple[Case, ...] = (
    twice("the same request on another stream", signed(), REPLAY, stream="stream-2"),
    twice("the same request from another edge", signed(), REPLAY, instance="edge-2"),
    twice("a retried Check gets the first decision", signed(), OK),
    twice("a retried Check within ten seconds", signed(), OK, at_ms=NOW_MS + 9_900),
    twice("a retried Check after ten seconds", signed(), REPLAY, at_ms=NOW_MS + 10_100),
    twice("a hybrid on another stream", signed(("hybrid", "hybrid-pq")), REPLAY, stream="stream-2"),
    twice("a retried Check of a hybrid", signed(("hybrid", "hybrid-pq")), OK),
    twice("the same request after its challenge's age", signed(), "stale_challenge", stream="stream-2", at_ms=NOW_MS + 60_001),
    several("another request with the same challenge", (signed(nonce=NONCE_ONE), OK), (signed(nonce=NONCE_ONE, target="/protected/b").but(stream="stream-2"), REPLAY)),
    several("another subject with the same challenge", (signed(nonce=NONCE_TWO), OK), (signed("bob", nonce=NONCE_TWO).but(stream="stream-2"), REPLAY)),
    several("another request on the same stream", (signed(nonce=(one := challenge())), OK), (signed(nonce=one, target="/protected/b"), REPLAY)),
    several("a bad signature burns nothing", (GOOD.flipped(), "bad_signature"), (GOOD, OK)),
    several("a wrong binding burns nothing", ((mine := signed()).but(binding=OTHER_BINDING), "binding_mismatch"), (mine, OK)),
    several("a challenge is good for one request of two", (signed(nonce=(two := challenge())), OK), (unsigned(), "missing_signature"), (signed(nonce=two, target="/protected/c").but(stream="stream-3"), REPLAY)),
    several("a denial by policy spends", ((theirs := signed("bob", target="/alice")), "policy_denied"), (theirs.but(stream="stream-2"), REPLAY)),
    several("a bad digest spends", ((spoilt := signed(body=b"hello").but(body=b"hellO")), DIGEST), (spoilt.but(body=b"hello", stream="stream-2"), REPLAY)),
    case("§4 step 10", "a subject that is not listed", "policy_denied", signed("bob", target="/alice")),
    case("§4 step 10", "policy comes before the content's digest", "policy_denied", signed("bob", target="/alice", body=b"x").but(body=b"y")),
    case(CONTENT, "content changed", DIGEST, signed(body=b"hello").but(body=b"hellO")),
    case(CONTENT, "content cut short", DIGEST, signed(body=b"hello").but(body=b"hell").having("content-length", "4")),
    case(CONTENT, "content with more behind", DIGEST, signed(body=b"hello").but(body=b"hello!").having("content-length", "6")),
    case(CONTENT, "content taken away", DIGEST, signed(body=b"hello").but(body=b"").having("content-length", None)),
    case(CONTENT, "a digest of content where there is none", DIGEST, signed().adding("content-digest", content_digest(b"hello"))),
    case(CONTENT, "sha-512 alone", DIGEST, signed(body=b"hello", digest=content_digest(b"hello", ("sha-512",)))),
    case(CONTENT, "sha-256 right, sha-512 wrong", DIGEST, signed(body=b"hello", digest=content_digest(b"hello") + ", " + content_digest(b"x", ("sha-512",)))),
    case(CONTENT, "sha-512 right, sha-256 wrong", DIGEST, signed(body=b"hello", digest=content_digest(b"x") + ", " + content_digest(b"hello", ("sha-512",)))),
    case(CONTENT, "an unknown digest alone", DIGEST, signed(body=b"hello", digest="md5=:XUFAKrxLKna5cZ2REBfFkg==:")),
    case(CONTENT, "a digest cut short", DIGEST, signed(body=b"hello", digest="sha-256=:LPJNul+wow4m6Dsqxbnhu4OpA50=:")),
    case(CONTENT, "sha-256 twice", DIGEST, signed(body=b"hello", digest=content_digest(b"x") + ", " + content_digest(b"hello"))),
    case(CONTENT, "a digest that is a string", DIGEST, signed(body=b"hello", digest='sha-256="x"')),
    case(CONTENT, "an empty digest field", DIGEST, signed(body=b"hello", digest=" ")),
    case(CONTENT, "the digest changed with the content", "bad_signature", signed(body=b"hello").but(body=b"hellO").having("content-digest", content_digest(b"hellO"))),
    case(CONTENT, "a second digest line", "bad_signature", signed(body=b"hello").adding("content-digest", content_digest(b"hello", ("sha-512",)))),
    case(ORDER, "path before the proof", "ambiguous_path", unsigned("/protected/%2e")),
    case(ORDER, "size before the proof", "header_too_large", unsigned().adding("x-big", "a" * 50_000)),
    case(ORDER, "syntax before the binding", "malformed_signature", signed().param(';tag="pch"', ';tag="pch";x').but(binding=OTHER_BINDING)),
    case(ORDER, "a malformed foreign signature is malformed", "malformed_signature", signed().having("signature", signed().field("signature") + ", x")),
    case(ORDER, "the binding before the algorithm", "binding_mismatch", signed(target="/p256").but(binding=OTHER_BINDING)),
    case(ORDER, "the algorithm before the key", "alg_not_allowed", signed("stranger", alg="none")),
    case(ORDER, "the key before the challenge", "unknown_key", signed("stranger", nonce="A" * 60)),
    case(ORDER, "the challenge before the times", "stale_challenge", signed(nonce="A" * 60, created_in_s=-1000)),
    case(ORDER, "the times before the components", "expired_signature", signed(created_in_s=-1000, components=("@method",))),
    case(ORDER, "the components before the signature", "missing_component", signed(components=("@method",)).flipped()),
    case(ORDER, "the signature before revocation", "bad_signature", signed("revoked").flipped()),
    case(ORDER, "revocation before policy", "key_revoked", signed("revoked", target="/alice")),
    several("the nonce before policy", (signed("bob", nonce=(three := challenge())), OK), (signed("bob", nonce=three, target="/alice").but(stream="stream-2"), REPLAY)),
    several("the nonce before the digest", (signed(nonce=(four := challenge())), OK), (signed(nonce=four, body=b"x").but(body=b"y", stream="stream-2"), REPLAY)),
)  # fmt: skip
