"""The lines of what no request asked for, by the names of OBSERVABILITY.md §3.1's catalogue."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from kms.clock import SYSTEM_CLOCK
from kms.events import EventBus
from kms.logs import LogWriter
from kms.notices import Notices
from kms.readiness import ReadyPayload, Snapshot
from kms.telemetry import Telemetry
from tests.support.kms_core import running_core
from tests.support.kms_providers import StagedProvider

HEAD = "ab" * 32
SNAPSHOT = Snapshot(backend="file", pq_mode="and", audit_last_checkpoint_age_s=1)


def payload(missing: list[str], degraded: list[str]) -> ReadyPayload:
    return ReadyPayload(ready=not missing, missing=missing, degraded=degraded, retry_after=0, snapshot=SNAPSHOT)


def told(tell: Callable[[Notices], None], level: str = "debug") -> list[dict[str, Any]]:
    """Give the lines that one notice makes, without a bus."""
    stream = io.StringIO()
    log = LogWriter(stream, SYSTEM_CLOCK.wall_ms, level)
    bus = EventBus("", Telemetry(), lambda: None, lambda: None)
    tell(Notices(bus, None, SYSTEM_CLOCK, log))
    log.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("tell", "event", "level", "fields"),
    [
        (
            lambda notices: notices.checkpoint(HEAD, 5, True, 0.01),
            *("audit_checkpoint_ok", "INFO", {"head": HEAD, "index": 5, "latency_ms": 10.0}),
        ),
        (
            lambda notices: notices.checkpoint(HEAD, 5, False, 1.5),
            *("audit_checkpoint_failed", "ERROR", {"head": HEAD, "index": 5, "latency_ms": 1500.0}),
        ),
        (
            lambda notices: notices.attestation("tpm", "tpm-2.0", True),
            *("attestation_refresh_ok", "DEBUG", {"backend": "tpm", "attestation_class": "tpm-2.0"}),
        ),
        (
            lambda notices: notices.attestation("tpm", None, False),
            *("attestation_refresh_failed", "WARN", {"backend": "tpm"}),
        ),
        (lambda notices: notices.session("pkcs11", True), "backend_session_up", "INFO", {"backend": "pkcs11"}),
        (lambda notices: notices.session("pkcs11", False), "backend_session_down", "WARN", {"backend": "pkcs11"}),
        (
            lambda notices: notices.ready(payload([], ["verify_cache_ok"])),
            *("readyz_true", "INFO", {"missing": [], "degraded": ["verify_cache_ok"]}),
        ),
        (
            lambda notices: notices.ready(payload(["rng_ok"], [])),
            *("readyz_false", "WARN", {"missing": ["rng_ok"], "degraded": []}),
        ),
    ],
)
def test_each_has_its_line(tell: Callable[[Notices], None], event: str, level: str, fields: dict[str, object]) -> None:
    [line] = told(tell)
    assert (line["event"], line["level"]) == (event, level)
    assert {name: value for name, value in line.items() if name in fields} == fields


def test_evidence_that_was_had_is_no_news_at_the_default_level() -> None:
    assert told(lambda notices: notices.attestation("tpm", "tpm-2.0", True), "info") == []


def test_a_root_that_is_to_be_rotated_is_told_of_once_and_again_after_a_rotation() -> None:
    def tell(notices: Notices) -> None:
        for due in (False, True, True, False, True):
            notices.roots(due=due)

    lines = told(tell)
    assert [(line["event"], line["level"]) for line in lines] == [("root_rotation_due", "WARN")] * 2


async def test_a_backend_is_told_of_when_it_first_answers_and_when_that_changes() -> None:
    provider = StagedProvider()
    seen: list[tuple[str, bool]] = []
    async with running_core(provider=provider) as bench:
        bench.core.keeper.on_session = lambda backend, up: seen.append((backend, up))
        for provider.away in (False, False, True, True, False):
            await bench.core.keeper.beat()
    assert seen == [("staged", True), ("staged", False), ("staged", True)]
