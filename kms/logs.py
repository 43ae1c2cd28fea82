"""Logs as JSON lines with the fields of OBSERVABILITY.md §3, and no secret in any of them (I-16).

Only named fields reach a line: an event has no place for a body, a token, a passphrase or a raw kid. Lines are written
by one thread, so that a slow reader of the stream never holds up the event loop; past the queue's bound they are
dropped, and the next line says how many.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import queue
import re
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final

import msgspec

from kms.kid import kid_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

SERVICE: Final = "ron-kms"
MAX_QUEUED_LINES: Final = 8192
MAX_LINES_A_WRITE: Final = 64
PAUSE_S: Final = 0.02
MAX_TEXT_CHARS: Final = 512
LEVELS: Final = {"trace": 5, "debug": 10, "info": 20, "warn": 30, "error": 40}
FIELDS: Final = frozenset(
    {
        *("corr_id", "request_id", "peer_addr", "tenant", "route", "op_id", "kid_hash", "kid_version", "alg", "result"),
        *("latency_ms", "attestation_class", "cache_age_ms", "reason", "payload_b3", "body_bytes", "status", "missing"),
        *("degraded", "backend", "transport", "method", "message", "trace", "changed", "version", "logger", "token_id"),
        *("pq", "pq_mode"),
        *("index", "head", "pid", "config_digest", "addresses", "attempt", "delay_ms", "exit_status", "count"),
    }
)
_KID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9-]+/[0-9a-f-]{36}(?:#v\d+)?")
# Macaroons and other long runs of base64 or hex that a library might have put into a message.
_LONG_OPAQUE: Final = re.compile(r"[A-Za-z0-9+/_=-]{40,}")
_BREAKS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def redact(text: str) -> str:
    """Make a free text fit for a line: kids become their hashes, long opaque runs go, control characters too."""
    text = _KID.sub(lambda match: f"kid:{kid_hash(match[0].partition('#')[0])}", text)
    text = _LONG_OPAQUE.sub("[redacted]", text)
    return _BREAKS.sub(" ", text)[:MAX_TEXT_CHARS]


class LogWriter:
    """Writes lines to `stream` from a thread of its own. `wall_ms`: milliseconds since the epoch."""

    def __init__(self, stream: TextIO, wall_ms: Callable[[], int], level: str = "info", form: str = "json") -> None:
        self._stream, self._wall_ms = stream, wall_ms
        self._encoder = msgspec.json.Encoder()
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_LINES)
        self._closing = threading.Event()
        self.dropped = 0
        self._overflowed = self._told = 0  # of those dropped, for want of room; of these, what a line told
        self.configure(level, form)
        self._thread = threading.Thread(target=self._write, name="kms-log", daemon=True)
        self._thread.start()

    def configure(self, level: str, form: str) -> None:
        """Set what a reload may change: the least level, and `json` or `text`."""
        self._least = LEVELS[level]
        self._text = form == "text"

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Write one event. Fields that are None are left out, except the required ones. Unknown fields raise."""
        if LEVELS[level] < self._least:
            return
        if not fields.keys() <= FIELDS:
            raise ValueError(f"no such log fields: {sorted(fields.keys() - FIELDS)}")
        self._put(self._line(level, event, fields))

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> str:
        now_ms = self._wall_ms()
        moment = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
        line: dict[str, Any] = {
            "ts": f"{moment:%Y-%m-%dT%H:%M:%S}.{now_ms % 1000:03d}Z",
            "level": level.upper(),
            "service": SERVICE,
            "event": event,
            "corr_id": fields.pop("corr_id", None) or "",
            "request_id": fields.pop("request_id", None) or "",
            "peer_addr": fields.pop("peer_addr", None) or "",
            "tenant": fields.pop("tenant", None) or "",
            "route": fields.pop("route", None) or "",
        }
        for name, value in fields.items():
            if value is not None:
                line[name] = redact(value) if name in ("message", "trace") else value
        return self._as_text(line) if self._text else self._encoder.encode(line).decode()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits, at most for `timeout_s`."""
        self._closing.set()
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    @staticmethod
    def _as_text(line: dict[str, Any]) -> str:
        rest = " ".join(f"{name}={value}" for name, value in list(line.items())[4:] if value != "")
        return f"{line['ts']} {line['level']} {line['event']} {rest}".rstrip()

    def _put(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1
            self._overflowed += 1

    def _write(self) -> None:
        ended = False
        while not ended:
            lines = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while len(lines) < MAX_LINES_A_WRITE:
                    lines.append(self._lines.get_nowait())
            ended = None in lines
            written = [line for line in lines if line is not None]
            lost = self._overflowed - self._told
            if lost:
                self._told += lost
                written.append(self._line("warn", "lines_dropped", {"count": lost}))
            try:
                self._stream.write("".join(f"{line}\n" for line in written))
                self._stream.flush()
            except (OSError, ValueError):
                self.dropped += len(written)
            if not ended and self._lines.empty():
                # Whoever logs next wakes nobody: a thread that woke for each line would cost every request a switch.
                self._closing.wait(PAUSE_S)


class LibraryHandler(logging.Handler):
    """Brings what libraries log into the same lines, redacted; a traceback is cut to the places in the code."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        level = "error" if record.levelno >= 40 else "warn" if record.levelno >= 30 else "info"
        if record.levelno < 20:
            level = "debug"
        trace = None
        if record.exc_info and record.exc_info[1] is not None:
            trace = places_of(record.exc_info[1])
        self._writer.event(level, "library", logger=record.name, message=record.getMessage(), trace=trace)


def places_of(error: BaseException) -> str:
    """Describe where an exception came from without its message, which may quote a secret."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"
