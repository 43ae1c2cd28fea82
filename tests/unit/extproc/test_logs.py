"""Log lines: one each, whatever they say; the trace of their request; nothing secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import secrets
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.logs import MAX_MESSAGE_CHARS, REDACTED, JsonFormatter, TextFormatter, begin_trace, log_to, redact

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    begin_trace(None)


def record(message: str, *arguments: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("signet.test", logging.ERROR, "x.py", 1, message, arguments, exc_info)  # type: ignore[arg-type]


def raised(text: str) -> logging.LogRecord:
    try:
        raise ValueError(text)
    except ValueError as error:
        return record("failed", exc_info=(ValueError, error, error.__traceback__))


def test_json_line_is_one_line_whatever_it_says() -> None:
    made = record("a\nb %s", '"c"\u2028\r\n{')
    made.created, made.msecs = 1_790_000_000.25, 250.0
    text = JsonFormatter().format(made)
    assert len(text.splitlines()) == 1
    assert json.loads(text) == {
        "time": "2026-09-21T14:13:20.250Z",
        "level": "error",
        "logger": "signet.test",
        "message": 'a\nb "c"\u2028\r\n{',
    }


def test_traceback_is_a_member_of_its_own_and_keeps_its_source_files() -> None:
    line = json.loads(JsonFormatter().format(raised("why")))
    assert line["message"] == "failed"
    assert line["trace"].endswith("ValueError: why")
    assert __file__ in line["trace"]


def test_text_line_is_for_people() -> None:
    made = record("worker %d serves", 3)
    made.created, made.msecs = 1_790_000_000.25, 250.0
    assert TextFormatter().format(made) == "2026-09-21T14:13:20.250Z ERROR signet.test worker 3 serves"
    lines = TextFormatter().format(raised("why")).splitlines()
    assert lines[0].endswith("failed")
    assert len(lines) > 2
    assert all(line.startswith("    ") for line in lines[1:])


@given(st.text())
def test_no_message_forges_a_second_line(message: str) -> None:
    for formatter in (JsonFormatter(), TextFormatter()):
        assert len(formatter.format(record("%s", message)).splitlines()) == 1


def test_messages_are_bounded() -> None:
    assert len(json.loads(JsonFormatter().format(record("a b " * 10_000)))["message"]) == MAX_MESSAGE_CHARS


SECRETS = [
    b64encode(secrets.token_bytes(64)).decode(),
    urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode(),
    secrets.token_bytes(32).hex(),
    b64encode(bytes(range(250, 256)) * 20).decode(),
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("frame", ["{}", "signature sig1=:{}: refused", "token\n{}\nend", '{{"d":"{}"}}'])
def test_key_material_stays_out_of_every_line(secret: str, frame: str) -> None:
    text = frame.format(secret)
    for formatter in (JsonFormatter(), TextFormatter()):
        for made in (record(text), record("%s", text), raised(text)):
            line = formatter.format(made)
            assert secret not in line
            assert REDACTED in line


@pytest.mark.parametrize(
    "text", [f"configuration reloaded, digest {'ab' * 32}", TRACE, "0199c3a0-0000-7000-8000-000000000000"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_line_carries_the_trace_of_its_own_task_alone() -> None:
    async def task(trace_id: str | None) -> str:
        begin_trace(trace_id)
        await asyncio.sleep(0)
        return JsonFormatter().format(record("x"))

    async def both() -> list[str]:
        tasks = [asyncio.create_task(task(trace)) for trace in (TRACE, None)]
        return [await each for each in tasks]

    first, second = (json.loads(line) for line in asyncio.run(both()))
    assert first["trace_id"] == TRACE
    assert "trace_id" not in second
    begin_trace(TRACE)
    assert TextFormatter().format(record("x")).endswith(f" x trace_id={TRACE}")


@pytest.mark.parametrize(
    ("stream", "asked", "used"),
    [
        (io.StringIO, None, "json"),
        (Terminal, None, "text"),
        (io.StringIO, "text", "text"),
        (Terminal, "json", "json"),
    ],
)
def test_format_is_as_asked_and_text_on_a_terminal(stream: type[io.StringIO], asked: str | None, used: str) -> None:
    out = stream()
    assert log_to(out, "warning", asked) == used
    logging.getLogger("signet.test").warning("heard")
    logging.getLogger("signet.test").info("not heard")
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().startswith("{") is (used == "json")
