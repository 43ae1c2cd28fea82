"""A body as it streams through: however it is split the verdict is one, and of an altered one the end stays here."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.body_order import BodyOrder, BodyRelease
from extproc.body_stream import BodyStream, EnvelopeTaken, Finished, Released
from pch.errors import BadContentDigest, BodyTooLarge, PeerFault
from receipts.receipt_id import ReceiptId

RECEIPT = ReceiptId("01a1fdcf-6e74-7552-9567-f88f62197977")
MAX_BYTES = 4096


def order(body: bytes, **changes: object) -> BodyOrder:
    digests = {"sha-256": hashlib.sha256(body).digest(), "sha-512": hashlib.sha512(body).digest()}
    values: dict[str, object] = {
        "receipt_id": RECEIPT,
        "digests": digests,
        "pending": True,
        "release": "streamed",
        "content_bytes": None,
        "max_body_bytes": MAX_BYTES,
    }
    return BodyOrder(**(values | changes))  # type: ignore[arg-type]


@dataclass
class Upstream:
    """What goes on, and how it ends."""

    released: bytes = b""
    envelope: bytes | None = None
    finished: Finished | None = None
    most_held: int = 0
    chunks: list[bytes] = field(default_factory=list)

    def feed(self, stream: BodyStream, chunks: list[bytes]) -> Upstream:
        for chunk in chunks:
            for event in stream.receive(chunk):
                if isinstance(event, EnvelopeTaken):
                    assert self.envelope is None
                    self.envelope = event.data
                else:
                    assert isinstance(event, Released)
                    self.released += event.data
            self.most_held = max(self.most_held, stream.held_bytes)
        self.finished = stream.finish()
        return self

    @property
    def whole(self) -> bytes:
        assert self.finished is not None
        return self.released + self.finished.data


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


BODIES = st.binary(max_size=300)
CUTS = st.lists(st.integers(0, 400), max_size=12)
RELEASES = st.sampled_from(["streamed", "whole"])


@given(BODIES, CUTS, st.binary(max_size=40), RELEASES, st.booleans())
def test_any_split_of_a_good_body_goes_on_whole_and_without_its_envelope(
    body: bytes, cuts: list[int], envelope: bytes, release: BodyRelease, declared: bool
) -> None:
    stream = BodyStream(
        order(
            body,
            envelope_bytes=len(envelope),
            release=release,
            content_bytes=len(body) if declared else None,
        )
    )
    if envelope and not body:
        with pytest.raises(BadContentDigest, match="envelope"):
            Upstream().feed(stream, split(envelope, cuts))
        return
    upstream = Upstream().feed(stream, split(envelope + body, cuts))
    assert upstream.whole == body
    assert upstream.envelope == (envelope or None)
    assert upstream.finished is not None
    assert upstream.finished.sha256 == hashlib.sha256(body).digest()
    assert upstream.finished.content_bytes == len(body)
    if release == "whole":
        assert upstream.released == b""
    assert body == b"" or upstream.finished.data, "the end of a body is never released before its digest"


@st.composite
def mutations(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and what arrives in its place."""
    body = draw(st.binary(min_size=1, max_size=300))
    place = draw(st.integers(0, len(body) - 1))
    kind = draw(st.sampled_from(["flip", "cut", "drop", "insert", "extend", "empty", "double"]))
    other = bytes([body[place] ^ draw(st.integers(1, 255))])
    arrived = {
        "flip": body[:place] + other + body[place + 1 :],
        "cut": body[:place],
        "drop": body[:place] + body[place + 1 :],
        "insert": body[:place] + other + body[place:],
        "extend": body + other,
        "empty": b"",
        "double": body + body,
    }[kind]
    return body, arrived


