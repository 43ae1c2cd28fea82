from __future__ import annotations

import asyncio
import base64
import http.server
import socket
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from kms.capability import identity_of, read_token
from kms.client import AsyncKmsClient, Endpoint, EndpointError, KmsClient, KmsUnreachable, TokenFile
from kms.client_wire import MAX_ANSWER_BYTES
from kms.errors import (
    BadRequest,
    Conflict,
    KmsError,
    NoCapability,
    NotFound,
    StoreUnavailable,
    Timeout,
    Unauthenticated,
)
from kms.messages import (
    ChangeKeyStateRequest,
    CheckpointRequest,
    CreateKeyRequest,
    GetKeyRequest,
    KeyStateResponse,
    KidSelector,
    RotateKeyRequest,
    SignRequest,
    UnwrapRequest,
    VerifyRequest,
    WrapRequest,
)
from kms.mint import Grant
from kms.private_file import PrivateFileError
from kms.revocation import revoke
from tests.support.kms_process import KmsProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DIGEST = blake3(b"hello world").hexdigest()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmsProcess]:
    with KmsProcess(tmp_path_factory.mktemp("kms") / "kms") as service:
        yield service


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_every_operation_goes_through(service: KmsProcess, transport: str) -> None:
    client = service.client(url=None if transport == "unix" else f"http://127.0.0.1:{service.port}")
    kid = client.create_key(CreateKeyRequest(tenant="core", purpose="audit", alg="ed25519")).kid
    signed = client.sign(SignRequest(kid_or_set=KidSelector(kid=kid), payload_b3=DIGEST))
    assert signed.kid == kid
    selector = KidSelector(kid=kid)
    assert client.verify(VerifyRequest(payload_b3=DIGEST, sigs=signed.sigs, kid_or_set=selector)).ok
    assert client.rotate(RotateKeyRequest(kid=kid)).kid == kid.replace("#v1", "#v2")
    assert client.get_key(GetKeyRequest(kid=kid)).versions == ["#v1", "#v2"]
    disabled = client.call("disable", ChangeKeyStateRequest(kid=kid))
    assert isinstance(disabled, KeyStateResponse)
    assert disabled.state == "disabled"
    kem = client.create_key(CreateKeyRequest(tenant="core", purpose="kem", alg="ml-kem")).kid
    wrapped = client.wrap(WrapRequest(kid=kem, plaintext_key_b64=base64.b64encode(b"k" * 32).decode()))
    opened = client.unwrap(UnwrapRequest(kid=wrapped.kid, wrapped_b64=wrapped.wrapped_b64))
    assert base64.b64decode(opened.plaintext_key_b64) == b"k" * 32
    assert "kkkk" not in repr(opened)
    tlog = client.create_key(CreateKeyRequest(tenant="core", purpose="tlog", alg="hybrid")).kid
    root = blake3(b"x").hexdigest()
    head = CheckpointRequest(kid=tlog, origin="log.example/x", old_size=0, new_size=5, root=root)
    assert client.checkpoint(head).note.startswith("log.example/x\n5\n")


def test_what_the_service_refuses_comes_out_as_it_meant_it(service: KmsProcess) -> None:
    client = service.client()
    kid = service.create("ed25519", "audit")
    selector = KidSelector(kid=kid)
    narrow = service.client(name="narrow", scopes=("kms:read",))
    with pytest.raises(NoCapability) as refused:
        narrow.sign(SignRequest(kid_or_set=selector, payload_b3=DIGEST))
    assert refused.value.hint == "attach macaroon with kms:sign"
    gone = KidSelector(kid=kid.replace("#v1", "#v7"))
    with pytest.raises(NotFound):
        client.sign(SignRequest(kid_or_set=gone, payload_b3=DIGEST))
    with pytest.raises(BadRequest):
        client.sign(SignRequest(kid_or_set=selector, payload_b3="x"))
    op_id = str(uuid.uuid4())
    client.rotate(RotateKeyRequest(kid=kid, op_id=op_id))
    with pytest.raises(Conflict):
        client.rotate(RotateKeyRequest(kid=service.create("ed25519", "other"), op_id=op_id))


