#!/usr/bin/env python3
"""The app behind Signet in the demonstration and the tests: it writes down whatever it gets and echoes it as JSON.

    python tools/example_app.py --port 8088 --log app.jsonl

One port speaks HTTP/1.1 and HTTP/2 with prior knowledge. Query parameters steer the answer: `status=`, `bytes=` (length
of the answer), `delay_ms=`, `drop=1` (close without an answer), `header=name:value` (repeatable). Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import h11

if str(Path(__file__).resolve().parent.parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.example_app_body import SeenBody
from tools.example_app_http2 import serve_http2

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BODY_BYTES: Final = 1024 * 1024 * 1024
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
MAX_DELAY_MS: Final = 30_000
READ_BYTES: Final = 64 * 1024
IDLE_TIMEOUT_S: Final = 75.0
"""Longer than Envoy keeps an idle upstream connection, so that it is Envoy that closes."""
HTTP2_PREFACE_START: Final = b"PRI "


@dataclass(slots=True)
class SeenRequest:
    """What arrived, before anything was made of it. Names and values are latin-1 text."""

    protocol: str
    method: str
    target: str
    authority: str
    headers: list[tuple[str, str]]
    trailers: list[tuple[str, str]] = field(default_factory=list)
    body: SeenBody = field(default_factory=SeenBody)

    def as_json(self) -> dict[str, object]:
        """Give the log record, which is also the body of the answer."""
        return {
            "time": time.time(),
            "protocol": self.protocol,
            "method": self.method,
            "target": self.target,
            "authority": self.authority,
            "headers": self.headers,
            "trailers": self.trailers,
            **self.body.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: `drop` closes the connection instead."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    delay_s: float
    drop: bool


def _number(query: dict[str, list[str]], name: str, default: int, most: int) -> int:
    text = query.get(name, [""])[0]
    return min(int(text), most) if text.isdigit() else default


def answer(seen: SeenRequest) -> Answer:
    """Make the answer that the query asks for."""
    query = parse_qs(seen.target.partition("?")[2])
    length = _number(query, "bytes", -1, MAX_ANSWER_BYTES)
    body = b"x" * length if length >= 0 else json.dumps(seen.as_json()).encode() + b"\n"
    headers = [("content-type", "application/json" if length < 0 else "application/octet-stream")]
    for text in query.get("header", []):
        name, _, value = text.partition(":")
        headers.append((name.strip().lower(), value.strip()))
    headers.append(("content-length", str(len(body))))
    return Answer(
        status=max(200, _number(query, "status", 200, 599)),
        headers=headers,
        body=body,
        delay_s=_number(query, "delay_ms", 0, MAX_DELAY_MS) / 1000,
        drop="drop" in query,
    )


class ExampleApp:
    """Accepts connections and records every request, one JSON line each, before it answers."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("ab", buffering=0)

    def record(self, seen: SeenRequest) -> Answer:
        """Write down `seen` and make its answer."""
        self._log.write(json.dumps(seen.as_json()).encode() + b"\n")
        return answer(seen)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end; a peer that breaks off or errs ends only its own."""
        with contextlib.suppress(ConnectionError, TimeoutError, h11.RemoteProtocolError, asyncio.CancelledError):
            first = await asyncio.wait_for(reader.read(READ_BYTES), IDLE_TIMEOUT_S)
            if first.startswith(HTTP2_PREFACE_START):
                await serve_http2(first, reader, writer, self.record)
            else:
                await _serve_http1(first, reader, writer, self.record)
        writer.close()


async def _serve_http1(
    first: bytes,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    record: Callable[[SeenRequest], Answer],
) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=256 * 1024)
    connection.receive_data(first)
    seen: SeenRequest | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                informational = h11.InformationalResponse(status_code=100, headers=[])
                writer.write(connection.send(informational) or b"")
            data = await asyncio.wait_for(reader.read(READ_BYTES), IDLE_TIMEOUT_S)
            connection.receive_data(data)
        elif isinstance(event, h11.Request):
            seen = _seen_http1(event)
        elif isinstance(event, h11.Data) and seen is not None:
            seen.body.add(event.data)
            if seen.body.length > MAX_BODY_BYTES:
                return
        elif isinstance(event, h11.EndOfMessage) and seen is not None:
            seen.trailers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
            if not await _answer_http1(connection, writer, record(seen)):
                return
        else:
            return


def _seen_http1(event: h11.Request) -> SeenRequest:
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]
    authority = next((value for name, value in headers if name.lower() == "host"), "")
    return SeenRequest("HTTP/1.1", event.method.decode(), event.target.decode("latin-1"), authority, headers)


async def _answer_http1(connection: h11.Connection, writer: asyncio.StreamWriter, reply: Answer) -> bool:
    """Send `reply`; tell whether the connection goes on."""
    await asyncio.sleep(reply.delay_s)
    if reply.drop:
        return False
    head = h11.Response(status_code=reply.status, headers=reply.headers)
    for event in (head, h11.Data(data=reply.body), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
        await writer.drain()
    if connection.our_state is h11.MUST_CLOSE or connection.their_state is not h11.DONE:
        return False
    connection.start_next_cycle()
    return True


async def _main(port: int, log: Path) -> None:
    app = ExampleApp(log)
    server = await asyncio.start_server(app.serve, "127.0.0.1", port, backlog=1024)
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    print(f"example app on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    """Run the app until it is told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8088)
    parser.add_argument("--log", type=Path, required=True, help="one JSON line per request is added here")
    options = parser.parse_args()
    asyncio.run(_main(options.port, options.log))


if __name__ == "__main__":
    main()
