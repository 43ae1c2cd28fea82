"""Fixtures for tests of every kind of receipt store; a conftest imports them by name."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from receipts.open_store import open_store
from tests.support.postgres_server import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from receipts.store import PrunableStore


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    # Not tmp_path: a UNIX socket's path is limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # Nothing is kept, so nothing need be put in order.


@pytest.fixture(scope="session")
def _postgres_session() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the test may stop."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres(_postgres_session: PostgresServer) -> PostgresServer:
    """A running server that the tests share; one that stops it starts it again."""
    if _postgres_session.process is None:
        _postgres_session.start()
    return _postgres_session


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """The URL of a database of the test's own, still empty."""
    return postgres.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, once for each kind."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'receipts.sqlite3'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def any_store(store_url: str) -> Iterator[PrunableStore]:
    """An empty store, once for each kind."""
    opened = open_store(store_url, write_wait_ms=5000)
    yield opened
    opened.close()
