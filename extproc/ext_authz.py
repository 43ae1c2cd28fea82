"""Envoy's ext_authz v3 service: bytes in, pipeline, bytes out."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Final

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest

from extproc.logs import begin_trace
from extproc.request import UndecodableRequest, decode_check
from extproc.response import check_response, refusal_without_request, serialise

if TYPE_CHECKING:
    from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

    from extproc.pipeline import Pipeline
    from extproc.telemetry import Telemetry

LOG: Final = logging.getLogger("signet.ext_authz")
SERVICE: Final = "envoy.service.auth.v3.Authorization"
EDGE_METADATA_KEY: Final = "x-signet-edge-instance"
"""gRPC metadata that names the edge instance; Envoy's configuration sets it, no client can."""
EDGE_BODY_BYTES_KEY: Final = "x-signet-edge-body-bytes"
"""gRPC metadata that says how much of a body the edge hands over, and that ext_proc sees the rest when asked to: the
value of `max_request_bytes`. Without it a body of unknown length is never taken for whole."""
MAX_EDGE_NAME_CHARS: Final = 128
UNSET: Final = "-"
"""What Envoy writes for an environment variable that is not set."""
_BODY_LIMIT: Final = re.compile(r"[1-9][0-9]{0,8}")


class ExtAuthz:
    """Answer Check calls. Whatever goes wrong here is answered with a refusal."""

    def __init__(self, pipeline: Pipeline, telemetry: Telemetry) -> None:
        self._pipeline = pipeline
        self._telemetry = telemetry
        self._warned_of_nameless_edge = False

    async def check(self, check: CheckRequest, context: grpc.aio.ServicerContext) -> CheckResponse:
        """Answer one Check (docs/reference/pch.md §4)."""
        started_s = time.perf_counter()
        try:
            edge_instance, edge_body_bytes = _edge(context)
            if not edge_instance:
                self._warn_of_nameless_edge()
            request = decode_check(check, edge_instance, edge_body_bytes)
        except UndecodableRequest as error:
            self._telemetry.undecodable.inc()
            LOG.error("refused a Check that cannot be decoded: %s", error)
            return refusal_without_request()
        except Exception:
            LOG.exception("a Check could not be decoded")
            return refusal_without_request()
        begin_trace(request.trace_id)
        try:
            response = check_response(await self._pipeline.answer(request))
        except Exception:
            LOG.exception("no answer could be built; the request is refused")
            response = refusal_without_request()
        self._telemetry.check_seconds.observe(time.perf_counter() - started_s)
        return response

    def _warn_of_nameless_edge(self) -> None:
        """Say once per worker that a retried Check is told from a replay by Envoy's stream id alone (PCH §4 step 9)."""
        if not self._warned_of_nameless_edge:
            self._warned_of_nameless_edge = True
            LOG.warning("the edge names no instance: SIGNET_EDGE_INSTANCE is unset in Envoy's environment")


def _edge(context: grpc.aio.ServicerContext) -> tuple[str, int | None]:
    """Read what the edge says of itself: its name, empty if it has none, and its body limit in bytes."""
    said = {key: str(value) for key, value in reversed(context.invocation_metadata() or ())}
    name, limit = said.get(EDGE_METADATA_KEY, UNSET), said.get(EDGE_BODY_BYTES_KEY, "")
    return "" if name == UNSET else name[:MAX_EDGE_NAME_CHARS], int(limit) if _BODY_LIMIT.fullmatch(limit) else None


def handler(service: ExtAuthz) -> grpc.GenericRpcHandler:
    """Give the gRPC handler of `service`."""
    method = grpc.unary_unary_rpc_method_handler(
        service.check,
        request_deserializer=CheckRequest.FromString,
        response_serializer=serialise,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Check": method})
