"""§6, the relaxed form: with its envelope before the content, and sent ahead of a request without any."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from pch.evidence import evidence_digest_field
from pch.httpsig.content_digest import content_digest
from pch.httpsig.signature_field import parse_signature, serialise_signature
from pch.relaxed import EVIDENCE_PATH, compose_envelope, relaxed_field
from tests.conformance.definitions.evidence import LEAST, REJECTED, RELAXED, field
from tests.conformance.definitions.step import Case, Step, case, signed
from tests.conformance.definitions.world import ALGORITHM_OF, NOW_MS, OTHER_BINDING, UNBOUND, challenge

OK, KEPT, MALFORMED, MISSING, STALE = (
    "allowed",
    "evidence_kept",
    "malformed_signature",
    "missing_component",
    "stale_challenge",
)
AHEAD = "§6 Ahead"
FIELDS = ("pch-evidence-digest", "pch-relaxed")
PAIR = ("hybrid", "hybrid-pq")
NOTHING = b'{"evidence":null,"signatures":{}}'


@dataclass(frozen=True)
class Relaxed:
    """A relaxed request whole, its envelope by itself, and the challenge that it signs."""

    step: Step
    envelope: bytes
    nonce: str

    def with_envelope(self, envelope: bytes) -> Step:
        """Put another envelope, of whatever length, before the content; what was signed stays."""
        body = envelope + self.step.body[len(self.envelope) :]
        return self.step.but(body=body).having("content-length", str(len(body)))

    def with_content(self, content: bytes) -> Step:
        """Put other content behind the envelope."""
        body = self.envelope + content
        return self.step.but(body=body).having("content-length", str(len(body)))


def make(
    key: str | tuple[str, str] = "alice", *, body: bytes = b"hello", evidence: bytes | None = LEAST,
    envelope: bytes | None = None, length: int | None = None, digest_of: bytes | None = b"its own",
    moved: tuple[str, ...] | None = None, copied: tuple[str, ...] = (), grant: bool = True,
    headers: tuple[tuple[str, bytes], ...] = (), cover: tuple[str, ...] = FIELDS, components: tuple[str, ...] | None = None,
    labels: tuple[str, str] = ("pch", "pch-pq"), nonce: str | None = None, **more: Any,
) -> Relaxed:  # fmt: skip
    """Make a relaxed request.

    `moved`: labels whose signatures are in the envelope, by default those of ML-DSA; `copied`: in both places.
    `envelope`: another one than these make. `length`, `digest_of`: as stated, where that is not the truth.
    """
    algorithms = [ALGORITHM_OF[name] for name in ((key,) if isinstance(key, str) else key)]
    of_label = dict(zip(labels, algorithms, strict=False))
    if moved is None:
        moved = tuple(label for label, algorithm in of_label.items() if algorithm.post_quantum)
    blank = compose_envelope(evidence, {label: bytes(of_label[label].signature_bytes) for label in (*moved, *copied)})
    stated = len(envelope if envelope is not None else blank) if length is None else length
    own = (
        ("pch-relaxed", relaxed_field(stated if body else None)),
        ("pch-evidence-digest", evidence_digest_field(evidence if digest_of == b"its own" else digest_of)),
    )
    sealed = nonce or challenge(relax_grant=grant)
    step = signed(
        key,
        body=body,
        headers=(*headers, *own),
        cover=cover,
        components=components,
        labels=labels,
        nonce=sealed,
        **more,
    )
    signatures = parse_signature([step.field("signature").encode()])
    if envelope is None:
        envelope = compose_envelope(evidence, {label: signatures[label] for label in (*moved, *copied)})
    left = {label: each for label, each in signatures.items() if label not in moved}
    step = step.having("signature", serialise_signature(left) if left else None)
    if not body:
        return Relaxed(step, envelope, sealed)
    whole = envelope + body
    return Relaxed(step.but(body=whole).having("content-length", str(len(whole))), envelope, sealed)


def relaxed(key: str | tuple[str, str] = "alice", **more: Any) -> Step:
    """A relaxed request with content."""
    return make(key, **more).step


def ahead(made: Relaxed, **changes: Any) -> Step:
    """What brings the envelope of `made` ahead of it."""
    envelope = changes.pop("envelope", made.envelope)
    named = changes.pop("named", (f'"{made.nonce}"',))
    headers = (("content-length", str(len(envelope)).encode()), *(("pch-challenge", each.encode()) for each in named))
    step = Step(method="POST", target=EVIDENCE_PATH, headers=headers, body=envelope, stream="ahead")
    return step.but(**changes)


def found(title: str, made: Relaxed, *behind: tuple[Step, str], reason: str = OK, first: Step | None = None) -> Case:
    """An envelope that is kept, the request that it is for, and whatever comes then."""
    return Case(AHEAD, title, ((first or ahead(made), KEPT), (made.step, reason), *behind))


def envelope_of(evidence: Any, signatures: Any, **more: Any) -> bytes:
    return json.dumps({"evidence": evidence, "signatures": signatures} | more).encode()


def claiming(number: int) -> bytes:
    return b'{"claims":{"n":%d},"type":"pch.evidence.v1"}' % number


def other_evidence() -> Step:
    """Put other evidence, good by itself and as long, into the envelope."""
    made = make(evidence=claiming(1))
    one, two = (base64.b64encode(claiming(number)) for number in (1, 2))
    return made.with_envelope(made.envelope.replace(one, two))


def label_twice() -> Step:
    """Put another signature before the good one in the envelope, under its label; the length counts both."""
    another = b'"pch":"AAAA",'
    made = make("m65", length=len(make("m65").envelope) + len(another))
    return made.with_envelope(made.envelope.replace(b'"pch"', another + b'"pch"'))


def spoilt(made: Relaxed, label: str) -> Step:
    """Change one character of a signature in the envelope."""
    place = made.envelope.index(f'"{label}":"'.encode()) + len(label) + 30
    other = b"A" if made.envelope[place : place + 1] != b"A" else b"B"
    return made.with_envelope(made.envelope[:place] + other + made.envelope[place + 1 :])


def foreign(step: Step) -> Step:
    """Put another protocol's signature beside ours; its place is the header."""
    step = step.having("signature-input", step.field("signature-input") + ', other=("@method");created=1;tag="other"')
    return step.having(
        "signature",
        "other=:AAAA:" + "".join(f", {value.decode()}" for name, value in step.headers if name == "signature"),
    )


