"""The TLS session over memory alone: binding, trust, names, versions, endings."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from OpenSSL import SSL

from pch.client.errors import BindingUnavailable, CertificateRefused, ConnectFailed, InvalidRequest
from pch.client.tls_session import EXPORTER_LABEL, TlsContext, TlsSession
from tests.e2e.client_certificates import make_ca

if TYPE_CHECKING:
    from pathlib import Path

SANS = ["localhost", "*.wild.example", "127.0.0.1", "::1"]


class Peer:
    """A server on memory BIOs."""

    def __init__(self, certificate: tuple[Path, Path], version: int = SSL.TLS1_3_VERSION) -> None:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(version)
        context.use_certificate_chain_file(str(certificate[0]))
        context.use_privatekey_file(str(certificate[1]))
        context.set_alpn_select_callback(lambda _, theirs: theirs[0])
        self.connection = SSL.Connection(context)
        self.connection.set_accept_state()

    def shake(self, session: TlsSession) -> None:
        """Pass bytes to and fro until the client's handshake is complete."""
        for _ in range(6):
            try:
                complete = session.handshake()
            finally:
                self.take(session.outgoing())
            if complete:
                return
            with contextlib.suppress(SSL.Error):  # Wants more, or refuses and says so in an alert.
                self.connection.do_handshake()
            session.receive(self.give())
        raise AssertionError("the handshake does not end")

    def take(self, data: bytes) -> None:
        if data:
            self.connection.bio_write(data)

    def give(self) -> bytes:
        return self.connection.bio_read(65536)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    ca = make_ca(folder)
    return ca.path, ca.issue(folder, "server", SANS, common_name="common.example")


def context(verify: bool | str | Path, *, bound: bool = True, http2: bool = True) -> TlsContext:
    return TlsContext(verify=verify, bound=bound, http2=http2)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.wild.example", "127.0.0.1", "::1"])
def test_trusted_name_gives_the_binding_both_ends_know(place: tuple[Path, tuple[Path, Path]], host: str) -> None:
    peer, session = Peer(place[1]), context(place[0]).session(host)
    peer.shake(session)
    assert session.is_http2
    peer.connection.do_handshake()
    assert session.binding == peer.connection.export_keying_material(EXPORTER_LABEL, 32)
    other_peer, other = Peer(place[1]), context(place[0]).session(host)
    other_peer.shake(other)
    assert other.binding != session.binding


@pytest.mark.parametrize(
    "host",
    ["other", "common.example", "wild.example", "a.b.wild.example", "127.0.0.2", "::2", "0127.0.0.1", "localhost.x"],
)
def test_other_name_is_refused(place: tuple[Path, tuple[Path, Path]], host: str) -> None:
    with pytest.raises(CertificateRefused):
        Peer(place[1]).shake(context(place[0]).session(host))


def test_other_ca_is_refused(place: tuple[Path, tuple[Path, Path]], tmp_path: Path) -> None:
    other = make_ca(tmp_path, "other")
    for verify in (other.path, True):
        with pytest.raises(CertificateRefused):
            Peer(place[1]).shake(context(verify).session("localhost"))


def test_unverified_session_takes_any_certificate(place: tuple[Path, tuple[Path, Path]]) -> None:
    session = context(False).session("other")
    Peer(place[1]).shake(session)
    assert session.binding


def test_tls_12_has_no_binding(place: tuple[Path, tuple[Path, Path]]) -> None:
    with pytest.raises(BindingUnavailable):
        Peer(place[1], SSL.TLS1_2_VERSION).shake(context(place[0]).session("localhost"))
    session = context(place[0], bound=False).session("localhost")
    Peer(place[1], SSL.TLS1_2_VERSION).shake(session)
    assert session.binding is None


def test_http1_alone_is_offered_on_request(place: tuple[Path, tuple[Path, Path]]) -> None:
    session = context(place[0], http2=False).session("localhost")
    Peer(place[1]).shake(session)
    assert not session.is_http2


def test_bytes_go_both_ways_and_end_in_order(place: tuple[Path, tuple[Path, Path]]) -> None:
    peer, session = Peer(place[1]), context(place[0]).session("localhost")
    peer.shake(session)
    session.write(b"a" * 100_000)
    peer.take(session.outgoing())
    assert len(b"".join(iter(lambda: _recv(peer.connection), b""))) == 100_000
    assert session.read(10) is None
    peer.connection.send(b"hello")
    peer.connection.shutdown()
    session.receive(peer.give())
    assert (session.read(3), session.read(10), session.read(10)) == (b"hel", b"lo", b"")
    session.close()
    session.close()
    assert session.outgoing()


def _recv(connection: SSL.Connection) -> bytes:
    try:
        return connection.recv(65536)
    except SSL.WantReadError:
        return b""


def test_ending_without_close_notify_is_an_error(place: tuple[Path, tuple[Path, Path]]) -> None:
    peer, session = Peer(place[1]), context(place[0]).session("localhost")
    peer.shake(session)
    session.receive(b"")
    with pytest.raises(ConnectionResetError):
        session.read(10)


def test_altered_record_is_an_error(place: tuple[Path, tuple[Path, Path]]) -> None:
    peer, session = Peer(place[1]), context(place[0]).session("localhost")
    peer.shake(session)
    peer.connection.do_handshake()
    _drain(peer, session)
    peer.connection.send(b"hello")
    record = bytearray(peer.give())
    record[-1] ^= 1
    session.receive(bytes(record))
    with pytest.raises(ConnectionResetError):
        session.read(10)
    with pytest.raises(ConnectionResetError):
        session.write(b"x")


def _drain(peer: Peer, session: TlsSession) -> None:
    """Hand the session tickets over."""
    with contextlib.suppress(SSL.WantReadError):
        session.receive(peer.give())
    assert session.read(10) is None


def test_server_that_ends_the_handshake_is_told(place: tuple[Path, tuple[Path, Path]]) -> None:
    session = context(place[0]).session("localhost")
    assert not session.handshake()
    session.receive(b"")
    with pytest.raises(ConnectFailed):
        session.handshake()


def test_server_that_does_not_speak_tls_is_told(place: tuple[Path, tuple[Path, Path]]) -> None:
    session = context(place[0]).session("localhost")
    assert not session.handshake()
    session.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ConnectFailed):
        session.handshake()


def test_trust_comes_from_a_file_or_a_folder(place: tuple[Path, tuple[Path, Path]], tmp_path: Path) -> None:
    assert context(str(place[0])).verified
    assert context(tmp_path).verified
    with pytest.raises(InvalidRequest):
        context(tmp_path / "absent.pem")
    with pytest.raises(CertificateRefused):
        Peer(place[1]).shake(context(tmp_path).session("localhost"))
