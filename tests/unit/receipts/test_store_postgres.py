"""What is PostgreSQL's own: restarts, locks, rights, settings, secrets, schema versions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from receipts import postgres_connection
from receipts.errors import ReceiptStoreUnavailable, StoreCorrupt, StoreError
from receipts.postgres_schema import MIGRATIONS
from receipts.receipt_id import ReceiptId, WriterId
from receipts.store import MAX_BATCH_RECEIPTS, StoredReceipt, WriterTail
from receipts.store_postgres import APPEND_LOCK, PostgresReceiptStore
from receipts.writer import ReceiptWriter
from tests.support.postgres_server import PostgresServer
from tests.support.receipt_checks import receipts_of, stored, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from receipts.receipt import ReceiptDraft

OTHER_WRITER = WriterId("11111111-2222-4333-8444-555555555555")
WAIT_S = 20.0


@pytest.fixture
def pg_store(postgres_url: str) -> Iterator[PostgresReceiptStore]:
    opened = PostgresReceiptStore(postgres_url, lock_timeout_ms=5000)
    yield opened
    opened.close()


def one(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


@contextlib.contextmanager
def append_locked(url: str) -> Iterator[None]:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (APPEND_LOCK,))
        yield
        connection.rollback()


def end_sessions(url: str) -> None:
    """End every other session of the database, as a restart or an operator does."""
    one(url, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    deadline = time.monotonic() + WAIT_S
    while one(url, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'signet-receipts'"):
        assert time.monotonic() < deadline


def test_connections_that_died_while_idle_are_replaced_unseen(
    pg_store: PostgresReceiptStore, postgres_url: str, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    tail = pg_store.append([make_draft()], WriterTail(writer)).tail
    assert len(pg_store.latest(5)) == 1
    end_sessions(postgres_url)
    assert len(pg_store.latest(5)) == 1
    tail = pg_store.append([make_draft()], tail).tail
    assert tail.wseq == verify(pg_store) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_a_server_that_is_gone_is_unavailable_until_it_is_back(
    how: signal.Signals, own_postgres: PostgresServer, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    store = PostgresReceiptStore(own_postgres.new_database())
    store.append([make_draft()], WriterTail(writer))
    assert len(store.latest(1)) == 1
    own_postgres.stop(how)
    for attempt in (
        lambda: store.append([make_draft()], WriterTail(OTHER_WRITER)),
        lambda: store.latest(1),
        lambda: store.get(make_draft().id),
        lambda: store.writer_tail(writer),
        store.check,
        store.pruned_to,
    ):
        for _ in range(2):
            with pytest.raises(ReceiptStoreUnavailable):
                attempt()
    own_postgres.start()
    store.check()
    store.append([make_draft()], store.writer_tail(writer))
    assert verify(store) == 2
    store.close()


async def test_no_receipt_told_of_is_lost_when_the_server_crashes_mid_batch(
    own_postgres: PostgresServer, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    url = own_postgres.new_database()
    store = PostgresReceiptStore(url)
    receipt_writer = ReceiptWriter(store, writer_id=writer)
    receipt_writer.start()
    told: set[str] = set()
    failures = 0
    running = True

    async def work() -> None:
        nonlocal failures
        while running:
            try:
                told.add((await receipt_writer.append(make_draft(), 10.0)).id)
            except StoreError:
                failures += 1
                await asyncio.sleep(0.01)

    async def until_more_are_told(more: int) -> None:
        wanted = len(told) + more
        async with asyncio.timeout(WAIT_S):
            while len(told) < wanted:
                await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(work()) for _ in range(24)]
    for how in (signal.SIGQUIT, signal.SIGINT, signal.SIGQUIT):
        await until_more_are_told(100)
        await asyncio.to_thread(own_postgres.stop, how)
        await asyncio.to_thread(own_postgres.start)
    await until_more_are_told(100)
    running = False
    await asyncio.gather(*tasks)
    await receipt_writer.aclose(5.0)
    assert failures > 0
    assert told - {row.id for row in receipts_of(store)} == set()
    assert verify(store) >= len(told) >= 400
    store.close()


def test_a_commit_whose_answer_was_lost_is_found_again(
    pg_store: PostgresReceiptStore,
    postgres_url: str,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Failed, but persisted: the same key gets the stored receipt, and the chain has one branch."""
    key = (5).to_bytes(8, "big") + b"k" * 24
    pg_store.append([make_draft()], WriterTail(writer))
    tail = pg_store.writer_tail(writer)
    real = psycopg.Connection.pipeline
    calls: list[None] = []

    @contextlib.contextmanager
    def loses_the_answer(connection: psycopg.Connection) -> Iterator[Any]:
        with real(connection) as pipeline:
            yield pipeline
        calls.append(None)
        if len(calls) == 2:
            raise psycopg.OperationalError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.Connection, "pipeline", loses_the_answer)
        with pytest.raises(ReceiptStoreUnavailable):
            pg_store.append([make_draft(idempotency_key=key)], tail)
    assert verify(pg_store) == 2
    with pytest.raises(ReceiptStoreUnavailable, match="chain"):
        pg_store.append([make_draft()], tail)
    again = pg_store.append([make_draft(idempotency_key=key), make_draft()], pg_store.writer_tail(writer))
    assert [stored(outcome).duplicate for outcome in again.outcomes] == [True, False]
    assert verify(pg_store) == 3


