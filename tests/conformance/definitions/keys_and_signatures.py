"""§3 "Algorithms" and "Hybrids": steps 4 and 8 of §4."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

import base64

from tests.conformance.definitions.accepted import component
from tests.conformance.definitions.step import BOUND, Case, Step, case, signed
from tests.conformance.definitions.world import KEYS, challenge

NOT_ALLOWED, BAD, MALFORMED, UNKNOWN = "alg_not_allowed", "bad_signature", "malformed_signature", "unknown_key"
ALGORITHMS, HYBRIDS, SIGNATURE = "§3 Algorithms", "§3 Hybrids", "§4 step 8"
PAIR = ("hybrid", "hybrid-pq")
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def halves(step: Step) -> dict[str, tuple[str, str]]:
    """Take a hybrid apart: label to the members of Signature-Input and Signature."""
    inputs = {member.partition("=")[0]: member for member in step.field("signature-input").split(", ")}
    signatures = {member.partition("=")[0]: member for member in step.field("signature").split(", ")}
    return {label: (inputs[label], signatures[label]) for label in inputs}


def joined(step: Step, *members: tuple[str, str]) -> Step:
    """Put members together again."""
    step = step.having("signature-input", ", ".join(member for member, _ in members))
    return step.having("signature", ", ".join(member for _, member in members))


def without(step: Step, label: str) -> Step:
    return joined(step, *(half for each, half in halves(step).items() if each != label))


def retagged(step: Step) -> Step:
    """Swap the tags of the two halves on the way."""
    tags = ('tag="pch"', 'tag="pch-pq"')
    found = halves(step)
    first, second = found["pch"], found["pch-pq"]
    return joined(step, (first[0].replace(*tags), first[1]), (second[0].replace(*reversed(tags)), second[1]))


def spliced(stolen: str, *, same_challenge: bool) -> Step:
    """Put a half of another good request of the same client into a good one."""
    nonce = challenge()
    mine = signed(PAIR, nonce=nonce)
    other = signed(PAIR, nonce=nonce if same_challenge else challenge(), target="/protected/other")
    found = halves(mine) | {stolen: halves(other)[stolen]}
    return joined(mine, found["pch"], found["pch-pq"])


def with_signature(step: Step, value: bytes, label: str = "pch") -> Step:
    found = halves(step)
    found[label] = (found[label][0], f"{label}=:{base64.b64encode(value).decode()}:")
    return joined(step, *found.values())


def signature_of(step: Step, label: str = "pch") -> bytes:
    return base64.b64decode(halves(step)[label][1].partition("=:")[2][:-1])


def malleated() -> Step:
    """Add the group order to an Ed25519 S, RFC 8032 §8.4."""
    step = signed()
    value = signature_of(step)
    s = int.from_bytes(value[32:], "little") + ED25519_ORDER
    return with_signature(step, value[:32] + s.to_bytes(32, "little"))


def der() -> Step:
    """An ECDSA signature as ASN.1 instead of r ‖ s."""
    step = signed("p256")
    value = signature_of(step)
    parts = [bytes([2, 33, 0]) + value[:32], bytes([2, 33, 0]) + value[32:]]
    return with_signature(step, bytes([48, 70]) + b"".join(parts))


def other_s() -> Step:
    """The second signature that ECDSA has for a message: (r, n - s). It verifies, and changes nothing."""
    step = signed("p256")
    value = signature_of(step)
    return with_signature(step, value[:32] + (P256_ORDER - int.from_bytes(value[32:])).to_bytes(32))


CASES: tuple[Case, ...] = (
    case(ALGORITHMS, "outside the route's list", NOT_ALLOWED, signed(target="/p256")),
    case(ALGORITHMS, "ML-DSA outside the route's list", NOT_ALLOWED, signed("m65", target="/classical")),
    case(ALGORITHMS, "another parameter set than listed", NOT_ALLOWED, signed("m87", target="/pq")),
    case(ALGORITHMS, "unknown to everyone", NOT_ALLOWED, signed(alg="none")),
    case(ALGORITHMS, "in capitals", NOT_ALLOWED, signed(alg="Ed25519")),
    case(ALGORITHMS, "by its JOSE name", NOT_ALLOWED, signed("m65", alg="ML-DSA-65")),
    case(ALGORITHMS, "of RFC 9421 and not of PCH", NOT_ALLOWED, signed(alg="hmac-sha256")),
    case(ALGORITHMS, "a hybrid's name in alg", NOT_ALLOWED, signed("hybrid", alg="ed25519+ml-dsa-65")),
    case(ALGORITHMS, "another than the registered key's", NOT_ALLOWED, signed(alg="ecdsa-p256-sha256")),
    case(ALGORITHMS, "another parameter set than the registered key's", NOT_ALLOWED, signed("m65", alg="ml-dsa-87")),
    case(ALGORITHMS, "the list decides before the key is looked up", NOT_ALLOWED, signed("stranger", target="/p256")),
    case("§3 Key ids", "an unknown key", UNKNOWN, signed("stranger")),
    case("§3 Key ids", "a key id that is none", UNKNOWN, signed(keyid="alice")),
    case("§3 Key ids", "an empty key id", UNKNOWN, signed(keyid="")),
    case("§3 Key ids", "a key id with padding", UNKNOWN, signed(keyid=KEYS["alice"].key_id + "=")),
    case("§4 step 4", "a key that is not valid yet", UNKNOWN, signed("future")),
    case("§4 step 4", "a key that is not valid any more", UNKNOWN, signed("past")),
    case("§4 step 4", "an unknown key is told before its signature is looked at", UNKNOWN, signed("stranger").flipped()),
    case(SIGNATURE, "a revoked key, valid signature", "key_revoked", signed("revoked")),
    case(SIGNATURE, "a revoked key, bad signature", BAD, signed("revoked").flipped()),
    *(case(SIGNATURE, f"one bit changed, {KEYS[name].algorithm}", BAD, signed(name).flipped()) for name in ("alice", "p256", "m44", "m65", "m87")),
    case(SIGNATURE, "another key of the same subject", BAD, signed("m65", keyid=KEYS["hybrid-pq"].key_id, target="/either")),
    case(SIGNATURE, "another subject's key", BAD, signed("bob", keyid=KEYS["alice"].key_id)),
    case(SIGNATURE, "another method", BAD, signed().but(method="DELETE")),
    case(SIGNATURE, "another path", BAD, signed().but(target="/protected/x")),
    case(SIGNATURE, "another query", BAD, signed(target="/protected?a=1").but(target="/protected?a=2")),
    case(SIGNATURE, "the query taken away", BAD, signed(target="/protected?a=1").but(target="/protected")),
    case(SIGNATURE, "another spelling of the same path", BAD, signed(target="/protected/%20").but(target="/protected/%20%20")),
    case(SIGNATURE, "a covered field changed", BAD, signed(headers=(("x-note", b"n"),), cover=("x-note",)).having("x-note", "m")),
    case(SIGNATURE, "a covered field doubled", BAD, signed(headers=(("x-note", b"n"),), cover=("x-note",)).adding("x-note", "n")),
    case(SIGNATURE, "two lines in the other order", BAD, signed(headers=(("x-list", b"a"), ("x-list", b"b")), cover=("x-list",)).having("x-list", "b, a")),
    case(SIGNATURE, "two lines joined, covered as bytes", BAD, signed(headers=(("x-list", b"a"), ("x-list", b"b")), cover=(component("x-list", bs=True),)).having("x-list", "a, b")),
    case(SIGNATURE, "a component added on the way", BAD, signed(headers=(("x-note", b"n"),)).param('"@query"', '"@query" "x-note"')),
    case(SIGNATURE, "components in another order", BAD, signed().param('"@method" "@authority"', '"@authority" "@method"')),
    case(SIGNATURE, "parameters in another order", BAD, signed().param('alg="ed25519";', "").param(';tag="pch"', ';tag="pch";alg="ed25519"')),
    case(SIGNATURE, "an empty signature", BAD, with_signature(signed(), b"")),
    case(SIGNATURE, "a signature one byte short", BAD, with_signature(signed(), bytes(63))),
    case(SIGNATURE, "a signature one byte long", BAD, with_signature(s := signed(), signature_of(s) + b"\0")),
    case(SIGNATURE, "an ML-DSA signature one byte long", BAD, with_signature(s := signed("m65"), signature_of(s) + b"\0")),
    case(SIGNATURE, "an ML-DSA signature one byte short", BAD, with_signature(s := signed("m65"), signature_of(s)[:-1])),
    case(SIGNATURE, "Ed25519 with S past the group order", BAD, malleated()),
    case(SIGNATURE, "ECDSA as ASN.1", BAD, der()),
    case(SIGNATURE, "ECDSA with r of zero", BAD, with_signature(s := signed("p256"), bytes(32) + signature_of(s)[32:])),
    case(SIGNATURE, "ECDSA with s of the order", BAD, with_signature(s := signed("p256"), signature_of(s)[:32] + P256_ORDER.to_bytes(32))),
    case(SIGNATURE, "ECDSA with the other s verifies", "allowed", other_s()),
    case(HYBRIDS, "the ML-DSA half stripped", NOT_ALLOWED, without(signed(PAIR, target="/hybrid/a"), "pch-pq")),
    case(HYBRIDS, "the classical half stripped", "missing_signature", without(signed(PAIR, target="/hybrid/a"), "pch")),
    case(HYBRIDS, "the ML-DSA half stripped where single ones are listed", NOT_ALLOWED, without(signed(PAIR), "pch-pq")),
    case(HYBRIDS, "stripped to the classical half, mode pq_only", NOT_ALLOWED, without(signed(PAIR, target="/pq"), "pch-pq")),
    case(HYBRIDS, "stripped to ML-DSA under pch-pq, mode pq_only", "missing_signature", without(signed(PAIR, target="/pq"), "pch")),
    case(HYBRIDS, "a classical half alone, mode and", NOT_ALLOWED, signed("hybrid")),
    case(HYBRIDS, "an ML-DSA half alone, mode and", NOT_ALLOWED, signed("hybrid-pq")),
    case(HYBRIDS, "a half alone, mode or, not listed", NOT_ALLOWED, signed("hybrid", target="/either-listed")),
    case(HYBRIDS, "a key without partner, mode or, not listed", NOT_ALLOWED, signed("alice", target="/either-listed")),
    case(HYBRIDS, "a classical key without partner, mode pq_only", NOT_ALLOWED, signed("alice", target="/pq")),
    case(HYBRIDS, "a key without partner where hybrids alone are listed", NOT_ALLOWED, signed(target="/hybrid/a")),
    case(HYBRIDS, "halves signed under each other's tag", NOT_ALLOWED, signed(("hybrid-pq", "hybrid"))),
    case(HYBRIDS, "tags swapped on the way", NOT_ALLOWED, retagged(signed(PAIR))),
    case(HYBRIDS, "the ML-DSA half of another request", MALFORMED, spliced("pch-pq", same_challenge=False)),
    case(HYBRIDS, "the classical half of another request", MALFORMED, spliced("pch", same_challenge=False)),
    case(HYBRIDS, "the ML-DSA half of a request with the same challenge", BAD, spliced("pch-pq", same_challenge=True)),
    case(HYBRIDS, "the classical half of a request with the same challenge", BAD, spliced("pch", same_challenge=True)),
    case(HYBRIDS, "created differs", MALFORMED, signed(PAIR, second={"created": 1_789_999_999})),
    case(HYBRIDS, "expires differs", MALFORMED, signed(PAIR, second={"expires": 1_790_000_059})),
    case(HYBRIDS, "nonce differs", MALFORMED, signed(PAIR, second={"nonce": challenge()})),
    case(HYBRIDS, "the ML-DSA half covers less", MALFORMED, signed(PAIR, second={"components": BOUND[1:]})),
    case(HYBRIDS, "the ML-DSA half covers more", MALFORMED, signed(PAIR, second={"components": (*BOUND, "@scheme")})),
    case(HYBRIDS, "the ML-DSA half covers in another order", MALFORMED, signed(PAIR, second={"components": BOUND[::-1]})),
    case(HYBRIDS, "the ML-DSA half has no alg", MALFORMED, signed(PAIR, second={"alg": None})),
    case(HYBRIDS, "one key in both halves", MALFORMED, signed(("hybrid", "hybrid"))),
    case(HYBRIDS, "another subject's ML-DSA key", NOT_ALLOWED, signed(("hybrid", "other-pq"))),
    case(HYBRIDS, "another subject's classical key", NOT_ALLOWED, signed(("other", "hybrid-pq"))),
    case(HYBRIDS, "the ML-DSA key of the subject's second hybrid", NOT_ALLOWED, signed(("hybrid", "second-pq"))),
    case(HYBRIDS, "the ML-DSA key of the subject's P-256 hybrid", NOT_ALLOWED, signed(("hybrid", "curve-pq"))),
    case(HYBRIDS, "an ML-DSA key of the subject without partner", NOT_ALLOWED, signed(("hybrid", "m65"))),
    case(HYBRIDS, "a classical key of the subject without partner", NOT_ALLOWED, signed(("alice", "hybrid-pq"))),
    case(HYBRIDS, "two keys of the subject without partners", NOT_ALLOWED, signed(("alice", "m65"))),
    case(HYBRIDS, "two classical halves", NOT_ALLOWED, signed(("hybrid", "curve"))),
    case("§6", "two ML-DSA signatures are over the budget of signatures", "header_budget", signed(("hybrid-pq", "m65"))),
    case(HYBRIDS, "a combination that PCH does not have", NOT_ALLOWED, signed(("hybrid", "m44"))),
    case(HYBRIDS, "a hybrid that the route does not list", NOT_ALLOWED, signed(("curve", "curve-pq"), target="/pq")),
    case(HYBRIDS, "a hybrid where single algorithms alone are listed", NOT_ALLOWED, signed(PAIR, target="/classical")),
    case(HYBRIDS, "an unknown ML-DSA key", UNKNOWN, signed(PAIR, second={"keyid": "A" * 43})),
    case(HYBRIDS, "the ML-DSA key's dates are over", UNKNOWN, signed(("half-past", "half-past-pq"))),
    case(HYBRIDS, "the ML-DSA key is revoked", "key_revoked", signed(("half-revoked", "half-revoked-pq"))),
    case(HYBRIDS, "the ML-DSA key is revoked, and the classical signature bad", BAD, signed(("half-revoked", "half-revoked-pq")).flipped()),
    case(HYBRIDS, "the classical half broken", BAD, signed(PAIR).flipped()),
    case(HYBRIDS, "the ML-DSA half broken", BAD, signed(PAIR).flipped("pch-pq")),
    case(HYBRIDS, "the ML-DSA half broken, mode or", BAD, signed(PAIR, target="/either").flipped("pch-pq")),
    case(HYBRIDS, "the classical half broken, mode pq_only", BAD, signed(PAIR, target="/pq").flipped()),
    case(HYBRIDS, "the ML-DSA half empty, mode or", BAD, with_signature(signed(PAIR, target="/either"), b"", "pch-pq")),
)  # fmt: skip
