"""§1.1, §2 and §3: the channel binding, the challenge, and the times; steps 3, 5 and 6 of §4."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

import base64

from tests.conformance.definitions.step import LINE, Case, Step, case, signed
from tests.conformance.definitions.world import (
    EPOCH,
    FORMER_SEALING_KEY,
    NOW_MS,
    OTHER_BINDING,
    SEALING_KEY,
    challenge,
)

STALE, BAD, LATE = "stale_challenge", "malformed_signature", "expired_signature"
BINDING_RULE, CHALLENGE, TIMES = "§3", "§2", "§3 Parameters"


def altered(place: int) -> str:
    """A good challenge with one bit of one byte changed."""
    token = bytearray(base64.urlsafe_b64decode(challenge()))
    token[place] ^= 1
    return base64.urlsafe_b64encode(bytes(token)).decode()


def header(value: str) -> Step:
    return signed().having("pch-channel-binding", value)


_FIRST = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
CASES: tuple[Case, ...] = (
    case(BINDING_RULE, "signed for another connection", "binding_mismatch", signed(sent_binding=OTHER_BINDING)),
    case(BINDING_RULE, "sent on another connection", "binding_mismatch", signed().but(binding=OTHER_BINDING)),
    case(BINDING_RULE, "a hybrid sent on another connection", "binding_mismatch", signed(("hybrid", "hybrid-pq")).but(binding=OTHER_BINDING)),
    case(BINDING_RULE, "a binding of zeros", "binding_mismatch", signed(sent_binding=bytes(32))),
    case(BINDING_RULE, "the binding's field taken away", "missing_component", signed().having("pch-channel-binding", None)),
    case(BINDING_RULE, "a binding that is neither sent nor covered", "missing_component", signed(sent_binding=None, nonce=challenge())),
    case(BINDING_RULE, "an empty field", BAD, header("")),
    case(BINDING_RULE, "the field twice", BAD, signed().adding("pch-channel-binding", f"tls-exporter=:{_FIRST}:")),
    case(BINDING_RULE, "two members", BAD, header(f"tls-exporter=:{_FIRST}:, tls-unique=:AAAA:")),
    case(BINDING_RULE, "31 bytes", BAD, header("tls-exporter=:" + base64.b64encode(bytes(31)).decode() + ":")),
    case(BINDING_RULE, "33 bytes", BAD, header("tls-exporter=:" + base64.b64encode(bytes(33)).decode() + ":")),
    case(BINDING_RULE, "another kind of binding", BAD, header(f"tls-unique=:{_FIRST}:")),
    case(BINDING_RULE, "the kind in capitals", BAD, header(f"TLS-Exporter=:{_FIRST}:")),
    case(BINDING_RULE, "base64 without padding", BAD, header("tls-exporter=:" + _FIRST[:-1] + ":")),
    case(BINDING_RULE, "base64 with spare bits", "binding_mismatch", header("tls-exporter=:" + _FIRST[:-2] + "9=:")),
    case(BINDING_RULE, "a parameter", BAD, header(f"tls-exporter=:{_FIRST}:;a=1")),
    case(BINDING_RULE, "hex", BAD, header("tls-exporter=" + bytes(range(32)).hex())),
    case("§1.1", "a binding on a route without one", BAD, signed(target="/unbound/a")),
    case("§1.1", "a binding of zeros on a route without one", BAD, signed(target="/unbound/a", sent_binding=bytes(32))),
    case("§1.1", "a proof without binding on a route that needs one", "missing_component", signed(sent_binding=None)),
    case("§1.1", "a challenge of a route without binding on a bound one", STALE, signed(nonce=challenge(binding=bytes(32)))),
    case("§1.1", "a challenge of a bound route on one without binding", STALE, signed(target="/unbound/a", sent_binding=None, nonce=challenge(), components=LINE)),
    case(CHALLENGE, "of another connection", STALE, signed(nonce=challenge(binding=OTHER_BINDING))),
    case(CHALLENGE, "of another realm", STALE, signed(nonce=challenge(realm="signets"))),
    case(CHALLENGE, "of another authority", STALE, signed(nonce=challenge(authority="other.example"))),
    case(CHALLENGE, "of the same host with a port", STALE, signed(nonce=challenge(authority="app.example:8443"))),
    case(CHALLENGE, "realm and authority divided elsewhere", STALE, signed(nonce=challenge(realm="signetapp", authority=".example"))),
    case(CHALLENGE, "too old", STALE, signed(nonce=challenge(issued_ms=NOW_MS - 60_001))),
    case(CHALLENGE, "from the future", STALE, signed(nonce=challenge(issued_ms=NOW_MS + 2_001))),
    case(CHALLENGE, "of an unknown epoch", STALE, signed(nonce=challenge(epoch=EPOCH + 1))),
    case(CHALLENGE, "of the epoch before the former one", STALE, signed(nonce=challenge(epoch=EPOCH - 2, key=FORMER_SEALING_KEY))),
    case(CHALLENGE, "under the key of another epoch", STALE, signed(nonce=challenge(epoch=EPOCH - 1, key=SEALING_KEY))),
    case(CHALLENGE, "of another installation", STALE, signed(nonce=challenge(key=bytes(32)))),
    case(CHALLENGE, "all zeros", STALE, signed(nonce="A" * 60)),
    *(case(CHALLENGE, f"a bit changed in {what}", STALE, signed(nonce=altered(place))) for what, place in (("the version", 0), ("the epoch", 4), ("the time", 12), ("the random bytes", 13), ("the last random byte", 28), ("the seal", 29), ("the end of the seal", 44))),
    case(CHALLENGE, "the relax grant added on the way", STALE, signed(nonce=base64.urlsafe_b64encode(bytes([0x81]) + base64.urlsafe_b64decode(challenge())[1:]).decode())),
    case(CHALLENGE, "59 characters", STALE, signed(nonce=challenge()[:-1])),
    case(CHALLENGE, "61 characters", STALE, signed(nonce=challenge() + "A")),
    case(CHALLENGE, "with padding", STALE, signed(nonce=challenge() + "==")),
    case(CHALLENGE, "in standard base64", STALE, signed(nonce="+" + challenge()[1:])),
    case(CHALLENGE, "empty", STALE, signed(nonce=" ")),
    case(TIMES, "created three seconds ahead", LATE, signed(created_in_s=3)),
    case(TIMES, "expired three seconds ago", LATE, signed(created_in_s=-63)),
    case(TIMES, "a life of 61 seconds", LATE, signed(lifetime_s=61)),
    case(TIMES, "expires before created", LATE, signed(created_in_s=2, lifetime_s=-1)),
    case(TIMES, "created at zero", LATE, signed(created=0, expires=60)),
    case(TIMES, "times in milliseconds", LATE, signed(created=NOW_MS, expires=NOW_MS + 60)),
    case(TIMES, "the largest integer", LATE, signed(expires=999_999_999_999_999)),
    case(TIMES, "times changed on the way", "bad_signature", signed(lifetime_s=30).param("created=1790000000", "created=1789999999")),
)  # fmt: skip
