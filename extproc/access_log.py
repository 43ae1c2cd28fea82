"""Envoy's gRPC access log service: entries in, outcomes to the recorder.

Envoy opens one stream per thread and sends what it logged every flush interval (envoy.yaml: 50 ms). There is no
acknowledgement: what was sent on a stream that then breaks is gone, and shows as a decision without an outcome
(`extproc.outcome_watch`). What was read is taken over before anything is awaited, so a stream's end loses none of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import grpc
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse

from extproc.outcome import MalformedEntry, Outcome, decode_entry

if TYPE_CHECKING:
    from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry

    from extproc.outcome_recorder import OutcomeRecorder
    from extproc.outcome_telemetry import OutcomeTelemetry

LOG: Final = logging.getLogger("signet.access_log")
SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"
LOG_NAME: Final = "signet_outcomes"
"""What Envoy's configuration calls the log that is meant for us; a stream of any other is refused."""
MAX_STREAMS: Final = 256
"""Streams at once: one per thread of each Envoy."""
ENTRIES_PER_TURN: Final = 32
"""Entries read before the event loop may answer Checks again; about a third of a millisecond."""
LAST_MESSAGE_S: Final = 0.15
"""How long a draining worker waits for one more message of each stream: three flush intervals."""


class AccessLog:
    """Take in access log streams. Owned by one event loop."""

    def __init__(self, recorder: OutcomeRecorder, telemetry: OutcomeTelemetry) -> None:
        self._recorder, self._telemetry = recorder, telemetry
        self._open: set[asyncio.Timeout] = set()
        self._finishing = False

    async def stream(
        self, _requests: object, context: grpc.aio.ServicerContext[StreamAccessLogsMessage, StreamAccessLogsResponse]
    ) -> StreamAccessLogsResponse:
        """Read one stream to its end, or until the worker drains."""
        if len(self._open) >= MAX_STREAMS:
            await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many access log streams")
        try:
            async with asyncio.timeout(LAST_MESSAGE_S if self._finishing else None) as limit:
                self._open.add(limit)
                try:
                    await self._read(context)
                finally:
                    self._open.discard(limit)
        except TimeoutError:
            LOG.debug("a quiet access log stream was closed")
        return StreamAccessLogsResponse()

    def finish(self) -> None:
        """Close every stream after its next message, or soon when none comes.

        Envoy has just flushed when a message arrives, so that nothing is on its way when the stream closes; it opens
        another one elsewhere.
        """
        if self._finishing:
            return
        self._finishing = True
        until_s = asyncio.get_running_loop().time() + LAST_MESSAGE_S
        for limit in self._open:
            limit.reschedule(until_s)

    async def _read(self, context: grpc.aio.ServicerContext[StreamAccessLogsMessage, StreamAccessLogsResponse]) -> None:
        message = await context.read()
        if message is grpc.aio.EOF:
            return
        if message.identifier.log_name != LOG_NAME:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "this log is not for outcomes")
        while message is not grpc.aio.EOF:
            await self._take_all(message)
            if self._finishing:
                return
            message = await context.read()

    async def _take_all(self, message: StreamAccessLogsMessage) -> None:
        entries = iter(message.http_logs.log_entry)
        try:
            for count, entry in enumerate(entries, 1):
                self._take(entry)
                if count % ENTRIES_PER_TURN == 0:
                    await asyncio.sleep(0)
        finally:
            # The stream may end while we let others go first.
            for entry in entries:
                self._take(entry)

    def _take(self, entry: HTTPAccessLogEntry) -> None:
        self._telemetry.received.inc()
        try:
            found = decode_entry(entry)
        except MalformedEntry as error:
            self._telemetry.malformed.inc()
            LOG.error("an access log entry was refused: %s", error)
            return
        if isinstance(found, Outcome):
            self._recorder.take(found)
        else:
            self._telemetry.skipped(found)

    async def _refuse(
        self,
        context: grpc.aio.ServicerContext[StreamAccessLogsMessage, StreamAccessLogsResponse],
        code: grpc.StatusCode,
        why: str,
    ) -> None:
        self._telemetry.refused_streams.inc()
        LOG.error("an access log stream was refused: %s", why)
        await context.abort(code, why)


def handler(service: AccessLog) -> grpc.GenericRpcHandler:
    """Give the gRPC handler of `service`."""
    method = grpc.stream_unary_rpc_method_handler(
        service.stream,
        request_deserializer=StreamAccessLogsMessage.FromString,
        response_serializer=StreamAccessLogsResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"StreamAccessLogs": method})
