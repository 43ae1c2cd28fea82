from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from receipts.errors import StoreCorrupt
from receipts.open_store import open_store
from receipts.receipt_id import WriterId
from receipts.store import WriterTail
from receipts.store_check import StoreReport, check_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from receipts.receipt import ReceiptDraft

CHANGES = {
    "a receipt gone": ("DELETE FROM receipts WHERE seq = 3", "receipt 3 is missing"),
    "two receipts exchanged": ("UPDATE receipts SET raw = (SELECT raw FROM receipts WHERE seq = 2) WHERE seq = 3", "3"),
    "a byte changed": (
        "UPDATE receipts SET raw = CAST(replace(CAST(raw AS TEXT), 'api', 'apj') AS BLOB) WHERE seq = 2",
        "receipt 3",
    ),
    "bytes that are no receipt": ("UPDATE receipts SET raw = x'7b7d' WHERE seq = 4", "receipt 4"),
    "another id": ("UPDATE receipts SET id = 'x' WHERE seq = 4", "receipt 4"),
    "another writer": ("UPDATE receipts SET writer = 'x' WHERE seq = 4", "receipt 4"),
    "another place in the chain": ("UPDATE receipts SET wseq = 99 WHERE seq = 5", "receipt 5"),
    "another decision": ("UPDATE receipts SET decision = 'deny' WHERE seq = 1", "receipt 1"),
    "another reason": ("UPDATE receipts SET reason = 'x' WHERE seq = 1", "receipt 1"),
    "another status": ("UPDATE receipts SET status = 403 WHERE seq = 1", "receipt 1"),
}


@pytest.fixture
def filled(tmp_path: Path, make_draft: Callable[..., ReceiptDraft], examples: Any, writer: WriterId) -> Path:
    with contextlib.closing(open_store(f"sqlite:{tmp_path / 'a'}")) as store:
        store.append([make_draft() for _ in range(5)] + list(examples.values()), WriterTail(writer))
    return tmp_path / "a"


def test_a_whole_store_is_reported(filled: Path) -> None:
    told: list[int] = []
    with contextlib.closing(open_store(f"sqlite:{filled}")) as store:
        assert check_store(store, told.append) == StoreReport(receipts=10, pruned=0, writers=1)
    assert told == [10]


@pytest.mark.parametrize(("statement", "fault"), CHANGES.values(), ids=CHANGES)
def test_every_change_is_found(statement: str, fault: str, filled: Path) -> None:
    with contextlib.closing(sqlite3.connect(filled)) as connection, connection:
        connection.execute("DROP TRIGGER receipts_keep_values")
        connection.execute("DROP TRIGGER receipts_keep_rows")
        connection.execute(statement)
    with contextlib.closing(open_store(f"sqlite:{filled}")) as store, pytest.raises(StoreCorrupt, match=fault):
        check_store(store)
