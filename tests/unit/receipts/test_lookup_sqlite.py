from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING

import pytest

from receipts import lookup_sqlite
from receipts.cli_places import lookup_for
from receipts.errors import ReceiptStoreUnavailable
from receipts.lookup_sqlite import SqliteLookup
from receipts.sqlite_schema import TRACE_RUN_BITS
from receipts.store import WriterTail
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.pack_parts import WRITERS, PackParts
from tests.support.scan_lookup import ScanLookup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from receipts.receipt import ReceiptDraft
    from receipts.receipt_id import WriterId


def test_lookups_agree_with_reading_everything(tmp_path: Path) -> None:
    parts = PackParts(tmp_path)
    parts.add(20)
    parts.add(20, writer=1)
    indexed = SqliteLookup(tmp_path / "receipts.sqlite3")
    for lookup in (ScanLookup(parts.log.store), indexed):
        found = lookup.by_writer(WRITERS[1], 3, 41)
        assert found is not None
        assert (found.seq, found.wseq) == (23, 3)
        assert lookup.by_writer(WRITERS[1], 3, 22) is None
        assert lookup.by_writer(WRITERS[2], 1, 41) is None
        trace = json.loads(parts.log.raws()[4])["trace_id"]
        assert [each.seq for each in lookup.by_trace(trace, 10)] == [4, 5, 6]
        assert [each.seq for each in lookup.by_trace(trace, 2)] == [4, 5]
        assert lookup.by_trace("ab" * 16, 10) == []
    indexed.close()
    parts.close()


@pytest.mark.parametrize(
    ("statement", "parameters", "index"),
    [
        (lookup_sqlite._BY_TRACE, (0, "ab" * 16, 10), "receipts_by_trace (<expr>=? AND trace_id=?)"),
        (lookup_sqlite._BY_WRITER, ("ab" * 16, 10), "sqlite_autoindex_receipts_2 (writer=? AND wseq=?)"),
    ],
)
def test_lookups_read_an_index_and_sort_nothing(
    store: SqliteReceiptStore, tmp_path: Path, statement: str, parameters: tuple[object, ...], index: str
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "receipts.sqlite3")) as connection:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert steps == [f"SEARCH receipts USING INDEX {index}"]


def filled(path: Path, rows: int, of_one_trace: int) -> None:
    """Put rows into a store, whose every `of_one_trace`-th is of the trace 00…01 and every other of its own."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            """
            WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
            INSERT INTO receipts (seq, id, writer, wseq, time_ms, kind, trace_id, leaf_hash, raw)
            SELECT n, n, 'w', n, n, 'decision',
                   CASE n % ?2 WHEN 0 THEN printf('%032x', 1) ELSE lower(hex(randomblob(16)))
                   END, zeroblob(32), zeroblob(900) FROM numbers
            """,
            (rows, of_one_trace),
        )


def steps_of(lookup: SqliteLookup, trace: str, limit: int) -> tuple[list[int], int]:
    """Look up; return the places found, and how many steps of SQLite's machine that took."""
    steps = 0

    def tick() -> int:
        nonlocal steps
        steps += 1
        return 0

    lookup.by_writer("w", 1, 2)  # So that it is open.
    assert lookup._connection is not None
    lookup._connection.set_progress_handler(tick, 1)
    found = [each.seq for each in lookup.by_trace(trace, limit)]
    lookup._connection.set_progress_handler(None, 1)
    return found, steps


def test_a_trace_is_found_in_order_and_in_few_steps_for_each_run(store: SqliteReceiptStore, tmp_path: Path) -> None:
    path = tmp_path / "receipts.sqlite3"
    rows = 9000
    filled(path, rows, 1500)
    lookup = SqliteLookup(path)
    places = list(range(1500, rows + 1, 1500))
    runs = (rows >> TRACE_RUN_BITS) + 1
    for limit in (1, 2, 5, 6, 7, 1000):
        found, steps = steps_of(lookup, "0" * 31 + "1", limit)
        assert found == places[:limit]
        assert steps < 40 * (runs + len(found))
    found, steps = steps_of(lookup, "ab" * 16, 1000)
    assert not found
    assert steps < 40 * runs
    lookup.close()


def test_a_store_that_is_not_there_is_told_and_opened_again_later(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    lookup = SqliteLookup(tmp_path / "later")
    with pytest.raises(ReceiptStoreUnavailable):
        lookup.by_trace("ab" * 16, 1)
    store = SqliteReceiptStore(tmp_path / "later")
    store.append([make_draft(trace_id="ab" * 16)], WriterTail(writer))
    assert [each.seq for each in lookup.by_trace("ab" * 16, 1)] == [1]
    store.close()
    lookup.close()


def test_a_query_that_fails_is_not_the_last(store: SqliteReceiptStore, tmp_path: Path) -> None:
    lookup = SqliteLookup(tmp_path / "receipts.sqlite3")
    with pytest.raises(OverflowError):
        lookup.by_trace("ab" * 16, 1 << 70)  # More than SQLite's integers take.
    assert lookup.by_trace("ab" * 16, 1) == []
    lookup.close()


def test_a_sqlite_url_gets_these_lookups(store: SqliteReceiptStore, tmp_path: Path) -> None:
    assert isinstance(lookup_for(f"sqlite:{tmp_path / 'receipts.sqlite3'}", store), SqliteLookup)
