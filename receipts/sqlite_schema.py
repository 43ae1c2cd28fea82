"""The tables of the SQLite receipt store, and how an older file becomes a newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from receipts.errors import StoreCorrupt

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

APPLICATION_ID: Final = 0x53474E52
"""SQLite's application id of a Signet receipt store ("SGNR")."""

TRACE_RUN_BITS: Final = 11
"""Receipts whose `seq` agrees above these bits lie in one run of the index `receipts_by_trace`."""

# One entry per schema version, from 1. Never change one that was released: add the next.
# seq is dense: rows are only added, at max + 1, under the write lock (the triggers keep it so).
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """
        CREATE TABLE receipts (
            seq             INTEGER PRIMARY KEY,
            id              TEXT    NOT NULL UNIQUE,
            writer          TEXT    NOT NULL,
            wseq            INTEGER NOT NULL CHECK (wseq >= 1),
            time_ms         INTEGER NOT NULL,
            kind            TEXT    NOT NULL,
            trace_id        TEXT,
            decision        TEXT,
            reason          TEXT,
            status          INTEGER,
            idempotency_key BLOB    CHECK (length(idempotency_key) = 32),
            leaf_hash       BLOB    NOT NULL CHECK (length(leaf_hash) = 32),
            raw             BLOB    NOT NULL CHECK (length(raw) <= 65535),
            UNIQUE (writer, wseq)
        ) STRICT
        """,
        """
        CREATE UNIQUE INDEX receipts_by_idempotency_key ON receipts (idempotency_key)
            WHERE idempotency_key IS NOT NULL
        """,
        """
        CREATE TRIGGER receipts_keep_rows BEFORE DELETE ON receipts
        BEGIN SELECT RAISE (ABORT, 'receipts are append-only'); END
        """,
        """
        CREATE TRIGGER receipts_keep_values BEFORE UPDATE ON receipts
        BEGIN SELECT RAISE (ABORT, 'receipts are append-only'); END
        """,
    ),
    # 2: payloads can be dropped, by one narrow path: see receipts.prune.
    (
        "CREATE INDEX receipts_pruned ON receipts (seq) WHERE length(raw) = 0",
        """
        CREATE TABLE prunings (
            event_seq INTEGER PRIMARY KEY REFERENCES receipts (seq),
            up_to_seq INTEGER NOT NULL CHECK (up_to_seq >= 1 AND up_to_seq < event_seq)
        ) STRICT
        """,
        """
        CREATE TRIGGER prunings_are_recorded BEFORE INSERT ON prunings
        WHEN NOT EXISTS (SELECT 1 FROM receipts WHERE seq = NEW.event_seq AND kind = 'log_event')
        BEGIN SELECT RAISE (ABORT, 'a pruning is recorded by a log_event receipt'); END
        """,
        """
        CREATE TRIGGER prunings_keep_rows BEFORE DELETE ON prunings
        BEGIN SELECT RAISE (ABORT, 'prunings are append-only'); END
        """,
        """
        CREATE TRIGGER prunings_keep_values BEFORE UPDATE ON prunings
        BEGIN SELECT RAISE (ABORT, 'prunings are append-only'); END
        """,
        "DROP TRIGGER receipts_keep_values",
        """
        CREATE TRIGGER receipts_keep_values BEFORE UPDATE ON receipts
        WHEN NOT (
            length(NEW.raw) = 0 AND NEW.trace_id IS NULL
            AND NEW.seq IS OLD.seq AND NEW.id IS OLD.id AND NEW.writer IS OLD.writer AND NEW.wseq IS OLD.wseq
            AND NEW.time_ms IS OLD.time_ms AND NEW.kind IS OLD.kind AND NEW.decision IS OLD.decision
            AND NEW.reason IS OLD.reason AND NEW.status IS OLD.status
            AND NEW.idempotency_key IS OLD.idempotency_key AND NEW.leaf_hash IS OLD.leaf_hash
            AND EXISTS (SELECT 1 FROM prunings WHERE up_to_seq >= OLD.seq)
        )
        BEGIN SELECT RAISE (ABORT, 'receipts are append-only'); END
        """,
    ),
    # 3: the receipts of a trace are found without reading the others. Trace ids are random: in one tree over all of
    # them every receipt of a commit would write a page of its own. So the index is one of runs of 2,048 receipts, and
    # a look-up asks run after run. SQLite sorts for it in a file, within its page cache.
    ("CREATE INDEX receipts_by_trace ON receipts (seq >> 11, trace_id) WHERE trace_id IS NOT NULL",),
)


def migrate(connection: sqlite3.Connection, now_ms: Callable[[], int]) -> None:
    """Bring the file to the newest schema; safe when several processes start at once.

    Raises StoreCorrupt when the file belongs to another program or to a newer Signet, sqlite3.Error.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO schema_migrations VALUES (?, ?)", (number, now_ms()))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    """Return the schema version of a store, 0 after making one of an empty file."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if application_id != APPLICATION_ID:
        if application_id != 0 or connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise StoreCorrupt("the file is not a Signet receipt store")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(
            "CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL) STRICT"
        )
        return 0
    version: int = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreCorrupt(f"the receipt store has schema {version}, this program knows {len(MIGRATIONS)}")
    return version
