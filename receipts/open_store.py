"""Opening the receipt store that a URL names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receipts.errors import StoreUrlError
from receipts.store_sqlite import SqliteReceiptStore

if TYPE_CHECKING:
    from receipts.store import PrunableStore

STORE_SCHEMES: Final = ("sqlite", "postgresql")
"""URLs that `open_store` takes begin with one of these and a colon."""

DEFAULT_WRITE_WAIT_MS: Final = 1000


def open_store(url: str, *, write_wait_ms: int = DEFAULT_WRITE_WAIT_MS) -> PrunableStore:
    """Open the store at `url`: `sqlite:PATH` or `postgresql://user@host:port/database`.

    `write_wait_ms`: how long a write waits for other writers. Raises StoreUrlError, ReceiptStoreUnavailable,
    StoreCorrupt.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite" and rest:
        return SqliteReceiptStore(rest, busy_timeout_ms=write_wait_ms)
    if scheme == "postgresql":
        # Late, so that psycopg is only loaded where it is used.
        from receipts.store_postgres import PostgresReceiptStore

        return PostgresReceiptStore(url, lock_timeout_ms=write_wait_ms)
    raise StoreUrlError("a receipt store is sqlite:PATH or postgresql://user@host:port/database")
