"""Targets with one reading pass; every other reading is refused (PCH §1.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.errors import AmbiguousPath
from pch.path import MAX_TARGET_BYTES, check_target

PLAIN = [
    "/",
    "/protected",
    "/protected/",
    "/a/b.c/d..e/...",
    "/a;v=1/b",
    "/a?x=1&y=../../%2f//\\",
    "/caf%C3%A9",
    "/a%20b%3Fc%25",
    "/.well-known/pch/evidence",
    "/a/..b/.c",
    "/?",
    "/!$&'()*+,;=:@",
]

AMBIGUOUS = [
    "",
    "*",
    "a/b",
    "https://h/a",
    "//",
    "//host/a",
    "/a//b",
    "/a/",  # twin below; replaced in the table
    "/.",
    "/..",
    "/./a",
    "/a/./b",
    "/a/../b",
    "/a/..",
    "/a/.",
    "/public/../admin",
    "/public/..;/admin",
    "/a/.;x/b",
    "/%2e%2e/b",
    "/%2E/b",
    "/a/.%2e/b",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a%5Cb",
    "/a\\b",
    "/a%00",
    "/a%41",
    "/a%7a",
    "/a%30",
    "/a%2d",
    "/a%5f",
    "/a%7E",
    "/a%",
    "/a%2",
    "/a%zz",
    "/a%%41",
    "/a b",
    "/a\tb",
    "/a\x00b",
    "/caf\u00e9",
    "/a#b",
    "/a?x=#",
    "/a?x= y",
    "/a?\u00e9",
]
AMBIGUOUS.remove("/a/")


@pytest.mark.parametrize("target", PLAIN)
def test_target_with_one_reading_passes(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize("target", AMBIGUOUS)
def test_target_with_two_readings_is_refused(target: str) -> None:
    with pytest.raises(AmbiguousPath):
        check_target(target)


def test_target_is_bounded() -> None:
    check_target("/" + "a" * (MAX_TARGET_BYTES - 1))
    with pytest.raises(AmbiguousPath):
        check_target("/" + "a" * MAX_TARGET_BYTES)


@given(st.characters(min_codepoint=0x21, max_codepoint=0x7E))
def test_every_encoded_unreserved_character_is_refused_and_no_other_escape_is_by_that_rule(
    character: str,
) -> None:
    target = f"/a%{ord(character):02X}b"
    unreserved = character.isalnum() or character in "-._~"
    if unreserved or character in "/\\":
        with pytest.raises(AmbiguousPath):
            check_target(target)
    else:
        check_target(target)


@given(st.text(alphabet="/.%25eEfF\\;?a", max_size=12))
def test_what_passes_means_the_same_after_decoding_and_normalising(text: str) -> None:
    """If a target passes, decoding its path once and removing dot segments changes nothing about its segments."""
    from urllib.parse import unquote

    try:
        check_target("/" + text)
    except AmbiguousPath:
        return
    path = ("/" + text).partition("?")[0]
    decoded = unquote(path)
    assert decoded.count("/") == path.count("/")
    assert not {".", ".."} & {segment.partition(";")[0] for segment in decoded.split("/")}
