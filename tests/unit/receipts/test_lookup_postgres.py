from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from receipts import store_postgres
from receipts.cli_places import lookup_for
from receipts.lookup_postgres import PostgresLookup
from receipts.store import WriterTail
from receipts.store_postgres import PostgresReceiptStore
from tests.support.receipt_checks import stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from receipts.receipt import ReceiptDraft
    from receipts.receipt_id import WriterId


@pytest.fixture
def pg_store(postgres_url: str) -> Iterator[PostgresReceiptStore]:
    opened = PostgresReceiptStore(postgres_url)
    yield opened
    opened.close()


def test_a_writers_receipt_is_found_however_far_back(
    pg_store: PostgresReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    outcomes = pg_store.append([make_draft() for _ in range(20)], WriterTail(writer)).outcomes
    lookup = PostgresLookup(pg_store)
    assert lookup.by_writer(writer, 1, 21) == stored(outcomes[0])
    assert lookup.by_writer(writer, 20, 21) == stored(outcomes[19])
    assert lookup.by_writer(writer, 20, 20) is None
    assert lookup.by_writer(writer, 21, 30) is None
    assert lookup.by_writer("nobody", 1, 21) is None


def test_a_traces_receipts_are_found_in_order(
    pg_store: PostgresReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    traces = ["0" * 31 + "1", "0" * 31 + "2", "0" * 31 + "1"]
    outcomes = pg_store.append([make_draft(trace_id=trace) for trace in traces], WriterTail(writer)).outcomes
    lookup = PostgresLookup(pg_store)
    assert lookup.by_trace(traces[0], 5) == [stored(outcomes[0]), stored(outcomes[2])]
    assert lookup.by_trace(traces[0], 1) == [stored(outcomes[0])]
    assert lookup.by_trace("ab" * 16, 5) == []


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_trace_is_found_by_its_index_and_nothing_is_sorted(
    pg_store: PostgresReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, *, analyzed: bool
) -> None:
    tail = WriterTail(writer)
    for _ in range(4):
        tail = pg_store.append([make_draft(trace_id=uuid.uuid4().hex) for _ in range(250)], tail).tail
    connection = pg_store._connect()
    if analyzed:
        connection.execute("ANALYZE signet.receipts")
    prepared = store_postgres._BY_TRACE.replace("%s", "$1", 1).replace("%s", "$2")
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute(f"PREPARE by_trace (text, bigint) AS {prepared}".encode())
    rows = connection.execute("EXPLAIN EXECUTE by_trace ('abababababababababababababababab', 10)").fetchall()
    connection.close()
    plan = "\n".join(row[0] for row in rows)
    assert "Index Scan using receipts_by_trace on receipts" in plan
    assert "Sort" not in plan


def test_a_postgresql_url_gets_these_lookups(pg_store: PostgresReceiptStore, postgres_url: str) -> None:
    assert isinstance(lookup_for(postgres_url, pg_store), PostgresLookup)
