"""JSON lines with the required fields and no secret in any of them (OBSERVABILITY.md §3, I-16)."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.kid import kid_hash
from kms.logs import MAX_TEXT_CHARS, LibraryHandler, LogWriter, places_of, redact

REQUIRED = {"ts", "level", "service", "event", "corr_id", "request_id", "peer_addr", "tenant", "route"}
NAME = "core/audit/ed25519/0b2e1f4a-5c6d-4e7f-8a9b-0c1d2e3f4a5b"
MACAROON = "AgEKc2lnbmV0LWttcwIqa21zMS44OGYyMTNiOWQyODE3YTI4LmIxYWFmYjA1ZTBlNmU3OWY"


def written(level="debug", form="json", **fields):
    stream = io.StringIO()
    log = LogWriter(stream, lambda: 1_760_041_822_007, level, form)
    log.event("info", "something", **fields)
    log.close()
    return stream.getvalue()


def test_every_line_has_the_required_fields_and_is_one_line():
    line = json.loads(written(message="one\ntwo"))
    assert set(line) >= REQUIRED
    assert (line["ts"], line["level"], line["event"]) == ("2025-10-09T20:30:22.007Z", "INFO", "something")
    assert line["message"] == "one two"
    assert written(message="one\ntwo\x1b[31m\u2028x").count("\n") == 1


def test_a_field_that_has_no_place_in_a_line_is_a_fault():
    for name in ("kid", "token", "payload", "body", "passphrase"):
        with pytest.raises(ValueError, match="no such log fields"):
            written(**{name: "x"})


def test_below_the_least_level_nothing_is_written_and_text_is_for_people():
    assert written(level="warn") == ""
    assert written(form="text", route="/v1/kms/sign", result="ok").endswith(
        "INFO something route=/v1/kms/sign result=ok\n"
    )
    log = LogWriter(stream := io.StringIO(), lambda: 0, "error")
    log.event("info", "one")
    log.configure("info", "json")
    log.event("info", "two")
    log.close()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["two"]


@pytest.mark.parametrize(
    "secret",
    [NAME, NAME + "#v3", MACAROON, "a" * 64, "AbCd+/" * 10, "-" * 41],
    ids=["name", "kid", "token", "hex", "b64", "run"],
)
def test_free_texts_lose_kids_and_whatever_may_be_a_secret(secret):
    line = written(message=f"failed for {secret}, sorry", trace=secret)
    assert secret not in line
    assert NAME not in line
    assert "failed for" in line


def test_a_kid_in_a_text_becomes_its_hash():
    assert redact(f"key {NAME}#v3 is gone") == f"key kid:{kid_hash(NAME)} is gone"


@given(st.text(max_size=700))
def test_a_redacted_text_is_bounded_and_has_no_line_break(text):
    redacted = redact(text)
    assert len(redacted) <= MAX_TEXT_CHARS
    assert len(redacted.splitlines()) <= 1


def test_what_libraries_log_comes_as_lines_too_without_the_exceptions_message():
    stream = io.StringIO()
    log = LogWriter(stream, lambda: 0, "debug")
    logger = logging.getLogger("kms-test-library")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(LibraryHandler(log))
    try:
        raise ValueError(f"bad token {MACAROON}")
    except ValueError:
        logger.exception("while verifying %s", MACAROON)
    logger.warning("careful")
    logger.info("note")
    logger.debug("detail")
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["ERROR", "WARN", "INFO", "DEBUG"]
    assert lines[0]["trace"].startswith("ValueError at test_logs.py:")
    assert MACAROON not in stream.getvalue()


def test_places_say_where_and_never_what():
    assert places_of(ValueError("secret")) == "ValueError at "


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text):
        raise BrokenPipeError


def test_a_stream_that_is_gone_costs_lines_and_nothing_else():
    log = LogWriter(Broken(), lambda: 0)
    log.event("info", "one")
    log.close()
    assert log.dropped == 1


def test_lines_beyond_the_queue_are_dropped_and_counted(monkeypatch):
    monkeypatch.setattr("kms.logs.MAX_QUEUED_LINES", 1)
    gate = __import__("threading").Event()

    class Slow(io.StringIO):
        def write(self, text):
            gate.wait(5)
            return super().write(text)

    stream = Slow()
    log = LogWriter(stream, lambda: 0)
    for _ in range(50):
        log.event("info", "one")
    gate.set()
    log.close()
    assert log.dropped >= 48
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [line["count"] for line in lines if line["event"] == "lines_dropped"]
    assert sum(told) == log.dropped == 50 - sum(line["event"] == "one" for line in lines)
