"""The envelopes of the SQLite store: two tables in the same file, in the same transactions as the nonces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from extproc.nonce_store.envelopes import (
    MAX_BYTES_IN_STORE,
    MAX_BYTES_PER_CONNECTION,
    MAX_WAITING_PER_CONNECTION,
    PURGE_PER_KEEP,
    STORE_FULL,
    Find,
    Keep,
    KeepResult,
)
from pch.errors import StoreUnavailable

if TYPE_CHECKING:
    import sqlite3

ENVELOPE_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS envelopes (
    nonce BLOB PRIMARY KEY, connection BLOB NOT NULL, found INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL, envelope BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS envelopes_by_connection ON envelopes (connection, found, size_bytes);
CREATE INDEX IF NOT EXISTS envelopes_by_expiry ON envelopes (expires_ms);
CREATE TABLE IF NOT EXISTS envelope_total (
    id INTEGER PRIMARY KEY CHECK (id = 1), held_bytes INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO envelope_total (id, held_bytes) VALUES (1, 0);
"""


def keep_envelope(connection: sqlite3.Connection, keep: Keep) -> KeepResult | StoreUnavailable:
    """Keep an envelope inside the open transaction; an error that is this one's alone is returned."""
    held_bytes = _purge(connection, keep.now_ms)
    if connection.execute("SELECT 1 FROM spent WHERE nonce = ?", (keep.nonce,)).fetchone():
        return KeepResult.SPENT
    there = connection.execute("SELECT envelope FROM envelopes WHERE nonce = ?", (keep.nonce,)).fetchone()
    if there is not None:
        return KeepResult.KEPT if there[0] == keep.envelope else KeepResult.TAKEN
    waiting, mine_bytes = connection.execute(
        "SELECT count(*) FILTER (WHERE found = 0), coalesce(sum(size_bytes), 0) FROM envelopes WHERE connection = ?",
        (keep.connection,),
    ).fetchone()
    if waiting >= MAX_WAITING_PER_CONNECTION or mine_bytes + keep.size_bytes > MAX_BYTES_PER_CONNECTION:
        return KeepResult.CONNECTION_FULL
    if held_bytes + keep.size_bytes > MAX_BYTES_IN_STORE:
        return StoreUnavailable(STORE_FULL)
    connection.execute(
        "INSERT INTO envelopes (nonce, connection, found, size_bytes, expires_ms, envelope) VALUES (?, ?, 0, ?, ?, ?)",
        (keep.nonce, keep.connection, keep.size_bytes, keep.expires_ms, keep.envelope),
    )
    connection.execute("UPDATE envelope_total SET held_bytes = ?", (held_bytes + keep.size_bytes,))
    return KeepResult.KEPT


def find_envelope(connection: sqlite3.Connection, find: Find) -> bytes | None:
    """Find an envelope inside the open transaction, and shorten the time that it is kept."""
    there = connection.execute(
        "SELECT envelope, found FROM envelopes WHERE nonce = ? AND expires_ms > ?", (find.nonce, find.now_ms)
    ).fetchone()
    if there is None:
        return None
    if not there[1]:
        connection.execute(
            "UPDATE envelopes SET found = 1, expires_ms = min(expires_ms, ?) WHERE nonce = ?",
            (find.found_until_ms, find.nonce),
        )
    return bytes(there[0])


def _purge(connection: sqlite3.Connection, now_ms: int) -> int:
    """Drop some expired envelopes; gives what the others take, in bytes."""
    dropped = connection.execute(
        "DELETE FROM envelopes WHERE nonce IN (SELECT nonce FROM envelopes WHERE expires_ms <= ?"
        " ORDER BY expires_ms LIMIT ?) RETURNING size_bytes",
        (now_ms, PURGE_PER_KEEP),
    ).fetchall()
    if dropped:
        freed = sum(size for (size,) in dropped)
        connection.execute("UPDATE envelope_total SET held_bytes = held_bytes - ?", (freed,))
    return int(connection.execute("SELECT held_bytes FROM envelope_total").fetchone()[0])
