"""The filter with its receipts in a real PostgreSQL, which is restarted under it."""

from __future__ import annotations

import contextlib
import signal

from receipts.open_store import open_store
from tests.support.check_calls import FilterCalls, reason_of
from tests.support.filter_process import filter_folder, until
from tests.support.postgres_server import PostgresServer
from tests.support.receipt_checks import receipts_of, verify


def test_without_the_server_nothing_passes_and_with_it_again_everything_does(own_postgres: PostgresServer) -> None:
    url = own_postgres.new_database()
    with filter_folder(workers=1) as folder:
        folder.config.write_text(folder.config_text + f'[receipts]\nurl = "{url}"\n')
        process = folder.start("serve")
        folder.pid()
        with FilterCalls(folder.socket()) as calls:
            for _ in range(5):
                assert reason_of(folder.pass_once(calls)) == "allowed"
            own_postgres.stop(signal.SIGQUIT)
            for _ in range(5):
                assert reason_of(folder.ask(calls)) == "store_unavailable"
            until(lambda: folder.status().get("problems", {}).get("receipts"), "the worker says what is not well")
            own_postgres.start()
            until(lambda: not folder.status().get("problems"), "the worker is well again")
            for _ in range(5):
                assert reason_of(folder.pass_once(calls)) == "allowed"
        process.terminate()
        assert process.wait(20) == 0
        assert url not in folder.logged()
        assert not (folder.folder / "receipts.sqlite3").exists()
    with contextlib.closing(open_store(url)) as store:
        allowed = [row for row in receipts_of(store) if row.decision == "allow"]
        assert len(allowed) == 10
        verify(store)