def stating(value: str) -> Step:
    """A relaxed request whose PCH-Relaxed says something else."""
    return relaxed().having("pch-relaxed", value)


NO_ENVELOPE: dict[str, bytes] = {
    "an envelope that is no JSON": b"evidence",
    "an envelope that is a list": b"[]",
    "an envelope without evidence": b'{"signatures":{}}',
    "an envelope without signatures": b'{"evidence":null}',
    "an unknown member in the envelope": envelope_of(None, {}, x=1),
    "a member twice in the envelope": b'{"evidence":null,"evidence":null,"signatures":{}}',
    "evidence that is a number": envelope_of(1, {}),
    "evidence that is an object": envelope_of({"type": "pch.evidence.v1"}, {}),
    "evidence of zero bytes": envelope_of("", {}),
    "evidence without padding": envelope_of("AA", {}),
    "evidence with spare bits": envelope_of("AB==", {}),
    "evidence in base64url": envelope_of("-_-_", {}),
    "evidence with a line end": envelope_of("AAAA\n", {}),
    "signatures that are a list": envelope_of(None, []),
    "a signature that is null": envelope_of(None, {"pch": None}),
    "an empty signature in the envelope": envelope_of(None, {"pch": ""}),
    "a label in capitals in the envelope": envelope_of(None, {"PCH": "AAAA"}),
    "nine signatures in the envelope": envelope_of(None, {f"l{n}": "AAAA" for n in range(9)}),
    "an envelope with a byte order mark": b"\xef\xbb\xbf" + NOTHING,
    "an envelope in UTF-16": NOTHING.decode().encode("utf-16-le"),
    "an envelope that is not UTF-8": b'{"evidence":null,"signatures":{"\xff":"AAAA"}}',
    "a comma at the envelope's end": b'{"evidence":null,"signatures":{},}',
    "two envelopes": NOTHING + NOTHING,
}
GRAMMAR = {
    "a length of zero": "?1;length=0", "a length with a leading zero": "?1;length=026", "a length over 131072": "?1;length=131073",
    "a length below zero": "?1;length=-1", "a length that is a decimal": "?1;length=9.0", "a length that is a string": '?1;length="9"',
    "a length without a value": "?1;length", "a length twice": "?1;length=9;length=9", "a parameter beside the length": "?1;length=9;x=1",
    "a blank in front of the length": "?1; length=9", "a token": "true", "content and no length": "?1",
}  # fmt: skip
DIGEST_OF_ALL = content_digest(make().step.body)
FOUR = tuple(make(body=b"") for _ in range(5))
SPENT = make(body=b"")
TWICE, OTHER, LATER, LOST = make(body=b""), make(body=b"", evidence=None), make(body=b""), make(body=b"")
BAD_EVIDENCE = make(evidence=b"[]")

