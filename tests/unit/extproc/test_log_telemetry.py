"""Metrics of the log: what is there is told, what cannot be read is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from extproc.log_service import LogService
from extproc.log_telemetry import LogTelemetry
from receipts.errors import ReceiptStoreUnavailable
from receipts.receipt_id import WriterId
from receipts.store import ReceiptStore, WriterTail
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.pack_parts import WRITERS, decision


@dataclass
class Head:
    size: int
    time_s: int


@dataclass
class Log:
    head: Head | None = None
    problem: str | None = None
    degraded: str | None = None


class Unreachable:
    def latest(self, _limit: int) -> list[object]:
        raise ReceiptStoreUnavailable("gone")


def samples(log: Log, store: object) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(LogTelemetry(cast("LogService", log), cast("ReceiptStore", store)))
    return {sample.name: sample.value for family in registry.collect() for sample in family.samples}


def test_store_and_head_are_told_so_that_their_lag_can_be_seen(tmp_path: Path) -> None:
    store = SqliteReceiptStore(tmp_path / "receipts.sqlite3")
    log = Log()
    assert samples(log, store) == {"signet_log_problem": 0, "signet_receipts_stored": 0}
    drafts = [decision(number) for number in range(3)]
    store.append(drafts, WriterTail(WriterId(WRITERS[0])))
    log.head = Head(2, 1_790_000_000)
    assert samples(log, store) == {
        "signet_log_problem": 0,
        "signet_log_entries": 2,
        "signet_log_head_time_seconds": 1_790_000_000,
        "signet_receipts_stored": 3,
    }
    store.close()


@pytest.mark.parametrize("why", ["problem", "degraded"])
def test_log_that_waits_is_a_problem_whatever_for(why: str) -> None:
    log = Log(Head(5, 1))
    assert samples(log, Unreachable())["signet_log_problem"] == 0
    setattr(log, why, "log_unavailable")
    assert samples(log, Unreachable())["signet_log_problem"] == 1


def test_store_that_is_away_has_no_number_of_receipts() -> None:
    assert "signet_receipts_stored" not in samples(Log(Head(5, 1)), Unreachable())
