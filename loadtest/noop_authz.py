"""The alternative that the benchmark compares with: an ext_authz service that allows everything (grpc.aio, uvloop)."""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc
import uvloop
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, OkHttpResponse
from google.rpc.status_pb2 import Status

SERVICE = "envoy.service.auth.v3.Authorization"


async def check(_request: CheckRequest, _context: object) -> CheckResponse:
    """Allow."""
    return CheckResponse(status=Status(code=0), ok_response=OkHttpResponse())


async def serve(socket_path: str) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        check, request_deserializer=CheckRequest.FromString, response_serializer=CheckResponse.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Check": method}),))
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    await stop.wait()
    await server.stop(1)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
