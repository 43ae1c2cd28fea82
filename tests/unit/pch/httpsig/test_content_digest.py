"""Content-Digest, RFC 9530 §2 and PCH §3."""

import base64
import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.errors import BadContentDigest
from pch.httpsig.content_digest import (
    ContentDigestCheck,
    content_digest,
    expected_digests,
    parse_content_digest,
    verify_content_digest,
)
from pch.httpsig.errors import DuplicateError, FieldSyntaxError

BODY = b'{"hello": "world"}'
# RFC 9530 and RFC 9421 §B.1.
SHA256 = b"sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"
SHA512 = b"sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:"
WRONG512 = b"sha-512=:" + base64.b64encode(bytes(64)) + b":"


def test_content_digest_is_the_published_one() -> None:
    assert content_digest(BODY) == SHA256.decode()
    assert content_digest(BODY, ("sha-256", "sha-512")) == f"{SHA256.decode()}, {SHA512.decode()}"


@pytest.mark.parametrize("algorithms", [(), ("md5",), ("sha-256", "sha"), ("SHA-256",)])
def test_content_digest_of_another_algorithm_is_refused(algorithms: tuple[str, ...]) -> None:
    with pytest.raises(FieldSyntaxError):
        content_digest(BODY, algorithms)


@pytest.mark.parametrize(
    "lines",
    [
        [SHA256],
        [SHA256 + b", " + SHA512],
        [SHA512, SHA256],
        [b" " + SHA256 + b"\t"],
        [SHA256, b"md5=:AAAA:"],
        [SHA256 + b";unknown=1"],
    ],
)
def test_matching_digests_are_accepted(lines: list[bytes]) -> None:
    verify_content_digest(lines, BODY)
    for altered in (BODY + b" ", BODY[:-1], b"", b"X" + BODY[1:]):
        with pytest.raises(BadContentDigest):
            verify_content_digest(lines, altered)


def test_every_changed_character_of_the_digest_is_refused() -> None:
    for position in range(len(SHA256)):
        altered = bytearray(SHA256)
        altered[position] ^= 1
        with pytest.raises(BadContentDigest):
            verify_content_digest([bytes(altered)], BODY)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b""],
        [SHA512],
        [b"md5=:AAAA:"],
        [SHA256 + b", " + WRONG512],
        [WRONG512, SHA256],
        [SHA256, SHA256],
        [SHA256 + b", sha-256=:" + base64.b64encode(bytes(32)) + b":"],
        [SHA256 + b","],
        [SHA256 + b", md5=1"],
        [SHA256 + b", md5"],
        [SHA256 + b", md5=(:AAAA:)"],
        [SHA256.upper()],
        [b"sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="],
        [b"sha-256"],
        [b"sha-256=::"],
        [b"sha-256=:" + base64.b64encode(hashlib.sha256(BODY).digest()[:16]) + b":"],
        [b"sha-256=:" + base64.b64encode(hashlib.sha256(BODY).hexdigest().encode()) + b":"],
        [b"sha-256=:\xff:"],
        [SHA256, *[b"a%d=:AAAA:" % n for n in range(8)]],
        [SHA256 + b" " * 10 + b";p=" + b"x" * 4096],
    ],
)
def test_bad_content_digest_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(BadContentDigest):
        verify_content_digest(lines, BODY)


def test_parse_gives_every_digest_and_none_for_an_absent_field() -> None:
    assert parse_content_digest([]) == {}
    assert parse_content_digest([b"sha-256=:YQ==:", b"other=:Yg==:"]) == {"sha-256": b"a", "other": b"b"}
    with pytest.raises(DuplicateError):
        parse_content_digest([b"sha-256=:YQ==:, sha-256=:YQ==:"])


# -- as content arrives


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_digests_hold_over_content_in_pieces_as_over_the_whole(body: bytes, cuts: list[int]) -> None:
    check = ContentDigestCheck(expected_digests([content_digest(body, ("sha-256", "sha-512")).encode()]))
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(places):
        check.update(memoryview(body)[start:end])
    assert check.verify() == hashlib.sha256(body).digest()
    check.update(b"x")
    with pytest.raises(BadContentDigest):
        check.verify()


def test_digests_that_count_are_those_of_the_profile_alone() -> None:
    field = content_digest(b"a", ("sha-512", "sha-256")) + ", md5=:AAAA:"
    assert list(expected_digests([field.encode()])) == ["sha-256", "sha-512"]


@pytest.mark.parametrize(
    "field", ["", "sha-256=::", "sha-256=:AAAA:", "md5=:AAAA:", content_digest(b"", ("sha-512",)), "sha-256"]
)
def test_digest_that_no_content_can_have_is_refused_before_any_arrives(field: str) -> None:
    with pytest.raises(BadContentDigest):
        expected_digests([field.encode()])


def test_digest_of_the_second_algorithm_has_its_length_too() -> None:
    with pytest.raises(BadContentDigest):
        expected_digests([(content_digest(b"") + ", sha-512=:AAAA:").encode()])


@pytest.mark.parametrize("expected", [{}, {"sha-512": bytes(64)}, {"sha-256": bytes(32), "md5": bytes(16)}])
def test_check_without_the_digests_of_the_profile_cannot_be_made(expected: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="PCH"):
        ContentDigestCheck(expected)
