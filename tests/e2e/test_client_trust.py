"""Whom the client talks to: names, authorities, versions, over real sockets, sync and async."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from OpenSSL import SSL

from pch.client import (
    BindingUnavailable,
    CertificateRefused,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    PeerFault,
    TimedOut,
)
from pch.keys import generate
from tests.e2e.client_any import AnyClient, Bench
from tests.e2e.client_certificates import make_ca
from tests.e2e.client_server import TestServer
from tests.e2e.client_verifier import Forced, Reply, Verifier

pytestmark = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("trust"), generate("ed25519"))


def test_both_kinds_of_name_are_accepted(bench: Bench, kind: str) -> None:
    with bench.server() as server, bench.client(kind) as client:
        for host in ("127.0.0.1", "localhost"):
            assert client.get(server.url(host=host)).status == 200


def test_other_ca_is_refused_before_anything_is_sent(bench: Bench, kind: str, tmp_path: Path) -> None:
    other = make_ca(tmp_path, "other")
    with bench.server() as server:
        for verify in (other.path, True):
            with bench.client(kind, verify=verify) as client, pytest.raises(CertificateRefused):
                client.get(server.url())
        assert not server.verifier.received


@pytest.mark.parametrize("sans", [["other.example"], ["127.0.0.2"], []])
def test_certificate_for_another_name_is_refused(bench: Bench, kind: str, tmp_path: Path, sans: list[str]) -> None:
    certificate = bench.ca.issue(tmp_path, "other", sans, common_name="localhost")
    with TestServer(Verifier(bench.key), certificate) as server, bench.client(kind) as client:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(CertificateRefused):
                client.get(server.url(host=host))
        assert not server.verifier.received
        with bench.client(kind, verify=False) as careless:
            assert careless.get(server.url()).status == 200


def test_server_without_tls_13_gives_no_binding(bench: Bench, kind: str) -> None:
    verifier = Verifier(bench.key, binding="none")
    with bench.server(verifier=verifier, max_version=SSL.TLS1_2_VERSION) as server:
        with bench.client(kind) as client, pytest.raises(BindingUnavailable):
            client.get(server.url())
        with bench.client(kind, binding="none") as client:
            assert client.get(server.url()).status == 200


def test_server_that_is_not_there_is_told(bench: Bench, kind: str) -> None:
    with bench.client(kind) as client:
        for url in ("https://127.0.0.1:1/", "https://name.invalid/"):
            with pytest.raises(ConnectFailed):
                client.get(url)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x16\x03\x01"])
def test_server_that_does_not_speak_tls_is_told(bench: Bench, kind: str, said: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def speak() -> None:
        peer, _ = listener.accept()
        peer.recv(4096)
        peer.sendall(said)
        peer.close()

    thread = threading.Thread(target=speak)
    thread.start()
    with bench.client(kind) as client, pytest.raises(ConnectFailed):
        client.get(f"https://127.0.0.1:{listener.getsockname()[1]}/")
    thread.join()
    listener.close()


def test_handshake_that_hangs_is_given_up(bench: Bench, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, bench.client(kind, timeout_s=0.3) as client:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(TimedOut):
            client.get(url)


def test_answer_that_is_not_http_is_a_lost_connection(bench: Bench, kind: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def speak() -> None:
        peer, _ = listener.accept()
        peer.recv(4096)
        peer.sendall(b"nonsense\r\n\r\n")
        peer.close()

    thread = threading.Thread(target=speak)
    thread.start()
    with bench.client(kind, binding="none") as client, pytest.raises(ConnectionLost):
        client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    thread.join()
    listener.close()


def test_answer_with_too_many_fields_is_refused(bench: Bench, kind: str) -> None:
    with bench.server() as server, bench.client(kind) as client:
        fields = [(b"x-%d" % number, b"1") for number in range(300)]
        server.verifier.forced.append(Forced(only_signed=False, reply=Reply(200, fields)))
        with pytest.raises(PeerFault):
            client.get(server.url())


@pytest.mark.parametrize(
    "settings",
    [
        {"binding": "tls-unique"},
        {"timeout_s": 0},
        {"max_response_bytes": 0},
        {"max_connections_per_origin": 0},
        {"max_connections_per_origin": 9},
        {"verify": "/nonexistent.pem"},
    ],
)
def test_unusable_setting_is_refused(bench: Bench, kind: str, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        AnyClient(kind, **({"key": bench.key} | settings))
