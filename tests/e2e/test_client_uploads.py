"""Uploads of the client against the real stack: read twice, held by no one, and refused when they change on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tracemalloc
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from pch.client import InvalidRequest, NetworkError, Upload
from pch.client.cli import main
from pch.httpsig.content_digest import content_digest
from tests.e2e.client_any import AnyClient
from tools.stack import Stack
from tools.stack_config import Ports, StackSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

LARGE_BYTES = 64 << 20
BODY = os.urandom(3_000_001)
MAX_CLIENT_BYTES = 8 << 20


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(StackSettings(var=tmp_path_factory.mktemp("u"), ports=Ports.free())) as running:
        yield running


@pytest.fixture(params=[("sync", True), ("sync", False), ("async", True), ("async", False)], ids=str)
def client(stack: Stack, request: pytest.FixtureRequest) -> Iterator[AnyClient]:
    kind, http2 = request.param
    key = json.loads(stack.files.demo_key.read_text())
    made = AnyClient(kind, key=key, verify=stack.state["ca"], http2=http2)
    yield made
    made.close()


def url(stack: Stack, path: str = "/uploads/a") -> str:
    return str(stack.state["https"]) + path


def last(stack: Stack) -> dict[str, Any]:
    return stack.app_requests()[-1]


def test_file_arrives_as_it_is(stack: Stack, client: AnyClient, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BODY)
    with path.open("rb") as file:
        for _ in range(2):
            file.seek(0)
            assert client.request("PUT", url(stack), content=file).status == 200
            assert (last(stack)["body_bytes"], last(stack)["body_sha256"]) == (
                len(BODY),
                hashlib.sha256(BODY).hexdigest(),
            )


def test_pieces_of_known_digest_arrive_in_one_pass(stack: Stack, client: AnyClient) -> None:
    pieces = (BODY[start : start + 100_000] for start in range(0, len(BODY), 100_000))
    upload = Upload.of_pieces(pieces, length_bytes=len(BODY), digest=content_digest(BODY, ("sha-256", "sha-512")))
    assert client.request("POST", url(stack), content=upload).status == 200
    assert last(stack)["body_sha256"] == hashlib.sha256(BODY).hexdigest()


def test_upload_that_is_not_what_its_digest_says_is_refused(stack: Stack, client: AnyClient) -> None:
    before = len(stack.app_requests())
    upload = Upload(lambda: [BODY[:-1] + b"!"], length_bytes=len(BODY), digest=content_digest(BODY))
    answer = client.request("POST", url(stack), content=upload)
    assert (answer.status, answer.reason) == (400, "bad_content_digest")
    assert len(stack.app_requests()) == before


def test_file_that_shrinks_on_the_way_is_never_whole_and_the_client_goes_on(stack: Stack, client: AnyClient) -> None:
    before = len(stack.app_requests())
    file = io.BytesIO(BODY)
    upload = Upload.of_file(file)
    file.truncate(len(BODY) - 1000)
    with pytest.raises((InvalidRequest, NetworkError)):
        client.request("POST", url(stack), content=upload)
    assert len(stack.app_requests()) == before
    assert client.request("POST", url(stack), content=BODY).status == 200


class Zeros(io.RawIOBase, BinaryIO):  # type: ignore[misc]  # a file of nothing but zeros, that takes no room
    def __init__(self, length: int) -> None:
        self._length, self._place = length, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0, /) -> int:
        assert whence == 0
        self._place = offset
        return offset

    def read(self, size: int = -1, /) -> bytes:
        count = min(size, self._length - self._place)
        self._place += count
        return bytes(count)


def test_64_mib_are_in_no_ones_memory(stack: Stack, client: AnyClient) -> None:
    tracemalloc.start()
    try:
        assert client.request("POST", url(stack), content=Zeros(LARGE_BYTES)).status == 200
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert last(stack)["body_bytes"] == LARGE_BYTES
    assert most < MAX_CLIENT_BYTES


def test_pch_request_sends_a_file_larger_than_it_would_hold(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(LARGE_BYTES + 1)
    arguments = ["--key", str(stack.files.demo_key), "--cacert", stack.state["ca"], "-X", "PUT"]
    assert main(["request", *arguments, "--data-file", str(path), "--json", url(stack)]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == 200
    assert last(stack)["body_bytes"] == LARGE_BYTES + 1
