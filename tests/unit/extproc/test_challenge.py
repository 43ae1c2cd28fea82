"""Challenges: what was issued here, for this connection and lately, opens; anything else is stale."""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.challenge import RELAX_GRANT, VERSION, OpenChallenge, issue, open_challenge
from extproc.sealing_keys import SealingKey
from pch.errors import StaleChallenge

if TYPE_CHECKING:
    from collections.abc import Callable

NOW_MS = 1_800_000_000_000
MAX_AGE_MS = 60_000
BINDING = bytes(range(32))
RANDOM = bytes(range(100, 116))
KEY = b"k" * 32


class Keys:
    """Two epochs: 7 is current, 6 is retired and still good."""

    def current(self) -> SealingKey:
        return SealingKey(7, KEY)

    def by_epoch(self, epoch: int) -> SealingKey:
        if epoch not in {6, 7}:
            raise StaleChallenge("unknown")
        return SealingKey(epoch, KEY if epoch == 7 else b"o" * 32)


def issued(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "realm": "signet",
        "authority": "example.com",
        "binding32": BINDING,
        "now_ms": NOW_MS,
        "random16": RANDOM,
    }
    return issue(Keys(), **(arguments | changes))


def opened(text: str, **changes: Any) -> OpenChallenge:
    arguments: dict[str, Any] = {
        "realm": "signet",
        "authority": "example.com",
        "binding32": BINDING,
        "now_ms": NOW_MS,
        "max_age_ms": MAX_AGE_MS,
    }
    return open_challenge(text, Keys(), **(arguments | changes))


def token_of(text: str) -> bytes:
    return base64.urlsafe_b64decode(text)


def text_of(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).decode()


def sealed_by_hand(
    head: bytes, key: bytes = KEY, fields: tuple[bytes, ...] = (b"signet", b"example.com", BINDING)
) -> str:
    """Build a challenge from the words of PCH §2, apart from the code under test."""
    message = b"PCH/1" + head + b"".join(len(field).to_bytes(2, "big") + field for field in fields)
    return text_of(head + hmac.new(key, message, "sha256").digest()[:16])


HEAD = bytes([1]) + (7).to_bytes(4, "big") + NOW_MS.to_bytes(8, "big") + RANDOM


def test_a_challenge_has_the_layout_of_the_specification() -> None:
    assert issued() == sealed_by_hand(HEAD)
    assert len(issued()) == 60
    assert issued(relax_grant=True) == sealed_by_hand(bytes([0x81]) + HEAD[1:])


def test_a_challenge_opens_where_it_was_issued() -> None:
    text = issued()
    assert opened(text) == OpenChallenge(token_of(text), 7, NOW_MS, relax_grant=False)
    assert opened(issued(relax_grant=True)).relax_grant


def test_a_challenge_of_the_previous_epoch_opens() -> None:
    head = HEAD[:1] + (6).to_bytes(4, "big") + HEAD[5:]
    assert opened(sealed_by_hand(head, b"o" * 32)).epoch == 6


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({"now_ms": NOW_MS + MAX_AGE_MS}, True),
        ({"now_ms": NOW_MS + MAX_AGE_MS + 1}, False),
        ({"now_ms": NOW_MS - 2000}, True),
        ({"now_ms": NOW_MS - 2001}, False),
        ({"now_ms": NOW_MS - 500, "skew_ms": 500}, True),
        ({"now_ms": NOW_MS - 501, "skew_ms": 500}, False),
        ({"realm": "Signet"}, False),
        ({"realm": "signete", "authority": "xample.com"}, False),
        ({"realm": ""}, False),
        ({"realm": "é"}, False),
        ({"authority": "example.com:8443"}, False),
        ({"authority": "Example.com"}, False),
        ({"authority": "éxample.com"}, False),
        ({"authority": "example.com" + "m" * 65_536}, False),
        ({"binding32": bytes(32)}, False),
        ({"binding32": BINDING[::-1]}, False),
        ({"binding32": BINDING[:31]}, False),
        ({"binding32": b""}, False),
    ],
)
def test_time_place_and_connection(changes: dict[str, Any], good: bool) -> None:
    text = issued()
    if good:
        opened(text, **changes)
    else:
        with pytest.raises(StaleChallenge):
            opened(text, **changes)


