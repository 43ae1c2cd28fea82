"""`ron.kms.v1.Kms` over gRPC: the same operations, messages and errors as HTTP (API.md appendix C)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc

from kms.error_envelope import encode_envelope, retry_after_s
from kms.errors import BadRequest, NotFound, Timeout
from kms.grpc_codec import request_from_bytes, response_to_bytes
from kms.messages import VerifyResponse
from kms.operation_table import OPERATIONS, Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from kms.api_call import ApiCalls
    from kms.config_sections import KmsConfig
    from kms.messages import Message

SERVICE: Final = "ron.kms.v1.Kms"
ERROR_TRAILER: Final = "kms-error-bin"
MAX_METADATA_BYTES: Final = 16_384
MAX_STREAMS_PER_CONNECTION: Final = 256
IDENTITY_ONLY: Final = 1
"""Bit set of the compressions that are taken: a compressed message could inflate past its ratio unseen."""
_METHOD: Final = "GRPC"


class GrpcApi(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The handlers of the service. One event loop owns it."""

    def __init__(self, calls: ApiCalls) -> None:
        self._calls = calls
        self._handlers = {
            # On the wire the same as unary_unary, which waits for ever for a message before it tells of the call.
            f"/{SERVICE}/{operation.rpc}": grpc.stream_unary_rpc_method_handler(self._handler(operation))
            for operation in OPERATIONS
        }

    def service(self, details: Any) -> Any:
        """Find the handler of a method; None makes gRPC answer UNIMPLEMENTED."""
        return self._handlers.get(details.method)

    def _handler(self, operation: Operation) -> Callable[[Any, Any], Any]:
        async def handle(_messages: Any, context: Any) -> bytes:
            return await self._answer(operation, context)

        return handle

    async def _answer(self, operation: Operation, context: Any) -> bytes:
        metadata = _metadata(context)
        call = self._calls.open(metadata.get("x-corr-id"), context.peer(), "grpc", _METHOD)
        response: Message | None = None
        try:
            self._calls.admit(call, operation, metadata.get("authorization"))
            with self._calls.bodies.lease() as lease:
                raw = await _read_message(context, self._calls.config().read_timeout_ms)
                lease.take(len(raw))
                call.body_bytes = len(raw)
                request = request_from_bytes(raw, operation.request)
                if operation.names_key and not getattr(request, "kid", None):
                    raise NotFound("no such key")
                response = await self._calls.perform(call, request, operation.path_for(getattr(request, "kid", "")))
            encoded = response_to_bytes(response)
        except asyncio.CancelledError:
            self._calls.close(call, "CANCELLED", None, None)
            raise
        except Exception as raised:
            error = self._calls.refused(call, raised)
            self._calls.close(call, error.grpc_status, error, None)
            wait_s = retry_after_s(error)
            envelope = encode_envelope(error, self._calls.clock.wall_ms(), call.request_id)
            trailer = [("x-corr-id", call.corr_id), (ERROR_TRAILER, envelope)]
            if wait_s is not None:
                trailer.append(("retry-after", str(wait_s)))
            await context.abort(grpc.StatusCode[error.grpc_status], error.message, tuple(trailer))
            raise AssertionError("abort raises") from raised
        trailer = [("x-corr-id", call.corr_id)]
        if isinstance(response, VerifyResponse) and isinstance(response.cache_age_ms, int):
            trailer.append(("x-kms-cache-age", str(response.cache_age_ms)))
        context.set_trailing_metadata(tuple(trailer))
        self._calls.close(call, "OK", None, response)
        return encoded


async def _read_message(context: Any, timeout_ms: int) -> bytes:
    """Read the one message of a call. Raises Timeout when the peer takes longer, BadRequest when there is none."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            raw = await context.read()
    except TimeoutError as error:
        raise Timeout("the message did not come in time", reason="read_timeout") from error
    if not isinstance(raw, bytes):
        raise BadRequest("the call has no message")
    return raw


def _metadata(context: Any) -> dict[str, str]:
    """Read the metadata; a key that is sent twice counts as its values joined, which no check accepts."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found[key] = value if key not in found else f"{found[key]}, {value}"
    return found


def build_grpc_server(calls: ApiCalls, config: KmsConfig) -> Any:
    """Make the server with its bounds; the caller binds and starts it."""
    server = grpc.aio.server(
        maximum_concurrent_rpcs=config.max_conns,
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", int(config.limits.max_body_bytes)),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            # Those in a handshake count too.
            ("grpc.max_allowed_incoming_connections", int(config.max_conns)),
            ("grpc.max_connection_idle_ms", int(config.idle_timeout_ms)),
            ("grpc.server_handshake_timeout_ms", int(config.read_timeout_ms)),
            ("grpc.keepalive_time_ms", int(config.idle_timeout_ms)),
            ("grpc.keepalive_timeout_ms", int(config.write_timeout_ms)),
            ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
        ),
    )
    server.add_generic_rpc_handlers((GrpcApi(calls),))
    return server
