"""Accept-Signature, RFC 9421 §5.1."""

import pytest

from pch.httpsig.accept_signature import (
    make_signature_request,
    parse_accept_signature,
    serialise_accept_signature,
)
from pch.httpsig.component import ComponentId
from pch.httpsig.errors import ComponentError, DuplicateError, FieldSyntaxError, HttpSigError
from pch.httpsig.signature_input import MAX_LABELS, MAX_PARAMETERS, MAX_SIGNATURE_INPUT_BYTES

CHALLENGE = "A" * 60
FIELD = (
    f'pch=("@method" "@authority" "@path" "@query" "pch-channel-binding");created;expires;nonce="{CHALLENGE}";tag="pch"'
)


def test_the_field_of_the_protocol_is_made_and_read() -> None:
    request = make_signature_request(
        ["@method", "@authority", "@path", "@query", "pch-channel-binding"], nonce=CHALLENGE, tag="pch"
    )
    assert serialise_accept_signature({"pch": request}) == FIELD
    assert parse_accept_signature([FIELD.encode()]) == {"pch": request}
    assert request.params == {"created": True, "expires": True, "nonce": CHALLENGE, "tag": "pch"}


def test_several_members_and_every_parameter() -> None:
    one = make_signature_request(["x"], created=False, expires=False)
    two = make_signature_request([ComponentId("x", (("sf", True),))], keyid="k", alg="ed25519")
    field = serialise_accept_signature({"one": one, "two": two})
    assert field == 'one=("x"), two=("x";sf);created;expires;keyid="k";alg="ed25519"'
    assert parse_accept_signature([field.encode()]) == {"one": one, "two": two}


def test_an_absent_field_asks_for_nothing() -> None:
    assert parse_accept_signature([]) == {}


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([b'a=("x");created=1'], FieldSyntaxError),
        ([b'a=("x");expires="1"'], FieldSyntaxError),
        ([b'a=("x");created=?0'], FieldSyntaxError),
        ([b'a=("x");nonce'], FieldSyntaxError),
        ([b'a=("x");tag=pch'], FieldSyntaxError),
        ([b'a="x"'], FieldSyntaxError),
        ([b"a"], FieldSyntaxError),
        ([b'a=("x"),'], FieldSyntaxError),
        ([b'a=("x"), a=("x")'], DuplicateError),
        ([b'a=("x" "x")'], DuplicateError),
        ([b'a=("X")'], ComponentError),
        ([b"a=()" + b"".join(b";p%d" % n for n in range(MAX_PARAMETERS + 1))], FieldSyntaxError),
        ([b"a%d=()" % n for n in range(MAX_LABELS + 1)], FieldSyntaxError),
        ([b'a=("x");nonce="' + b"n" * MAX_SIGNATURE_INPUT_BYTES + b'"'], FieldSyntaxError),
        ([b"\xff"], FieldSyntaxError),
    ],
)
def test_bad_field_is_refused(lines: list[bytes], error: type[HttpSigError]) -> None:
    with pytest.raises(error):
        parse_accept_signature(lines)


def test_bad_requests_are_not_made() -> None:
    with pytest.raises(DuplicateError):
        make_signature_request(["x", "x"])
    with pytest.raises(FieldSyntaxError):
        serialise_accept_signature({})
    with pytest.raises(FieldSyntaxError):
        serialise_accept_signature({"A": make_signature_request(["x"])})
    with pytest.raises(FieldSyntaxError):
        serialise_accept_signature({"a": make_signature_request(["x"], nonce="\n")})
