"""§3 "Selection", "Parameters" and "Components", step 2 of §4: what the signature fields have to look like."""

# ruff: noqa: E501  (a row of the table is a line)
from __future__ import annotations

from tests.conformance.definitions.accepted import component
from tests.conformance.definitions.step import BOUND, LINE, Case, Step, case, signed

BAD = "malformed_signature"
SELECTION, PARAMETERS, COMPONENTS = "§3 Selection", "§3 Parameters", "§3 Components"


def members(step: Step, inputs: str, signatures: str) -> Step:
    """Put members behind the two fields; `%` stands for the first one's value."""
    first, second = step.field("signature-input"), step.field("signature")
    step = step.having("signature-input", first + inputs.replace("%", first.partition("=")[2]))
    return step.having("signature", second + signatures.replace("%", second.partition("=")[2]))


def doubled(step: Step, name: str) -> Step:
    return step.adding(name, step.field(name))


CASES: tuple[Case, ...] = (
    case(SELECTION, "another tag", "missing_signature", signed(tag="pch2")),
    case(SELECTION, "the tag in capitals", "missing_signature", signed(tag="PCH")),
    case(SELECTION, "the tag with a blank", "missing_signature", signed(tag="pch ")),
    case(SELECTION, "an empty tag", "missing_signature", signed(tag="")),
    case(SELECTION, "no tag", "missing_signature", signed(tag=None)),
    case(SELECTION, "pch-pq without pch", "missing_signature", signed("m65", tag="pch-pq")),
    case(SELECTION, "the label pch with another tag", "missing_signature", signed(tag="other")),
    case(SELECTION, "two signatures of one tag", BAD, members(signed(), ", b=%", ", b=%")),
    case(SELECTION, "the second of one tag is unsound", BAD, members(signed(), ', b=("@method");tag="pch"', ", b=:AAAA:")),
    case(SELECTION, "two signatures tagged pch-pq", BAD, members(signed(("hybrid", "hybrid-pq")), ', b=("@method");tag="pch-pq", c=("@method");tag="pch-pq"', ", b=:AAAA:, c=:AAAA:")),
    case(SELECTION, "a label twice", BAD, members(signed(), ", pch=%", "")),
    case(SELECTION, "a label twice in Signature", BAD, members(signed(), "", ", pch=%")),
    case(SELECTION, "both fields twice", BAD, doubled(doubled(signed(), "signature-input"), "signature")),
    case(SELECTION, "Signature alone", BAD, signed().having("signature-input", None)),
    case(SELECTION, "Signature-Input alone", BAD, signed().having("signature", None)),
    case(SELECTION, "a signature without its parameters", BAD, members(signed(), "", ", b=:AAAA:")),
    case(SELECTION, "parameters without their signature", BAD, members(signed(), ', b=("@method");tag="other"', "")),
    case(SELECTION, "labels that differ", BAD, signed().editing("signature", "pch=", "pcg=")),
    case(SELECTION, "an empty Signature-Input", BAD, signed().having("signature-input", "")),
    case(SELECTION, "an empty Signature", BAD, signed().having("signature", "")),
    case(SELECTION, "nine labels", BAD, members(signed(), "".join(f', l{n}=("@method")' for n in range(8)), "".join(f", l{n}=:AA==:" for n in range(8)))),
    case(SELECTION, "a signature that is a string", BAD, signed().having("signature", 'pch="abc"')),
    case(SELECTION, "a signature that is a token", BAD, signed().having("signature", "pch=abc")),
    case(SELECTION, "a signature with a parameter", BAD, signed().having("signature", signed().field("signature") + ";a=1")),
    case(SELECTION, "base64 without padding", BAD, signed().editing("signature", "==:", ":")),
    case(SELECTION, "base64 with spare bits", BAD, signed().having("signature", "pch=:AB==:")),
    case(SELECTION, "base64url", BAD, signed().having("signature", "pch=:-_-_:")),
    case(SELECTION, "a comma at the end", BAD, signed().having("signature", signed().field("signature") + ",")),
    case(SELECTION, "Signature-Input that is not ASCII", BAD, signed().having("signature-input", signed().field("signature-input").encode() + b"\xc3\xa9")),
    case(SELECTION, "a member that is no inner list", BAD, signed().having("signature-input", 'pch="x"')),
    case(SELECTION, "a giant Signature-Input", BAD, signed().having("signature-input", "pch=(" + '"a" ' * 1500 + ")")),
    case(SELECTION, "two blanks between components", BAD, signed().param('"@method" ', '"@method"  ')),
    case(SELECTION, "a blank in front of a parameter", BAD, signed().param(";created", "; created")),
    case(SELECTION, "an integer with a leading zero", BAD, signed().param(";created=1", ";created=01")),
    *(case(PARAMETERS, f"no {name}", BAD, signed(**{name: None})) for name in ("created", "expires", "keyid", "alg")),
    case(PARAMETERS, "no nonce", BAD, signed(nonce="x").param(';nonce="x"', "")),
    case(PARAMETERS, "an unknown parameter", BAD, signed().param(';tag="pch"', ';tag="pch";x=1')),
    case(PARAMETERS, "an unknown flag", BAD, signed().param(';tag="pch"', ';tag="pch";x')),
    case(PARAMETERS, "a parameter twice", BAD, signed().param(';tag="pch"', ';tag="pch";tag="pch"')),
    case(PARAMETERS, "created as a string", BAD, signed().param("created=1790000000", 'created="1790000000"')),
    case(PARAMETERS, "created as a decimal", BAD, signed().param("created=1790000000", "created=1790000000.0")),
    case(PARAMETERS, "created below zero", BAD, signed().param("created=1790000000", "created=-1")),
    case(PARAMETERS, "created as a flag", BAD, signed().param("created=1790000000", "created")),
    case(PARAMETERS, "expires as a date", BAD, signed().param("expires=1790000060", "expires=@1790000060")),
    case(PARAMETERS, "tag as a token", BAD, signed().param('tag="pch"', "tag=pch")),
    case(PARAMETERS, "alg as a token", BAD, signed().param('alg="ed25519"', "alg=ed25519")),
    case(PARAMETERS, "nonce as bytes", BAD, signed().param('nonce="', 'nonce=:AAAA:;x="')),
    case(PARAMETERS, "keyid as an integer", BAD, signed(keyid="7").param('keyid="7"', "keyid=7")),
    case(COMPONENTS, "@request-target", BAD, signed().param('"@query"', '"@query" "@request-target"')),
    case(COMPONENTS, "@status", BAD, signed().param('"@query"', '"@query" "@status"')),
    case(COMPONENTS, "@signature-params", BAD, signed().param('"@query"', '"@query" "@signature-params"')),
    case(COMPONENTS, "an unknown derived component", BAD, signed().param('"@query"', '"@query" "@body"')),
    case(COMPONENTS, ";req", BAD, signed().param('"@query"', '"@query" "@method";req')),
    case(COMPONENTS, ";tr", BAD, signed().param('"@query"', '"@query" "x";tr')),
    case(COMPONENTS, "an unknown component parameter", BAD, signed().param('"@query"', '"@query" "x";zz')),
    case(COMPONENTS, "a component twice", BAD, signed().param('"@query"', '"@query" "@query"')),
    case(COMPONENTS, "a field name in capitals", BAD, signed().param('"@query"', '"@query" "X-Note"')),
    case(COMPONENTS, "a component that is a token", BAD, signed().param('"@query"', "@query")),
    case(COMPONENTS, "bs with sf", BAD, signed().param('"@query"', '"@query" "x";bs;sf')),
    case(COMPONENTS, "@query-param without a name", BAD, signed().param('"@query"', '"@query" "@query-param"')),
    case(COMPONENTS, "33 components", BAD, signed().param('"@query"', '"@query" ' + " ".join(f'"x-{n}"' for n in range(28)))),
    case(COMPONENTS, "a component of 513 characters", BAD, signed().param('"@query"', f'"@query" "x";key="{"a" * 504}"')),
    *(case(COMPONENTS, f"{name} not covered", "missing_component", signed(components=tuple(each for each in BOUND if each != name))) for name in BOUND),
    *(case(COMPONENTS, f"{name} not covered, hybrid", "missing_component", signed(("hybrid", "hybrid-pq"), components=tuple(each for each in BOUND if each != name))) for name in ("@path", "pch-channel-binding")),
    case(COMPONENTS, "nothing covered", "missing_component", signed(components=())),
    case(COMPONENTS, "@target-uri does not stand for its parts", "missing_component", signed(components=("@method", "@target-uri", "pch-channel-binding"))),
    case(COMPONENTS, "a query parameter does not stand for the query", "missing_component", signed(target="/protected?a=1", components=("@method", "@authority", "@path", component("@query-param", name="a"), "pch-channel-binding"))),
    case(COMPONENTS, "a required component with sf", "missing_component", signed(components=(*LINE, component("pch-channel-binding", sf=True)))),
    case(COMPONENTS, "a required component with key", "missing_component", signed(components=(*LINE, component("pch-channel-binding", key="tls-exporter")))),
    case(COMPONENTS, "content-digest not covered", "missing_component", signed(body=b"x", components=BOUND)),
    case(COMPONENTS, "content without a digest", "missing_component", signed().but(body=b"x").adding("content-length", "1")),
    case(COMPONENTS, "declared content without a digest", "missing_component", signed().adding("content-length", "5")),
    case(COMPONENTS, "evidence not covered", "missing_component", signed().adding("pch-evidence", ":e30=:")),
    case(COMPONENTS, "a covered field taken away", "missing_component", signed(headers=(("x-note", b"n"),), cover=("x-note",)).having("x-note", None)),
    case(COMPONENTS, "a covered field with a byte above ASCII", "missing_component", signed(headers=(("x-note", b"n"),), cover=("x-note",)).having("x-note", b"n\xff")),
    case(COMPONENTS, "a covered field with a control character", "missing_component", signed(headers=(("x-note", b"n"),), cover=("x-note",)).having("x-note", b"n\x01")),
    case(COMPONENTS, "a covered dictionary member taken away", "missing_component", signed(headers=(("x-d", b"a=1, b=2"),), cover=(component("x-d", key="b"),)).having("x-d", "a=1")),
    case(COMPONENTS, "a covered query parameter that is there twice", "missing_component", signed(target="/protected?a=1", cover=(component("@query-param", name="a"),)).but(target="/protected?a=1&a=2")),
)  # fmt: skip
