"""Opening the receipt store that a URL names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from receipts.errors import StoreUrlError
from receipts.store_sqlite import SqliteReceiptStore

if TYPE_CHECKING:
    import argparse

    from receipts.store import PrunableStore

STORE_SCHEMES: Final = ("sqlite", "postgresql")
"""URLs that `open_store` takes begin with one of these and a colon."""

STORE_URL_VARIABLE: Final = "SIGNET_RECEIPTS_URL"
"""Where commands find the store's URL; on a command line every user of the machine could read a password."""
DEFAULT_STORE_URL: Final = "sqlite:receipts.sqlite3"
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


def add_store_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--store`, by default what `SIGNET_RECEIPTS_URL` says."""
    parser.add_argument(
        "--store",
        metavar="URL",
        # Not in the help text, as a default usually is: it may hold a password.
        default=os.environ.get(STORE_URL_VARIABLE, DEFAULT_STORE_URL),
        help=f"sqlite:PATH or postgresql://...; by default ${STORE_URL_VARIABLE}, or {DEFAULT_STORE_URL}",
    )
