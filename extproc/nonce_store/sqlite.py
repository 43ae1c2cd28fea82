"""The replay guard of one machine: a SQLite file shared by the workers.

Write-ahead log with synchronous=NORMAL: a killed process loses nothing, a machine that loses power may
lose the last commits. So the file remembers which boot of which machine and which inode its contents
belong to. When that is not what it finds, it counts its contents as beginning now, and older challenges
are stale.

One thread owns the connection and commits in groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from extproc.nonce_store import (
    EVERY_CHALLENGE_STALE,
    KEEP_BEYOND_MAX_AGE_MS,
    SKEW_MS,
    SpendResult,
    retry_or_replay,
)
from extproc.nonce_store.envelopes import Find, Keep, KeepResult
from extproc.nonce_store.sqlite_envelopes import ENVELOPE_SCHEMA, find_envelope, keep_envelope
from pch.errors import StaleChallenge, StoreUnavailable
from receipts.errors import StoreError
from receipts.group_commit import GroupCommit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAX_BATCH_SPENDS: Final = 256
DEFAULT_MAX_PENDING: Final = 4096
PURGE_PER_SPEND: Final = 4
"""Expired rows dropped for each spend of a batch: more than come in, few enough not to stall."""
DRAIN_S: Final = 2.0
SCHEMA_VERSION: Final = 1
BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS spent (
    seq INTEGER PRIMARY KEY, nonce BLOB NOT NULL UNIQUE, token BLOB NOT NULL, first_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS contents (
    id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER NOT NULL, belongs_to TEXT NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class _Spend:
    nonce: bytes
    token: bytes
    issued_ms: int
    now_ms: int


_Item = _Spend | Keep | Find | None
"""What is submitted; None only tries whether a transaction would go."""
_Outcome = SpendResult | KeepResult | bytes | None


def read_boot_id() -> str:
    """Tell this boot of the machine from every other; empty when the system does not say."""
    with contextlib.suppress(OSError):
        return BOOT_ID_FILE.read_text(encoding="ascii").strip()
    return ""


class SqliteNonceStore:
    """A nonce store in a SQLite file of mode 0600, shared by the processes of one machine."""

    def __init__(
        self,
        path: Path,
        *,
        max_age_s: int,
        clock_ms: Callable[[], int],
        timeout_s: float,
        max_pending: int = DEFAULT_MAX_PENDING,
        boot_id: Callable[[], str] = read_boot_id,
    ) -> None:
        """`timeout_s`: for one spend, waiting included. `max_pending`: spends that may wait."""
        self._timeout_s = timeout_s
        self._clock_ms = clock_ms
        self._database = _Database(path, max_age_s, clock_ms, timeout_s, boot_id)
        self._commits: GroupCommit[_Item, _Outcome] = GroupCommit(
            self._database.commit,
            name="nonce store",
            max_batch_items=MAX_BATCH_SPENDS,
            max_pending_items=max_pending,
            on_close=self._database.close,
        )

    async def start(self) -> None:
        """Open the file, start the owner thread. A file that cannot be opened is tried again by each batch."""
        with contextlib.suppress(StoreUnavailable):
            await asyncio.to_thread(self._database.open)
        self._commits.start()

    async def spend(self, nonce: bytes, token: bytes, issued_ms: int, now_ms: int) -> SpendResult:
        """Spend `nonce`; see `NonceStore`."""
        result = await self._submit(_Spend(nonce, token, issued_ms, now_ms))
        if not isinstance(result, SpendResult):
            raise StoreUnavailable("the nonce store gave no answer")
        return result

    async def keep_envelope(self, keep: Keep) -> KeepResult:
        """Keep an envelope; see `NonceStore`."""
        result = await self._submit(keep)
        if not isinstance(result, KeepResult):
            raise StoreUnavailable("the nonce store gave no answer")
        return result

    async def find_envelope(self, nonce: bytes, now_ms: int) -> bytes | None:
        """Find an envelope; see `NonceStore`."""
        result = await self._submit(Find(nonce, now_ms))
        return result if isinstance(result, bytes) else None

    async def _submit(self, item: _Item) -> _Outcome:
        try:
            return await self._commits.submit(item, self._timeout_s)
        except StoreError as error:
            raise StoreUnavailable(f"the nonce store did not answer: {error.code}") from error

    async def problem(self) -> str | None:
        """Say why a spend would fail now, found out by a batch without one: a store that no one asks is told too."""
        try:
            await self._commits.submit(None, self._timeout_s)
        except StoreError as error:
            return f"nonce store: did not answer: {error.code}"
        except StoreUnavailable as error:
            return str(error)
        # After a clock that ran ahead: what was purged by it may not come back.
        return EVERY_CHALLENGE_STALE if self._clock_ms() < self._database.since_ms else None

    async def close(self) -> None:
        """Finish what waits, stop the thread, close the file."""
        await self._commits.aclose(DRAIN_S)


class _Database:
    """The file and its connection. After `open` at the start, the owner thread alone works with it."""

    def __init__(
        self,
        path: Path,
        max_age_s: int,
        clock_ms: Callable[[], int],
        timeout_s: float,
        boot_id: Callable[[], str],
    ) -> None:
        self._path = path
        self._keep_ms = max_age_s * 1000 + KEEP_BEYOND_MAX_AGE_MS
        self._clock_ms = clock_ms
        self._timeout_s = timeout_s
        self._boot_id = boot_id
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self.problem: str | None = None
        self.since_ms = 0

    def commit(self, batch: Sequence[_Item]) -> list[_Outcome | Exception]:
        """Spend, keep and find a batch in one transaction.

        Raises `StoreUnavailable` when it may not have been written.
        """
        failed_before = self.problem is not None
        spends = [each for each in batch if isinstance(each, _Spend)]
        connection = self.open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = iter(self._spend_all(connection, spends))
            results = [self._outcome(connection, each, outcomes) for each in batch]
            if None in batch:
                self.since_ms = int(connection.execute("SELECT since_ms FROM contents").fetchone()[0])
            if failed_before and not any(isinstance(each, _Spend | Keep) for each in batch):
                # A lock can be had on a full disk: only a write tells that the problem is over.
                connection.execute("UPDATE contents SET since_ms = since_ms")
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error
        if self._file_in_place() != self._file:
            # Another process may by now guard with another file: this batch protects nobody.
            raise self._failed("the file was replaced or removed")
        self.problem = None
        return results

    def open(self) -> sqlite3.Connection:
        """Open the file unless it is open and still in its place. Raises `StoreUnavailable`.

        `problem` is left to whoever then writes: that a file can be opened does not mean that it can be written.
        """
        if self._connection is not None:
            if self._file_in_place() == self._file:
                return self._connection
            self.close()
        try:
            created_or_found = self._create_file()
            connection = sqlite3.connect(
                self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise self._failed(f"cannot be opened: {type(error).__name__}: {error}") from error
        self._connection = connection
        try:
            self._prepare(connection, created_or_found)
        except sqlite3.Error as error:
            raise self._failed(f"cannot be opened: {type(error).__name__}: {error}") from error
        if self._file_in_place() != created_or_found:
            raise self._failed("the file was replaced while it was opened")
        self._file = created_or_found
        return connection

    def close(self) -> None:
        """Close the connection; a transaction that is open is rolled back."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _outcome(
        self, connection: sqlite3.Connection, item: _Item, spends: Iterator[SpendResult | Exception]
    ) -> _Outcome | Exception:
        if isinstance(item, Keep):
            return keep_envelope(connection, item)
        if isinstance(item, Find):
            return find_envelope(connection, item)
        return None if item is None else next(spends)

    def _spend_all(self, connection: sqlite3.Connection, batch: Sequence[_Spend]) -> list[SpendResult | Exception]:
        since_ms = self._purge(connection, batch) if batch else 0
        results: list[SpendResult | Exception] = []
        for spend in batch:
            if spend.issued_ms < since_ms:
                results.append(StaleChallenge("the challenge is older than the nonce store's contents"))
                continue
            written = connection.execute(
                "INSERT INTO spent (nonce, token, first_ms) VALUES (?, ?, ?) ON CONFLICT (nonce) DO NOTHING",
                (spend.nonce, spend.token, spend.now_ms),
            ).rowcount
            if written:
                results.append(SpendResult.FRESH)
                continue
            first = connection.execute("SELECT token, first_ms FROM spent WHERE nonce = ?", (spend.nonce,)).fetchone()
            results.append(retry_or_replay(first[0], first[1], spend.token, spend.now_ms))
        return results

    def _purge(self, connection: sqlite3.Connection, batch: Sequence[_Spend]) -> int:
        """Drop some expired rows; gives the time before which challenges are stale."""
        horizon_ms = min(spend.now_ms for spend in batch) - self._keep_ms
        dropped = connection.execute(
            "DELETE FROM spent WHERE seq IN (SELECT seq FROM spent ORDER BY seq LIMIT ?) AND first_ms <= ?",
            (PURGE_PER_SPEND * len(batch), horizon_ms),
        ).rowcount
        if dropped:
            # If the clock steps back now, challenges whose spending was just forgotten would be young
            # enough again.
            connection.execute("UPDATE contents SET since_ms = max(since_ms, ?)", (horizon_ms + SKEW_MS + 1,))
        return int(connection.execute("SELECT since_ms FROM contents").fetchone()[0])

    def _create_file(self) -> tuple[int, int]:
        """Make sure that the file is there and ours alone; gives its device and inode."""
        # Only when absent: closing any descriptor of a file drops this process's POSIX locks on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        status = self._path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
            raise self._failed("must be a regular file of mode 0600")
        return status.st_dev, status.st_ino

    def _prepare(self, connection: sqlite3.Connection, file: tuple[int, int]) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in (_SCHEMA + ENVELOPE_SCHEMA).split(";"):
            connection.execute(statement)
        row = connection.execute("SELECT version, belongs_to FROM contents").fetchone()
        if row is not None and row[0] != SCHEMA_VERSION:
            raise self._failed(f"has schema version {row[0]}, not {SCHEMA_VERSION}")
        boot_id = self._boot_id()
        belongs_to = f"{boot_id}:{file[0]}:{file[1]}" if boot_id else ""
        if row is None or row[1] != belongs_to or not belongs_to:
            # A file that took the place of one that we had open may be a millisecond old, as may be a
            # challenge.
            since_ms = self._clock_ms() + (self._file is not None)
            connection.execute(
                "INSERT OR REPLACE INTO contents (id, version, belongs_to, since_ms) VALUES (1, ?, ?, ?)",
                (SCHEMA_VERSION, belongs_to, since_ms),
            )
        connection.execute("COMMIT")

    def _file_in_place(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _failed(self, why: str) -> StoreUnavailable:
        """Note the problem, let go of the connection, and give the error to raise."""
        self.close()
        self.problem = f"nonce store {self._path.name}: {why}"
        return StoreUnavailable(self.problem)
