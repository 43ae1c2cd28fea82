"""The tables of the PostgreSQL receipt store, and how an older schema becomes a newer one.

Everything lies in the schema `signet`. Only its owner can migrate; a role that may only read and insert can write
receipts (docs/guides/receipt-stores.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, LiteralString

from receipts.errors import StoreCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable

    from receipts.postgres_connection import BoundedConnection

MIGRATION_LOCK: Final = 0x53474E52_00000001
"""Advisory lock of whoever changes the schema."""
MAX_MIGRATION_S: Final = 3600
"""Longest that a statement of a migration may take: an index over a large store is made in minutes."""

# One entry per schema version, from 1. Never change one that was released: add the next.
# Rows stay inline and uncompressed up to a page: compressing 2 KB of digests costs more than it saves.
MIGRATIONS: Final[tuple[tuple[LiteralString, ...], ...]] = (
    (
        """
        CREATE TABLE signet.receipts (
            seq             bigint   PRIMARY KEY CHECK (seq >= 1),
            id              text     COLLATE "C" NOT NULL UNIQUE,
            writer          text     COLLATE "C" NOT NULL,
            wseq            bigint   NOT NULL CHECK (wseq >= 1),
            time_ms         bigint   NOT NULL,
            kind            text     COLLATE "C" NOT NULL,
            trace_id        text     COLLATE "C",
            decision        text     COLLATE "C",
            reason          text     COLLATE "C",
            status          smallint,
            idempotency_key bytea    CHECK (octet_length(idempotency_key) = 32),
            leaf_hash       bytea    NOT NULL CHECK (octet_length(leaf_hash) = 32),
            raw             bytea    NOT NULL CHECK (octet_length(raw) <= 65535),
            UNIQUE (writer, wseq)
        ) WITH (toast_tuple_target = 8160)
        """,
        "ALTER TABLE signet.receipts ALTER COLUMN raw SET STORAGE EXTERNAL",
        """
        CREATE UNIQUE INDEX receipts_by_idempotency_key ON signet.receipts (idempotency_key)
            WHERE idempotency_key IS NOT NULL
        """,
        """
        CREATE FUNCTION signet.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'receipts are append-only' USING ERRCODE = 'restrict_violation';
        END $$
        """,
        """
        CREATE TRIGGER receipts_keep_rows BEFORE DELETE ON signet.receipts
            FOR EACH ROW EXECUTE FUNCTION signet.refuse()
        """,
        """
        CREATE TRIGGER receipts_keep_values BEFORE UPDATE ON signet.receipts
            FOR EACH ROW EXECUTE FUNCTION signet.refuse()
        """,
        """
        CREATE TRIGGER receipts_keep_all BEFORE TRUNCATE ON signet.receipts
            FOR EACH STATEMENT EXECUTE FUNCTION signet.refuse()
        """,
    ),
    # 2: payloads can be dropped, by one narrow path: see receipts.prune.
    (
        "CREATE INDEX receipts_pruned ON signet.receipts (seq) WHERE octet_length(raw) = 0",
        """
        CREATE TABLE signet.prunings (
            event_seq bigint PRIMARY KEY REFERENCES signet.receipts (seq),
            up_to_seq bigint NOT NULL CHECK (up_to_seq >= 1 AND up_to_seq < event_seq)
        )
        """,
        """
        CREATE TRIGGER prunings_keep_values BEFORE UPDATE OR DELETE ON signet.prunings
            FOR EACH ROW EXECUTE FUNCTION signet.refuse()
        """,
        """
        CREATE TRIGGER prunings_keep_all BEFORE TRUNCATE ON signet.prunings
            FOR EACH STATEMENT EXECUTE FUNCTION signet.refuse()
        """,
        """
        CREATE FUNCTION signet.require_event() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT EXISTS (SELECT FROM signet.receipts WHERE seq = NEW.event_seq AND kind = 'log_event') THEN
                RAISE EXCEPTION 'a pruning is recorded by a log_event receipt' USING ERRCODE = 'restrict_violation';
            END IF;
            RETURN NEW;
        END $$
        """,
        """
        CREATE TRIGGER prunings_are_recorded BEFORE INSERT ON signet.prunings
            FOR EACH ROW EXECUTE FUNCTION signet.require_event()
        """,
        """
        CREATE FUNCTION signet.refuse_all_but_pruning() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF octet_length(NEW.raw) = 0 AND NEW.trace_id IS NULL
                AND (NEW.seq, NEW.id, NEW.writer, NEW.wseq, NEW.time_ms, NEW.kind, NEW.decision, NEW.reason,
                     NEW.status, NEW.idempotency_key, NEW.leaf_hash)
                    IS NOT DISTINCT FROM
                    (OLD.seq, OLD.id, OLD.writer, OLD.wseq, OLD.time_ms, OLD.kind, OLD.decision, OLD.reason,
                     OLD.status, OLD.idempotency_key, OLD.leaf_hash)
                AND EXISTS (SELECT FROM signet.prunings WHERE up_to_seq >= OLD.seq)
            THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'receipts are append-only' USING ERRCODE = 'restrict_violation';
        END $$
        """,
        "DROP TRIGGER receipts_keep_values ON signet.receipts",
        """
        CREATE TRIGGER receipts_keep_values BEFORE UPDATE ON signet.receipts
            FOR EACH ROW EXECUTE FUNCTION signet.refuse_all_but_pruning()
        """,
    ),
    # 3: the receipts of a trace are found at once.
    ("CREATE INDEX receipts_by_trace ON signet.receipts (trace_id, seq) WHERE trace_id IS NOT NULL",),
)


def migrate(connection: BoundedConnection, now_ms: Callable[[], int]) -> None:
    """Bring the schema `signet` to the newest version; safe when several processes start at once.

    Changes nothing, and needs no right to, when it is there already. `connection` commits by itself. Raises
    StoreCorrupt when the schema is another program's or a newer Signet's, psycopg.Error.
    """
    if _version(connection) == len(MIGRATIONS):
        return
    with connection.waiting_up_to(MAX_MIGRATION_S), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        version = _version(connection)
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{MAX_MIGRATION_S}s",))
        if version == 0:
            connection.execute("CREATE SCHEMA IF NOT EXISTS signet")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS signet.schema_migrations"
                " (version integer PRIMARY KEY, applied_ms bigint NOT NULL)"
            )
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO signet.schema_migrations VALUES (%s, %s)", (number, now_ms()))


def _version(connection: BoundedConnection) -> int:
    """Return the schema version, 0 when there is none yet."""
    tables = {
        name
        for (name,) in connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('signet') AND relkind = 'r'"
        )
    }
    if "schema_migrations" not in tables:
        if tables:
            raise StoreCorrupt("the schema signet is not that of a receipt store")
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM signet.schema_migrations").fetchone()
    version: int = row[0] if row is not None else 0
    if version > len(MIGRATIONS):
        raise StoreCorrupt(f"the receipt store has schema {version}, this program knows {len(MIGRATIONS)}")
    return version
