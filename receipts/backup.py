"""Backup and restore of a receipt store; both end with a check of every receipt and chain in the copy.

A SQLite store is copied while it is written to, as it was at one moment, through SQLite's online backup. A PostgreSQL
store is backed up with PostgreSQL's own means: docs/guides/receipt-stores.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from receipts.cli_places import PlacesError, add_options, read_places
from receipts.durable_file import sync
from receipts.errors import ReceiptStoreUnavailable
from receipts.sqlite_file import connect, typed_errors
from receipts.store_check import StoreReport, check_store
from receipts.store_sqlite import SqliteReceiptStore

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

BUSY_TIMEOUT_MS: Final = 10_000
_PAGES_AT_ONCE: Final = 2048
_FILE_MODE: Final = 0o600
_BESIDE: Final = ("-wal", "-shm", "-turn", "-journal")
"""Ends of the names of files that SQLite and the store keep beside a database."""


def backup(source: Path, target: Path, progress: Callable[[int, int], None] = lambda _done, _all: None) -> StoreReport:
    """Copy the store in the file `source` to the new file `target`, and check the copy.

    Writers go on meanwhile. `progress` is told the pages done and all of them. Raises StoreCorrupt when the store is
    not whole (nothing is left of the copy then), ReceiptStoreUnavailable, also when `target` is there already.
    """

    def tell(_status: int, remaining: int, total: int) -> None:
        progress(total - remaining, total)

    def copy(unfinished: Path) -> None:
        with (
            contextlib.closing(connect(source, BUSY_TIMEOUT_MS)) as reading,
            contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as writing,
        ):
            # One read transaction over all steps: the copy is of one moment, and no writer makes it begin again.
            reading.execute("BEGIN")
            reading.execute("SELECT count(*) FROM schema_migrations").fetchone()
            reading.backup(writing, pages=_PAGES_AT_ONCE, progress=tell)

    return _publish(target, copy)


def restore(source: Path, target: Path) -> StoreReport:
    """Copy the backup `source` to the new store file `target`, bring its schema up to date, and check it.

    Raises StoreCorrupt when the backup is not whole (nothing is put in place then), ReceiptStoreUnavailable, also when
    a store is there already.
    """

    def copy(unfinished: Path) -> None:
        if source.with_name(f"{source.name}-wal").exists():
            # The newest receipts of a store that is in use, or was not closed, are not in this file.
            raise ReceiptStoreUnavailable("a write-ahead log lies beside the file: it is no backup")
        with source.open("rb") as reading, unfinished.open("wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)

    return _publish(target, copy)


def _publish(target: Path, copy: Callable[[Path], None]) -> StoreReport:
    """Make a file beside `target`, check the store in it, sync it and give it its name, which must be free."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    with typed_errors():
        for name in (target, *(target.with_name(target.name + end) for end in _BESIDE)):
            if name.exists():
                raise ReceiptStoreUnavailable(f"{name.name} is there already")
        _remove(unfinished)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE))
        try:
            copy(unfinished)
            with contextlib.closing(SqliteReceiptStore(unfinished, busy_timeout_ms=BUSY_TIMEOUT_MS)) as store:
                report = check_store(store)
            sync(unfinished)
            os.link(unfinished, target)  # Unlike a rename, this never replaces a file.
            sync(target.parent)
        finally:
            _remove(unfinished)
    return report


def _remove(path: Path) -> None:
    for name in (path, *(path.with_name(path.name + end) for end in _BESIDE)):
        name.unlink(missing_ok=True)


def register(commands: Any) -> None:
    """Add the commands."""
    for name, run, option, text in (
        ("backup", _backup, "--out", "copy the store while it is in use, and check the copy"),
        ("restore", _restore, "--from", "make a new store of a backup, and check it"),
    ):
        parser = commands.add_parser(name, help=text, description=text)
        add_options(parser)
        parser.add_argument(option, type=Path, required=True, metavar="FILE", dest="file", help="the backup")
        parser.set_defaults(run=run)


def _backup(args: argparse.Namespace) -> int:
    return _report("backup", backup(_store_path(args, "pg_dump"), args.file))


def _restore(args: argparse.Namespace) -> int:
    return _report("restore", restore(args.file, _store_path(args, "pg_restore")))


def _store_path(args: argparse.Namespace, instead: str) -> Path:
    scheme, _, path = read_places(args, os.environ).store_url.partition(":")
    if scheme != "sqlite" or not path:
        raise PlacesError(f"only for sqlite:PATH; {instead} for PostgreSQL, see docs/guides/receipt-stores.md")
    return Path(path)


def _report(name: str, report: StoreReport) -> int:
    pruned = f", {report.pruned} of them by their hash alone" if report.pruned else ""
    sys.stdout.write(f"{name}: {report.receipts} receipts of {report.writers} writers{pruned}; every chain is whole\n")
    return 0
