"""A TLS client session without I/O: bytes in, bytes out (RFC 8446), and its channel binding (RFC 9266).

The standard library's `ssl` cannot export keying material; pyOpenSSL can, and its memory BIOs let one file
serve the socket and the asyncio transport alike.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Final

from OpenSSL import SSL

from pch.client.errors import BindingUnavailable, CertificateRefused, ConnectFailed, InvalidRequest
from pch.client.limits import TLS_READ_BYTES

EXPORTER_LABEL: Final = b"EXPORTER-Channel-Binding"
EXPORTER_BYTES: Final = 32
ALPN_H2: Final = b"h2"
ALPN_HTTP1: Final = b"http/1.1"

# pyOpenSSL gives host checks no public name, so OpenSSL's own are called through its bindings, as OpenSSL
# advises (X509_VERIFY_PARAM_set1_host(3)). A release without them fails every connection: AttributeError,
# never acceptance.
_lib: Any = getattr(SSL, "_lib")  # noqa: B009  (not in its typed surface)
_ffi: Any = getattr(SSL, "_ffi")  # noqa: B009
_HOST_FLAGS: Final[int] = _lib.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | _lib.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT


class TlsContext:
    """What all connections of one client share: trust and versions. Never changed once made, so thread-safe.

    `verify`: True for the system's trust, a PEM file or folder for that trust alone, False for none
    (testing). `bound`: whether a channel binding is wanted, for which TLS 1.3 is the floor, else TLS 1.2.
    """

    def __init__(self, *, verify: bool | str | Path, bound: bool, http2: bool) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(SSL.TLS1_3_VERSION if bound else SSL.TLS1_2_VERSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_alpn_protos([ALPN_H2, ALPN_HTTP1] if http2 else [ALPN_HTTP1])
        self.verified = verify is not False
        self.bound = bound
        if verify is True:
            context.set_default_verify_paths()
        elif verify is not False:
            _load_trust(context, Path(verify))
        context.set_verify(SSL.VERIFY_PEER if self.verified else SSL.VERIFY_NONE)
        self._context = context

    def session(self, host: str) -> TlsSession:
        """Start a session with `host`, a DNS name or an IP address."""
        connection = SSL.Connection(self._context)
        address = _ip_address(host)
        if address is None:
            connection.set_tlsext_host_name(host.rstrip(".").encode("ascii"))
        if self.verified:
            _expect_name(connection, host, address)
        connection.set_connect_state()
        return TlsSession(connection, host, bound=self.bound)


class TlsSession:
    """One connection's TLS. Not thread-safe: its transport serialises the calls."""

    def __init__(self, connection: SSL.Connection, host: str, *, bound: bool) -> None:
        self._connection = connection
        self._host = host
        self._bound = bound
        self._eof = False
        self.binding: bytes | None = None

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is complete and, if bound, `binding` is set.

        Raises `CertificateRefused`, `BindingUnavailable` or `ConnectFailed`.
        """
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            if self._eof:
                raise ConnectFailed("the server closed the connection during the TLS handshake") from None
            return False
        except SSL.Error as error:
            raise self._handshake_error(error) from error
        if self._bound:
            self.binding = self._export()
        return True

    @property
    def is_http2(self) -> bool:
        """Tell whether ALPN chose h2 (RFC 7301)."""
        return self._connection.get_alpn_proto_negotiated() == ALPN_H2

    def receive(self, data: bytes) -> None:
        """Take bytes from the network; empty means that the peer closed the transport."""
        if data:
            self._connection.bio_write(data)
        else:
            self._eof = True

    def read(self, max_bytes: int) -> bytes | None:
        """Give plain bytes; empty at an orderly end (RFC 8446 §6.1), None when more input is needed.

        Raises `ConnectionResetError` when the transport ended without close_notify or the records are broken.
        """
        try:
            return self._connection.recv(max_bytes)
        except SSL.WantReadError:
            if self._eof:
                raise ConnectionResetError("the transport ended without close_notify") from None
            return None
        except SSL.ZeroReturnError:
            return b""
        except SSL.Error as error:
            raise ConnectionResetError("a TLS record was refused, or an alert arrived") from error

    def write(self, data: bytes) -> None:
        """Turn plain bytes into records, to be fetched with `outgoing`. Raises `ConnectionResetError`."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._connection.send(view) :]
        except SSL.Error as error:
            raise ConnectionResetError("the TLS session is over") from error

    def outgoing(self) -> bytes:
        """Give what has to go to the network now; may be empty."""
        parts = []
        while True:
            try:
                parts.append(self._connection.bio_read(TLS_READ_BYTES))
            except SSL.WantReadError:
                return b"".join(parts)

    def close(self) -> None:
        """Queue close_notify (RFC 8446 §6.1); harmless on a broken session."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            return

    def _export(self) -> bytes:
        if self._connection.get_protocol_version_name() != "TLSv1.3":
            raise BindingUnavailable("a channel binding needs TLS 1.3")
        return self._connection.export_keying_material(EXPORTER_LABEL, EXPORTER_BYTES)

    def _handshake_error(self, error: SSL.Error) -> ConnectFailed:
        code = int(_lib.SSL_get_verify_result(self._connection._ssl))
        if code:
            text = _ffi.string(_lib.X509_verify_cert_error_string(code)).decode("ascii", "replace")
            return CertificateRefused(f"the certificate of {self._host} is refused: {text}")
        why = error.args[0] if error.args else ""
        told = why[0][2] if isinstance(why, list) and why else "the connection ended"
        if self._bound and "version" in str(told):
            return BindingUnavailable("a channel binding needs TLS 1.3, which the server does not speak")
        return ConnectFailed(f"the TLS handshake failed: {told}")


def _load_trust(context: SSL.Context, path: Path) -> None:
    try:
        context.load_verify_locations(*((None, str(path)) if path.is_dir() else (str(path), None)))
    except SSL.Error as error:
        raise InvalidRequest("the trusted certificates cannot be read from that path") from error


def _ip_address(host: str) -> bytes | None:
    try:
        return ipaddress.ip_address(host).packed
    except ValueError:
        return None


def _expect_name(connection: SSL.Connection, host: str, address: bytes | None) -> None:
    """Make the handshake fail unless a subjectAltName is `host` (RFC 9525 §6); the subject is ignored."""
    param = _lib.SSL_get0_param(connection._ssl)
    if address is not None:
        accepted = _lib.X509_VERIFY_PARAM_set1_ip(param, address, len(address))
    else:
        _lib.X509_VERIFY_PARAM_set_hostflags(param, _HOST_FLAGS)
        name = host.rstrip(".").encode("ascii")
        accepted = _lib.X509_VERIFY_PARAM_set1_host(param, name, len(name))
    if accepted != 1:
        raise InvalidRequest("the host cannot be checked against a certificate")
