from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from receipts import sqlite_file
from receipts.errors import (
    ReceiptStoreUnavailable,
    StoreCorrupt,
)
from receipts.facts import EventFacts
from receipts.lookup_sqlite import SqliteLookup
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import WriterId
from receipts.store import WriterTail
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.receipt_checks import stored, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


OTHER_WRITER = WriterId("11111111-2222-4333-8444-555555555555")


def test_files_are_the_owners_alone(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, tmp_path: Path
) -> None:
    old_mask = os.umask(0)
    try:
        store.append([make_draft()], WriterTail(writer))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(old_mask)
    assert modes == {f"receipts.sqlite3{end}": 0o600 for end in ("", "-wal", "-shm", "-turn")}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o620])
def test_a_file_that_others_may_open_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "a"
    SqliteReceiptStore(path).close()
    path.chmod(mode)
    with pytest.raises(ReceiptStoreUnavailable, match="0600"):
        SqliteReceiptStore(path)
    path.chmod(0o600)
    SqliteReceiptStore(path).close()


def test_commits_are_synced_to_a_write_ahead_log(tmp_path: Path) -> None:
    from receipts.sqlite_file import connect

    SqliteReceiptStore(tmp_path / "a").close()
    with contextlib.closing(connect(tmp_path / "a", 100)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA page_size").fetchone() == (8192,)


@pytest.mark.parametrize("statement", ["DELETE FROM receipts", "UPDATE receipts SET status = 200"])
def test_rows_can_be_neither_changed_nor_removed(
    statement: str, store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, tmp_path: Path
) -> None:
    store.append([make_draft()], WriterTail(writer))
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "receipts.sqlite3")) as connection,
        pytest.raises(sqlite3.IntegrityError, match="append-only"),
    ):
        connection.execute(statement)


