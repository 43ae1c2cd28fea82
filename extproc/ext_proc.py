"""Envoy's ext_proc v3 service: sees the bodies through that a Check ordered, and no others.

    header with the order ─▶ recall the decision ─▶ chunks ─▶ end ─▶ verdict durable ─▶ last chunk goes on

Envoy sends chunks as they come and sends on only what it gets back (FULL_DUPLEX_STREAMED). A stream that it sees closed
without an error lets the rest through; so this service returns only after the last answer, and fails otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from extproc.body_answer import chunk_answer, headers_answer, refusal, serialise, trailers_answer
from extproc.body_order import ForgedOrder, read_order
from extproc.body_stream import BodyStream, Released
from extproc.errors import Overloaded
from extproc.logs import begin_trace
from pch.errors import OurFault, PchError
from pch.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any, TypeAlias

    from extproc.body_order import BodyOrder
    from extproc.body_stream import Finished
    from extproc.body_telemetry import BodyTelemetry
    from extproc.body_verdict import BodyVerdicts, RecalledBody

    Context: TypeAlias = grpc.aio.ServicerContext[ProcessingRequest, ProcessingResponse]

LOG: Final = logging.getLogger("signet.ext_proc")
SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
MAX_STREAMS: Final = 256
"""Bodies on their way at once in one worker, each with one chunk (Envoy: 128 KiB) held back. Two workers' are a quarter
of what Envoy has open to the filter (envoy.yaml: max_requests), so that slow uploads never keep a Check waiting."""
MAX_REFUSED_STREAMS: Final = 256
"""Streams past `MAX_STREAMS` that are refused at once with a verdict; one more is only broken off, and has none."""
MAX_HELD_BYTES: Final = 67_108_864
"""What bodies that are held whole may take up at once in one worker."""
MAX_STREAMS_PER_SUBJECT: Final = 128
MAX_HELD_BYTES_PER_SUBJECT: Final = 33_554_432
"""Half of either: whoever sends slowly, or never ends, leaves room for the others."""
IDLE_TIMEOUT_S: Final = 330.0
"""How long one message may be under way in either direction; above Envoy's own limits for a request (300 s)."""


class Misconfigured(OurFault):
    """The edge uses this service in a way that could let a body through unseen."""


class StreamEnded(Exception):
    """The edge closed the stream: the client went, or the app answered before it had the whole body."""


@dataclass(slots=True)
class _Share:
    """What bodies of one subject take up in one worker."""

    streams: int = 0
    held_bytes: int = 0


class ExtProc:
    """Answer Process streams. Owned by one event loop. `retry_after_s`: for refusals that say to come later."""

    def __init__(self, verdicts: BodyVerdicts, telemetry: BodyTelemetry, retry_after_s: Callable[[], int]) -> None:
        self.verdicts, self.telemetry, self.retry_after_s = verdicts, telemetry, retry_after_s
        self._open_streams = self._refused_streams = 0
        self._held_bytes = 0
        self._shares: dict[str, _Share] = {}
        self._settling: set[asyncio.Task[None]] = set()

    async def process(self, _requests: object, context: Context) -> None:
        """See one body through. Whatever goes wrong ends in a refusal or in an error, never in a clean end."""
        in_time = self._open_streams < MAX_STREAMS
        if not in_time and self._refused_streams >= MAX_REFUSED_STREAMS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many bodies on their way")
        self._open_streams += in_time
        self._refused_streams += not in_time
        self.telemetry.open.inc()
        passage = _Passage(self, context, in_time=in_time)
        try:
            await passage.run()
        except (StreamEnded, TimeoutError):
            await context.abort(grpc.StatusCode.CANCELLED, "the body ended before it was settled")
        except Exception:
            LOG.exception("unhandled failure; the body is not let through")
            await context.abort(grpc.StatusCode.INTERNAL, "the body was not settled")
        finally:
            self._open_streams -= in_time
            self._refused_streams -= not in_time
            self.telemetry.open.dec()
            passage.leave()

    async def drain(self) -> None:
        """Wait until the verdicts on bodies that never ended are written. After the last stream, before the stores."""
        await asyncio.gather(*self._settling, return_exceptions=True)

    @contextlib.contextmanager
    def room(self, body: RecalledBody) -> Iterator[None]:
        """Take room for a body, and for all of one that is held whole, and give it back. Raises `Overloaded`."""
        order, share = body.order, self._shares.setdefault(body.subject, _Share())
        wanted = order.max_body_bytes if order.content_bytes is None else order.content_bytes
        if order.release == "streamed":
            wanted = 0
        share.streams += 1
        share.held_bytes += wanted
        self._held_bytes += wanted
        try:
            if self._held_bytes > MAX_HELD_BYTES:
                raise Overloaded("too much content is held already")
            if share.streams > MAX_STREAMS_PER_SUBJECT or share.held_bytes > MAX_HELD_BYTES_PER_SUBJECT:
                raise Overloaded("the subject has its share of bodies on their way")
            yield
        finally:
            self._held_bytes -= wanted
            share.held_bytes -= wanted
            share.streams -= 1
            if not share.streams:
                del self._shares[body.subject]

    async def settle(self, body: RecalledBody, reason: Reason, finished: Finished | None = None) -> None:
        """Write and count the verdict; once begun it goes on to its end, also when the caller's stream is gone.

        Raises as `BodyVerdicts.settle` does.
        """
        task = self._keep(self._settle(body, reason, finished))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    def abandon(self, body: RecalledBody | asyncio.Task[RecalledBody]) -> None:
        """Settle a body that never ended, though its stream is gone: the bytes that arrived are not the content.

        `body`: also one whose decision is still being looked up.
        """
        self._keep(self._settle_abandoned(body)).add_done_callback(_log_failure)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def _settle(self, body: RecalledBody, reason: Reason, finished: Finished | None) -> None:
        await self.verdicts.settle(body, reason, finished)
        self.telemetry.settled(body.route, reason)

    async def _settle_abandoned(self, body: RecalledBody | asyncio.Task[RecalledBody]) -> None:
        found = await body if isinstance(body, asyncio.Task) else body
        await self._settle(found, Reason.BAD_CONTENT_DIGEST, None)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        LOG.error("a body that never ended is without a verdict: %s", error)


