"""Connections to PostgreSQL for a receipt store: durable, bounded in time, and silent about secrets."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from receipts.errors import ReceiptStoreUnavailable, StoreUrlError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg.abc import PQGen

CONNECT_TIMEOUT_S: Final = 2
"""Longest wait for a new connection to one host; the least that libpq knows."""
STATEMENT_TIMEOUT_MS: Final = 10_000
"""The server ends a statement after this."""
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 5_000
"""The server ends a session that holds a transaction open and says nothing: a writer that was stopped, or whose
machine is gone, keeps the others out no longer than this."""
MAX_WAIT_S: Final = 12.0
"""A server that says nothing for so long is given up: more than a statement may take there."""

_DEFAULTS: Final = {
    "application_name": "signet-receipts",
    "connect_timeout": str(CONNECT_TIMEOUT_S),
    # A peer that vanished without a word is noticed by TCP within this, whoever waits for whom.
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_T = TypeVar("_T")


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits `MAX_WAIT_S` at most for the server's next answer; one that waited longer is lost."""

    _silent = False
    _longer_wait_s: float | None = None

    @contextlib.contextmanager
    def waiting_up_to(self, limit_s: float) -> Iterator[None]:
        """Wait longer for what is known to take long."""
        self._longer_wait_s = limit_s
        try:
            yield
        finally:
            self._longer_wait_s = None

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        """Wait for `gen`; see `psycopg.Connection.wait`."""
        limit_s = (self._longer_wait_s or MAX_WAIT_S) if timeout is None else timeout
        began_s = time.monotonic()
        try:
            return super().wait(gen, interval, limit_s)
        except psycopg.OperationalError:
            self._silent |= time.monotonic() - began_s >= limit_s
            raise

    def died_of(self, error: psycopg.OperationalError) -> bool:
        """Tell whether the server ended this session, and said so or closed the connection: it may be back by now."""
        return not self._silent and (self.closed or (error.sqlstate or "").startswith("57P0"))


def parse_url(url: str) -> str:
    """Check a `postgresql://` URL and give it as a libpq connection string, defaults added. Raises StoreUrlError."""
    try:
        parameters = conninfo_to_dict(url)
        return make_conninfo("", **cast("dict[str, Any]", _DEFAULTS | parameters))
    except psycopg.Error:
        # Not chained: libpq's message quotes the URL.
        raise StoreUrlError("not a PostgreSQL URL: postgresql://user@host:port/database") from None


def connect(conninfo: str, lock_timeout_ms: int) -> BoundedConnection:
    """Connect, in autocommit mode, to a server whose commits are durable.

    `lock_timeout_ms`: how long a statement waits for a lock. Raises ReceiptStoreUnavailable, psycopg.Error.
    """
    connection = BoundedConnection.connect(conninfo, autocommit=True)
    try:
        connection.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false),"
            " set_config('idle_in_transaction_session_timeout', %s, false),"
            # A plan made while the table was small would go on reading the whole of it when it is large.
            " set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false)",
            (str(lock_timeout_ms), str(STATEMENT_TIMEOUT_MS), str(IDLE_IN_TRANSACTION_TIMEOUT_MS)),
        )
        row = connection.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')").fetchone()
        if row is None or row[0] != "on":
            raise ReceiptStoreUnavailable("the PostgreSQL server runs with fsync off: nothing it stores is durable")
        if row[1] == "off":  # Whatever else it is, is stronger, or as the operator wants it.
            connection.execute("SET synchronous_commit = on")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Turn what psycopg raises into ReceiptStoreUnavailable; name the SQLSTATE, never a value."""
    try:
        yield
    except psycopg.Error as error:
        # Not chained: the messages quote rows, and what they connected to.
        raise ReceiptStoreUnavailable(f"PostgreSQL: {error.sqlstate or type(error).__name__.lstrip('_')}") from None