def test_a_store_that_was_set_back_is_not_gone_on_from(
    pg_store: PostgresReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    """A failover that lost the last receipts must not leave a gap in the chain."""
    tail = pg_store.append([make_draft()], WriterTail(writer)).tail
    for other in (WriterTail(writer, 2, tail.leaf_hash), WriterTail(writer, 1, b"x" * 32)):
        with pytest.raises(ReceiptStoreUnavailable, match="chain"):
            pg_store.append([make_draft()], other)
    assert verify(pg_store) == 1


def test_a_lock_held_too_long_is_unavailable_and_then_over(
    postgres_url: str, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    store = PostgresReceiptStore(postgres_url, lock_timeout_ms=50)
    tail = store.append([make_draft()], WriterTail(writer)).tail
    with append_locked(postgres_url):
        with pytest.raises(ReceiptStoreUnavailable, match="55P03"):
            store.append([make_draft()], tail)
        with pytest.raises(ReceiptStoreUnavailable, match="55P03"):
            store.check()
        assert len(store.latest(5)) == 1
    store.append([make_draft()], tail)
    store.check()
    assert verify(store) == 2
    store.close()


def test_a_waiting_writer_gets_the_lock_when_it_is_free(
    pg_store: PostgresReceiptStore, postgres_url: str, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    draft, results = make_draft(), []
    with append_locked(postgres_url):
        thread = threading.Thread(target=lambda: results.append(pg_store.append([draft], WriterTail(writer))))
        thread.start()
        thread.join(0.05)
        assert not results
    thread.join(WAIT_S)
    assert len(results) == 1


def test_a_writer_that_stops_in_the_middle_is_put_out(
    postgres_url: str, make_draft: Callable[..., ReceiptDraft], writer: WriterId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_connection, "IDLE_IN_TRANSACTION_TIMEOUT_MS", 50)
    store = PostgresReceiptStore(postgres_url, lock_timeout_ms=10_000)
    stopped = store._connect()
    stopped.execute("BEGIN")
    stopped.execute("SELECT pg_advisory_xact_lock(%s)", (APPEND_LOCK,))
    store.append([make_draft()], WriterTail(writer))
    assert verify(store) == 1
    stopped.close()
    store.close()


def test_a_server_that_says_nothing_is_given_up(
    own_postgres: PostgresServer,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = own_postgres.new_database()
    store = PostgresReceiptStore(url)
    tail = store.append([make_draft()], WriterTail(writer)).tail
    assert len(store.latest(1)) == 1
    backends = [store._writing.info.backend_pid, store._reading.info.backend_pid]  # type: ignore[union-attr]
    monkeypatch.setattr(postgres_connection, "MAX_WAIT_S", 0.1)
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(ReceiptStoreUnavailable):
            store.append([make_draft()], tail)
        with pytest.raises(ReceiptStoreUnavailable):
            store.latest(1)
        assert time.monotonic() - began < WAIT_S / 2
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    assert len(store.latest(1)) == 1
    store.append([make_draft()], store.writer_tail(writer))
    assert verify(store) == 2
    store.close()


def test_a_server_without_fsync_is_refused(
    own_postgres: PostgresServer, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    url = own_postgres.new_database()
    own_postgres.run("postgres", "ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()")
    store = PostgresReceiptStore(url)
    store.append([make_draft()], WriterTail(writer))
    assert store._writing is not None
    row = store._writing.execute("SELECT current_setting('synchronous_commit')").fetchone()
    assert row == ("on",)
    store.close()
    own_postgres.run("postgres", "ALTER SYSTEM SET synchronous_commit = remote_apply", "SELECT pg_reload_conf()")
    connection = postgres_connection.connect(postgres_connection.parse_url(url), 1000)
    assert connection.execute("SELECT current_setting('synchronous_commit')").fetchone() == ("remote_apply",)
    connection.close()
    own_postgres.stop()
    own_postgres.start("fsync=off")
    with pytest.raises(ReceiptStoreUnavailable, match="fsync"):
        PostgresReceiptStore(url)


def test_a_database_that_became_read_only_is_unavailable(
    pg_store: PostgresReceiptStore, postgres: PostgresServer, postgres_url: str, make_draft: Any, writer: WriterId
) -> None:
    tail = pg_store.append([make_draft()], WriterTail(writer)).tail
    assert pg_store._writing is not None
    pg_store._writing.execute("SET default_transaction_read_only = on")
    database = pg_store._writing.info.dbname
    # Asked for a transaction that writes, it writes; so what is read-only is the role.
    pg_store.append([make_draft()], tail)
    postgres.run(database, "CREATE ROLE reader LOGIN", "GRANT USAGE ON SCHEMA signet TO reader")
    postgres.run(database, "GRANT SELECT ON ALL TABLES IN SCHEMA signet TO reader")
    reader = PostgresReceiptStore(postgres.url(database, user="reader"))
    assert verify(reader) == 2
    with pytest.raises(ReceiptStoreUnavailable, match="no writes"):
        reader.check()
    with pytest.raises(ReceiptStoreUnavailable, match="42501"):
        reader.append([make_draft()], WriterTail(OTHER_WRITER))
    reader.close()


def test_a_role_that_may_only_read_and_add_is_enough(
    pg_store: PostgresReceiptStore, postgres: PostgresServer, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    pg_store.append([make_draft()], WriterTail(writer))
    assert pg_store._writing is not None
    database = pg_store._writing.info.dbname
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "receipt-stores.md").read_text()
    statements = guide.partition("```sql\n")[2].partition("```")[0].strip().split("\n")
    assert len(statements) == 4
    postgres.run(database, *statements)
    url = postgres.url(database, user="signet_writer")
    store = PostgresReceiptStore(url)
    store.check()
    store.append([make_draft()], WriterTail(OTHER_WRITER))
    assert verify(store) == 2
    for statement in (
        "UPDATE signet.receipts SET raw = ''",
        "DELETE FROM signet.receipts",
        "TRUNCATE signet.receipts CASCADE",
        "INSERT INTO signet.prunings VALUES (2, 1)",
        "ALTER TABLE signet.receipts DISABLE TRIGGER ALL",
        "DROP TABLE signet.receipts CASCADE",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            one(url, statement)
    store.close()
    postgres.run(database, "DROP OWNED BY signet_writer", "DROP ROLE signet_writer")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM signet.receipts",
        "UPDATE signet.receipts SET status = 200",
        "UPDATE signet.receipts SET raw = ''",
        "TRUNCATE signet.receipts CASCADE",
        "TRUNCATE signet.prunings",
    ],
)
def test_not_even_the_owner_changes_or_removes_rows(
    statement: str,
    pg_store: PostgresReceiptStore,
    postgres_url: str,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
) -> None:
    pg_store.append([make_draft()], WriterTail(writer))
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        one(postgres_url, statement)
    assert verify(pg_store) == 1


def test_a_password_is_in_no_error(postgres: PostgresServer, postgres_url: str) -> None:
    postgres.run("postgres", "DROP ROLE IF EXISTS locked", "CREATE ROLE locked LOGIN PASSWORD 'right'")
    PostgresReceiptStore(postgres_url).close()
    database = one(postgres_url, "SELECT current_database()")
    for url in (
        postgres.url(database, user="locked", password="hunter2"),
        "postgresql://locked:hunter2@127.0.0.1:1/receipts",
        "postgresql://locked:hunter2@%2Fnowhere/receipts",
    ):
        with pytest.raises(ReceiptStoreUnavailable) as refused:
            PostgresReceiptStore(url)
        text = "".join(traceback.format_exception(refused.value)) + repr(refused.value)
        # The traceback quotes this file, which has the password in it; errors are looked at line by line.
        assert "hunter2" not in str(refused.value)
        assert not [line for line in text.splitlines() if "hunter2" in line and "postgresql://" not in line]
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__


def test_a_password_is_in_no_repr(pg_store: PostgresReceiptStore, postgres: PostgresServer, postgres_url: str) -> None:
    database = one(postgres_url, "SELECT current_database()")
    store = PostgresReceiptStore(postgres.url(database, password="hunter2"))
    assert len(store.latest(1)) == 0
    assert "hunter2" not in f"{store!r} {store._reading!r}"
    store.close()


def test_what_an_error_says_quotes_no_row(
    pg_store: PostgresReceiptStore, postgres_url: str, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    one(postgres_url, "ALTER TABLE signet.receipts ADD CONSTRAINT no_401 CHECK (status <> 401)")
    drafts = [make_draft(decision="deny", reason="nonce_replay", status=401)]
    with pytest.raises(ReceiptStoreUnavailable) as refused:
        pg_store.append(drafts, WriterTail(writer))
    assert str(refused.value) == "PostgreSQL: 23514"
    assert "nonce_replay" not in "".join(traceback.format_exception(refused.value))
    assert verify(pg_store) == 0


@pytest.mark.parametrize("text", ["", "x", "a\x00b", "\ud800", "019aa56d-607b-7abc-8abc-0123456789ab' OR 1=1"])
def test_text_that_is_no_id_finds_nothing(text: str, pg_store: PostgresReceiptStore) -> None:
    assert pg_store.get(ReceiptId(text)) is None


def test_the_largest_batch_goes_in_whole(
    pg_store: PostgresReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    drafts = [make_draft(idempotency_key=bytes([number]) * 32) for number in range(MAX_BATCH_RECEIPTS)]
    outcomes = pg_store.append(drafts, WriterTail(writer)).outcomes
    assert [stored(outcome).seq for outcome in outcomes] == list(range(1, MAX_BATCH_RECEIPTS + 1))
    again = pg_store.append(drafts, pg_store.writer_tail(writer))
    assert all(isinstance(outcome, StoredReceipt) and outcome.duplicate for outcome in again.outcomes)
    assert again.tail.wseq == verify(pg_store) == MAX_BATCH_RECEIPTS


def test_statements_use_indexes_however_small_the_table_was(
    pg_store: PostgresReceiptStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    tail = WriterTail(writer)
    for _ in range(8):  # Enough for plans to be kept.
        tail = pg_store.append([make_draft(idempotency_key=os.urandom(32))], tail).tail
    assert pg_store._writing is not None
    row = pg_store._writing.execute(
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%signet.receipts%'"
    ).fetchone()
    assert row is not None
    assert row[0] >= 3
    assert pg_store._writing.execute("SHOW enable_seqscan").fetchone() == ("off",)


def migrated_to(url: str, version: int, monkeypatch: pytest.MonkeyPatch) -> PostgresReceiptStore:
    with monkeypatch.context() as patch:
        patch.setattr("receipts.postgres_schema.MIGRATIONS", MIGRATIONS[:version])
        return PostgresReceiptStore(url, now_ms=lambda: 7)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_schema_is_brought_forward_with_its_receipts(
    postgres_url: str,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
) -> None:
    old = migrated_to(postgres_url, version, monkeypatch)
    old.append([make_draft(trace_id="ab" * 16) for _ in range(3)], WriterTail(writer))
    before = list(receipts_of(old))
    for _ in range(2):
        store = PostgresReceiptStore(postgres_url, now_ms=lambda: 42)
        assert list(receipts_of(store)) == before
        assert store.by_trace("ab" * 16, 10) == before
        assert store.pruned_to() == 0
        store.close()
    # A worker that still runs the older program goes on meanwhile.
    old.append([make_draft(trace_id="ab" * 16)], old.writer_tail(writer))
    assert len(old.by_trace("ab" * 16, 10)) == 4
    old.close()
    with psycopg.connect(postgres_url) as connection:
        versions = connection.execute("SELECT * FROM signet.schema_migrations ORDER BY 1").fetchall()
    assert versions == [(number, 7 if number <= version else 42) for number in range(1, len(MIGRATIONS) + 1)]


def test_a_migration_may_take_longer_than_other_statements(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrated_to(postgres_url, 2, monkeypatch).close()
    monkeypatch.setattr("receipts.postgres_connection.STATEMENT_TIMEOUT_MS", 150)
    monkeypatch.setattr("receipts.postgres_connection.MAX_WAIT_S", 0.2)
    slow = ("SELECT pg_sleep(0.4)", *MIGRATIONS[2])
    with monkeypatch.context() as patch:
        patch.setattr("receipts.postgres_schema.MIGRATIONS", (*MIGRATIONS[:2], slow))
        store = PostgresReceiptStore(postgres_url)
    assert one(postgres_url, "SELECT to_regclass('signet.receipts_by_trace') IS NOT NULL")
    store.close()
    # Its transaction over, the bounds hold again.
    connection = store._connect()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT pg_sleep(0.4)")
    connection.close()


def test_a_migration_that_fails_leaves_the_schema_as_it_was(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    migrated_to(postgres_url, 1, monkeypatch).close()
    with monkeypatch.context() as patch, pytest.raises(ReceiptStoreUnavailable, match="42601"):
        patch.setattr("receipts.postgres_schema.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE signet.x ()", "NOT SQL")))
        PostgresReceiptStore(postgres_url)
    assert one(postgres_url, "SELECT max(version) FROM signet.schema_migrations") == 1
    assert one(postgres_url, "SELECT to_regclass('signet.prunings')") is None
    PostgresReceiptStore(postgres_url).close()


def test_processes_that_start_together_make_one_schema(postgres_url: str) -> None:
    opened: list[PostgresReceiptStore] = []
    threads = [threading.Thread(target=lambda: opened.append(PostgresReceiptStore(postgres_url))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(opened) == 6
    for store in opened:
        store.close()


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE SCHEMA signet", "CREATE TABLE signet.theirs (x integer)"),
        (
            "CREATE SCHEMA signet",
            "CREATE TABLE signet.schema_migrations (version integer, applied_ms bigint)",
            "INSERT INTO signet.schema_migrations VALUES (99, 0)",
        ),
    ],
    ids=["another program's", "a newer Signet's"],
)
def test_a_schema_that_is_not_ours_is_refused(statements: tuple[str, ...], postgres_url: str) -> None:
    for statement in statements:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(statement.encode())
    with pytest.raises(StoreCorrupt):
        PostgresReceiptStore(postgres_url)
    assert one(postgres_url, "SELECT to_regclass('signet.receipts')") is None
