from __future__ import annotations

import contextlib
import shutil
import sqlite3
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from receipts import backup as backups
from receipts.__main__ import main
from receipts.backup import backup, restore
from receipts.errors import ReceiptStoreUnavailable, StoreCorrupt
from receipts.open_store import open_store
from receipts.receipt_id import WriterId
from receipts.sqlite_schema import MIGRATIONS
from receipts.store import WriterTail
from receipts.store_check import check_store
from tests.support.postgres_server import PostgresServer, program
from tests.support.receipt_checks import receipts_of, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from receipts.receipt import ReceiptDraft

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "receipt-stores.md"


def make(path: Path, drafts: list[ReceiptDraft], writer: WriterId) -> None:
    with contextlib.closing(open_store(f"sqlite:{path}")) as store:
        store.append(drafts, store.writer_tail(writer))


@pytest.fixture
def source(tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId) -> Path:
    make(tmp_path / "store", [make_draft() for _ in range(200)], writer)
    return tmp_path / "store"


def test_a_backup_holds_every_receipt_and_can_be_gone_on_from(
    source: Path, tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    told: list[tuple[int, int]] = []
    report = backup(source, tmp_path / "backup", lambda done, total: told.append((done, total)))
    assert (report.receipts, report.pruned, report.writers) == (200, 0, 1)
    assert told[-1][0] == told[-1][1] > 0
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    assert restore(tmp_path / "backup", tmp_path / "restored").receipts == 200
    assert stat.S_IMODE((tmp_path / "restored").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} - {"store-turn"} == {"store", "backup", "restored"}
    with (
        contextlib.closing(open_store(f"sqlite:{source}")) as original,
        contextlib.closing(open_store(f"sqlite:{tmp_path / 'restored'}")) as restored,
    ):
        assert list(receipts_of(original)) == list(receipts_of(restored))
        restored.append([make_draft()], restored.writer_tail(writer))
        assert verify(restored) == 201


def test_a_store_is_backed_up_while_it_is_written_to(
    source: Path,
    tmp_path: Path,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backups, "_PAGES_AT_ONCE", 1)
    stop, store = threading.Event(), open_store(f"sqlite:{source}")

    def write() -> None:
        tail = store.writer_tail(writer)
        while not stop.is_set():
            tail = store.append([make_draft() for _ in range(8)], tail).tail

    thread = threading.Thread(target=write)
    thread.start()
    try:
        report = backup(source, tmp_path / "backup")
    finally:
        stop.set()
        thread.join(20)
    assert report.receipts >= 200
    assert report.receipts % 8 == 0  # A moment between two commits.
    assert verify(store) >= report.receipts
    store.close()


def test_a_damaged_store_gives_no_backup(source: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("DROP TRIGGER receipts_keep_rows")
        connection.execute("DELETE FROM receipts WHERE seq = 77")
    with pytest.raises(StoreCorrupt, match="receipt 77"):
        backup(source, tmp_path / "backup")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("backup")]


def test_a_damaged_backup_puts_nothing_in_place(source: Path, tmp_path: Path) -> None:
    backup(source, tmp_path / "backup")
    data = bytearray((tmp_path / "backup").read_bytes())
    place = data.index(b"api.example.com", len(data) // 2)
    data[place] ^= 1
    (tmp_path / "backup").write_bytes(data)
    with pytest.raises(StoreCorrupt):
        restore(tmp_path / "backup", tmp_path / "restored")
    (tmp_path / "backup").write_bytes(data[: len(data) // 2])
    with pytest.raises((StoreCorrupt, ReceiptStoreUnavailable)):
        restore(tmp_path / "backup", tmp_path / "restored")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("restored")]


@pytest.mark.parametrize("name", ["target", "target-wal", "target-shm", "target-journal"])
def test_nothing_is_ever_written_over(name: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    for copy in (backup, restore):
        with pytest.raises(ReceiptStoreUnavailable, match=f"{name} is there already"):
            copy(source, tmp_path / "target")
    assert (tmp_path / name).read_text() == "precious"


def test_the_file_of_a_store_in_use_is_no_backup(
    source: Path, tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    with contextlib.closing(open_store(f"sqlite:{source}")) as store:
        store.append([make_draft()], store.writer_tail(writer))
        with pytest.raises(ReceiptStoreUnavailable, match="no backup"):
            restore(source, tmp_path / "restored")


def test_an_unfinished_copy_is_begun_anew(source: Path, tmp_path: Path) -> None:
    (tmp_path / "backup.unfinished").write_text("left by a crash")
    assert backup(source, tmp_path / "backup").receipts == 200


def test_a_backup_of_an_older_version_is_brought_up_to_date(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("receipts.sqlite_schema.MIGRATIONS", MIGRATIONS[:1])
        make(tmp_path / "old", [make_draft() for _ in range(3)], writer)
    assert restore(tmp_path / "old", tmp_path / "new").receipts == 3
    with contextlib.closing(open_store(f"sqlite:{tmp_path / 'new'}")) as store:
        assert store.pruned_to() == 0


def test_the_commands_back_up_and_restore(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGNET_RECEIPTS_URL", f"sqlite:{source}")
    assert main(["backup", "--out", str(tmp_path / "b")]) == 0
    assert main(["restore", "--from", str(tmp_path / "b"), "--store", f"sqlite:{tmp_path / 'r'}"]) == 0
    assert capsys.readouterr().out == (
        "backup: 200 receipts of 1 writers; every chain is whole\n"
        "restore: 200 receipts of 1 writers; every chain is whole\n"
    )
    assert main(["backup", "--out", str(tmp_path / "b")]) == 1
    assert "b is there already" in capsys.readouterr().err
    assert main(["restore", "--from", str(tmp_path / "none"), "--store", f"sqlite:{tmp_path / 'q'}"]) == 1
    for name, option in (("backup", "--out"), ("restore", "--from")):
        assert main([name, option, "x", "--store", "postgresql://a:hunter2@b/c"]) == 2
        said = capsys.readouterr().err
        assert "receipt-stores.md" in said
        assert "hunter2" not in said


def test_the_documented_commands_back_up_and_restore_postgresql(
    postgres: PostgresServer,
    postgres_url: str,
    make_draft: Callable[..., ReceiptDraft],
    writer: WriterId,
    tmp_path: Path,
) -> None:
    with contextlib.closing(open_store(postgres_url)) as store:
        store.append([make_draft() for _ in range(50)], WriterTail(writer))
        before = list(receipts_of(store))
    restored = postgres.new_database()
    guide = GUIDE.read_text()
    for line, url in (
        ("pg_dump --format=custom --schema=signet --file=receipts.dump", postgres_url),
        ("pg_restore --exit-on-error --single-transaction --dbname=", restored),
    ):
        assert line in guide
        words = line.removesuffix("--dbname=").split()
        assert shutil.which(words[0]) or program(words[0])
        file = ["receipts.dump"] if words[0] == "pg_restore" else []
        subprocess.run([program(words[0]), *words[1:], f"--dbname={url}", *file], check=True, cwd=tmp_path)
    with contextlib.closing(open_store(restored)) as store:
        assert list(receipts_of(store)) == before
        assert check_store(store).receipts == 50
        store.append([make_draft()], store.writer_tail(writer))
        assert verify(store) == 51
