from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from receipts.errors import StoreCorrupt
from receipts.fsck import FsckReport, check_log
from receipts.log import LogSettings
from receipts.receipt_id import WriterId
from receipts.tile_store import DirectoryTileStore
from tests.support.log_parts import ORIGIN, LogParts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OTHER = WriterId("0b6ff3ac-8d3c-4c6c-9d0a-7a4c31a0a001")


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LogParts]:
    """310 receipts of two writers, 300 of them in the log, in heads of 0, 5, 5 and 300."""
    parts = LogParts(tmp_path, settings=LogSettings(max_batch_receipts=1000))
    writer = parts.writer()
    writer.flush()
    parts.add(5)
    writer.flush()
    parts.clock.seconds += 86_400
    writer.step()
    parts.add(200, OTHER)
    parts.add(95)
    writer.flush()
    parts.close_all_writers()
    parts.add(10)
    yield parts
    parts.close()


def fsck(parts: LogParts, progress: Callable[[int], None] = lambda _: None) -> FsckReport:
    reader = parts.reader()
    return check_log(
        parts.store,
        DirectoryTileStore(parts.log_folder),
        reader.heads,
        origin=ORIGIN,
        verifiers=parts.verifiers(),
        progress=progress,
    )


def test_a_whole_log_is_found_to_be_whole(parts: LogParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receipts.fsck.TAKE_AFTER_RECEIPTS", 64)
    seen: list[int] = []
    report = fsck(parts, seen.append)
    assert (report.receipts, report.integrated, report.writers, report.heads) == (310, 300, 2, 4)
    assert report.last_head is not None
    assert report.last_head.size == 300
    assert seen[-1] == 310
    assert 64 in seen


def test_an_empty_store_without_a_log_is_whole(tmp_path: Path) -> None:
    parts = LogParts(tmp_path / "new")
    parts.log_folder.mkdir()
    assert fsck(parts) == FsckReport(0, 0, 0, 0, 0, None)
    parts.close()


def _flip(path: Path, place: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"]
)
@pytest.mark.parametrize("change", ["flip", "gone", "short", "long"])
@pytest.mark.parametrize("every", [64, 4096])
def test_every_changed_tile_is_found(
    parts: LogParts, name: str, change: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receipts.fsck.TAKE_AFTER_RECEIPTS", every)
    path = parts.log_folder / name
    if change == "flip":
        _flip(path, -1)
    elif change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if change == "short" else path.read_bytes() + b"\0")
    with pytest.raises(StoreCorrupt, match=name.partition(".")[0]):
        fsck(parts)


def test_a_full_tile_of_the_wrong_length_in_the_place_of_a_partial_one_is_found(parts: LogParts) -> None:
    (parts.log_folder / "tile/0/001.p/44").unlink()
    (parts.log_folder / "tile/0/001").write_bytes(b"short")
    with pytest.raises(StoreCorrupt, match="tile/0/001"):
        fsck(parts)


def _execute(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
    connection.close()


RECEIPT_DAMAGE = {
    "one is gone": ("DELETE FROM receipts WHERE seq = 100",),
    "the last in the log and those after it are gone": ("DELETE FROM receipts WHERE seq >= 300",),
    "all are gone": ("DELETE FROM receipts",),
    "one is another's bytes": ("UPDATE receipts SET raw = (SELECT raw FROM receipts WHERE seq = 7) WHERE seq = 8",),
    "one is no receipt": ("UPDATE receipts SET raw = x'7b7d' WHERE seq = 8",),
    "one says what it does not": ("UPDATE receipts SET id = '00000000-0000-7000-8000-000000000000' WHERE seq = 8",),
    "a waiting one was changed": ("UPDATE receipts SET raw = CAST(raw || x'20' AS BLOB) WHERE seq = 305",),
    "two changed places": (
        "UPDATE receipts SET seq = 9999 WHERE seq = 8",
        "UPDATE receipts SET seq = 8 WHERE seq = 9",
        "UPDATE receipts SET seq = 9 WHERE seq = 9999",
    ),
}


@pytest.mark.parametrize("statements", RECEIPT_DAMAGE.values(), ids=RECEIPT_DAMAGE.keys())
def test_every_changed_receipt_is_found(parts: LogParts, statements: tuple[str, ...]) -> None:
    parts.store.close()
    _execute(parts.folder / "receipts.sqlite3", *statements)
    with pytest.raises(StoreCorrupt):
        fsck(parts)


HEAD_DAMAGE = {
    "one is gone": "DELETE FROM sth WHERE number = 2",
    "its number is beyond the others": "UPDATE sth SET number = 9 WHERE number = 4",
    "the last is gone": "DELETE FROM sth WHERE number = 4",
    "all are gone": "DELETE FROM sth",
    "a size": "UPDATE sth SET size = 6 WHERE number = 2",
    "a root": "UPDATE sth SET root = zeroblob(32) WHERE number = 2",
    "a time": "UPDATE sth SET time_s = time_s + 1 WHERE number = 2",
    "a prev": "UPDATE sth SET prev = zeroblob(32) WHERE number = 2",
    "a proof": "UPDATE sth SET consistency = zeroblob(32) WHERE number = 4",
    "a note": "UPDATE sth SET note = (SELECT note FROM sth WHERE number = 3) WHERE number = 2",
    "no note": "UPDATE sth SET note = x'00' WHERE number = 2",
}


@pytest.mark.parametrize("statement", HEAD_DAMAGE.values(), ids=HEAD_DAMAGE.keys())
def test_every_changed_head_is_found(parts: LogParts, statement: str) -> None:
    parts.reader().heads.close()
    _execute(parts.log_folder / "log.sqlite3", statement)
    with pytest.raises(StoreCorrupt):
        fsck(parts)


def test_a_checkpoint_that_is_not_the_newest_head_is_found(parts: LogParts) -> None:
    _flip(parts.log_folder / "checkpoint", 30)
    with pytest.raises(StoreCorrupt, match="checkpoint"):
        fsck(parts)
    (parts.log_folder / "checkpoint").unlink()
    with pytest.raises(StoreCorrupt, match="checkpoint"):
        fsck(parts)


def test_a_log_signed_over_other_receipts_is_found(parts: LogParts, tmp_path: Path) -> None:
    other = LogParts(tmp_path / "other", settings=LogSettings(max_batch_receipts=1000))
    other.add(300, OTHER)
    other.writer().flush()
    reader = other.reader()
    with pytest.raises(StoreCorrupt, match="another root"):
        check_log(
            parts.store,
            DirectoryTileStore(other.log_folder),
            reader.heads,
            origin=ORIGIN,
            verifiers=other.verifiers(),
        )
    other.close()
