"""A client on the system's libssl through ctypes, for what pyOpenSSL cannot do: KeyUpdate and resumption."""

from __future__ import annotations

import ctypes
import ctypes.util
from types import TracebackType
from typing import Self

from tests.e2e.edge_client import EXPORTER_BYTES, EXPORTER_LABEL, connect_tcp

SSL_CTRL_SET_MIN_PROTO_VERSION = 123
TLS1_3_VERSION = 0x0304
KEY_UPDATE_NOT_REQUESTED = 0
KEY_UPDATE_REQUESTED = 1
ERROR_ZERO_RETURN = 6

_lib = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
_POINTER, _INT, _LONG, _SIZE, _BYTES = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_size_t, ctypes.c_char_p
for _name, _result, _arguments in (
    ("TLS_client_method", _POINTER, ()),
    ("SSL_CTX_new", _POINTER, (_POINTER,)),
    ("SSL_CTX_free", None, (_POINTER,)),
    ("SSL_CTX_ctrl", _LONG, (_POINTER, _INT, _LONG, _POINTER)),
    ("SSL_new", _POINTER, (_POINTER,)),
    ("SSL_free", None, (_POINTER,)),
    ("SSL_set_fd", _INT, (_POINTER, _INT)),
    ("SSL_connect", _INT, (_POINTER,)),
    ("SSL_read", _INT, (_POINTER, _BYTES, _INT)),
    ("SSL_write", _INT, (_POINTER, _BYTES, _INT)),
    ("SSL_shutdown", _INT, (_POINTER,)),
    ("SSL_get_error", _INT, (_POINTER, _INT)),
    ("SSL_key_update", _INT, (_POINTER, _INT)),
    ("SSL_do_handshake", _INT, (_POINTER,)),
    ("SSL_session_reused", _INT, (_POINTER,)),
    ("SSL_get1_session", _POINTER, (_POINTER,)),
    ("SSL_set_session", _INT, (_POINTER, _POINTER)),
    ("SSL_SESSION_free", None, (_POINTER,)),
    ("SSL_SESSION_get_max_early_data", ctypes.c_uint32, (_POINTER,)),
    ("SSL_export_keying_material", _INT, (_POINTER, _BYTES, _SIZE, _BYTES, _SIZE, _BYTES, _SIZE, _INT)),
):
    _function = getattr(_lib, _name)
    _function.restype, _function.argtypes = _result, _arguments


class Session:
    """A resumable session, freed with its holder."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def max_early_data(self) -> int:
        """How many bytes of 0-RTT data the server's ticket allows."""
        return int(_lib.SSL_SESSION_get_max_early_data(self.pointer))

    def __del__(self) -> None:
        _lib.SSL_SESSION_free(self.pointer)


class LibsslClient:
    """One blocking TLS 1.3 connection. Raises ConnectionError when a step fails."""

    def __init__(self, port: int, session: Session | None = None) -> None:
        self.plain = connect_tcp(port)
        self.plain.settimeout(None)
        self._context = _lib.SSL_CTX_new(_lib.TLS_client_method())
        _lib.SSL_CTX_ctrl(self._context, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_3_VERSION, None)
        self._ssl = _lib.SSL_new(self._context)
        if session is not None:
            self._check(_lib.SSL_set_session(self._ssl, session.pointer), "set session")
        self._check(_lib.SSL_set_fd(self._ssl, self.plain.fileno()), "set socket")
        self._check(_lib.SSL_connect(self._ssl), "handshake")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _lib.SSL_shutdown(self._ssl)
        _lib.SSL_free(self._ssl)
        _lib.SSL_CTX_free(self._context)
        self.plain.close()

    def _check(self, result: int, step: str) -> None:
        if result <= 0:
            raise ConnectionError(f"{step}: SSL error {_lib.SSL_get_error(self._ssl, result)}")

    @property
    def resumed(self) -> bool:
        """Whether the handshake used an earlier session."""
        return bool(_lib.SSL_session_reused(self._ssl))

    def session(self) -> Session:
        """Take the session, whose ticket has come with the first answer."""
        return Session(_lib.SSL_get1_session(self._ssl))

    def exporter(self) -> str:
        """Compute the RFC 9266 binding on this side, as hex."""
        out = ctypes.create_string_buffer(EXPORTER_BYTES)
        label = (EXPORTER_LABEL, len(EXPORTER_LABEL))
        result = _lib.SSL_export_keying_material(self._ssl, out, EXPORTER_BYTES, *label, b"", 0, 1)
        self._check(result, "exporter")
        return out.raw.hex()

    def key_update(self, *, request: bool) -> None:
        """Send a KeyUpdate message now, asking for the server's or not."""
        kind = KEY_UPDATE_REQUESTED if request else KEY_UPDATE_NOT_REQUESTED
        self._check(_lib.SSL_key_update(self._ssl, kind), "key update")
        self._check(_lib.SSL_do_handshake(self._ssl), "send key update")

    def send(self, data: bytes) -> None:
        """Send all of data."""
        self._check(_lib.SSL_write(self._ssl, data, len(data)), "write")

    def receive(self, limit: int = 65536) -> bytes:
        """Wait for plaintext; empty when the server finished."""
        out = ctypes.create_string_buffer(limit)
        result = _lib.SSL_read(self._ssl, out, limit)
        if result <= 0 and _lib.SSL_get_error(self._ssl, result) == ERROR_ZERO_RETURN:
            return b""
        self._check(result, "read")
        return out.raw[:result]