def test_a_revoked_token_is_refused_within_five_seconds_and_a_new_one_is_taken_up(service: KmsProcess) -> None:
    kid = service.create("ed25519", "audit")
    client = service.client(name="revoked")
    request = SignRequest(kid_or_set=KidSelector(kid=kid), payload_b3=DIGEST)
    client.sign(request)
    path = service.folder / "revoked"
    revoke(service.revocations, int(time.time()), token_ids=(identity_of(read_token(path.read_text()))[1],))
    began_s = time.monotonic()
    with pytest.raises(Unauthenticated):
        until(lambda: client.sign(request) and False, 5.0)
    assert time.monotonic() - began_s < 5.0
    service.token_file(Grant(("kms:sign",), ("core",), expires_at_s=int(time.time()) + 60), "revoked")
    until(lambda: accepted(client, request), 5.0)


def accepted(client: KmsClient, request: SignRequest) -> bool:
    try:
        client.sign(request)
    except Unauthenticated:
        return False
    return True


def until(holds: Callable[[], object], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise AssertionError("did not come about in time")
        time.sleep(0.05)


async def test_the_asyncio_client_does_the_same(service: KmsProcess) -> None:
    kid = service.create("ed25519", "audit")
    service.client(name="async")
    client = AsyncKmsClient(Endpoint.parse(service.url), TokenFile(service.folder / "async"))
    request = SignRequest(kid_or_set=KidSelector(kid=kid), payload_b3=DIGEST)
    answers = await asyncio.gather(*(client.call("sign", request) for _ in range(30)))
    assert len(answers) == 30
    with pytest.raises(NotFound):
        await client.call("get_key", GetKeyRequest(kid=kid.replace("#v1", "#v9")))
    await client.aclose()
    away = AsyncKmsClient(Endpoint.parse("unix:/nonexistent/socket"), TokenFile(service.folder / "async"))
    with pytest.raises(KmsUnreachable):
        await away.call("sign", request)
    await away.aclose()


def test_a_service_that_was_killed_and_started_again_is_found_again(tmp_path: Path) -> None:
    with KmsProcess(tmp_path / "kms") as service:
        kid = service.create("ed25519", "audit")
        client = service.client(timeout_s=5)
        request = SignRequest(kid_or_set=KidSelector(kid=kid), payload_b3=DIGEST)
        before = client.sign(request)
        service.kill()
        with pytest.raises(KmsUnreachable) as caught:
            client.sign(request)
        assert isinstance(caught.value, StoreUnavailable)
        service.start()
        again = client.sign(request)
        assert (again.kid, again.sigs[0]) == (before.kid, before.sigs[0])
        assert "Bearer" not in service.log()


# Answers that are none


class Handler(http.server.BaseHTTPRequestHandler):
    answer: tuple[int, bytes] = (200, b"")
    requests = 0
    drop = 0
    hold = threading.Event()

    def do_GET(self) -> None:
        type(self).requests += 1
        if type(self).drop:
            type(self).drop -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.answer[0] == 0:
            self.hold.wait(5)
            return
        self.send_response(self.answer[0])
        self.send_header("Content-Length", str(len(self.answer[1])))
        self.end_headers()
        self.wfile.write(self.answer[1])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[tuple[KmsClient, type[Handler]]]:
    handler = type("Fresh", (Handler,), {"hold": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text("AgEabc\n")
    endpoint = Endpoint.parse(f"http://127.0.0.1:{server.server_address[1]}")
    client = KmsClient(endpoint, TokenFile(tmp_path / "token"), timeout_s=0.5)
    yield client, handler
    client.close()
    handler.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()


GET = GetKeyRequest(kid="core/a/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b")


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"", KmsUnreachable),
        (200, b"{}", KmsUnreachable),
        (200, b"[]", KmsUnreachable),
        (200, b"\xff", KmsUnreachable),
        (200, b"[" * 5000, KmsUnreachable),
        (200, b" " * (MAX_ANSWER_BYTES + 1), KmsUnreachable),
        (500, b"<html>", KmsUnreachable),
        (500, b"{}", KmsUnreachable),
        (500, b'{"error":{"code":"Internal","message":"m","retryable":false,"ts":"","request_id":""}}', KmsError),
        (404, b'{"error":{"code":"NotFound","message":"m","retryable":false,"ts":"","request_id":"","x":1}}', NotFound),
        (418, b'{"error":{"code":"New","message":"m","retryable":false,"ts":"","request_id":""}}', StoreUnavailable),
        (302, b"", KmsUnreachable),
    ],
    ids=lambda value: str(value)[:24],
)
def test_an_answer_that_is_none_is_told_and_not_quoted(
    strange: tuple[KmsClient, type[Handler]], status: int, body: bytes, error: type[KmsError]
) -> None:
    client, handler = strange
    handler.answer = (status, body)
    with pytest.raises(error) as caught:
        client.get_key(GET)
    assert caught.value.__cause__ is None