def test_the_log_is_moved_into_the_database_now_and_then(
    store: SqliteReceiptStore,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("receipts.store_sqlite.CHECKPOINT_AFTER_BYTES", 100_000)
    tails = {each: WriterTail(each) for each in (writer, OTHER_WRITER)}
    other = SqliteReceiptStore(tmp_path / "receipts.sqlite3")
    for _ in range(60):
        for opened, each in ((store, writer), (other, OTHER_WRITER)):
            tails[each] = opened.append([make_draft() for _ in range(16)], tails[each]).tail
    other.close()
    # About 3.5 MB of receipts went through a log that was begun again every 0.2 MB or so.
    assert (tmp_path / "receipts.sqlite3-wal").stat().st_size < 2_000_000
    assert (tmp_path / "receipts.sqlite3").stat().st_size > 3_000_000
    assert verify(store) == 1920


@contextlib.contextmanager
def write_locked(path: Path) -> Iterator[None]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def test_a_lock_held_too_long_is_unavailable_and_then_over(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    store = SqliteReceiptStore(tmp_path / "a", busy_timeout_ms=20)
    tail = store.append([make_draft()], WriterTail(writer)).tail
    with write_locked(tmp_path / "a"):
        with pytest.raises(ReceiptStoreUnavailable, match="locked"):
            store.append([make_draft()], tail)
        with pytest.raises(ReceiptStoreUnavailable):
            store.check()
        assert len(store.latest(5)) == 1
    store.append([make_draft()], tail)
    store.check()
    assert verify(store) == 2
    store.close()


def test_a_turnstile_held_too_long_is_unavailable(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    from receipts.turnstile import Turnstile

    store = SqliteReceiptStore(tmp_path / "a", busy_timeout_ms=20)
    rude = Turnstile(tmp_path / "a-turn")
    assert rude.enter(0.0)
    with pytest.raises(ReceiptStoreUnavailable, match="busy"):
        store.append([make_draft()], WriterTail(writer))
    rude.close()
    store.append([make_draft()], WriterTail(writer))
    store.close()


def test_a_waiting_writer_gets_the_lock_when_it_is_free(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    store = SqliteReceiptStore(tmp_path / "a", busy_timeout_ms=5000)
    draft, results = make_draft(), []
    with write_locked(tmp_path / "a"):
        thread = threading.Thread(target=lambda: results.append(store.append([draft], WriterTail(writer))))
        thread.start()
        thread.join(0.05)
        assert not results
    thread.join(5)
    assert len(results) == 1
    store.close()


def test_a_full_disk_is_unavailable_and_then_over(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    tail = store.append([make_draft()], WriterTail(writer)).tail
    assert store._writing is not None
    connection = store._writing.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ReceiptStoreUnavailable, match="SQLITE_FULL"):
        store.append([make_draft() for _ in range(100)], tail)
    assert verify(store) == 1
    # A new connection has no such limit: there is room again.
    assert stored(store.append([make_draft()], store.writer_tail(writer)).outcomes[0]).wseq == 2
    assert verify(store) == 2


def test_a_write_cut_short_is_unavailable_and_leaves_the_chain_whole(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, tmp_path: Path
) -> None:
    import signal

    tail = store.append([make_draft()], WriterTail(writer)).tail
    size = (tmp_path / "receipts.sqlite3-wal").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9000, hard))
    try:
        for _ in range(2):
            with pytest.raises(ReceiptStoreUnavailable, match=r"SQLITE_(FULL|IOERR)"):
                store.append([make_draft() for _ in range(20)], tail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old_handler)
    assert verify(store) == 1
    store.append([make_draft()], store.writer_tail(writer))
    assert verify(store) == 2


def test_a_file_that_became_read_only_is_unavailable(
    store: SqliteReceiptStore,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tail = store.append([make_draft()], WriterTail(writer)).tail
    assert store._writing is not None
    store._writing.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(ReceiptStoreUnavailable, match="SQLITE_READONLY"):
        store.append([make_draft()], tail)
    store.append([make_draft()], tail)
    assert verify(store) == 2


def test_a_file_that_vanished_is_unavailable_and_not_begun_anew(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, tmp_path: Path
) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ReceiptStoreUnavailable, match="CANTOPEN"):
        store.append([make_draft()], WriterTail(writer))
    with pytest.raises(ReceiptStoreUnavailable, match="CANTOPEN"):
        store.get(make_draft().id)
    with pytest.raises(ReceiptStoreUnavailable, match="CANTOPEN"):
        store.check()


def test_a_file_that_vanished_while_open_is_unavailable_until_it_is_back(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, tmp_path: Path
) -> None:
    """SQLite goes on with the removed file: what it took there, no one would ever find."""
    tail = store.append([make_draft()], WriterTail(writer)).tail
    assert len(store.latest(1)) == 1
    path, aside = tmp_path / "receipts.sqlite3", tmp_path / "aside"
    path.rename(aside)
    for _ in range(3):
        with pytest.raises(ReceiptStoreUnavailable):
            store.append([make_draft()], tail)
        with pytest.raises(ReceiptStoreUnavailable):
            store.latest(1)
    aside.rename(path)
    store.append([make_draft()], store.writer_tail(writer))
    assert verify(store) >= 2


def test_a_file_that_was_replaced_takes_over_with_a_chain_of_its_own(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, tmp_path: Path
) -> None:
    tail = store.append([make_draft(), make_draft()], WriterTail(writer)).tail
    assert len(store.latest(2)) == 2
    for path in tmp_path.iterdir():
        path.unlink()
    SqliteReceiptStore(tmp_path / "receipts.sqlite3").close()
    with pytest.raises(ReceiptStoreUnavailable, match="removed or replaced"):
        store.append([make_draft()], tail)
    assert store.latest(1) == []
    store.append([make_draft()], store.writer_tail(writer))
    assert verify(store) == 1


def test_a_file_replaced_while_it_is_opened_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "receipts.sqlite3"
    store = SqliteReceiptStore(path)
    opened = sqlite_file.connect

    def replaced(*arguments: Any) -> sqlite3.Connection:
        connection = opened(*arguments)
        path.rename(tmp_path / "aside")
        path.touch(0o600)
        return connection

    monkeypatch.setattr(sqlite_file, "connect", replaced)
    with pytest.raises(ReceiptStoreUnavailable, match="while it was opened"):
        store.latest(1)
    store.close()


def test_a_broken_file_is_unavailable_for_reads_too(
    store: SqliteReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId, tmp_path: Path
) -> None:
    store.append([make_draft()], WriterTail(writer))
    assert len(store.latest(1)) == 1
    store._reading.connection.close()  # type: ignore[union-attr]
    with pytest.raises(ReceiptStoreUnavailable):
        store.latest(1)
    assert len(store.latest(1)) == 1


def test_little_disk_is_told_before_it_is_none(store: SqliteReceiptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.check()
    monkeypatch.setattr("receipts.store_sqlite.MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(ReceiptStoreUnavailable, match="disk"):
        store.check()


def test_a_folder_that_does_not_exist_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(ReceiptStoreUnavailable, match="FileNotFoundError"):
        SqliteReceiptStore(tmp_path / "missing" / "a")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("something else entirely, and long enough to be looked at")
    (tmp_path / "a").chmod(0o600)
    with pytest.raises(ReceiptStoreUnavailable, match="NOTADB"):
        SqliteReceiptStore(tmp_path / "a")


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def marked(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id = 7")


def newer(path: Path) -> None:
    SqliteReceiptStore(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (99, 0)")


@pytest.mark.parametrize("make", [foreign, marked, newer])
def test_a_database_that_is_not_ours_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a")
    (tmp_path / "a").chmod(0o600)
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(StoreCorrupt):
        SqliteReceiptStore(tmp_path / "a")
    with contextlib.closing(sqlite3.connect(tmp_path / "a")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert tables == (
        {"schema_migrations", "receipts", "prunings"} if make is newer else {"theirs"} if make is foreign else set()
    )
    assert before[:16] == (tmp_path / "a").read_bytes()[:16]


def test_the_schema_is_made_once_and_dated(tmp_path: Path) -> None:
    for _ in range(2):
        SqliteReceiptStore(tmp_path / "a", now_ms=lambda: 42).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a")) as connection:
        assert connection.execute("SELECT * FROM schema_migrations").fetchall() == [(1, 42), (2, 42), (3, 42)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receipts.sqlite_schema.MIGRATIONS", (("CREATE TABLE receipts (x)", "NOT SQL"),))
    with pytest.raises(ReceiptStoreUnavailable):
        SqliteReceiptStore(tmp_path / "a")
    monkeypatch.undo()
    SqliteReceiptStore(tmp_path / "a").close()


def test_a_later_schema_is_added_to_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from receipts.sqlite_schema import MIGRATIONS

    SqliteReceiptStore(tmp_path / "a").close()
    monkeypatch.setattr("receipts.sqlite_schema.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE later (x INTEGER) STRICT",)))
    for _ in range(2):
        SqliteReceiptStore(tmp_path / "a", now_ms=lambda: 7).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a")) as connection:
        assert connection.execute("SELECT version FROM schema_migrations").fetchall() == [(1,), (2,), (3,), (4,)]
        assert connection.execute("SELECT * FROM later").fetchall() == []


@contextlib.contextmanager
def wholly_locked(path: Path) -> Iterator[None]:
    """Hold a database that is not in WAL mode yet against every other connection."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


def test_a_new_file_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    opened: list[SqliteReceiptStore] = []
    (tmp_path / "a").touch(0o600)
    with wholly_locked(tmp_path / "a"):
        with pytest.raises(ReceiptStoreUnavailable, match="lock"):
            SqliteReceiptStore(tmp_path / "a", busy_timeout_ms=20)
        thread = threading.Thread(
            target=lambda: opened.append(SqliteReceiptStore(tmp_path / "a", busy_timeout_ms=5000))
        )
        thread.start()
        thread.join(0.05)
        assert not opened
    thread.join(5)
    assert len(opened) == 1
    opened[0].check()
    opened[0].close()


def test_a_database_without_a_write_ahead_log_is_refused() -> None:
    from receipts.sqlite_file import _set_wal

    with (
        contextlib.closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(ReceiptStoreUnavailable, match="write-ahead"),
    ):
        _set_wal(connection, 10)


def test_processes_that_start_together_make_one_schema(tmp_path: Path) -> None:
    opened: list[SqliteReceiptStore] = []
    threads = [
        threading.Thread(target=lambda: opened.append(SqliteReceiptStore(tmp_path / "a", busy_timeout_ms=5000)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(opened) == 8
    for store in opened:
        store.close()


def test_a_checkpoint_that_fails_or_has_to_wait_is_put_off(
    store: SqliteReceiptStore,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from receipts.turnstile import Turnstile

    monkeypatch.setattr("receipts.store_sqlite.CHECKPOINT_AFTER_BYTES", 1)
    asked: list[float] = []

    class RudeTurnstile(Turnstile):
        """Lets writers in for the append, and nobody for the checkpoint after it."""

        def enter(self, deadline_s: float) -> bool:
            asked.append(deadline_s)
            return len(asked) % 2 == 1 and super().enter(deadline_s)

    monkeypatch.setattr("receipts.store_sqlite.Turnstile", RudeTurnstile)
    tail = WriterTail(writer)
    for _ in range(3):
        tail = store.append([make_draft()], tail).tail
    assert len(asked) == 6
    assert store._unchecked_bytes > 3000
    assert verify(store) == 3


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_schema_is_brought_forward_with_its_receipts(
    tmp_path: Path,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
) -> None:
    from receipts.sqlite_schema import MIGRATIONS

    with monkeypatch.context() as patch:
        patch.setattr("receipts.sqlite_schema.MIGRATIONS", MIGRATIONS[:version])
        old = SqliteReceiptStore(tmp_path / "a", now_ms=lambda: 7)
    old.append([make_draft(trace_id="ab" * 16) for _ in range(3)], WriterTail(writer))
    before = old.read(0, 10)
    store = SqliteReceiptStore(tmp_path / "a", now_ms=lambda: 42)
    assert store.read(0, 10) == before
    assert store.pruned_to() == 0
    # A worker that still runs the older program goes on meanwhile, and what it adds is found as well.
    old.append([make_draft(trace_id="ab" * 16)], old.writer_tail(writer))
    assert verify(store) == 4
    lookup = SqliteLookup(tmp_path / "a")
    assert lookup.by_trace("ab" * 16, 10) == store.read(0, 10)
    for each in (old, store, lookup):
        each.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "a")) as connection:
        versions = connection.execute("SELECT * FROM schema_migrations").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert versions == [(number, 7 if number <= version else 42) for number in range(1, len(MIGRATIONS) + 1)]


def test_pruned_receipts_of_the_second_schema_take_no_room_in_the_index(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId, monkeypatch: pytest.MonkeyPatch
) -> None:
    from receipts.sqlite_schema import MIGRATIONS

    with monkeypatch.context() as patch:
        patch.setattr("receipts.sqlite_schema.MIGRATIONS", MIGRATIONS[:2])
        old = SqliteReceiptStore(tmp_path / "a")
    drafts = [make_draft(trace_id=f"{number:032x}") for number in range(1, 21)]
    tail = old.append(drafts, WriterTail(writer)).tail
    event = ReceiptDraft(
        kind="log_event", id=make_draft().id, time_ms=drafts[0].time_ms, event=EventFacts("pruned", {"last_seq": 15})
    )
    old.permit_pruning(stored(old.append([event], tail).outcomes[0]).seq, 15)
    assert old.drop_payloads(10) == 10
    old.close()
    store = SqliteReceiptStore(tmp_path / "a")
    assert store.drop_payloads(10) == 5
    lookup = SqliteLookup(tmp_path / "a")
    found = [len(lookup.by_trace(f"{number:032x}", 10)) for number in range(1, 21)]
    assert found == [0] * 15 + [1] * 5
    lookup.close()
    store.close()


_MIGRATE = """
import re, sys
from pathlib import Path
from receipts.store_sqlite import SqliteReceiptStore

def peak_kib():
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])

SqliteReceiptStore(sys.argv[2]).close()
before = peak_kib()
SqliteReceiptStore(sys.argv[1]).close()
print(peak_kib() - before)
"""


def test_a_large_older_store_is_migrated_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from receipts.sqlite_schema import MIGRATIONS

    with monkeypatch.context() as patch:
        patch.setattr("receipts.sqlite_schema.MIGRATIONS", MIGRATIONS[:2])
        SqliteReceiptStore(tmp_path / "old").close()
    rows = 200_000  # An index of 9 MB over a file of 60 MB.
    with contextlib.closing(sqlite3.connect(tmp_path / "old")) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            """
            WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
            INSERT INTO receipts (seq, id, writer, wseq, time_ms, kind, trace_id, leaf_hash, raw)
            SELECT n, n, 'w', n, n, 'decision', lower(hex(randomblob(16))), zeroblob(32), zeroblob(200) FROM numbers
            """,
            (rows,),
        )
    assert (tmp_path / "old").stat().st_size > 50 << 20
    command = [sys.executable, "-c", _MIGRATE, str(tmp_path / "old"), str(tmp_path / "empty")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 8 << 10
    with contextlib.closing(sqlite3.connect(tmp_path / "old")) as connection:
        counted = connection.execute(
            "SELECT count(*) FROM receipts INDEXED BY receipts_by_trace WHERE trace_id IS NOT NULL"
        )
        assert counted.fetchone() == (rows,)
