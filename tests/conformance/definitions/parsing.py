"""§3: where two readers of structured fields may see two things (RFC 9651); one of them has to be refused."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

from pch.httpsig.content_digest import content_digest
from tests.conformance.definitions.evidence import LEAST, field
from tests.conformance.definitions.relaxed import PAIR
from tests.conformance.definitions.step import Case, Step, case, signed

OK, BAD, DIGEST, ALG = "allowed", "malformed_signature", "bad_content_digest", "alg_not_allowed"
READ, CONTENT, EVIDENCE = "§3 Reading", "§3 Content-Digest", "§3 Evidence"
SHA256 = content_digest(b"hello")


def beside(member: str, value: str = "other=:AAAA:") -> Step:
    """Put another protocol's signature behind ours."""
    step = signed()
    step = step.having("signature-input", f"{step.field('signature-input')}, {member}")
    return step.having("signature", f"{step.field('signature')}, {value}")


def own_lines(step: Step) -> Step:
    """Send every member of the two fields on a line of its own."""
    for name, parting in (("signature-input", ", pch-pq="), ("signature", ", pch-pq=")):
        first, _, second = step.field(name).partition(parting)
        step = step.having(name, first).adding(name, "pch-pq=" + second)
    return step


def inputs(old: str, new: str) -> Step:
    return signed().param(old, new)


def wrapped(before: str, after: str) -> Step:
    """Put text around both fields."""
    step = signed()
    for name in ("signature-input", "signature"):
        step = step.having(name, before + step.field(name) + after)
    return step


def digest(value: str) -> Step:
    """Content whose digest field says this, covered and signed as it is."""
    return signed(body=b"hello", digest=value)


def evidence(value: str | bytes) -> Step:
    raw = value.encode() if isinstance(value, str) else value
    return signed(headers=(("pch-evidence", raw),), cover=("pch-evidence",))


