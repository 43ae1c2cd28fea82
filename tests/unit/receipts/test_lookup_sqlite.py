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
        (lookup_sqlite._BY_TRACE, ("ab" * 16, 10), "receipts_by_trace (trace_id=?)"),
        (lookup_sqlite._BY_WRITER, ("ab" * 16, 10), "sqlite_autoindex_receipts_2 (writer=? AND wseq=?)"),
    ],
)
def test_lookups_read_an_index_and_sort_nothing(
    store: SqliteReceiptStore, tmp_path: Path, statement: str, parameters: tuple[object, ...], index: str
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "receipts.sqlite3")) as connection:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert steps == [f"SEARCH receipts USING INDEX {index}"]


def test_a_trace_is_found_in_steps_that_do_not_grow_with_the_store(
    store: SqliteReceiptStore, tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    wanted, steps, tail = "0" * 31 + "1", [], WriterTail(writer)
    lookup = SqliteLookup(tmp_path / "receipts.sqlite3")
    for number in range(4):
        drafts = [make_draft(trace_id=f"{number:016x}{each + 2:016x}") for each in range(250)]
        tail = store.append([*drafts, make_draft(trace_id=wanted)], tail).tail
        counted = [0]

        def tick(counted: list[int] = counted) -> int:
            counted[0] += 1
            return 0

        lookup.by_writer(writer, 1, 2)
        assert lookup._connection is not None
        lookup._connection.set_progress_handler(tick, 1)
        assert len(lookup.by_trace(wanted, 1)) == 1
        steps.append(counted[0])
        lookup._connection.set_progress_handler(None, 1)
    lookup.close()
    assert len(set(steps)) == 1
    assert steps[0] < 100


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