def flip_last_character(text: str) -> str:
    return text[:-1] + ("A" if text[-1] != "A" else "B")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text + "=",
        lambda text: text + "====",
        lambda text: text[:-1] + "=",
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text[:30] + "\n" + text[30:],
        lambda text: text[:30] + " " + text[31:],
        lambda text: text[:30] + "+" + text[31:],
        lambda text: text[:30] + "/" + text[31:],
        lambda text: text[:30] + "." + text[31:],
        lambda text: text[:30] + "\0" + text[31:],
        lambda text: text[:30] + "é" + text[31:],
        lambda text: "Ａ" + text[1:],
        lambda text: text.lower(),
        lambda text: text[::-1],
        lambda text: text * 2,
        lambda text: text[:56],
        lambda text: text * 1000,
        flip_last_character,
        lambda text: text_of(bytes(45)),
        lambda text: text_of(token_of(text)[:-16] + bytes(16)),
        lambda text: token_of(text).hex(),
    ],
)
def test_a_misspelt_or_forged_challenge_is_stale(change: Callable[[str], str]) -> None:
    changed = change(issued())
    assert changed != issued()
    with pytest.raises(StaleChallenge):
        opened(changed)


def test_the_other_base64_alphabet_is_refused_where_it_would_decode_alike() -> None:
    texts = [issued(random16=bytes([byte]) * 16) for byte in (0xFB, 0xFF)]
    for text in texts:
        assert "-" in text or "_" in text
        opened(text)
        with pytest.raises(StaleChallenge):
            opened(text.replace("-", "+").replace("_", "/"))


@pytest.mark.parametrize("version", [0, 2, 0x7F, 0x80, 0x82, 0xFF])
def test_another_version_is_stale_even_when_sealed(version: int) -> None:
    with pytest.raises(StaleChallenge):
        opened(sealed_by_hand(bytes([version]) + HEAD[1:]))


@pytest.mark.parametrize(
    "text",
    [
        sealed_by_hand(HEAD, b"x" * 32),
        sealed_by_hand(HEAD, b"o" * 32),
        sealed_by_hand(HEAD[:1] + (6).to_bytes(4, "big") + HEAD[5:]),
        sealed_by_hand(HEAD[:1] + (8).to_bytes(4, "big") + HEAD[5:]),
        sealed_by_hand(HEAD, fields=(b"signet", b"example.com")),
        sealed_by_hand(HEAD, fields=(b"signetexample.com", b"", BINDING)),
        sealed_by_hand(HEAD, fields=(b"example.com", b"signet", BINDING)),
        sealed_by_hand(HEAD[:5] + b"\xff" * 8 + HEAD[13:]),
        sealed_by_hand(HEAD[:5] + bytes(8) + HEAD[13:]),
    ],
)
def test_a_challenge_sealed_otherwise_is_stale(text: str) -> None:
    with pytest.raises(StaleChallenge):
        opened(text)


@given(st.integers(0, 45 * 8 - 1), st.binary(min_size=16, max_size=16), st.booleans())
def test_any_single_flipped_bit_is_stale(bit: int, random16: bytes, relax: bool) -> None:
    token = bytearray(token_of(issued(random16=random16, relax_grant=relax)))
    token[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StaleChallenge):
        opened(text_of(bytes(token)))


def test_every_single_flipped_bit_of_one_challenge_is_stale() -> None:
    for bit in range(45 * 8):
        token = bytearray(token_of(issued()))
        token[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StaleChallenge):
            opened(text_of(bytes(token)))


@given(st.text(max_size=70))
def test_arbitrary_text_is_stale(text: str) -> None:
    with pytest.raises(StaleChallenge):
        opened(text)


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    st.integers(0, 2**62),
)
def test_what_is_issued_opens_and_moving_a_character_between_fields_does_not(
    realm: str, authority: str, now_ms: int
) -> None:
    text = issued(realm=realm, authority=authority, now_ms=now_ms)
    assert opened(text, realm=realm, authority=authority, now_ms=now_ms).issued_ms == now_ms
    if authority:
        with pytest.raises(StaleChallenge):
            opened(text, realm=realm + authority[0], authority=authority[1:], now_ms=now_ms)


@pytest.mark.parametrize(
    "changes",
    [
        {"random16": bytes(15)},
        {"random16": bytes(17)},
        {"binding32": bytes(31)},
        {"authority": "é"},
        {"realm": "r" * 65_536},
    ],
)
def test_what_cannot_be_sealed_is_our_mistake(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"bytes|ascii"):
        issued(**changes)


def test_the_constants_are_those_of_the_specification() -> None:
    assert (VERSION, RELAX_GRANT) == (1, 0x80)
