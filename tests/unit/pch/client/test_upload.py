"""Content that is read piece by piece: what goes out is what was signed, or nothing whole does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pch.client import upload as module
from pch.client.errors import InvalidRequest
from pch.client.limits import MAX_REQUEST_BODY_BYTES, MAX_UPLOAD_BYTES, UPLOAD_PIECE_BYTES
from pch.client.request import make_request
from pch.client.upload import Upload
from pch.httpsig.content_digest import content_digest

URL = "https://app.example/uploads/a"
BODY = bytes(range(256)) * 3000


def made(body: bytes = BODY, pieces: Callable[[], Iterable[bytes]] | None = None) -> Upload:
    return Upload(pieces or (lambda: [body]), length_bytes=len(body), digest=content_digest(body))


async def gathered(upload: Upload, envelope: bytes = b"") -> bytes:
    return b"".join([piece async for piece in upload.with_envelope(envelope)])


@given(st.binary(max_size=2000), st.integers(0, 500))
def test_file_is_digested_and_sent_from_where_it_stands(body: bytes, start: int) -> None:
    file = io.BytesIO(body)
    file.seek(start)
    upload = Upload.of_file(file)
    assert len(upload) == len(body[start:])
    assert upload.digest == content_digest(body[start:])
    for _ in range(2):
        assert b"".join(upload.with_envelope(b"")) == body[start:]


def test_no_more_than_one_piece_of_a_file_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(BODY)
    with path.open("rb") as file:
        pieces = list(Upload.of_file(file).pieces())
    assert max(map(len, pieces)) == UPLOAD_PIECE_BYTES
    assert b"".join(pieces) == BODY


async def test_pieces_are_the_same_on_asyncio_and_behind_an_envelope() -> None:
    upload = Upload.of_file(io.BytesIO(BODY))
    assert await gathered(upload) == BODY
    assert await gathered(upload, b"envelope") == b"envelope" + BODY == b"".join(upload.with_envelope(b"envelope"))
    assert len(upload.with_envelope(b"envelope")) == len(BODY) + 8


@pytest.mark.parametrize(
    "pieces",
    [
        [BODY, b"x"],
        [BODY + b"x"],
        [BODY[:-1]],
        [],
        [b""],
        [BODY[:1000], BODY],
    ],
)
async def test_content_that_is_longer_or_shorter_than_it_was_is_never_whole(pieces: list[bytes]) -> None:
    upload = made(pieces=lambda: pieces)
    sent = b""
    with pytest.raises(InvalidRequest, match="not what it was"):
        for piece in upload.with_envelope(b""):
            sent += piece
    assert len(sent) <= len(BODY)
    with pytest.raises(InvalidRequest):
        await gathered(upload)


def test_file_that_grows_or_shrinks_between_the_passes_is_never_sent_whole() -> None:
    for length in (len(BODY) + 4, len(BODY) - 1, 0):
        file = io.BytesIO(BODY)
        upload = Upload.of_file(file)
        file.seek(0)
        file.truncate(0)
        file.write(bytes(length))
        with pytest.raises(InvalidRequest):
            list(upload.pieces())


def test_pieces_that_can_be_had_once_are_not_sent_twice() -> None:
    def pieces() -> Iterator[bytes]:
        yield BODY[:5]
        yield BODY[5:]

    upload = Upload.of_pieces(pieces(), length_bytes=len(BODY), digest=content_digest(BODY))
    assert b"".join(upload.pieces()) == BODY
    with pytest.raises(InvalidRequest, match="once"):
        list(upload.pieces())


@pytest.mark.parametrize(
    ("length_bytes", "digest"),
    [
        (-1, content_digest(b"")),
        (MAX_UPLOAD_BYTES + 1, content_digest(b"")),
        (1, ""),
        (1, "sha-256=:AAAA:"),
        (1, content_digest(b"", ("sha-512",))),
        (1, "sha-256=\u00e9"),
        (1, "x\r\ny: z"),
    ],
)
def test_upload_of_no_length_or_digest_cannot_be_made(length_bytes: int, digest: str) -> None:
    with pytest.raises(InvalidRequest):
        Upload(lambda: [b""], length_bytes=length_bytes, digest=digest)


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_file_that_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    closed = io.BytesIO(BODY)
    closed.close()
    text = tmp_path / "text"
    text.write_text("text")
    for file in (Pipe(BODY), closed):
        with pytest.raises(InvalidRequest):
            Upload.of_file(file)
    with text.open() as strings, pytest.raises(InvalidRequest, match="text"):
        Upload.of_file(strings)  # type: ignore[arg-type]


def test_file_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UPLOAD_BYTES", 10)
    with pytest.raises(InvalidRequest, match="over"):
        Upload.of_file(io.BytesIO(bytes(11)))
    assert len(Upload.of_file(io.BytesIO(bytes(10)))) == 10


def test_request_takes_bytes_text_files_and_uploads() -> None:
    assert make_request("POST", URL, content="\u00e9").body == b"\xc3\xa9"
    assert make_request("POST", URL).body == b""
    upload = made()
    assert make_request("POST", URL, content=upload).body is upload
    from_file = make_request("POST", URL, content=io.BytesIO(BODY)).body
    assert isinstance(from_file, Upload)
    assert from_file.digest == content_digest(BODY)
    assert make_request("GET", URL, content=upload).asks_first
    empty = make_request("GET", URL, content=io.BytesIO())
    assert not empty.asks_first
    with pytest.raises(InvalidRequest, match="Upload"):
        make_request("POST", URL, content=bytes(MAX_REQUEST_BODY_BYTES + 1))
