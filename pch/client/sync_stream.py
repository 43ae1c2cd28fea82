"""A blocking transport with the client's own TLS, for httpcore's connections."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import httpcore

from pch.client.errors import ConnectFailed, TimedOut
from pch.client.limits import CLOSE_TIMEOUT_S, MAX_BUFFERED_PLAIN_BYTES, TLS_READ_BYTES, TLS_WRITE_BYTES

if TYPE_CHECKING:
    import ssl

    from pch.client.tls_session import TlsContext, TlsSession
    from pch.client.url import Origin


class SyncStream(httpcore.NetworkStream):
    """One TCP connection, with TLS for https. One thread at a time, as the pool leases it.

    `deadline_s`: monotonic seconds at which every wait ends; the lease's owner sets it.
    """

    def __init__(self, sock: socket.socket, tls: TlsSession | None, deadline_s: float) -> None:
        self._sock = sock
        self._tls = tls
        self._plain = bytearray()
        self._received: bytes | None = None
        self.deadline_s = deadline_s

    @property
    def binding(self) -> bytes | None:
        """Give the 32 exporter bytes, or None without a channel binding."""
        return self._tls.binding if self._tls else None

    @property
    def is_http2(self) -> bool:
        """Tell whether h2 was negotiated."""
        return self._tls is not None and self._tls.is_http2

    def handshake(self) -> None:
        """Finish the TLS handshake. Raises `ConnectFailed` or one of its kinds, `TimedOut`."""
        if self._tls is None:
            return
        try:
            complete = False
            while not complete:
                try:
                    complete = self._tls.handshake()
                finally:
                    self._flush()  # An alert has to leave even when the handshake failed.
                if not complete:
                    self._tls.receive(self._receive())
        except TimeoutError as error:
            raise TimedOut("the TLS handshake took too long") from error
        except OSError as error:
            raise ConnectFailed("the connection ended during the TLS handshake") from error

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Give at least one plain byte, or none at the end. `timeout` gives way to the deadline."""
        try:
            if self._plain:
                data = bytes(self._plain[:max_bytes])
                del self._plain[:max_bytes]
                return data
            while (plain := self._read_available(max_bytes)) is None:
                self._take(self._receive())
        except TimeoutError as error:
            raise httpcore.ReadTimeout("the answer took too long") from error
        except OSError as error:
            raise httpcore.ReadError("the connection was lost") from error
        return plain

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`. `timeout` gives way to the deadline."""
        view = memoryview(buffer)
        try:
            for start in range(0, len(view), TLS_WRITE_BYTES):
                chunk = bytes(view[start : start + TLS_WRITE_BYTES])
                if self._tls is None:
                    self._send(chunk)
                else:
                    self._tls.write(chunk)
                    self._flush()
        except TimeoutError as error:
            raise httpcore.WriteTimeout("sending took too long") from error
        except OSError as error:
            raise httpcore.WriteError("the connection was lost") from error

    def is_gone(self, *, idle_data_ends: bool) -> bool:
        """Tell without waiting whether the peer ended the idle connection.

        `idle_data_ends`: whether plain bytes on an idle connection mean its end too, as they do in HTTP/1.1.
        """
        try:
            while len(self._plain) <= MAX_BUFFERED_PLAIN_BYTES:
                self._sock.settimeout(0)
                plain = self._read_available(TLS_READ_BYTES)
                if plain == b"":
                    return True
                if plain is None:
                    self._take(self._sock.recv(TLS_READ_BYTES))
                else:
                    self._plain += plain
        except BlockingIOError:
            return idle_data_ends and bool(self._plain)
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Send close_notify as far as that needs no long wait, and close the socket."""
        self.deadline_s = min(self.deadline_s, time.monotonic() + CLOSE_TIMEOUT_S)
        try:
            if self._tls:
                self._tls.close()
                self._flush()
        except OSError:
            pass
        finally:
            self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Refuse: the stream starts with its TLS or without, and never changes."""
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        """Give nothing; the connection knows its stream."""
        return None

    def _read_available(self, max_bytes: int) -> bytes | None:
        if self._tls is None:
            plain, self._received = self._received, None
            return plain
        plain = self._tls.read(max_bytes)
        self._flush()
        return plain

    def _take(self, data: bytes) -> None:
        if self._tls:
            self._tls.receive(data)
        else:
            self._received = data

    def _flush(self) -> None:
        data = self._tls.outgoing() if self._tls else b""
        if data:
            self._send(data)

    def _remaining_s(self) -> float:
        remaining = self.deadline_s - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def _receive(self) -> bytes:
        self._sock.settimeout(self._remaining_s())
        return self._sock.recv(TLS_READ_BYTES)

    def _send(self, data: bytes) -> None:
        self._sock.settimeout(self._remaining_s())
        self._sock.sendall(data)


def connect(origin: Origin, tls: TlsContext, deadline_s: float) -> SyncStream:
    """Open a connection to `origin`, address by address, and finish its handshake before `deadline_s`.

    Raises `ConnectFailed` or one of its kinds, `TimedOut`.
    """
    sock = _connect_tcp(origin, deadline_s)
    stream = SyncStream(sock, tls.session(origin.host) if origin.is_tls else None, deadline_s)
    try:
        stream.handshake()
    except BaseException:
        sock.close()
        raise
    return stream


def _connect_tcp(origin: Origin, deadline_s: float) -> socket.socket:
    last: OSError | None = None
    try:
        addresses = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectFailed("the host's name does not resolve") from error
    for family, kind, protocol, _, address in addresses:
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise TimedOut("connecting took too long") from last
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(remaining_s)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError as error:
            sock.close()
            raise TimedOut("connecting took too long") from error
        except OSError as error:
            sock.close()
            last = error
        else:
            return sock
    raise ConnectFailed(f"no connection to {origin.authority}") from last
