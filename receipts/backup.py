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
from typing import TYPE_CHECKING, Final

from receipts.errors import ReceiptStoreUnavailable, StoreCorrupt, StoreError
from receipts.open_store import add_store_argument
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
            _sync(unfinished)
            os.link(unfinished, target)  # Unlike a rename, this never replaces a file.
            _sync(target.parent)
        finally:
            _remove(unfinished)
    return report


def _remove(path: Path) -> None:
    for name in (path, *(path.with_name(path.name + end) for end in _BESIDE)):
        name.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `backup` and `restore` to the command line."""
    parser = subparsers.add_parser("backup", help="copy the store while it is in use", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the backup, a new file")
    add_store_argument(parser)
    parser.set_defaults(func=run_backup)
    parser = subparsers.add_parser("restore", help="make a store of a backup", description=__doc__)
    parser.add_argument("--from", type=Path, required=True, metavar="FILE", dest="source", help="the backup")
    add_store_argument(parser)
    parser.set_defaults(func=run_restore)


def run_backup(arguments: argparse.Namespace) -> int:
    """Back up as the command line says. Returns 0 when done, 1 when the store is not whole, 2 when it cannot."""
    return _run("backup", arguments.store, lambda path: backup(path, arguments.out))


def run_restore(arguments: argparse.Namespace) -> int:
    """Restore as the command line says. Returns 0 when done, 1 when the backup is not whole, 2 when it cannot."""
    return _run("restore", arguments.store, lambda path: restore(arguments.source, path))


def _run(name: str, url: str, copy: Callable[[Path], StoreReport]) -> int:
    scheme, _, path = url.partition(":")
    if scheme != "sqlite" or not path:
        tool = "pg_dump" if name == "backup" else "pg_restore"
        print(f"{name}: only for sqlite:PATH; {tool} for PostgreSQL: docs/guides/receipt-stores.md", file=sys.stderr)
        return 2
    try:
        report = copy(Path(path))
    except StoreError as error:
        print(f"{name}: {error.code}: {error}", file=sys.stderr)
        return 1 if isinstance(error, StoreCorrupt) else 2
    pruned = f", {report.pruned} of them by their hash alone" if report.pruned else ""
    print(f"{name}: {report.receipts} receipts of {report.writers} writers{pruned}; every chain is whole")
    return 0
