"""The worker's gRPC server on its UNIX socket: ext_authz, ext_proc, access log and health, with a graceful drain."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc import access_log, ext_proc
from extproc.errors import ServerFault
from extproc.ext_authz import SERVICE, handler

if TYPE_CHECKING:
    from pathlib import Path

    from extproc.access_log import AccessLog
    from extproc.ext_authz import ExtAuthz
    from extproc.ext_proc import ExtProc

MAX_CONCURRENT_CALLS: Final = 4096
"""Calls that one Envoy connection may have open at once."""
MAX_EDGE_BODY_BYTES: Final = 16_777_216
"""The most of a body that any edge hands over in one message, whatever its `max_request_bytes` is."""
MESSAGE_OVERHEAD_BYTES: Final = 1 << 20
"""What a Check may hold beside the content: header fields, metadata, framing."""
MAX_UNIX_PATH_BYTES: Final = 107
"""The longest path that fits a UNIX socket address."""
BOUND_NAME_BYTES: Final = 5
"""Randomness in the name that is bound first; as hex it is no longer than the public name."""


class FilterServer:
    """One gRPC server on one UNIX socket. Owned by one event loop."""

    def __init__(
        self,
        service: ExtAuthz,
        socket_path: Path,
        *,
        max_body_bytes: int,
        socket_mode: int,
        outcomes: AccessLog | None = None,
        bodies: ExtProc | None = None,
    ) -> None:
        # gRPC removes the name that it bound once it stops, and by then a successor may serve under the public name.
        # So it binds a name that no one else has, and the socket is renamed when it serves.
        self._bound_path = socket_path.with_name(f".{secrets.token_hex(BOUND_NAME_BYTES)}")
        if max(len(os.fsencode(path)) for path in (socket_path, self._bound_path)) > MAX_UNIX_PATH_BYTES:
            raise ServerFault(f"filter.socket_dir: the socket path is longer than {MAX_UNIX_PATH_BYTES} bytes")
        self._socket_path = socket_path
        self._served: os.stat_result | None = None
        self._socket_mode = socket_mode
        self.health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_body_bytes + MESSAGE_OVERHEAD_BYTES),
                ("grpc.max_concurrent_streams", MAX_CONCURRENT_CALLS),
                ("grpc.max_metadata_size", 64 << 10),
                # It would widen a stream's window from 64 KiB to megabytes: 64 MiB then took a worker 11 MiB, not 4.
                ("grpc.http2.bdp_probe", 0),
            )
        )
        self._server.add_generic_rpc_handlers((handler(service),))
        self._outcomes = outcomes
        if outcomes is not None:
            self._server.add_generic_rpc_handlers((access_log.handler(outcomes),))
        self._bodies = bodies
        if bodies is not None:
            self._server.add_generic_rpc_handlers((ext_proc.handler(bodies),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)

    async def start(self) -> None:
        """Bind the socket and serve, in the place of whoever served there. Raises `ServerFault` when it cannot."""
        path = self._socket_path
        there = _status(path)
        if there is not None and not stat.S_ISSOCK(there.st_mode):
            raise ServerFault(f"{path.name} exists and is no socket")
        previous = os.umask(0o777 & ~self._socket_mode)
        try:
            self._server.add_insecure_port(f"unix:{self._bound_path}")
        except RuntimeError as error:
            raise ServerFault(f"filter.socket_dir: cannot bind {path.name}") from error
        finally:
            os.umask(previous)
        await self._server.start()
        await self.set_serving(serving=True)
        self._served = _status(self._bound_path)
        self._bound_path.rename(path)

    async def set_serving(self, *, serving: bool, component: str = "") -> None:
        """Tell health checkers whether `component` is well; the empty name stands for the whole worker."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set(component, status)
        if not component:
            await self.health.set(SERVICE, status)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, finish those under way for at most `grace_s` seconds, and close."""
        await self.health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(grace_s))
        if self._outcomes is not None:
            # Access log streams never end by themselves. Envoy opens its next ones elsewhere: we listen no more.
            self._outcomes.finish()
        await stopping
        if self._bodies is not None:
            await self._bodies.drain()
        there = _status(self._socket_path)
        if there is not None and self._served is not None and os.path.samestat(there, self._served):
            self._socket_path.unlink(missing_ok=True)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None