CREATED, METHOD, ALG_NAME, TAG = "created=1790000000", '"@method" ', 'alg="ed25519"', 'tag="pch"'
FIELD = field(LEAST)[0][1]
CASES: tuple[Case, ...] = (
    case(READ, "the members of a hybrid on lines of their own", OK, own_lines(signed(PAIR))),
    case(READ, "tabs around a comma", OK, (lambda: (step := signed(PAIR)).having("signature-input", step.field("signature-input").replace(", pch-pq=", "\t,\t pch-pq=")))),
    case(READ, "blanks around the fields", OK, wrapped(" \t", "\t ")),
    case(READ, "every character that a label may have", OK, signed(labels=("*a_-.*1", "b"))),
    case(READ, "a false flag of another protocol", OK, beside('other=("@method");x=?0;tag="other"')),
    case(READ, "a date, a token, a decimal and bytes of another protocol", OK, beside('other=("@method");d=@5;t=a/b;n=-1.5;b=:AA==:;tag="other"')),
    case(READ, "an escaped quote of another protocol", OK, beside('other=("@method");x="a\\"b\\\\";tag="other"')),
    case(READ, "another protocol without a tag", OK, beside('other=("@method");created=1')),
    case(READ, "a true flag written out", BAD, beside('other=("@method");x=?1;tag="other"')),
    case(READ, "a decimal with a zero too many", BAD, beside('other=("@method");n=1.50;tag="other"')),
    case(READ, "a flag of a component written out", BAD, beside('other=("x";sf=?1);tag="other"')),
    case(READ, "a parameter of a component twice", BAD, beside('other=("x";key="a";key="b");tag="other"')),
    case(READ, "a parameter of another protocol twice", BAD, beside('other=("@method");tag="other";tag="pch"')),
    case(READ, "a label of another protocol twice", BAD, beside('other=("@method"), other=("@path")')),
    case(READ, "created of minus zero", BAD, inputs(CREATED, "created=-0")),
    case(READ, "created with a plus", BAD, inputs(CREATED, "created=+1790000000")),
    case(READ, "created of sixteen digits", BAD, inputs(CREATED, "created=1790000000000000")),
    case(READ, "created with a blank behind the sign of equality", BAD, inputs(CREATED, "created= 1790000000")),
    case(READ, "a blank behind the first bracket", BAD, inputs('("@method"', '( "@method"')),
    case(READ, "a blank before the last bracket", BAD, inputs(")", " )")),
    case(READ, "a tab between components", BAD, inputs(METHOD, '"@method"\t')),
    case(READ, "no blank between components", BAD, inputs(METHOD, '"@method"')),
    case(READ, "an inner list that is not closed", BAD, inputs(")", "")),
    case(READ, "an escape that is none", BAD, inputs('"@method"', '"\\@method"')),
    case(READ, "an empty component", BAD, inputs(METHOD, '"@method" "" ')),
    case(READ, "a component with a blank", BAD, inputs(METHOD, '"@method" "x " ')),
    case(READ, "the tag as a display string", BAD, inputs(TAG, 'tag=%"pch"')),
    case(READ, "the tag with an escaped character", BAD, inputs(TAG, 'tag="p\\ch"')),
    case(READ, "the tag in single quotes", BAD, inputs(TAG, "tag='pch'")),
    case(READ, "a parameter's name in capitals", BAD, inputs(TAG, 'Tag="pch"')),
    case(READ, "a second tag of another protocol's in front", BAD, inputs(TAG, 'tag="other";tag="pch"')),
    case(READ, "a comma in front", BAD, wrapped(", ", "")),
    case(READ, "two commas", BAD, beside(', other=("@method")')),
    case(READ, "a label in capitals", BAD, (lambda: signed().editing("signature", "pch=", "Pch=").param("pch=", "Pch="))),
    case(READ, "a label that begins with a digit", BAD, (lambda: signed().editing("signature", "pch=", "1=").param("pch=", "1="))),
    case(READ, "a member without a value in Signature-Input", BAD, beside("other")),
    case(READ, "a member without a value in Signature", BAD, beside('other=("@method")', "other")),
    case(READ, "a blank before the sign of equality", BAD, signed().editing("signature", "pch=", "pch =")),
    case(READ, "a label twice on two lines of Signature", BAD, signed().adding("signature", "pch=:AAAA:")),
    case(READ, "a label twice on two lines of Signature-Input", BAD, signed().adding("signature-input", 'pch=("@method");tag="other"')),
    case(READ, "a signature without its last colon", BAD, signed().having("signature", signed().field("signature")[:-1])),
    case(READ, "a signature with a blank inside", BAD, signed().editing("signature", "pch=:", "pch=: ")),
    case(READ, "a signature with three signs of padding", BAD, signed().editing("signature", "==:", "===:")),
    case(READ, "a signature in an inner list", BAD, (lambda: (step := signed()).having("signature", f"pch=({step.field('signature')[4:]})"))),
    case(READ, "a no-break space", BAD, wrapped("\xa0", "")),
    case(READ, "a vertical tab", BAD, wrapped("", "\x0b")),
    case(READ, "a line end in the field", BAD, inputs(METHOD, '"@method"\n ')),
    case(READ, "alg with a blank", ALG, signed(alg="ed25519 ")),
    case(READ, "alg that is empty", ALG, signed(alg="")),
    case(READ, "alg with an escaped quote", ALG, signed(alg='ed25519"')),
    case(READ, "two names in alg", ALG, signed(alg="ed25519 ml-dsa-65")),
    case(READ, "a route's wildcard in alg", ALG, signed(alg="*")),
    case(READ, "the halves with each other's alg", ALG, signed(PAIR, target="/hybrid/a", alg="ml-dsa-65", second={"alg": "ed25519"})),
    case(READ, "both halves with the classical alg", ALG, signed(PAIR, target="/hybrid/a", second={"alg": "ed25519"})),
    case(READ, "both halves with the ML-DSA alg", ALG, signed(PAIR, target="/hybrid/a", alg="ml-dsa-65")),
    case(READ, "the ML-DSA half with another parameter set's alg", ALG, signed(PAIR, target="/hybrid/a", second={"alg": "ml-dsa-87"})),
    case(READ, "a hybrid's name in both halves", ALG, signed(PAIR, target="/hybrid/a", alg="ed25519+ml-dsa-65", second={"alg": "ed25519+ml-dsa-65"})),
    case(CONTENT, "a parameter of a digest says nothing", OK, digest(SHA256 + ";x=1")),
    case(CONTENT, "both digests on two lines", OK, (lambda: signed(body=b"hello", digest=content_digest(b"hello", ("sha-256", "sha-512"))).having("content-digest", SHA256).adding("content-digest", content_digest(b"hello", ("sha-512",))))),
    case(CONTENT, "its name in capitals", DIGEST, digest("SHA" + SHA256[3:])),
    case(CONTENT, "in an inner list", DIGEST, digest("sha-256=(" + SHA256[8:] + ")")),
    case(CONTENT, "without its colons", DIGEST, digest(SHA256.replace(":", ""))),
    case(CONTENT, "without a value", DIGEST, digest("sha-256")),
    case(CONTENT, "in hex", DIGEST, digest("sha-256=2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")),
    case(CONTENT, "sha-256 twice, the right one first", DIGEST, digest(SHA256 + ", " + content_digest(b"x"))),
    case(CONTENT, "sha-256 twice and right", DIGEST, digest(SHA256 + ", " + SHA256)),
    case(CONTENT, "sha-512 twice", DIGEST, digest(SHA256 + ", " + content_digest(b"hello", ("sha-512",)) + ", " + content_digest(b"hello", ("sha-512",)))),
    case(CONTENT, "sha-512 cut to the length of sha-256", DIGEST, digest(SHA256 + ", sha-512=" + SHA256[8:])),
    case(CONTENT, "sha-512 of zero bytes", DIGEST, digest(SHA256 + ", sha-512=::")),
    case(CONTENT, "sha-512 that is a flag", DIGEST, digest(SHA256 + ", sha-512")),
    case(CONTENT, "a comma at its end", DIGEST, digest(SHA256 + ",")),
    case(CONTENT, "nine members", DIGEST, digest(SHA256 + "".join(f", d{n}=:AA==:" for n in range(8)))),
    case(CONTENT, "of Repr-Digest instead", "missing_component", signed(body=b"hello", headers=(("repr-digest", SHA256.encode()),), cover=("repr-digest",)).having("content-digest", None)),
    case(EVIDENCE, "the field twice", BAD, evidence(FIELD).adding("pch-evidence", FIELD)),
    case(EVIDENCE, "a parameter behind it", BAD, evidence(FIELD + b";x=1")),
    case(EVIDENCE, "a list of two", BAD, evidence(FIELD + b", " + FIELD)),
    case(EVIDENCE, "a string", BAD, evidence(b'"' + LEAST.replace(b'"', b'\\"') + b'"')),
    case(EVIDENCE, "without its padding", BAD, evidence(":e30:")),
    case(EVIDENCE, "with spare bits", BAD, evidence(":e31=:")),
    case(EVIDENCE, "in base64url", BAD, evidence(":-_-_:")),
    case(EVIDENCE, "without its colons", BAD, evidence(FIELD[1:-1])),
    case(EVIDENCE, "an empty field", BAD, evidence("")),
)  # fmt: skip