@given(mutations(), CUTS, RELEASES, st.booleans())
def test_any_altered_body_is_refused_in_any_split_and_its_last_byte_stays_here(
    mutation: tuple[bytes, bytes], cuts: list[int], release: BodyRelease, declared: bool
) -> None:
    body, arrived = mutation
    stream = BodyStream(order(body, release=release, content_bytes=len(body) if declared else None))
    upstream = Upstream()
    if arrived == body:
        assert upstream.feed(stream, split(arrived, cuts)).whole == body
        return
    with pytest.raises(BadContentDigest):
        upstream.feed(stream, split(arrived, cuts))
    assert upstream.finished is None
    assert len(upstream.released) < max(1, len(arrived))
    assert arrived.startswith(upstream.released)
    with pytest.raises(RuntimeError):
        stream.finish()
    with pytest.raises(RuntimeError):
        stream.receive(b"x")


@given(BODIES, CUTS, st.sampled_from(["sha-256", "sha-512"]), st.integers(0, 31))
def test_every_digest_that_counts_must_hold(body: bytes, cuts: list[int], name: str, place: int) -> None:
    digests = dict(order(body).digests)
    digest = bytearray(digests[name])
    digest[place] ^= 1
    stream = BodyStream(order(body, digests=digests | {name: bytes(digest)}))
    with pytest.raises(BadContentDigest, match=name):
        Upstream().feed(stream, split(body, cuts))


@pytest.mark.parametrize("declared", [None, 5])
def test_content_over_the_limit_is_refused_at_the_first_byte_too_many(declared: int | None) -> None:
    stream = BodyStream(order(b"hello", max_body_bytes=5, content_bytes=declared))
    assert stream.receive(b"hell") == []
    assert stream.receive(b"o") == [Released(b"hell")]
    with pytest.raises(BodyTooLarge):
        stream.receive(b"!")
    assert stream.held_bytes == 0


def test_content_longer_than_was_said_is_refused_before_its_end() -> None:
    stream = BodyStream(order(b"hello", content_bytes=5))
    with pytest.raises(BadContentDigest, match="longer"):
        stream.receive(b"hello!")


def test_content_shorter_than_was_said_is_refused_even_if_its_digest_holds() -> None:
    stream = BodyStream(order(b"hello", content_bytes=6))
    stream.receive(b"hello")
    with pytest.raises(BadContentDigest, match="as long"):
        stream.finish()


@given(st.binary(min_size=1, max_size=40), CUTS)
def test_body_that_ends_inside_its_envelope_is_refused(envelope: bytes, cuts: list[int]) -> None:
    stream = BodyStream(order(b"", envelope_bytes=len(envelope) + 1))
    upstream = Upstream()
    with pytest.raises(PeerFault):
        upstream.feed(stream, split(envelope, cuts))
    assert (upstream.envelope, upstream.released) == (None, b"")


def test_no_more_than_one_chunk_is_held_of_a_streamed_body() -> None:
    body = bytes(range(256)) * 16
    upstream = Upstream().feed(BodyStream(order(body)), split(body, list(range(0, len(body), 64))))
    assert upstream.most_held == 64
    assert upstream.whole == body
    held = Upstream().feed(BodyStream(order(body, release="whole")), split(body, list(range(0, len(body), 64))))
    assert held.most_held == len(body)


def test_empty_chunks_release_nothing() -> None:
    stream = BodyStream(order(b"ab"))
    assert stream.receive(b"ab") == []
    assert stream.receive(b"") == []
    assert stream.content_bytes == 2
    assert stream.finish().data == b"ab"


def test_a_held_body_in_tiny_chunks_takes_no_more_than_twice_its_bytes() -> None:
    body = bytes(range(256)) * 128
    stream = BodyStream(order(body, release="whole", max_body_bytes=len(body)))
    pieces = [body[start : start + 2] for start in range(0, len(body), 2)]
    tracemalloc.start()
    try:
        for each in pieces:
            # A copy of its own, as from a message that is gone afterwards.
            assert stream.receive(bytes(bytearray(each))) == []
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stream.held_bytes == len(body)
    assert taken < 2 * len(body)
    assert stream.finish().data == body
    assert stream.held_bytes == 0
