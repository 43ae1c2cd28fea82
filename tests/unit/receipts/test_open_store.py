from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from receipts.errors import ReceiptStoreUnavailable, StoreUrlError
from receipts.open_store import open_store
from receipts.store_postgres import PostgresReceiptStore
from receipts.store_sqlite import SqliteReceiptStore

if TYPE_CHECKING:
    from pathlib import Path

BAD_URLS = [
    "",
    "sqlite",
    "sqlite:",
    "receipts.sqlite3",
    "mysql://user:hunter2@db/receipts",
    "postgres://user:hunter2@db/receipts",
    "postgresql:user=x password=hunter2",
    "postgresql://user:hunter2@db:port/receipts?nonsense=1",
    "postgresql://user:hunter2@[db/receipts",
    "postgresql://user:hunter2@db/receipts?connect_timeout=hunter2",
]


def test_the_scheme_chooses_the_store(tmp_path: Path, postgres_url: str) -> None:
    sqlite, postgresql = open_store(f"sqlite:{tmp_path / 'a'}"), open_store(postgres_url)
    assert isinstance(sqlite, SqliteReceiptStore)
    assert isinstance(postgresql, PostgresReceiptStore)
    sqlite.close()
    postgresql.close()


@pytest.mark.parametrize("url", BAD_URLS)
def test_what_names_no_store_is_refused_and_never_quoted(url: str) -> None:
    with pytest.raises((StoreUrlError, ReceiptStoreUnavailable)) as refused:
        open_store(url)
    assert "hunter2" not in f"{refused.value!r} {refused.value} {refused.value.__cause__}"


def test_psycopg_is_loaded_for_postgresql_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from receipts.open_store import open_store; open_store(sys.argv[1]).close();"
        "print('psycopg' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, f"sqlite:{tmp_path / 'a'}"], capture_output=True, check=True)
    assert run.stdout == b"False\n"
