from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from receipts.cli_places import lookup_for
from receipts.lookup import LookupTooFar
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
    lookup = PostgresLookup(pg_store, max_scanned=2)
    assert lookup.by_writer(writer, 1, 21) == stored(outcomes[0])
    assert lookup.by_writer(writer, 20, 21) == stored(outcomes[19])
    assert lookup.by_writer(writer, 20, 20) is None
    assert lookup.by_writer(writer, 21, 30) is None
    assert lookup.by_writer("nobody", 1, 21) is None


def test_a_trace_is_looked_for_among_the_newest(
    pg_store: PostgresReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    traces = ["0" * 31 + "1", "0" * 31 + "2", "0" * 31 + "1"]
    outcomes = pg_store.append([make_draft(trace_id=trace) for trace in traces], WriterTail(writer)).outcomes
    assert PostgresLookup(pg_store).by_trace(traces[0], 5) == [stored(outcomes[0]), stored(outcomes[2])]
    with pytest.raises(LookupTooFar):
        PostgresLookup(pg_store, max_scanned=1).by_trace(traces[1], 5)


def test_a_postgresql_url_gets_these_lookups(pg_store: PostgresReceiptStore, postgres_url: str) -> None:
    assert isinstance(lookup_for(postgres_url, pg_store), PostgresLookup)
