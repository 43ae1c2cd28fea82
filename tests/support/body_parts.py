"""The filter's real parts for bodies, and Envoy's side of a Process stream."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import grpc
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from prometheus_client import CollectorRegistry

from extproc.body_order import AUTHZ_METADATA, ORDER_HEADER, ORDERED, BodyOrder
from extproc.body_telemetry import BodyTelemetry
from extproc.body_verdict import BodyVerdicts
from extproc.ext_authz import ExtAuthz
from extproc.ext_proc import SERVICE, ExtProc
from extproc.server import FilterServer
from receipts.receipt import BodyVerdictReceipt, parse_receipt
from receipts.receipt_id import ReceiptId
from tests.support.filter_parts import CONFIG, FilterParts, KeyPair, edge_request, signed_message

PROCESS = f"/{SERVICE}/Process"
TARGET = "/uploads/a?b=c"
BODY = b"the quick brown fox " * 10_000
CUT_BYTES = 131_072
UPLOADS = """
[[route]]
name = "uploads"
path = "/uploads/**"
body = "streamed"
max_body_bytes = 1000000
[[route]]
name = "held"
path = "/held/**"
max_body_bytes = 1000000
"""


class BodyParts:
    """A filter server on a socket in `folder`, with two registered keys."""

    def __init__(self, folder: Path) -> None:
        self.keys = {subject: KeyPair.new(subject) for subject in ("alice", "bob")}
        self.parts = FilterParts(folder, self.keys, CONFIG + UPLOADS)
        self.registry = CollectorRegistry()
        self.verdicts = BodyVerdicts(
            self.parts.store,
            self.parts.writer,
            timeout_s=lambda: 5.0,
            clock_ms=self.parts.clock,
            random_bytes=self.parts.random,
        )
        self.service = ExtProc(self.verdicts, BodyTelemetry(self.registry), lambda: 7)
        self.socket = folder / "signet-0.sock"
        self.server = FilterServer(
            ExtAuthz(self.parts.pipeline, self.parts.parts.telemetry),
            self.socket,
            max_body_bytes=CUT_BYTES,
            socket_mode=0o600,
            bodies=self.service,
        )
        self._streams = 1000

    async def __aenter__(self) -> BodyParts:
        await self.parts.start()
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"unix:{self.socket}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.parts.stop()

    async def pending(
        self, body: bytes = BODY, *, target: str = TARGET, key: str = "alice", **changes: Any
    ) -> BodyOrder:
        """Have a Check decide a POST of `body` whose end it has not seen; give its order."""
        self._streams += 1
        message = signed_message(self.keys[key], self.parts.challenge(), method="POST", target=target, body=body)
        values = {"body": body[:CUT_BYTES], "body_cut": True, "deferrable": True, "stream_id": str(self._streams)}
        answer = await self.parts.answer(edge_request(message, **(values | changes)))
        assert answer.order is not None, answer.reason
        return answer.order

    def stream(self) -> Stream:
        return Stream(self.channel)

    def verdicts_on(self, receipt_id: ReceiptId) -> list[BodyVerdictReceipt]:
        found = [parse_receipt(each.raw) for each in self.parts.store.latest(1000)]
        return [each for each in found if isinstance(each, BodyVerdictReceipt) and each.refers_to == receipt_id]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


class Stream:
    """One Process stream as Envoy opens it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream(
            PROCESS,
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )(timeout=20)
        self._arrived: asyncio.Queue[ProcessingResponse | grpc.aio.AioRpcError | None] = asyncio.Queue()
        # Read as it comes: once a write has failed, what came before it cannot be read any more.
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while (found := await self.call.read()) is not grpc.aio.EOF:
                self._arrived.put_nowait(found)
                if found.HasField("immediate_response"):
                    # Envoy listens no more.
                    self._arrived.put_nowait(None)
                    return
            code = await self.call.code()
        except grpc.aio.AioRpcError as error:
            self._arrived.put_nowait(error)
            return
        failed = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())
        self._arrived.put_nowait(None if code is grpc.StatusCode.OK else failed)

    async def headers(
        self,
        order: BodyOrder | None,
        *,
        method: str = "POST",
        target: str = TARGET,
        fields: tuple[tuple[str, str], ...] = (),
        mode: int = ProcessingMode.FULL_DUPLEX_STREAMED,
        facts: dict[str, str] | None = None,
        **changes: Any,
    ) -> None:
        """Send the header with the metadata of a pass that gives `order`."""
        request = ProcessingRequest(request_headers=HttpHeaders(), **changes)
        lines = ((":method", method), (":path", target), (ORDER_HEADER, ORDERED), *fields)
        for name, value in lines:
            request.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        request.protocol_config.CopyFrom(ProtocolConfiguration(request_body_mode=mode))
        if order is not None:
            said = {"decision": "allow", "receipt": order.receipt_id} | order.facts() | (facts or {})
            request.metadata_context.filter_metadata[AUTHZ_METADATA].update(said)
        await self._write(request)

    async def body(self, data: bytes, *, last: bool = False) -> None:
        await self._write(ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=last)))

    async def trailers(self, *names: str) -> None:
        request = ProcessingRequest(request_trailers=HttpTrailers())
        for name in names:
            request.request_trailers.trailers.headers.add(key=name, raw_value=b"v")
        await self._write(request)

    async def _write(self, request: ProcessingRequest) -> None:
        """Write; a stream that ended meanwhile is for `answer` to tell."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.write(request)

    async def answer(self) -> ProcessingResponse | None:
        """Give the next answer, None at a clean end; raises `grpc.aio.AioRpcError` at any other."""
        found = await self._arrived.get()
        if isinstance(found, grpc.aio.AioRpcError):
            raise found
        return found

    async def answers(self) -> list[ProcessingResponse]:
        """Give every answer to the clean end."""
        found: list[ProcessingResponse] = []
        while (each := await self.answer()) is not None:
            found.append(each)
        return found


def streamed(answers: list[ProcessingResponse]) -> bytes:
    """Give the content that went on."""
    return b"".join(each.request_body.response.body_mutation.streamed_response.body for each in answers)


def reason_of(answer: ProcessingResponse) -> str:
    """Give the reason of a refusal; fails on anything else."""
    assert answer.WhichOneof("response") == "immediate_response", answer
    assert answer.immediate_response.status.code >= 400
    headers = {each.header.key: each.header.raw_value for each in answer.immediate_response.headers.set_headers}
    return headers["pch-reason"].decode()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
