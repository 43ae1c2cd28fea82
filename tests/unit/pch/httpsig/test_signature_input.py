"""Signature-Input, RFC 9421 §4.1, and the attacks on it."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.httpsig.component import MAX_COMPONENTS, ComponentId
from pch.httpsig.errors import (
    ComponentError,
    DuplicateError,
    FieldSyntaxError,
    HttpSigError,
    NonCanonicalError,
)
from pch.httpsig.signature_input import (
    MAX_LABELS,
    MAX_PARAMETERS,
    MAX_SEPARATORS,
    MAX_SIGNATURE_INPUT_BYTES,
    SignatureParams,
    make_signature_params,
    parse_signature_input,
    serialise_signature_input,
)

MEMBER = b'pch=("@method" "@path");created=1700000000;expires=1700000060;keyid="k";alg="ed25519";nonce="n";tag="pch"'


def test_member_is_parsed_with_its_types() -> None:
    params = parse_signature_input([MEMBER])["pch"]
    assert [component.name for component in params.components] == ["@method", "@path"]
    assert (params.created, params.expires) == (1700000000, 1700000060)
    assert (params.keyid, params.alg, params.nonce, params.tag) == ("k", "ed25519", "n", "pch")
    assert list(params.params) == ["created", "expires", "keyid", "alg", "nonce", "tag"]
    assert params.serialised == MEMBER.decode().removeprefix("pch=")


def test_absent_parameters_are_none() -> None:
    params = parse_signature_input([b"a=()"])["a"]
    assert params.components == ()
    assert (params.created, params.expires, params.keyid, params.alg, params.nonce, params.tag) == (None,) * 6


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ([], []),
        ([b""], []),
        ([b"  \t"], []),
        ([b" " + MEMBER + b"\t"], ["pch"]),
        ([b'b=("x"), a=("y")'], ["b", "a"]),
        ([b'b=("x"),a=("y")'], ["b", "a"]),
        ([b'b=("x")\t , \ta=("y")'], ["b", "a"]),
        ([b'b=("x")', b'a=("y")'], ["b", "a"]),
        ([b'*b-._0=("x")'], ["*b-._0"]),
        ([b'a=("x";sf "x";key="k" "x";bs "x" "@query-param";name="q")'], ["a"]),
        ([b'a=("x");x=1.5;y=tok;z=:YQ==:;w=?0;v;u=@1700000000;t=%"%c3%a9";s=-7'], ["a"]),
        ([b'a=("x");keyid="qu\\"ote\\\\"'], ["a"]),
        ([b"a=();created=0;expires=999999999999999"], ["a"]),
    ],
)
def test_field_is_accepted(lines: list[bytes], labels: list[str]) -> None:
    assert list(parse_signature_input(lines)) == labels


REFUSED: list[tuple[str, list[bytes], type[HttpSigError]]] = [
    ("duplicate label", [b'a=("x"), a=("x")'], DuplicateError),
    ("duplicate label with other content", [b'a=("x"), b=(), a=("y")'], DuplicateError),
    ("duplicate label across lines", [b'a=("x")', b'a=("x")'], DuplicateError),
    ("duplicate parameter", [b'a=("x");created=1;created=1'], DuplicateError),
    ("duplicate component parameter", [b'a=("x";sf;sf)'], DuplicateError),
    ("duplicate component", [b'a=("x" "x")'], DuplicateError),
    ("duplicate derived component", [b'a=("@path" "x" "@path")'], DuplicateError),
    ("duplicate component, parameters swapped", [b'a=("x";req;key="k" "x";key="k";req)'], DuplicateError),
    ("duplicate query parameter", [b'a=("@query-param";name="q" "@query-param";name="q")'], DuplicateError),
    ("upper-case label", [b'A=("x")'], FieldSyntaxError),
    ("mixed-case label", [b'aB=("x")'], FieldSyntaxError),
    ("label starting with a digit", [b'1a=("x")'], FieldSyntaxError),
    ("quoted label", [b'"a"=("x")'], FieldSyntaxError),
    ("empty label", [b'=("x")'], FieldSyntaxError),
    ("label without a value", [b"a"], FieldSyntaxError),
    ("label without a value, with parameters", [b"a;created=1"], FieldSyntaxError),
    ("item instead of an inner list", [b'a="x"'], FieldSyntaxError),
    ("item instead of an inner list, other member", [b'a=("x"), b=1'], FieldSyntaxError),
    ("bytes instead of an inner list", [b"a=:YQ==:"], FieldSyntaxError),
    ("trailing comma", [b'a=("x"),'], FieldSyntaxError),
    ("leading comma", [b',a=("x")'], FieldSyntaxError),
    ("double comma", [b'a=("x"),,b=("x")'], FieldSyntaxError),
    ("empty line before", [b"", b'a=("x")'], FieldSyntaxError),
    ("empty line after", [b'a=("x")', b""], FieldSyntaxError),
    ("unclosed list", [b'a=("x"'], FieldSyntaxError),
    ("unclosed string", [b'a=("x)'], FieldSyntaxError),
    ("nested list", [b'a=(("x"))'], FieldSyntaxError),
    ("missing space between components", [b'a=("x""y")'], FieldSyntaxError),
    ("tab between components", [b'a=("x"\t"y")'], FieldSyntaxError),
    ("obs-fold", [b'a=("x"\r\n "y")'], FieldSyntaxError),
    ("trailing garbage", [b'a=("x") b'], FieldSyntaxError),
    ("NUL", [b'a=("x")\x00'], FieldSyntaxError),
    ("non-ASCII label", ['é=("x")'.encode()], FieldSyntaxError),
    ("non-ASCII component", ['a=("é")'.encode()], FieldSyntaxError),
    ("non-ASCII parameter", ['a=("x");keyid="é"'.encode()], FieldSyntaxError),
    ("created as decimal", [b'a=("x");created=1700000000.0'], FieldSyntaxError),
    ("created as string", [b'a=("x");created="1700000000"'], FieldSyntaxError),
    ("created as boolean", [b'a=("x");created'], FieldSyntaxError),
    ("created as false", [b'a=("x");created=?0'], FieldSyntaxError),
    ("created as date", [b'a=("x");created=@1700000000'], FieldSyntaxError),
    ("created as token", [b'a=("x");created=now'], FieldSyntaxError),
    ("created negative", [b'a=("x");created=-1'], FieldSyntaxError),
    ("created of 16 digits", [b'a=("x");created=1000000000000000'], FieldSyntaxError),
    ("created of 400 digits", [b'a=("x");created=' + b"9" * 400], FieldSyntaxError),
    ("created in hexadecimal", [b'a=("x");created=0x10'], FieldSyntaxError),
    ("created with exponent", [b'a=("x");created=1e9'], FieldSyntaxError),
    ("created empty", [b'a=("x");created='], FieldSyntaxError),
    ("expires as decimal", [b'a=("x");expires=1.5'], FieldSyntaxError),
    ("date out of range", [b'a=("x");u=@999999999999999'], FieldSyntaxError),
    ("keyid as token", [b'a=("x");keyid=k'], FieldSyntaxError),
    ("keyid as bytes", [b'a=("x");keyid=:YQ==:'], FieldSyntaxError),
    ("keyid as integer", [b'a=("x");keyid=1'], FieldSyntaxError),
    ("keyid as boolean", [b'a=("x");keyid'], FieldSyntaxError),
    ("keyid as display string", [b'a=("x");keyid=%"k"'], FieldSyntaxError),
    ("alg as token", [b'a=("x");alg=ed25519'], FieldSyntaxError),
    ("nonce as bytes", [b'a=("x");nonce=:YQ==:'], FieldSyntaxError),
    ("tag as token", [b'a=("x");tag=pch'], FieldSyntaxError),
    ("upper-case parameter", [b'a=("x");Created=1'], FieldSyntaxError),
    ("single quotes", [b"a=('x')"], FieldSyntaxError),
    ("bad escape", [b'a=("x");keyid="\\n"'], FieldSyntaxError),
    ("component as token", [b"a=(x)"], ComponentError),
    ("component as integer", [b"a=(1)"], ComponentError),
    ("component as bytes", [b"a=(:YQ==:)"], ComponentError),
    ("component as boolean", [b"a=(?1)"], ComponentError),
    ("component empty", [b'a=("")'], ComponentError),
    ("component upper-case", [b'a=("Content-Type")'], ComponentError),
    ("component of unknown derivation", [b'a=("@body")'], ComponentError),
    ("signature parameters covered", [b'a=("@signature-params")'], ComponentError),
    ("component with unknown parameter", [b'a=("x";other)'], ComponentError),
    ("flag with a value", [b'a=("x";sf=1)'], ComponentError),
    ("flag set to false", [b'a=("x";sf=?0)'], ComponentError),
    ("key as token", [b'a=("x";key=k)'], ComponentError),
    ("query parameter without a name", [b'a=("@query-param")'], ComponentError),
    ("created with leading zero", [b'a=("x");created=01'], NonCanonicalError),
    ("integer minus zero", [b'a=("x");x=-0'], NonCanonicalError),
    ("decimal with trailing zero", [b'a=("x");x=1.50'], NonCanonicalError),
    ("flag spelt out", [b'a=("x";sf=?1)'], NonCanonicalError),
    ("true spelt out", [b'a=("x");x=?1'], NonCanonicalError),
    ("space after parenthesis", [b'a=( "x")'], NonCanonicalError),
    ("space before parenthesis", [b'a=("x" )'], NonCanonicalError),
    ("two spaces between components", [b'a=("x"  "y")'], NonCanonicalError),
    ("space in an empty list", [b"a=( )"], NonCanonicalError),
    ("space before a parameter", [b'a=("x"); created=1'], NonCanonicalError),
    ("space before a component parameter", [b'a=("x"; sf)'], NonCanonicalError),
    ("unpadded bytes", [b'a=("x");x=:YQ:'], NonCanonicalError),
    ("spare bits in bytes", [b'a=("x");x=:YR==:'], NonCanonicalError),
    ("non-canonical second member", [b'a=("x"), b=("x" )'], NonCanonicalError),
    ("non-canonical first member", [b'a=("x" ), b=("x")'], NonCanonicalError),
]


@pytest.mark.parametrize(("lines", "error"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_field_is_refused(lines: list[bytes], error: type[HttpSigError]) -> None:
    with pytest.raises(HttpSigError) as caught:
        parse_signature_input(lines)
    assert type(caught.value) is error


def _with_components(count: int) -> bytes:
    return b"a=(" + b" ".join(b'"x%d"' % n for n in range(count)) + b")"


def _with_labels(count: int) -> bytes:
    return b", ".join(b"a%d=()" % n for n in range(count))


def _with_params(count: int) -> bytes:
    return b"a=()" + b"".join(b";p%d" % n for n in range(count))


def _of_length(count: int) -> bytes:
    return b'a=();keyid="' + b"k" * (count - 13) + b'"'


@pytest.mark.parametrize(
    ("build", "limit"),
    [
        (_with_components, MAX_COMPONENTS),
        (_with_labels, MAX_LABELS),
        (_with_params, MAX_PARAMETERS),
        (_of_length, MAX_SIGNATURE_INPUT_BYTES),
    ],
)
def test_limits_hold_exactly(build, limit: int) -> None:  # type: ignore[no-untyped-def]
    assert parse_signature_input([build(limit)])
    with pytest.raises(FieldSyntaxError):
        parse_signature_input([build(limit + 1)])


def test_errors_do_not_repeat_what_was_sent() -> None:
    for lines in ([b'a=("x");keyid=SECRETSECRET'], [b'secret-label=("x" )'], [b'a=("secret-name" "secret-name")']):
        with pytest.raises(HttpSigError) as caught:
            parse_signature_input(lines)
        assert "secret" not in str(caught.value).lower()


def test_made_parameters_are_in_the_order_of_the_protocol() -> None:
    params = make_signature_params(
        ["@method", ComponentId("x", (("sf", True),))],
        tag="pch",
        nonce="n",
        alg="ed25519",
        keyid="k",
        expires=2,
        created=1,
    )
    expected = '("@method" "x";sf);created=1;expires=2;keyid="k";alg="ed25519";nonce="n";tag="pch"'
    assert params.serialised == expected
    assert serialise_signature_input({"pch": params}) == f"pch={expected}"


@pytest.mark.parametrize(
    ("components", "given", "error"),
    [
        (["x", "x"], {}, DuplicateError),
        (["X"], {}, ComponentError),
        ([f"x{n}" for n in range(MAX_COMPONENTS + 1)], {}, FieldSyntaxError),
        (["x"], {"created": True}, FieldSyntaxError),
        (["x"], {"created": 1.5}, FieldSyntaxError),
        (["x"], {"created": -1}, FieldSyntaxError),
        (["x"], {"created": 10**15}, FieldSyntaxError),
        (["x"], {"keyid": 1}, FieldSyntaxError),
        (["x"], {"keyid": "é"}, FieldSyntaxError),
        (["x"], {"nonce": "line\nfeed"}, FieldSyntaxError),
        (["x"], {"tag": "\x7f"}, FieldSyntaxError),
    ],
)
def test_parameters_that_cannot_be_sent_are_not_made(
    components: list[str], given: dict[str, object], error: type[HttpSigError]
) -> None:
    with pytest.raises(error):
        make_signature_params(components, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("signatures", [{}, {"A": 0}, {"": 0}, {"a b": 0}, {"a\n": 0}])
def test_labels_that_are_no_keys_are_not_serialised(signatures: dict[str, int]) -> None:
    params = make_signature_params(["x"])
    with pytest.raises(FieldSyntaxError):
        serialise_signature_input(dict.fromkeys(signatures, params))


LABELS = st.from_regex(r"[a-z*][a-z0-9_\-.*]{0,8}", fullmatch=True)
NAMES = st.from_regex(r"[a-z0-9!#$%&'*+\-.^_`|~]{1,12}", fullmatch=True)
TEXTS = st.text(st.sampled_from(string.printable[:95]), max_size=20)
COMPONENTS = st.one_of(
    st.sampled_from(["@method", "@path", "@query", "@authority", "@target-uri"]).map(ComponentId),
    NAMES.map(ComponentId),
    st.builds(lambda name, key: ComponentId(name, (("key", key),)), NAMES, TEXTS),
    st.builds(lambda key: ComponentId("@query-param", (("name", key),)), TEXTS),
    st.builds(lambda name, flag: ComponentId(name, ((flag, True),)), NAMES, st.sampled_from(["sf", "bs", "tr"])),
)
TIMES = st.none() | st.integers(0, 999_999_999_999_999)
PARAMS = st.builds(
    make_signature_params,
    st.lists(COMPONENTS, max_size=8, unique_by=lambda component: component.identity),
    created=TIMES,
    expires=TIMES,
    keyid=st.none() | TEXTS,
    alg=st.none() | TEXTS,
    nonce=st.none() | TEXTS,
    tag=st.none() | TEXTS,
)


@given(st.dictionaries(LABELS, PARAMS, min_size=1, max_size=MAX_LABELS))
def test_parsing_what_was_serialised_gives_it_back(signatures: dict[str, SignatureParams]) -> None:
    assert parse_signature_input([serialise_signature_input(signatures).encode()]) == signatures
    lines = [serialise_signature_input({label: params}).encode() for label, params in signatures.items()]
    assert parse_signature_input(lines) == signatures


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_arbitrary_bytes_raise_nothing_else(lines: list[bytes]) -> None:
    try:
        parsed = parse_signature_input(lines)
    except HttpSigError:
        return
    assert parsed == parse_signature_input([serialise_signature_input(parsed).encode()] if parsed else [])


@given(st.data())
def test_damaged_fields_are_refused_or_are_other_canonical_fields(data: st.DataObject) -> None:
    damaged = bytearray(MEMBER)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(damaged) - 1))
        damaged[position] = data.draw(st.sampled_from(list(b' \t()";=,:?@%\\-0aA\x00\xff')) | st.integers(0, 255))
    try:
        parsed = parse_signature_input([bytes(damaged)])
    except HttpSigError:
        return
    # Whatever is accepted is exactly what was sent: nothing in it was repaired or ignored.
    assert serialise_signature_input(parsed).encode() == bytes(damaged).strip(b" \t")


@pytest.mark.parametrize("separator", [b" ", b";", b","])
def test_more_parts_than_any_valid_field_has_are_refused_before_parsing(separator: bytes) -> None:
    with pytest.raises(FieldSyntaxError, match="too many parts"):
        parse_signature_input([b"a=(1" + separator * (MAX_SEPARATORS + 1) + b")"])


def test_as_many_parts_as_the_limits_allow_are_parsed() -> None:
    components = " ".join(f'"x{number}";sf' for number in range(MAX_COMPONENTS))
    members = [f'l{label}=({components});created=1;tag="t"' for label in range(MAX_LABELS)]
    assert len(parse_signature_input([member.encode() for member in members])) == MAX_LABELS