def test_members_of_a_newer_service_are_passed_over(strange: tuple[KmsClient, type[Handler]]) -> None:
    client, handler = strange
    handler.answer = (200, b'{"kid":"k#v2","previous":"k#v1","new":{"a":1}}')
    assert client.rotate(RotateKeyRequest(kid=GET.kid)).previous == "k#v1"


def test_a_silent_service_is_a_timeout(strange: tuple[KmsClient, type[Handler]]) -> None:
    client, handler = strange
    handler.answer = (0, b"")
    began_s = time.monotonic()
    with pytest.raises(Timeout):
        client.rotate(RotateKeyRequest(kid=GET.kid))
    assert time.monotonic() - began_s < 2


def test_only_what_may_be_repeated_is(strange: tuple[KmsClient, type[Handler]]) -> None:
    client, handler = strange
    handler.answer = (200, b'{"kid":"k#v2","previous":"k#v1"}')
    handler.drop = 1
    with pytest.raises(KmsUnreachable):
        client.rotate(RotateKeyRequest(kid=GET.kid))
    assert handler.requests == 1
    handler.drop, handler.requests = 1, 0
    handler.answer = (200, b'{"plaintext_key_b64":"AA==","alg":"a","kid":"k"}')
    assert client.unwrap(UnwrapRequest(kid=GET.kid, wrapped_b64="AA==")).kid == "k"
    assert handler.requests == 2


@pytest.mark.parametrize(
    "url",
    [
        "",
        "unix:relative",
        "unix:/" + "x" * 5000,
        "ftp://127.0.0.1:1",
        "http://127.0.0.1",
        "http://127.0.0.1:x",
        "http://10.0.0.1:9446",
        "http://example.com:9446",
        "https://example.com",
        "https://user@example.com:1",
        "https://example.com:1/path",
        "https://example.com:1?q",
        "https://[::1:1",
    ],
)
def test_a_url_that_would_leak_the_token_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(EndpointError) as caught:
        Endpoint.parse(url)
    assert "user" not in str(caught.value) or "@" not in str(caught.value)


@pytest.mark.parametrize("url", ["unix:/run/kms.sock", "http://127.0.0.1:1", "http://[::1]:1", "https://kms.example:1"])
def test_urls_that_are_accepted(url: str) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.tls(None) is not None) == url.startswith("https")


@pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"\xff", b"a\nb", b"a" * 5000])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(PrivateFileError):
        TokenFile(path)
    path.write_bytes(b"good-token_1")
    assert TokenFile(path).current() == "good-token_1"
    path.chmod(0o640)
    with pytest.raises(PrivateFileError):
        TokenFile(path)
    path.unlink()
    with pytest.raises(PrivateFileError, match="no token"):
        TokenFile(path)


def test_the_client_loads_no_server_code() -> None:
    code = "import sys, kms.client, kms.checkpoint_signer; print(*[m for m in sys.modules if m.startswith('kms.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    server = {"kms.server", "kms.dispatcher", "kms.key_store", "kms.audit_log", "kms.http_api", "kms.capability"}
    assert not server & set(loaded)
    assert not [each for each in loaded if each.startswith(("kms.providers", "kms.operations"))]
