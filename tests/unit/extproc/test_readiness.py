"""What `/readyz` reads: sockets that accept, and status files that are fresh and well-formed."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.config import FilterConfig, load_config
from extproc.readiness import (
    MAX_STATUS_BYTES,
    STATUS_STALE_AFTER_MS,
    degraded_because,
    not_ready_because,
    store_problem,
)
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.filter_parts import NOW_MS

CONFIG = '[filter]\nworkers = 2\n[[route]]\nname = "all"\npath = "/**"\n'


class Workers:
    """Two listening sockets, and the status files beside them."""

    def __init__(self, folder: Path) -> None:
        (folder / "filter.toml").write_text(CONFIG)
        self.config: FilterConfig = load_config(folder / "filter.toml", {})
        self.run = folder / "run"
        self.run.mkdir()
        self.listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for index, listener in enumerate(self.listeners):
            listener.bind(str(self.run / f"signet-{index}.sock"))
            listener.listen(64)
            self.tell(index)

    def tell(self, index: int, **changes: Any) -> None:
        status = {"index": index, "pid": 1, "time_ms": NOW_MS, "problems": {}} | changes
        self.write(index, json.dumps(status).encode())

    def write(self, index: int, content: bytes) -> None:
        (self.run / f"signet-{index}.status.json").write_bytes(content)

    def reasons(self, now_ms: int = NOW_MS) -> dict[str, str]:
        return not_ready_because(self.config, now_ms)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="signet-") as folder:
        made = Workers(Path(folder))
        yield made
        for listener in made.listeners:
            listener.close()


def test_ready_when_every_worker_accepts_and_is_well(workers: Workers) -> None:
    assert workers.reasons() == {}


def test_worker_that_does_not_accept_is_named(workers: Workers) -> None:
    workers.listeners[1].close()
    assert workers.reasons() == {"worker.1": "does not accept connections"}


def test_worker_whose_socket_is_gone_is_named(workers: Workers) -> None:
    (workers.run / "signet-0.sock").unlink()
    assert workers.reasons() == {"worker.0": "does not accept connections"}


def test_worker_with_a_full_backlog_does_not_hold_us_up(workers: Workers) -> None:
    hung = socket.socket(socket.AF_UNIX)
    (workers.run / "signet-0.sock").unlink()
    hung.bind(str(workers.run / "signet-0.sock"))
    hung.listen(0)
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(str(workers.run / "signet-0.sock"))
    assert workers.reasons() == {"worker.0": "does not accept connections"}
    waiting.close()
    hung.close()


def test_problems_are_told_by_worker_and_part(workers: Workers) -> None:
    workers.tell(0, problems={"keyring": "keyring.json: is not JSON", "receipts": "store_unavailable"})
    assert workers.reasons() == {
        "worker.0.keyring": "keyring.json: is not JSON",
        "worker.0.receipts": "store_unavailable",
    }


def test_status_from_the_future_does_not_count(workers: Workers) -> None:
    early_ms = STATUS_STALE_AFTER_MS + 1
    assert workers.reasons(NOW_MS - early_ms)["worker.0.status"] == f"is {-early_ms} ms old"


def test_status_that_was_not_renewed_does_not_count(workers: Workers) -> None:
    assert workers.reasons(NOW_MS + STATUS_STALE_AFTER_MS) == {}
    late_ms = STATUS_STALE_AFTER_MS + 1
    workers.tell(1, time_ms=NOW_MS + late_ms)
    workers.tell(0, problems={"keyring": "old news"})
    assert workers.reasons(NOW_MS + late_ms) == {"worker.0.status": f"is {late_ms} ms old"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"1", b'"text"', b"{}", b"\xff\xfe", b'{"time_ms": 1}', b"[" * 10_000),
        *(b'{"time_ms": "x", "problems": {}}', b'{"time_ms": null, "problems": {}}', b'{"time_ms": 1, "problems": 7}'),
        *(b'{"time_ms": 1e999, "problems": {}}', b'{"time_ms": 1, "problems": "text"}'),
    ],
)
def test_status_that_cannot_be_read_is_a_reason(workers: Workers, content: bytes) -> None:
    workers.write(0, content)
    assert workers.reasons() == {"worker.0.status": "cannot be read"}


def test_status_that_is_not_there_is_a_reason(workers: Workers) -> None:
    (workers.run / "signet-0.status.json").unlink()
    assert workers.reasons() == {"worker.0.status": "cannot be read"}


def test_status_that_is_too_large_is_not_read(workers: Workers) -> None:
    workers.write(0, b" " * (MAX_STATUS_BYTES + 1))
    assert workers.reasons() == {"worker.0.status": "is too large"}


def test_receipt_store_is_well_until_it_is_gone(tmp_path: Path) -> None:
    store = SqliteReceiptStore(tmp_path / "receipts.sqlite3")
    assert store_problem(store) is None
    (tmp_path / "receipts.sqlite3").unlink()
    assert store_problem(store) == "store_unavailable"
    store.close()


def test_what_serves_without_something_it_needs_is_told_and_is_ready(workers: Workers) -> None:
    workers.tell(0, degraded={"sealing": "the key service: kms_unreachable"})
    assert degraded_because(workers.config) == {"worker.0.sealing": "the key service: kms_unreachable"}
    assert workers.reasons() == {}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"degraded":[]}', b"[" * 100_000, b" " * (MAX_STATUS_BYTES + 1), b"\xff"]
)
def test_a_status_that_cannot_be_read_tells_of_nothing_degraded(workers: Workers, content: bytes) -> None:
    workers.write(0, content)
    assert degraded_because(workers.config) == {}
