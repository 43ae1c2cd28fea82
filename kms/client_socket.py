"""UNIX sockets for the blocking client: one that cannot be connected is closed at once, not left to the collector."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import httpcore

if TYPE_CHECKING:
    from collections.abc import Iterable


class UnixStream(httpcore.NetworkStream):
    """A connected UNIX socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what is there, at most `max_bytes`. Raises httpcore.ReadTimeout, httpcore.ReadError."""
        try:
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error
        except OSError as error:
            raise httpcore.ReadError from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it. Raises httpcore.WriteTimeout, httpcore.WriteError."""
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error
        except OSError as error:
            raise httpcore.WriteError from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Tell whether something can be read, by which the pool sees that the other side closed."""
        if info != "is_readable":
            return None
        self._socket.settimeout(0.0)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


class UnixBackend(httpcore.SyncBackend):
    """The pool's way to UNIX sockets."""

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """Connect. Raises httpcore.ConnectTimeout, httpcore.ConnectError."""
        del socket_options
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            fresh.settimeout(timeout)
            fresh.connect(path)
        except TimeoutError as error:
            fresh.close()
            raise httpcore.ConnectTimeout from error
        except OSError as error:
            fresh.close()
            raise httpcore.ConnectError from error
        return UnixStream(fresh)
