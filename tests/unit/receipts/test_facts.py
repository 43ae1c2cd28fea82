from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.facts import (
    MAX_AUTHORITY_CHARS,
    MAX_EDGE_REQUEST_ID_CHARS,
    MAX_METHOD_CHARS,
    MAX_PATH_CHARS,
    ProofFacts,
    RequestFacts,
    SignatureFacts,
    WindowFacts,
    request_facts,
)

HEX = "ab" * 32


def facts(**changes: Any) -> RequestFacts:
    ask: dict[str, Any] = {"method": "GET", "authority": "example.com", "target": "/a", "content": "none"}
    return request_facts(**(ask | changes))


def test_the_query_is_hashed_and_never_kept() -> None:
    made = facts(target="/search?q=secret&x=%3F?")
    assert made.path == "/search"
    assert made.query_sha256 == hashlib.sha256(b"q=secret&x=%3F?").hexdigest()
    assert b"secret" not in msgspec.json.encode(made)


def test_an_empty_query_differs_from_none() -> None:
    assert facts(target="/a").query_sha256 is None
    assert facts(target="/a?").query_sha256 == hashlib.sha256(b"").hexdigest()


LONG = {
    "method": ("method", "M", MAX_METHOD_CHARS),
    "authority": ("authority", "a", MAX_AUTHORITY_CHARS),
    "target": ("path", "/", MAX_PATH_CHARS),
    "edge_request_id": ("edge_request_id", "1", MAX_EDGE_REQUEST_ID_CHARS),
}


@pytest.mark.parametrize("argument", LONG)
def test_what_is_too_long_is_cut_and_named(argument: str) -> None:
    member, character, limit = LONG[argument]
    whole = facts(**{argument: character * limit})
    assert getattr(whole, member) == character * limit
    assert whole.truncated == ()
    cut = facts(**{argument: character * (limit + 1)})
    assert getattr(cut, member) == character * limit
    assert cut.truncated == (member,)


def test_everything_cut_at_once_is_named_in_order() -> None:
    cut = facts(
        method="M" * 999, authority="a" * 999, target="/" * 9999, edge_request_id="1" * 999, content="unchecked"
    )
    assert cut.truncated == ("authority", "edge_request_id", "method", "path")


def test_what_is_not_unicode_is_escaped_and_named() -> None:
    made = facts(target="/\ud800?\udfff")
    assert made.path == "/\\ud800"
    assert made.truncated == ("path",)


def test_an_empty_edge_request_id_is_none() -> None:
    assert facts(edge_request_id="").edge_request_id is None
    assert facts(edge_request_id="").truncated == ()


any_text = st.text(st.characters(), max_size=60) | st.text(st.characters(), max_size=60).map(lambda text: text * 300)


@given(any_text, any_text, any_text, st.none() | any_text)
def test_any_request_can_be_described_within_the_bounds(
    method: str, authority: str, target: str, edge_request_id: str | None
) -> None:
    made = facts(method=method, authority=authority, target=target, edge_request_id=edge_request_id)
    assert msgspec.json.decode(msgspec.json.encode(made), type=RequestFacts) == made


@pytest.mark.parametrize(
    ("content", "digest"), [("verified", None), ("none", HEX)], ids=["verified without digest", "none with digest"]
)
def test_content_and_its_digest_must_agree(content: str, digest: str | None) -> None:
    with pytest.raises(ValueError, match="contradict"):
        facts(content=content, content_sha256=digest)
    assert facts(content="unchecked", content_sha256=digest).content_sha256 == digest


@pytest.mark.parametrize("truncated", [("path", "method"), ("path", "path")])
def test_truncated_is_a_sorted_set(truncated: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="sorted"):
        RequestFacts("GET", "a", "/", None, "none", None, None, truncated)


def signature(tag: Any) -> SignatureFacts:
    return SignatureFacts(tag, "A" * 43, "ed25519", HEX, HEX)


def proof(**changes: Any) -> ProofFacts:
    whole: dict[str, Any] = {
        "subject": "alice",
        "signatures": (signature("pch"),),
        "binding": "tls-exporter",
        "binding_sha256": HEX,
        "challenge_sha256": HEX,
        "created_s": 1,
        "expires_s": 2,
        "covered": ('"@method"',),
        "content_sha256": None,
        "evidence_sha256": None,
        "spend_key": None,
    }
    return ProofFacts(**(whole | changes))


@pytest.mark.parametrize("changes", [{"binding": "none"}, {"binding_sha256": None}])
def test_a_binding_and_its_hash_must_agree(changes: dict[str, Any]) -> None:
    assert proof(binding="none", binding_sha256=None)
    with pytest.raises(ValueError, match="binding"):
        proof(**changes)


@pytest.mark.parametrize("tags", [("pch", "pch"), ("pch-pq", "pch"), ("pch-pq", "pch-pq"), ("pch", "pch-pq", "pch")])
def test_two_signatures_are_one_of_each_tag_in_order(tags: tuple[str, ...]) -> None:
    assert proof(signatures=(signature("pch"), signature("pch-pq")))
    with pytest.raises(ValueError, match="in this order"):
        proof(signatures=tuple(signature(tag) for tag in tags))


@pytest.mark.parametrize("end_ms", [999, 1000])
def test_a_window_ends_after_it_starts(end_ms: int) -> None:
    assert WindowFacts(1000, 1001)
    with pytest.raises(ValueError, match="empty"):
        WindowFacts(1000, end_ms)