ALONE: tuple[tuple[str, str, Step], ...] = (
    ("no challenge is named", REJECTED, ahead(make(body=b""), named=())),
    ("the challenge without quotes", REJECTED, ahead(plain := make(body=b""), named=(plain.nonce,))),
    ("two challenges are named", REJECTED, ahead(make(body=b""), named=(f'"{challenge(relax_grant=True)}", "{challenge(relax_grant=True)}"',))),
    ("the field of the challenge twice", REJECTED, ahead(pair := make(body=b""), named=(f'"{pair.nonce}"',) * 2)),
    ("a challenge that grants nothing", REJECTED, ahead(make(body=b"", grant=False))),
    ("a challenge that is none", REJECTED, ahead(make(body=b"", nonce="A" * 60))),
    ("a challenge that is too old", REJECTED, ahead(make(body=b"", nonce=challenge(issued_ms=NOW_MS - 60_001, relax_grant=True)))),
    ("a challenge of another connection", REJECTED, ahead(make(body=b""), binding=OTHER_BINDING)),
    ("a challenge of another authority", REJECTED, ahead(make(body=b""), authority="other.example")),
    ("a challenge of a route without binding", REJECTED, ahead(make(body=b"", nonce=challenge(binding=UNBOUND, relax_grant=True)))),
    ("an envelope that is none", REJECTED, ahead(make(body=b""), envelope=b"{}")),
    ("zero bytes are sent ahead", REJECTED, ahead(make(body=b""), envelope=b"")),
    ("no binding on the connection, sent ahead", "binding_missing", ahead(make(body=b""), binding=None)),
    ("a header over the hard cap, sent ahead", "header_too_large", ahead(make(body=b"")).adding("x-big", "a" * 50_000)),
    ("another method at that path", "no_route", ahead(make(body=b""), method="PUT")),
    ("a query behind that path", "no_route", ahead(make(body=b""), target=EVIDENCE_PATH + "?a")),
    ("no content on a route without binding", STALE, make(body=b"", target="/unbound/a", sent_binding=None, nonce=challenge(binding=UNBOUND, relax_grant=True)).step),
)  # fmt: skip

