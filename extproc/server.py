"""The worker's gRPC server on its UNIX socket: ext_authz and health, with a graceful drain."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.errors import ServerFault
from extproc.ext_authz import SERVICE, handler

if TYPE_CHECKING:
    from pathlib import Path

    from extproc.ext_authz import ExtAuthz

MAX_CONCURRENT_CALLS: Final = 4096
"""Calls that one Envoy connection may have open at once."""
MESSAGE_OVERHEAD_BYTES: Final = 1 << 20
"""What a Check may hold beside the content: header fields, metadata, framing."""
MAX_UNIX_PATH_BYTES: Final = 107
"""The longest path that fits a UNIX socket address."""


class FilterServer:
    """One gRPC server on one UNIX socket. Owned by one event loop."""

    def __init__(self, service: ExtAuthz, socket_path: Path, *, max_body_bytes: int, socket_mode: int) -> None:
        if len(os.fsencode(socket_path)) > MAX_UNIX_PATH_BYTES:
            raise ServerFault(f"filter.socket_dir: the socket path is longer than {MAX_UNIX_PATH_BYTES} bytes")
        self._socket_path = socket_path
        self._socket_mode = socket_mode
        self.health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_body_bytes + MESSAGE_OVERHEAD_BYTES),
                ("grpc.max_concurrent_streams", MAX_CONCURRENT_CALLS),
                ("grpc.max_metadata_size", 64 << 10),
            )
        )
        self._server.add_generic_rpc_handlers((handler(service),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)

    async def start(self) -> None:
        """Bind the socket and serve. Raises `ServerFault` when another file is in the way."""
        path = self._socket_path
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise ServerFault(f"{path.name} exists and is no socket")
        path.unlink(missing_ok=True)
        previous = os.umask(0o777 & ~self._socket_mode)
        try:
            if self._server.add_insecure_port(f"unix:{path}") == 0:
                raise ServerFault(f"cannot bind {path.name}")
        finally:
            os.umask(previous)
        await self._server.start()
        await self.set_serving(serving=True)

    async def set_serving(self, *, serving: bool, component: str = "") -> None:
        """Tell health checkers whether `component` is well; the empty name stands for the whole worker."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set(component, status)
        if not component:
            await self.health.set(SERVICE, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, finish those under way for at most `grace_s` seconds, and close."""
        await self.health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        self._socket_path.unlink(missing_ok=True)
