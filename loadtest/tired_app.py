"""An app with a known capacity: so many requests at once, so long each; what exceeds it waits. Loopback only.

    python loadtest/tired_app.py --port 8088 --control /path/app.json

The control file, read twenty times a second, sets `slots`, `service_ms`, `fail_share` and `answer_bytes` while it
runs. A request that waits is served even when nobody waits for it any more, as in most apps: so overload wastes work,
and goodput falls.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Final

import uvloop

MAX_WAITING: Final = 5_000
MAX_HEAD_BYTES: Final = 65_536
MAX_ANSWER_BYTES: Final = 1_048_576
CONTROL_PERIOD_S: Final = 0.05


class TiredApp:
    """Serves with `slots` at once; owned by one event loop."""

    def __init__(self, control: Path) -> None:
        self._control = control
        self._seen = ""
        self.slots, self.service_ms, self.fail_share = 4, 20.0, 0.0
        self.answer_bytes = 2
        self._busy, self._count = 0, 0
        self._waiting: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue(MAX_WAITING)

    async def follow(self) -> None:
        """Read the control file for ever."""
        while True:
            with contextlib.suppress(OSError, ValueError):
                text = self._control.read_text()
                if text != self._seen:
                    said = json.loads(text)
                    self.slots = int(said.get("slots", self.slots))
                    self.service_ms = float(said.get("service_ms", self.service_ms))
                    self.fail_share = float(said.get("fail_share", self.fail_share))
                    self.answer_bytes = min(MAX_ANSWER_BYTES, int(said.get("answer_bytes", self.answer_bytes)))
                    self._seen = text
                    self._wake()
            await asyncio.sleep(CONTROL_PERIOD_S)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        await reader.readexactly(int(line.split(b":")[1]))
                status = await self._serve()
                length = self.answer_bytes
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (status, length) + b"o" * length)
                await writer.drain()
        writer.close()

    async def _serve(self) -> int:
        if self._busy >= self.slots:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            try:
                self._waiting.put_nowait(turn)
            except asyncio.QueueFull:
                return 503
            await turn
        else:
            self._busy += 1
        try:
            await asyncio.sleep(self.service_ms / 1000)
        finally:
            self._busy -= 1
            self._wake()
        self._count += 1
        # Evenly spread and without chance: the n-th fails when n · share passes a whole number.
        return 500 if int(self._count * self.fail_share) > int((self._count - 1) * self.fail_share) else 200

    def _wake(self) -> None:
        while self._busy < self.slots and not self._waiting.empty():
            turn = self._waiting.get_nowait()
            self._busy += 1
            turn.set_result(None)


async def serve(port: int, control: Path) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    app = TiredApp(control)
    following = asyncio.create_task(app.follow())
    server = await asyncio.start_server(app.connection, "127.0.0.1", port, limit=MAX_HEAD_BYTES, backlog=4096)
    await stop.wait()
    following.cancel()
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=Path, required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.control))
