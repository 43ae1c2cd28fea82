"""Reading the verifier's fields strictly."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.client.challenge import (
    challenge_parts,
    parse_challenge_text,
    parse_pch_challenge,
    parse_reason,
    parse_receipt_id,
    parse_www_authenticate,
)
from pch.client.errors import ChallengeSyntaxError

C1 = "A" * 60
C2 = "B" * 59 + "-"
PARAMS = {
    "realm": '"signet"',
    "challenge": f'"{C1}"',
    "algs": '"ed25519 ed25519+ml-dsa-65"',
    "mode": '"and"',
    "binding": '"tls-exporter"',
    "max-age": "60",
    "evidence": '"none"',
}


def field(**changes: str | None) -> bytes:
    merged = PARAMS | {name.replace("_", "-"): value for name, value in changes.items()}
    text = ", ".join(f"{name}={value}" for name, value in merged.items() if value is not None)
    return f"PCH {text}".encode("latin-1")


def test_challenge_is_read_whole() -> None:
    offered = parse_www_authenticate([field(hints='"relax-header-budget other"')])
    assert offered is not None
    assert offered.realm == "signet"
    assert offered.challenge == C1
    assert offered.algorithms == ("ed25519", "ed25519+ml-dsa-65")
    assert (offered.mode, offered.binding, offered.max_age_s, offered.evidence) == ("and", "tls-exporter", 60, "none")
    assert offered.hints == ("relax-header-budget", "other")


@pytest.mark.parametrize(
    "lines",
    [
        [b'Basic realm="a, PCH b"', field()],
        [b'Basic realm="a", ' + field() + b", Bearer"],
        [b"Negotiate, " + field()],
        [b"Negotiate YWJj==, " + field()],
        [field() + b', Digest realm="x", qop=auth'],
        [field().replace(b"PCH", b"pch").replace(b", ", b" ,\t")],
        [field().replace(b"=", b" = ", 1)],
        [field(unknown="1", realm=r'"sig\net"')],
    ],
)
def test_challenge_is_found_among_others(lines: list[bytes]) -> None:
    offered = parse_www_authenticate(lines)
    assert offered is not None
    assert (offered.realm, offered.challenge) == ("signet", C1)


@pytest.mark.parametrize("lines", [[], [b'Basic realm="PCH challenge"'], [b"Negotiate"], [b"PCHx a=b"]])
def test_answer_of_other_schemes_alone_has_no_challenge(lines: list[bytes]) -> None:
    assert parse_www_authenticate(lines) is None


@pytest.mark.parametrize(
    "lines",
    [
        *[[field(**{name.replace("-", "_"): None})] for name in PARAMS],
        [field(), field()],
        [field() + b', realm="x"'],
        [field(challenge=f'"{C1}A"')],
        [field(challenge=f'"{C1[:-1]}"')],
        [field(challenge=f'"{C1[:-1]}="')],
        [field(challenge=f'"{C1[:-1]}+"')],
        [field(mode='"xor"')],
        [field(binding='"tls-unique"')],
        [field(evidence='"perhaps"')],
        [field(max_age="0")],
        [field(max_age="3601")],
        [field(max_age="-1")],
        [field(max_age='"6e1"')],
        [field(max_age="9" * 30)],
        [b"PCH"],
        [field() + b' "'],
        [field().replace(b'realm="signet"', b'realm="signet')],
        [b"(" + field()],
        [field(realm='"\xe4"')],
        [field(realm='"' + "x" * 9000 + '"')],
        [b"PCH " + b", ".join(b"p%d=1" % n for n in range(40))],
        [field(realm='"a\x01b"')],
    ],
)
def test_challenge_out_of_grammar_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(ChallengeSyntaxError):
        parse_www_authenticate(lines)


def test_list_of_fresh_challenges_is_read_over_lines() -> None:
    assert parse_pch_challenge([]) == ()
    assert parse_pch_challenge([f'"{C1}" ,\t"{C2}"'.encode()]) == (C1, C2)
    assert parse_pch_challenge([f'"{C1}"'.encode(), f' "{C2}"'.encode()]) == (C1, C2)


@pytest.mark.parametrize(
    "value",
    [
        "",
        C1,
        f'"{C1}',
        f'"{C1}",',
        f'"{C1}", "{C1}"',
        f'"{C1}" "{C2}"',
        f'"{C1}";a=1',
        f'"{C1[:-1]}"',
        f'"{C1[:-1]}\u00e4"',
        ", ".join(f'"{n:060d}"' for n in range(9)),
    ],
)
def test_list_out_of_grammar_is_refused(value: str) -> None:
    with pytest.raises(ChallengeSyntaxError):
        parse_pch_challenge([value.encode("latin-1")])


@pytest.mark.parametrize("text", ["A" * 59, "A" * 61, "A" * 59 + "=", "A" * 59 + "\n", "A" * 59 + "ä", ""])
def test_challenge_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ChallengeSyntaxError):
        parse_challenge_text(text)
    assert parse_challenge_text(C2) == C2


def test_parts_follow_the_layout() -> None:
    token = bytes([0x81]) + (7).to_bytes(4) + (1_700_000_000_123).to_bytes(8) + b"r" * 16 + b"s" * 16
    parts = challenge_parts(parse_challenge_text(base64.urlsafe_b64encode(token).decode()))
    assert (parts.version, parts.relax_grant, parts.epoch, parts.issued_ms) == (1, True, 7, 1_700_000_000_123)
    assert (parts.random, parts.seal) == (b"r" * 16, b"s" * 16)


@pytest.mark.parametrize(
    ("lines", "receipt"),
    [
        ([b'"01-a"'], "01-a"),
        ([b' "x" '], "x"),
        ([], None),
        ([b"x"], None),
        ([b'""'], None),
        ([b'"a"', b'"b"'], None),
        ([b'"a\\"b"'], None),
        ([b'"' + b"x" * 129 + b'"'], None),
        ([b'"a\x80"'], None),
    ],
)
def test_receipt_id_is_a_short_string_or_none(lines: list[bytes], receipt: str | None) -> None:
    assert parse_receipt_id(lines) == receipt


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"quota"], "quota"),
        ([b" quota\t"], "quota"),
        ([], None),
        ([b"a b"], None),
        ([b"a", b"a"], None),
        ([b"9"], None),
    ],
)
def test_reason_is_a_token_or_none(lines: list[bytes], reason: str | None) -> None:
    assert parse_reason(lines) == reason


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for value in (data, b"PCH " + data, field() + data):
        for read in (parse_www_authenticate, parse_pch_challenge):
            try:
                read([value])
            except ChallengeSyntaxError:
                continue
