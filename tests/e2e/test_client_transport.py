"""Connections that end, stall or misbehave between and under requests."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import h2.errors
import pytest
from OpenSSL import SSL

from pch.client import ConnectionLost, TimedOut
from pch.keys import generate
from tests.e2e.client_any import Bench
from tests.e2e.client_verifier import Forced, Reply, Verifier

WAIT_S = 20.0
ARRIVAL_S = 0.1
"""What a loopback may take to hand sent bytes over; the client's own look does not wait."""
NOTHING = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

pytestmark = pytest.mark.parametrize("kind", ["sync", "async", "uvloop"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("transport"), generate("ed25519"))


class Script:
    """A server that does what each connection's script says: bytes to send, or an action by name.

    A connection stays open until it is `cut` or all ends. `wait` waits for `go_on`; `told` sets `told`.
    """

    def __init__(self, bench: Bench, *scripts: list[bytes | str], tls: bool = True) -> None:
        self._scripts = scripts
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD) if tls else None
        if self._context:
            self._context.use_certificate_chain_file(str(bench.certificate[0]))
            self._context.use_privatekey_file(str(bench.certificate[1]))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.go_on = threading.Event()
        self.done = threading.Event()
        self.told = threading.Event()
        self._sockets: list[socket.socket] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.listener.getsockname()[1]}/"

    def run(self) -> None:
        with contextlib.ExitStack() as sockets:
            for script in self._scripts:
                try:
                    sock, _ = self.listener.accept()
                except OSError:
                    return
                sockets.enter_context(sock)
                self._sockets.append(sock)
                self.connections += 1
                peer: SSL.Connection | socket.socket = sock
                if self._context:
                    peer = SSL.Connection(self._context, sock)
                    peer.set_accept_state()
                with contextlib.suppress(OSError, SSL.Error):
                    for step in script:
                        self._step(sock, peer, step)
            self.done.wait(WAIT_S)

    def end(self) -> None:
        """Let go of everything, also of a step that waits."""
        self.done.set()
        self.go_on.set()
        for sock in (self.listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _step(self, sock: socket.socket, peer: SSL.Connection | socket.socket, step: bytes | str) -> None:
        if isinstance(step, bytes):
            peer.sendall(step)
        elif step == "read":
            assert peer.recv(65536)
        elif step == "wait":
            assert self.go_on.wait(WAIT_S)
            self.go_on.clear()
        elif step == "told":
            self.told.set()
        elif step == "cut":
            sock.shutdown(socket.SHUT_RDWR)
        elif step == "bye" and isinstance(peer, SSL.Connection):
            peer.shutdown()
        elif step == "bye":
            sock.shutdown(socket.SHUT_WR)
        else:
            raise AssertionError(step)


@contextmanager
def running(script: Script) -> Iterator[Script]:
    thread = threading.Thread(target=script.run)
    thread.start()
    try:
        yield script
    finally:
        script.end()
        thread.join(WAIT_S)
        script.listener.close()
        assert not thread.is_alive()


@pytest.mark.parametrize("end", ["bye", "cut", b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"])
@pytest.mark.parametrize("tls", [True, False])
def test_connection_that_ended_or_spoke_while_idle_is_not_used(
    bench: Bench, kind: str, end: bytes | str, tls: bool
) -> None:
    # A POST is not repeated, so it gets through only if the ended connection was noticed before sending.
    visit: list[bytes | str] = ["read", NOTHING, "read", OK]
    script = Script(bench, [*visit, "wait", end, "told"], visit, tls=tls)
    with running(script) as server, bench.client(kind, binding="none") as client:
        assert client.request("POST", server.url).content == b"ok"
        server.go_on.set()
        assert server.told.wait(WAIT_S)
        time.sleep(ARRIVAL_S)
        assert client.request("POST", server.url).content == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", b"HTTP/1.1 200\x00\r\n\r\n"],
)
def test_answer_cut_short_is_a_lost_connection(bench: Bench, kind: str, said: bytes, tls: bool) -> None:
    with running(Script(bench, ["read", said, "cut"], tls=tls)) as server, bench.client(kind, binding="none") as client:
        url = server.url
        with pytest.raises(ConnectionLost):
            client.get(url)


def test_answer_without_length_needs_an_orderly_end(bench: Bench, kind: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab"
    with running(Script(bench, ["read", head, "bye"])) as server, bench.client(kind, binding="none") as client:
        assert client.get(server.url).content == b"ab"
    with running(Script(bench, ["read", head, "cut"])) as server, bench.client(kind, binding="none") as client:
        url = server.url
        with pytest.raises(ConnectionLost):
            client.get(url)


@pytest.mark.parametrize("tls", [True, False])
def test_server_that_does_not_read_is_given_up(bench: Bench, kind: str, tls: bool) -> None:
    script = Script(bench, ["read", OK.replace(b"ok", b"xx"), "wait"], tls=tls)
    with running(script) as server, bench.client(kind, binding="none", timeout_s=0.5) as client:
        client.request("HEAD", server.url)
        with pytest.raises((TimedOut, ConnectionLost)):
            client.request("PUT", server.url, content=b"x" * 60_000_000)
        server.go_on.set()


def test_large_content_goes_both_ways(bench: Bench, kind: str) -> None:
    with bench.server() as server, bench.client(kind) as client:
        assert len(client.get(server.url("/big/10000000")).content) == 10_000_000
        content = bytes(range(256)) * 40_000
        response = client.request("POST", server.url(), content=content)
        assert (response.status, response.content == b"app:" + content) == (200, True)
    with bench.server(http2=False) as server, bench.client(kind) as client:
        assert len(client.get(server.url("/big/10000000")).content) == 10_000_000
        assert client.request("POST", server.url(), content=content).content == b"app:" + content


@pytest.mark.parametrize(
    "reply",
    [
        Reply(0, [], reset=h2.errors.ErrorCodes.REFUSED_STREAM),
        Reply(0, [], goaway_after=0),
        Reply(0, [], goaway_after=1),
    ],
)
def test_request_that_the_server_says_it_did_not_process_is_sent_again(bench: Bench, kind: str, reply: Reply) -> None:
    verifier = Verifier(bench.key)
    with bench.server(verifier=verifier) as server, bench.client(kind) as client:
        client.get(server.url())
        verifier.forced.append(Forced(reply=reply))
        assert client.request("POST", server.url(), content=b"x").status == 200
        assert server.connections == 2


@pytest.mark.parametrize(
    "reply",
    [Reply(0, [], reset=h2.errors.ErrorCodes.INTERNAL_ERROR), Reply(0, [], goaway_after=99)],
)
def test_request_that_may_have_been_processed_is_not_sent_again(bench: Bench, kind: str, reply: Reply) -> None:
    verifier = Verifier(bench.key)
    with bench.server(verifier=verifier) as server, bench.client(kind) as client:
        client.get(server.url())
        verifier.forced.append(Forced(reply=reply))
        with pytest.raises(ConnectionLost):
            client.request("POST", server.url(), content=b"x")
        assert client.request("POST", server.url(), content=b"x").status == 200
