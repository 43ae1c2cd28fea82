"""What the filter's processes say: one line each, as JSON for programs or as text for people, and no secret in it.

A line about a request carries the trace id that its receipts have (W3C traceparent), so that both are found by it.
"""

from __future__ import annotations

import contextvars
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

FORMATS: Final = ("json", "text")
MAX_MESSAGE_CHARS: Final = 4_096
MAX_TRACEBACK_CHARS: Final = 32_768
REDACTED: Final = "[redacted]"
_trace_id: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar("signet_trace_id", default=None)
# Signatures, challenges, bindings, tokens and keys are such runs, whatever put them into a message; our own digests
# say what they are. Paths of source files stay whole: a traceback is of no use without them.
_LONG_OPAQUE: Final = re.compile(r"(?<![A-Za-z0-9+/_=-])(?<!digest )[A-Za-z0-9+/_=-]{40,}")
_SOURCE_LINE: Final = '  File "'
_BREAKS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def begin_trace(trace_id: str | None) -> None:
    """Have this task's lines carry `trace_id`: 32 hex digits of a traceparent, or None for no trace.

    Each call of the edge has a task of its own, which the value ends with.
    """
    _trace_id.set(trace_id)


def redact(text: str) -> str:
    """Take out whatever could be key material: runs of 40 or more characters of base64 or hex."""
    lines = (line if line.startswith(_SOURCE_LINE) else _LONG_OPAQUE.sub(REDACTED, line) for line in text.split("\n"))
    return "\n".join(lines)


def _stamp(record: logging.LogRecord) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the request's trace_id, the traceback as `trace`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` as one line of JSON."""
        line = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage())[:MAX_MESSAGE_CHARS],
        }
        if (trace_id := _trace_id.get()) is not None:
            line["trace_id"] = trace_id
        if record.exc_info:
            line["trace"] = redact(self.formatException(record.exc_info))[-MAX_TRACEBACK_CHARS:]
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """One line for a person to read; a traceback follows it, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` as text; whatever a message holds, it stays on its line."""
        trace_id = _trace_id.get()
        message = _BREAKS.sub(" ", redact(record.getMessage()))[:MAX_MESSAGE_CHARS]
        words = (_stamp(record), record.levelname, record.name, message, trace_id and f"trace_id={trace_id}")
        line = " ".join(word for word in words if word)
        if record.exc_info:
            trace = redact(self.formatException(record.exc_info))[-MAX_TRACEBACK_CHARS:]
            line += "".join(f"\n    {_BREAKS.sub(' ', each)}" for each in trace.split("\n"))
        return line


def log_to(stream: TextIO, level: str, form: str | None = None) -> str:
    """Send every log line to `stream`; `form` is by default text on a terminal, else JSON. Returns the one used."""
    form = form or ("text" if stream.isatty() else "json")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if form == "text" else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    return form
