"""Signing and verifying whole messages, RFC 9421 §3, and the signature base of §2.5."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.algorithms import ALGORITHMS
from pch.errors import AlgNotAllowed, BadSignature
from pch.httpsig.component import ComponentId
from pch.httpsig.errors import AlgorithmMismatchError, ComponentError, HttpSigError
from pch.httpsig.message import RequestMessage, ResponseMessage
from pch.httpsig.sign import sign
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_field import parse_signature, serialise_signature
from pch.httpsig.signature_input import (
    SignatureParams,
    make_signature_params,
    parse_signature_input,
    serialise_signature_input,
)
from pch.httpsig.verify import verify
from pch.keys import generate, private_key_from_jwk, public_jwk, public_key_from_jwk

KEYS = {name: generate(name) for name in ALGORITHMS}
SIGNERS = {name: private_key_from_jwk(jwk) for name, jwk in KEYS.items()}
PUBLIC_KEYS = {name: public_key_from_jwk(public_jwk(jwk)) for name, jwk in KEYS.items()}

COVERED = ["@method", "@authority", "@path", "@query", "content-digest", "pch-channel-binding"]
MESSAGE = RequestMessage(
    "POST",
    "https",
    "api.example.com",
    "/orders/7?dry-run=1",
    (
        ("host", b"api.example.com"),
        ("accept", b"application/json"),
        ("content-digest", b"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"),
        ("pch-channel-binding", b"tls-exporter=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"),
        ("x-list", b"one"),
        ("x-list", b"two"),
    ),
)


def params_for(name: str, covered: list[str] | None = None) -> SignatureParams:
    return make_signature_params(
        COVERED if covered is None else covered,
        created=1700000000,
        expires=1700000060,
        keyid=SIGNERS[name].key_id,
        alg=name,
        nonce="n" * 60,
        tag="pch",
    )


def with_header(name: str, value: bytes) -> RequestMessage:
    headers = tuple((field, value if field == name else old) for field, old in MESSAGE.headers)
    return replace(MESSAGE, headers=headers)


def test_signature_base_is_one_line_per_component_and_the_parameters_last() -> None:
    params = make_signature_params(["x-list", ComponentId("x-list", (("bs", True),)), "@query"], created=1, tag="pch")
    assert signature_base(MESSAGE, params) == (
        b'"x-list": one, two\n'
        b'"x-list";bs: :b25l:, :dHdv:\n'
        b'"@query": ?dry-run=1\n'
        b'"@signature-params": ("x-list" "x-list";bs "@query");created=1;tag="pch"'
    )


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_what_is_signed_verifies_after_a_round_trip_through_the_fields(name: str) -> None:
    params = params_for(name)
    signature = sign(MESSAGE, params, SIGNERS[name])
    received = parse_signature_input([serialise_signature_input({"pch": params}).encode()])["pch"]
    received_signature = parse_signature([serialise_signature({"pch": signature}).encode()])["pch"]
    base = verify(MESSAGE, received, received_signature, PUBLIC_KEYS[name])
    assert base == signature_base(MESSAGE, params)


ALTERED_MESSAGES = [
    replace(MESSAGE, method="GET"),
    replace(MESSAGE, method="post"),
    replace(MESSAGE, authority="api.example.org"),
    replace(MESSAGE, authority="api.example.com:8443"),
    replace(MESSAGE, scheme="http", authority="api.example.com:443"),
    replace(MESSAGE, target="/orders/8?dry-run=1"),
    replace(MESSAGE, target="/orders/7/?dry-run=1"),
    replace(MESSAGE, target="/orders/%37?dry-run=1"),
    replace(MESSAGE, target="/Orders/7?dry-run=1"),
    replace(MESSAGE, target="/orders/7?dry-run=0"),
    replace(MESSAGE, target="/orders/7?dry-run=1&"),
    replace(MESSAGE, target="/orders/7?"),
    replace(MESSAGE, target="/orders/7"),
    replace(MESSAGE, target="/orders/7?dry-run=1?"),
    with_header("content-digest", b"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPF=:"),
    with_header("content-digest", b""),
    with_header("pch-channel-binding", b"tls-exporter=:BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"),
    with_header("pch-channel-binding", b"tls-exporter=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=: ;"),
    replace(MESSAGE, headers=(*MESSAGE.headers, ("content-digest", b"sha-256=:AA==:"))),
    replace(MESSAGE, headers=(*MESSAGE.headers, ("content-digest", b""))),
]


@pytest.mark.parametrize("message", ALTERED_MESSAGES)
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_message_altered_in_a_covered_part_is_refused(name: str, message: RequestMessage) -> None:
    params = params_for(name)
    signature = sign(MESSAGE, params, SIGNERS[name])
    verify(MESSAGE, params, signature, PUBLIC_KEYS[name])
    with pytest.raises(BadSignature):
        verify(message, params, signature, PUBLIC_KEYS[name])


@pytest.mark.parametrize(
    "message",
    [
        replace(MESSAGE, headers=()),
        replace(MESSAGE, target="/orders/7 ?dry-run=1"),
        replace(MESSAGE, target="https://api.example.com/orders/7?dry-run=1"),
        replace(MESSAGE, authority="evil@api.example.com"),
        replace(MESSAGE, method='POST\n"@authority": api.example.com'),
        with_header("content-digest", b"sha-256=:AA==:\n"),
        with_header("content-digest", b'x\r\n"pch-channel-binding": y'),
        with_header("content-digest", b"\xff"),
        replace(MESSAGE, headers=tuple((field.upper(), value) for field, value in MESSAGE.headers)),
    ],
)
def test_a_message_without_one_value_for_a_covered_part_is_refused(message: RequestMessage) -> None:
    params = params_for("ed25519")
    signature = sign(MESSAGE, params, SIGNERS["ed25519"])
    with pytest.raises(ComponentError):
        verify(message, params, signature, PUBLIC_KEYS["ed25519"])
    with pytest.raises(ComponentError):
        sign(message, params, SIGNERS["ed25519"])


@pytest.mark.parametrize(
    "altered",
    [
        {"created": 1700000001},
        {"expires": 1700000061},
        {"nonce": "m" + "n" * 59},
        {"tag": "pci"},
        {"keyid": "other"},
        {"components": COVERED[:-1]},
        {"components": [*COVERED, "accept"]},
        {"components": [COVERED[1], COVERED[0], *COVERED[2:]]},
        {"components": []},
    ],
    ids=str,
)
def test_altered_parameters_are_refused(altered: dict[str, object]) -> None:
    params = params_for("ed25519")
    signature = sign(MESSAGE, params, SIGNERS["ed25519"])
    given: dict[str, object] = {"components": COVERED, **params.params} | altered
    with pytest.raises(BadSignature):
        verify(MESSAGE, make_signature_params(**given), signature, PUBLIC_KEYS["ed25519"])  # type: ignore[arg-type]


def test_parameters_in_another_order_are_refused() -> None:
    params = params_for("ed25519")
    signature = sign(MESSAGE, params, SIGNERS["ed25519"])
    field = serialise_signature_input({"pch": params})
    swapped = field.replace(";created=1700000000;expires=1700000060", ";expires=1700000060;created=1700000000")
    received = parse_signature_input([swapped.encode()])["pch"]
    assert received.params == params.params
    with pytest.raises(BadSignature):
        verify(MESSAGE, received, signature, PUBLIC_KEYS["ed25519"])


@pytest.mark.parametrize("alg", ["ecdsa-p256-sha256", "Ed25519", "EdDSA", "none", "", "hmac-sha256"])
def test_alg_that_contradicts_the_key_is_refused_on_both_sides(alg: str) -> None:
    params = make_signature_params(COVERED, alg=alg)
    with pytest.raises(AlgorithmMismatchError):
        sign(MESSAGE, params, SIGNERS["ed25519"])
    without = make_signature_params(COVERED)
    with pytest.raises(AlgNotAllowed):
        verify(MESSAGE, params, sign(MESSAGE, without, SIGNERS["ed25519"]), PUBLIC_KEYS["ed25519"])


def test_without_alg_the_key_decides() -> None:
    params = make_signature_params(COVERED)
    signature = sign(MESSAGE, params, SIGNERS["ed25519"])
    verify(MESSAGE, params, signature, PUBLIC_KEYS["ed25519"])
    with pytest.raises(BadSignature):
        verify(MESSAGE, params, signature, PUBLIC_KEYS["ecdsa-p256-sha256"])


def test_another_key_of_the_same_algorithm_is_refused() -> None:
    for name in ALGORITHMS:
        params = params_for(name)
        other = public_key_from_jwk(public_jwk(generate(name)))
        with pytest.raises(BadSignature):
            verify(MESSAGE, params, sign(MESSAGE, params, SIGNERS[name]), other)


def test_a_response_is_signed_and_an_altered_one_is_refused() -> None:
    response = ResponseMessage(200, (("content-type", b"text/plain"),))
    params = make_signature_params(["@status", "content-type"], created=1)
    signature = sign(response, params, SIGNERS["ed25519"])
    verify(response, params, signature, PUBLIC_KEYS["ed25519"])
    for altered in (replace(response, status=201), replace(response, headers=(("content-type", b"text/html"),))):
        with pytest.raises(BadSignature):
            verify(altered, params, signature, PUBLIC_KEYS["ed25519"])
    with pytest.raises(ComponentError):
        verify(MESSAGE, params, signature, PUBLIC_KEYS["ed25519"])


PARAMS = params_for("ed25519")
SIGNATURE = sign(MESSAGE, PARAMS, SIGNERS["ed25519"])
BASE = signature_base(MESSAGE, PARAMS)


@given(position=st.integers(0, len(BASE) - 1), flip=st.integers(1, 255))
def test_every_changed_byte_of_the_base_is_refused(position: int, flip: int) -> None:
    altered = bytearray(BASE)
    altered[position] ^= flip
    PUBLIC_KEYS["ed25519"].verify(SIGNATURE, BASE)
    with pytest.raises(BadSignature):
        PUBLIC_KEYS["ed25519"].verify(SIGNATURE, bytes(altered))


@given(position=st.integers(0, len(SIGNATURE) - 1), flip=st.integers(1, 255))
def test_every_changed_byte_of_the_signature_is_refused(position: int, flip: int) -> None:
    altered = bytearray(SIGNATURE)
    altered[position] ^= flip
    with pytest.raises(BadSignature):
        verify(MESSAGE, PARAMS, bytes(altered), PUBLIC_KEYS["ed25519"])


TEXT = st.text(max_size=20)
COMPONENT_NAMES = st.sampled_from(
    ["@method", "@authority", "@path", "@query", "@target-uri", "@scheme", "@request-target", "@status", "x"]
)


@given(
    method=TEXT,
    scheme=st.sampled_from(["https", "http"]) | TEXT,
    authority=TEXT,
    target=TEXT | TEXT.map("/{}".format),
    value=st.binary(max_size=20),
    names=st.lists(COMPONENT_NAMES, max_size=6, unique=True),
    query_name=TEXT.filter(lambda text: text.isascii() and text.isprintable()),
)
def test_any_message_has_a_base_of_one_line_per_component_or_is_refused(
    method: str, scheme: str, authority: str, target: str, value: bytes, names: list[str], query_name: str
) -> None:
    message = RequestMessage(method, scheme, authority, target, (("x", value),))
    fields = [ComponentId("x", (("key", query_name),)), ComponentId("@query-param", (("name", query_name),))]
    covered: list[list[str | ComponentId]] = [[*names], [*names, fields[0]], [*names, fields[1]]]
    for components in covered:
        params = make_signature_params(components)
        try:
            base = signature_base(message, params)
        except HttpSigError:
            continue
        assert base.isascii()
        assert len(base.split(b"\n")) == len(components) + 1
        assert b"\r" not in base
