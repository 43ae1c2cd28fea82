"""The HTTP/2 half of the example app: prior knowledge, request trailers seen, answers in window-sized pieces."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tools.example_app_body import SeenBody

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.example_app import Answer, SeenRequest

MAX_STREAMS: Final = 1024
MAX_BODY_BYTES: Final = 1024 * 1024 * 1024
READ_BYTES: Final = 64 * 1024
IDLE_TIMEOUT_S: Final = 75.0


@dataclass(slots=True)
class _Stream:
    headers: list[tuple[str, str]]
    body: SeenBody
    trailers: list[tuple[str, str]] = field(default_factory=list)


class _Http2Connection:
    """One connection; owned by the task that reads it, and by the answers it started (one loop, no locks)."""

    def __init__(self, writer: asyncio.StreamWriter, record: Callable[[SeenRequest], Answer]) -> None:
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        self._writer = writer
        self._record = record
        self._streams: dict[int, _Stream] = {}
        self._answers: set[asyncio.Task[None]] = set()
        self._window_opened = asyncio.Event()

    async def run(self, first: bytes, reader: asyncio.StreamReader) -> None:
        self._h2.initiate_connection()
        data = first
        try:
            while data:
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._writer.write(self._h2.data_to_send())
                await self._writer.drain()
                data = await asyncio.wait_for(reader.read(READ_BYTES), IDLE_TIMEOUT_S)
        except h2.exceptions.ProtocolError:
            self._writer.write(self._h2.data_to_send())
        finally:
            for task in self._answers:
                task.cancel()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived) and len(self._streams) < MAX_STREAMS:
            headers = [(str(name), str(value)) for name, value in event.headers]
            self._streams[event.stream_id] = _Stream(headers, SeenBody())
        elif isinstance(event, h2.events.DataReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None and stream.body.length <= MAX_BODY_BYTES:
                stream.body.add(event.data)
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived) and event.stream_id in self._streams:
            trailers = [(str(name), str(value)) for name, value in event.headers]
            self._streams[event.stream_id].trailers = trailers
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id in self._streams:
            task = asyncio.create_task(self._answer(event.stream_id, self._streams.pop(event.stream_id)))
            self._answers.add(task)
            task.add_done_callback(self._answers.discard)
        elif isinstance(event, h2.events.StreamReset):
            self._streams.pop(event.stream_id, None)
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self._window_opened.set()

    async def _answer(self, stream_id: int, stream: _Stream) -> None:
        from tools.example_app import SeenRequest

        pseudo = {name: value for name, value in stream.headers if name.startswith(":")}
        fields = [(name, value) for name, value in stream.headers if not name.startswith(":")]
        seen = SeenRequest(
            protocol="HTTP/2",
            method=pseudo.get(":method", ""),
            target=pseudo.get(":path", ""),
            authority=pseudo.get(":authority", ""),
            headers=fields,
            trailers=stream.trailers,
            body=stream.body,
        )
        reply = self._record(seen)
        await asyncio.sleep(reply.delay_s)
        try:
            if reply.drop:
                self._h2.reset_stream(stream_id)
            else:
                self._h2.send_headers(stream_id, [(":status", str(reply.status)), *reply.headers])
                await self._send_body(stream_id, reply.body)
        except h2.exceptions.ProtocolError:
            return  # the peer gave up on the stream
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()

    async def _send_body(self, stream_id: int, body: bytes) -> None:
        sent = 0
        while sent < len(body):
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                self._window_opened.clear()
                await asyncio.wait_for(self._window_opened.wait(), IDLE_TIMEOUT_S)
                continue
            self._h2.send_data(stream_id, body[sent : sent + room])
            sent += room
            self._writer.write(self._h2.data_to_send())
            await self._writer.drain()
        self._h2.end_stream(stream_id)


async def serve_http2(
    first: bytes,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    record: Callable[[SeenRequest], Answer],
) -> None:
    """Serve one HTTP/2 connection whose first bytes are already read."""
    await _Http2Connection(writer, record).run(first, reader)
