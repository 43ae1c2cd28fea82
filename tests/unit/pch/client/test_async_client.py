"""What the asyncio client does before a connection is open."""

from __future__ import annotations

import io
import threading

import pytest

from pch.client import AsyncClient, ConnectFailed
from pch.client.errors import InvalidRequest
from pch.keys import generate

NOBODY = "https://127.0.0.1:1/"


class Watched(io.BytesIO):
    """A file that notes which threads read it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.read_by: set[int] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.read_by.add(threading.get_ident())
        return super().read(size)


async def test_a_file_is_read_for_its_digest_beside_the_event_loop() -> None:
    file = Watched(b"content" * 100_000)
    async with AsyncClient(key=generate("ed25519"), timeout_s=5.0) as client:
        with pytest.raises(ConnectFailed):
            await client.put(NOBODY, content=file)
    assert file.read_by
    assert threading.get_ident() not in file.read_by


async def test_what_is_wrong_with_a_request_is_told_before_its_file_is_read() -> None:
    file = Watched(b"content")
    async with AsyncClient(key=generate("ed25519")) as client:
        with pytest.raises(InvalidRequest):
            await client.request("NO METHOD", NOBODY, content=file)
        with pytest.raises(InvalidRequest):
            await client.put(NOBODY, content=io.StringIO("text"))  # type: ignore[arg-type]
    assert not file.read_by
