"""Calling the key service from another program: over its UNIX socket, loopback TCP, or TLS. No server code is loaded.

Every wait is bounded: for a connection out of a small pool, for connecting, for the answer. What goes wrong comes out
as the `kms.errors` class that the service meant, or as `KmsUnreachable`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, Final, cast

import httpcore

from kms.caveats import MAX_TOKEN_CHARS
from kms.client_socket import UnixBackend
from kms.client_wire import (
    MAX_ANSWER_BYTES,
    REPEATABLE,
    Endpoint,
    EndpointError,
    KmsUnreachable,
    Wire,
    decode_answer,
    encode_call,
)
from kms.errors import Timeout
from kms.private_file import PrivateFileError
from kms.watched_file import WatchedFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kms.messages import (
        CheckpointRequest,
        CheckpointResponse,
        CreateKeyRequest,
        CreateKeyResponse,
        GetKeyRequest,
        GetKeyResponse,
        Message,
        RotateKeyRequest,
        RotateResponse,
        SignRequest,
        SignResponse,
        UnwrapRequest,
        UnwrapResponse,
        VerifyRequest,
        VerifyResponse,
        WrapRequest,
        WrapResponse,
    )

__all__ = ["AsyncKmsClient", "Endpoint", "EndpointError", "KmsClient", "KmsUnreachable", "TokenFile"]

DEFAULT_TIMEOUT_S: Final = 5.0
MAX_CONNECTIONS: Final = 8
KEEP_ALIVE_S: Final = 30.0


class TokenFile:
    """A capability in a file of mode 0600, read again when it changes. Any thread may ask."""

    def __init__(self, path: Path) -> None:
        """Read the token. Raises PrivateFileError."""
        self._lock = threading.Lock()
        self._file = WatchedFile(path, lambda data: _token(path, data), MAX_TOKEN_CHARS + 2, time.monotonic)

    def current(self) -> str:
        """Give the token; the one of before when the file cannot be used now."""
        with self._lock:
            self._file.refresh()
            return self._file.value


class KmsClient:
    """The blocking client. Any thread may use it; `call` waits `timeout_s` at most for each try."""

    def __init__(
        self,
        endpoint: Endpoint,
        token: TokenFile,
        *,
        ca_file: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._endpoint, self._token, self._timeout_s = endpoint, token, timeout_s
        self._pool = httpcore.ConnectionPool(network_backend=UnixBackend(), **_pool_settings(endpoint, ca_file))

    def call(self, op: str, request: Message) -> Message:
        """Perform an operation by its name in `kms.operation_table`. Raises KmsError."""
        wire = encode_call(op, request)
        for again in (wire.operation.op in REPEATABLE, False):
            try:
                status, content = self._send(wire)
            except _BROKEN as error:
                if not again:
                    raise _unreachable(error) from None
            else:
                return decode_answer(wire.operation, status, content)
        raise KmsUnreachable("the key service was not reached")

    def sign(self, request: SignRequest) -> SignResponse:
        """Sign a digest."""
        return cast("SignResponse", self.call("sign", request))

    def verify(self, request: VerifyRequest) -> VerifyResponse:
        """Verify signatures over a digest."""
        return cast("VerifyResponse", self.call("verify", request))

    def wrap(self, request: WrapRequest) -> WrapResponse:
        """Wrap a key, or have one made and wrapped."""
        return cast("WrapResponse", self.call("wrap", request))

    def unwrap(self, request: UnwrapRequest) -> UnwrapResponse:
        """Unwrap a key."""
        return cast("UnwrapResponse", self.call("unwrap", request))

    def create_key(self, request: CreateKeyRequest) -> CreateKeyResponse:
        """Create a key."""
        return cast("CreateKeyResponse", self.call("create_key", request))

    def rotate(self, request: RotateKeyRequest) -> RotateResponse:
        """Give a key a new version."""
        return cast("RotateResponse", self.call("rotate", request))

    def get_key(self, request: GetKeyRequest) -> GetKeyResponse:
        """Describe a key."""
        return cast("GetKeyResponse", self.call("get_key", request))

    def checkpoint(self, request: CheckpointRequest) -> CheckpointResponse:
        """Have a log's next head signed."""
        return cast("CheckpointResponse", self.call("checkpoint", request))

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()

    def _send(self, wire: Wire) -> tuple[int, bytes]:
        deadline_s = time.monotonic() + self._timeout_s
        with self._pool.stream(
            wire.operation.method,
            self._endpoint.base + wire.path,
            headers=wire.headers(self._token.current()),
            content=wire.content,
            extensions={"timeout": _timeouts(self._timeout_s)},
        ) as response:
            content = bytearray()
            for chunk in response.iter_stream():
                content += chunk
                _check_answer(content)
                if time.monotonic() > deadline_s:
                    raise httpcore.ReadTimeout
            return response.status, bytes(content)


class AsyncKmsClient:
    """The client for an event loop, which owns it; as `KmsClient`."""

    def __init__(
        self,
        endpoint: Endpoint,
        token: TokenFile,
        *,
        ca_file: Path | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._endpoint, self._token, self._timeout_s = endpoint, token, timeout_s
        self._pool = httpcore.AsyncConnectionPool(**_pool_settings(endpoint, ca_file))

    async def call(self, op: str, request: Message) -> Message:
        """Perform an operation by its name in `kms.operation_table`. Raises KmsError."""
        wire = encode_call(op, request)
        for again in (wire.operation.op in REPEATABLE, False):
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, content = await self._send(wire)
            except (*_BROKEN, TimeoutError) as error:
                if not again:
                    raise _unreachable(error) from None
            else:
                return decode_answer(wire.operation, status, content)
        raise KmsUnreachable("the key service was not reached")

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    async def _send(self, wire: Wire) -> tuple[int, bytes]:
        async with self._pool.stream(
            wire.operation.method,
            self._endpoint.base + wire.path,
            headers=wire.headers(self._token.current()),
            content=wire.content,
            extensions={"timeout": _timeouts(self._timeout_s)},
        ) as response:
            content = bytearray()
            async for chunk in response.aiter_stream():
                content += chunk
                _check_answer(content)
            return response.status, bytes(content)


_BROKEN: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


def _pool_settings(endpoint: Endpoint, ca_file: Path | None) -> dict[str, Any]:
    return {
        "ssl_context": endpoint.tls(ca_file),
        "uds": endpoint.socket,
        "max_connections": MAX_CONNECTIONS,
        "keepalive_expiry": KEEP_ALIVE_S,
        "http2": False,
    }


def _timeouts(timeout_s: float) -> Mapping[str, float]:
    return dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)


def _check_answer(content: bytearray) -> None:
    if len(content) > MAX_ANSWER_BYTES:
        raise KmsUnreachable("the key service's answer is too long")


def _unreachable(error: Exception) -> KmsUnreachable | Timeout:
    if isinstance(error, (httpcore.TimeoutException, TimeoutError)):
        return Timeout("the key service did not answer in time", reason="kms_timeout")
    return KmsUnreachable("the key service was not reached")


def _token(path: Path, content: bytes | None) -> str:
    if content is None:
        raise PrivateFileError(f"{path}: there is no token")
    try:
        token = content.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or not token.replace("-", "").replace("_", "").isalnum():
        raise PrivateFileError(f"{path}: holds no token")
    return token