CASES: tuple[Case, ...] = (
    case(RELAXED, "evidence before the content", OK, relaxed()),
    case(RELAXED, "an ML-DSA signature before the content, no evidence", OK, relaxed("m65", evidence=None)),
    case(RELAXED, "evidence and an ML-DSA-87 signature", OK, relaxed("m87")),
    case(RELAXED, "ed25519+ml-dsa-65: the ML-DSA half alone is moved", OK, relaxed(PAIR, target="/hybrid/a")),
    case(RELAXED, "ecdsa-p256-sha256+ml-dsa-65", OK, relaxed(("curve", "curve-pq"), target="/hybrid/a", evidence=None)),
    case(RELAXED, "other labels than the tags", OK, relaxed(PAIR, labels=("sig1", "sig2"))),
    case(RELAXED, "an envelope of nothing", OK, relaxed(evidence=None)),
    case(RELAXED, "blanks in the envelope", OK, relaxed(evidence=None, envelope=b' { "evidence" : null,\n"signatures":{ } } ')),
    case(RELAXED, "another protocol's signature stays in the header", OK, foreign(relaxed("m65"))),
    case(RELAXED, "evidence where it is required, relaxed", OK, relaxed(target="/evidence")),
    case(RELAXED, "content as long as the route allows beside its envelope", OK, relaxed(target="/small", body=b"12345678")),
    case(RELAXED, "on a route without binding, with content", OK, relaxed(target="/unbound/a", sent_binding=None, nonce=challenge(binding=UNBOUND, relax_grant=True))),
    case(RELAXED, "what would be over the budget passes relaxed", OK, relaxed("m87", headers=(("x-a", b"a" * 7_900), ("x-b", b"b" * 2_900)))),
    case(RELAXED, "with content and no grant", STALE, relaxed(grant=False)),
    case(RELAXED, "with content on a route that never relaxes", STALE, relaxed(target="/plain")),
    case(RELAXED, "PCH-Relaxed not covered", MISSING, relaxed(cover=FIELDS[:1])),
    case(RELAXED, "PCH-Evidence-Digest not covered", MISSING, relaxed(cover=FIELDS[1:])),
    case(RELAXED, "no evidence in the envelope where it is required", MISSING, relaxed(target="/evidence", evidence=None)),
    case(RELAXED, "inline and before the content at once", MALFORMED, relaxed(headers=field(LEAST), cover=(*FIELDS, "pch-evidence"))),
    case(RELAXED, "PCH-Evidence-Digest of two members", MALFORMED, relaxed().editing("pch-evidence-digest", "sha-256=", "sha=:AAAA:, sha-256=")),
    case(RELAXED, "PCH-Evidence-Digest twice", MALFORMED, relaxed().adding("pch-evidence-digest", evidence_digest_field(LEAST))),
    *(case(RELAXED, f"PCH-Relaxed with {title}", MALFORMED, stating(value)) for title, value in GRAMMAR.items()),
    *(case(RELAXED, title, MALFORMED, relaxed(envelope=raw, evidence=None)) for title, raw in NO_ENVELOPE.items()),
    case(RELAXED, "a label twice in the envelope", MALFORMED, label_twice()),
    case(RELAXED, "a length one short", MALFORMED, relaxed(length=len(make().envelope) - 1)),
    case(RELAXED, "a length one long", MALFORMED, relaxed(length=len(make().envelope) + 1)),
    case(RELAXED, "a body that ends inside its envelope", MALFORMED, relaxed(length=5_000)),
    case(RELAXED, "a body that ends with its envelope", MALFORMED, make().with_content(b"")),
    case(RELAXED, "a length and no body at all", MALFORMED, make(body=b"").step.having("pch-relaxed", "?1;length=33")),
    case(RELAXED, "an ML-DSA signature that stays in the header", MALFORMED, relaxed("m65", moved=())),
    case(RELAXED, "an ML-DSA half that stays in the header", MALFORMED, relaxed(PAIR, moved=())),
    case(RELAXED, "an Ed25519 signature in the envelope", MALFORMED, relaxed(moved=("pch",))),
    case(RELAXED, "both halves in the envelope", MALFORMED, relaxed(PAIR, moved=("pch", "pch-pq"))),
    case(RELAXED, "an ML-DSA signature in both places", MALFORMED, relaxed("m65", moved=(), copied=("pch",))),
    case(RELAXED, "a label in the envelope without parameters", MALFORMED, relaxed(evidence=None, envelope=envelope_of(None, {"other": "AAAA"}))),
    case(RELAXED, "another protocol's signature in the envelope", MALFORMED, foreign(relaxed(evidence=None, envelope=envelope_of(None, {"other": "AAAA"}))).having("signature", None)),
    case(RELAXED, "an ML-DSA signature that is nowhere", MALFORMED, relaxed("m65", evidence=None, envelope=NOTHING)),
    case(RELAXED, "an ML-DSA half that is nowhere", MALFORMED, relaxed(PAIR, evidence=None, envelope=NOTHING)),
    case(RELAXED, "the ML-DSA half stripped from envelope and header", "alg_not_allowed", relaxed("hybrid", target="/hybrid/a")),
    case(RELAXED, "the signature in the envelope changed", "bad_signature", spoilt(make("m65"), "pch")),
    case(RELAXED, "the half in the envelope changed", "bad_signature", spoilt(make(PAIR), "pch-pq")),
    case(RELAXED, "the half in the envelope changed, mode or", "bad_signature", spoilt(make(PAIR, target="/either"), "pch-pq")),
    case(RELAXED, "the half in the envelope of another request", "bad_signature", make(PAIR).with_envelope(make(PAIR).envelope)),
    case(RELAXED, "the half in the header changed", "bad_signature", relaxed(PAIR).flipped()),
    case(RELAXED, "other evidence in the envelope", REJECTED, other_evidence()),
    case(RELAXED, "a digest of other evidence", REJECTED, relaxed(digest_of=b"{}")),
    case(RELAXED, "evidence, and a digest of zero bytes", REJECTED, relaxed(digest_of=None)),
    case(RELAXED, "no evidence, and a digest of some", REJECTED, relaxed(evidence=None, digest_of=LEAST)),
    case(RELAXED, "evidence in the envelope that is not canonical", REJECTED, relaxed(evidence=b'{"type": "pch.evidence.v1"}')),
    case(RELAXED, "evidence in the envelope with an unknown member", REJECTED, relaxed(evidence=b'{"type":"pch.evidence.v1","x":1}')),
    case(RELAXED, "the content behind the envelope changed", "bad_content_digest", make().with_content(b"hellO")),
    case(RELAXED, "the content behind the envelope cut short", "bad_content_digest", make().with_content(b"hell")),
    case(RELAXED, "a content digest of envelope and content", "bad_content_digest", relaxed(digest=DIGEST_OF_ALL)),
    case(RELAXED, "the content digest not covered, relaxed", MISSING, relaxed(components=("@method", "@authority", "@path", "@query", "pch-channel-binding", *FIELDS))),
    case(RELAXED, "content over the route's limit beside its envelope", "body_too_large", relaxed(target="/small", body=b"123456789")),
    Case(RELAXED, "rejected evidence spends", ((BAD_EVIDENCE.step, REJECTED), (BAD_EVIDENCE.step.but(stream="stream-2"), "nonce_replay"))),
    found("evidence sent ahead", make(body=b"")),
    found("an ML-DSA signature sent ahead", make("m65", body=b"", evidence=None)),
    found("an ML-DSA half sent ahead", make(PAIR, body=b"", target="/hybrid/a")),
    found("for any method", make(body=b"", method="DELETE")),
    found("found again by a retried Check, and by no other request", TWICE, (TWICE.step, OK), (TWICE.step.but(stream="stream-2"), "nonce_replay")),
    found("sent ahead for evidence that is required", make(body=b"", target="/evidence")),
    found("a signature sent ahead that is another request's", (swapped := make("m65", body=b"")), reason="bad_signature", first=ahead(swapped, envelope=make("m65", body=b"").envelope)),
    found("evidence sent ahead that is not that of its digest", (empty := make(body=b"")), reason=REJECTED, first=ahead(empty, envelope=NOTHING)),
    found("sent ahead for a route that never relaxes", make(body=b"", target="/plain"), reason=STALE),
    Case(AHEAD, "sent ahead, and the request after the challenge's age", ((ahead(LATER), KEPT), (LATER.step.but(at_ms=NOW_MS + 60_001), STALE))),
    Case(AHEAD, "the same envelope again is taken as said once", ((ahead(TWICE), KEPT), (ahead(TWICE, stream="again"), KEPT), (TWICE.step, OK))),
    Case(AHEAD, "another envelope under the same challenge", ((ahead(OTHER), KEPT), (ahead(OTHER, envelope=make(body=b"").envelope), REJECTED), (OTHER.step, OK))),
    Case(AHEAD, "an envelope under another challenge than the one signed", ((ahead(make(body=b"")), KEPT), (LOST.step, STALE))),
    Case(AHEAD, "a fifth that waits, and room once one is found", (*((ahead(each), KEPT) for each in FOUR[:4]), (ahead(FOUR[4]), "quota"), (FOUR[0].step, OK), (ahead(FOUR[4]), KEPT), (FOUR[4].step.but(stream="stream-2"), OK))),
    Case(AHEAD, "under a challenge that was spent", ((signed(nonce=SPENT.nonce), OK), (ahead(SPENT), REJECTED))),
    *(Case(AHEAD, title, ((step, reason),)) for title, reason, step in ALONE),
)  # fmt: skip