class _Passage:
    """One stream, from its header to its last answer. `_unsettled`: what has no verdict yet.

    `in_time`: there is room for one more body.
    """

    def __init__(self, service: ExtProc, context: Context, *, in_time: bool) -> None:
        self._service, self._context, self._in_time = service, context, in_time
        self._unsettled: RecalledBody | None = None
        self._is_grpc = self._is_head = False

    async def run(self) -> None:
        """Read, decide, answer; returns when the last answer is sent, be it a refusal. Raises `StreamEnded`."""
        try:
            await self._see_through()
        except PchError as error:
            await self._refuse(error)

    def leave(self) -> None:
        """Settle what has no verdict yet."""
        if self._unsettled is not None:
            self._service.abandon(self._unsettled)

    async def _see_through(self) -> None:
        first = await self._read()
        fields = {each.key: each.raw_value.decode("latin-1") for each in first.request_headers.headers.headers}
        self._is_grpc = fields.get("content-type", "").startswith("application/grpc")
        self._is_head = fields.get(":method") == "HEAD"
        _check_mode(first)
        order = read_order(first.metadata_context.filter_metadata)
        method, target = fields.get(":method", ""), fields.get(":path", "")
        body = self._unsettled = await self._recall(order, method, target)
        begin_trace(body.trace_id)
        if not self._in_time:
            raise Overloaded("too many bodies on their way")
        with self._service.room(body):
            await self._stream(body, bodiless=first.request_headers.end_of_stream)

    async def _recall(self, order: BodyOrder, method: str, target: str) -> RecalledBody:
        recalling = asyncio.create_task(self._service.verdicts.recall(order, method=method, target=target))
        try:
            return await asyncio.shield(recalling)
        except asyncio.CancelledError:
            # The stream is gone, and the decision is still without a verdict.
            self._service.abandon(recalling)
            raise

    async def _stream(self, body: RecalledBody, *, bodiless: bool) -> None:
        """Take the body, settle it, let its end go on. `bodiless`: the request ended with its header."""
        order, stream = body.order, BodyStream(body.order)
        header = headers_answer(order.receipt_id, order.content_bytes)
        header_first = order.release == "streamed" and not bodiless
        if header_first:
            await self._write(header)
        trailers = None if bodiless else await self._take(stream)
        finished = stream.finish()
        await self._settle(body, Reason.ALLOWED, finished)
        if not header_first:
            await self._write(header)
        if not bodiless:
            await self._write(chunk_answer(finished.data, last=trailers is None))
        if trailers is not None:
            await self._write(trailers_answer(trailers))

    async def _take(self, stream: BodyStream) -> list[str] | None:
        """Take chunks to the end, and send on what may go; returns the names of the trailers, None without any."""
        while True:
            message = await self._read()
            kind = message.WhichOneof("request")
            if kind == "request_trailers":
                return [each.key for each in message.request_trailers.trailers.headers]
            if kind != "request_body":
                raise Misconfigured("the edge sent what is no part of a request's body")
            chunk = message.request_body
            self._service.telemetry.bytes.inc(len(chunk.body))
            for event in stream.receive(chunk.body):
                if isinstance(event, Released):
                    await self._write(chunk_answer(event.data, last=False))
            if chunk.end_of_stream:
                return None

    async def _refuse(self, error: PchError) -> None:
        """Make the refusal durable, then tell it. Without an order that holds there is no decision to refer to."""
        reason, body = error.reason, self._unsettled
        LOG.log(logging.ERROR if isinstance(error, OurFault) else logging.DEBUG, "refused: %s (%s)", reason, error)
        if isinstance(error, (ForgedOrder, Misconfigured)):
            self._service.telemetry.orders_refused.inc()
        if body is not None:
            try:
                await self._settle(body, reason)
            except PchError as failure:
                LOG.error("a refused body is without a verdict: %s", failure)
                reason = failure.reason
        retry_after_s = self._service.retry_after_s()
        await self._write(refusal(reason, is_grpc=self._is_grpc, is_head=self._is_head, retry_after_s=retry_after_s))

    async def _settle(self, body: RecalledBody, reason: Reason, finished: Finished | None = None) -> None:
        # Not unsettled any more, even if this fails: what failed here may be durable, and is not tried twice.
        self._unsettled = None
        await self._service.settle(body, reason, finished)

    async def _read(self) -> ProcessingRequest:
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StreamEnded("the edge gave the request up")
        return message

    async def _write(self, answer: ProcessingResponse) -> None:
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            await self._context.write(answer)


def _check_mode(first: ProcessingRequest) -> None:
    """See that the edge sends the header first, and nothing on but what it gets back."""
    if first.WhichOneof("request") != "request_headers" or first.observability_mode:
        raise Misconfigured("the edge does not begin with the request's header")
    if first.protocol_config.request_body_mode != ProcessingMode.FULL_DUPLEX_STREAMED:
        raise Misconfigured("the edge does not send bodies as FULL_DUPLEX_STREAMED")


def handler(service: ExtProc) -> grpc.GenericRpcHandler:
    """Give the gRPC handler of `service`."""
    method = grpc.stream_stream_rpc_method_handler(
        service.process, request_deserializer=ProcessingRequest.FromString, response_serializer=serialise
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Process": method})
