from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from receipts.checkpoint_keys import create_key_file
from receipts.errors import ReceiptStoreUnavailable, StoreCorrupt
from receipts.log import LOCK_NAME, LogSettings
from receipts.log_errors import LogBusy, LogForked
from receipts.receipt_id import WriterId
from receipts.sth_store import SthStore
from receipts.tile import Tile
from receipts.tile_store import DirectoryTileStore
from tests.support.log_parts import NOW_S, ORIGIN, LogParts, check, heads_of, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from receipts.sth import SignedTreeHead


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LogParts]:
    parts = LogParts(tmp_path)
    yield parts
    parts.close()


class Killed(BaseException):
    """The process died here."""


class DyingTiles(DirectoryTileStore):
    """A tile store that dies at its `n`-th file operation: before it, after it, or half way through."""

    def __init__(self, root: Path, operation: int, *, after: bool) -> None:
        super().__init__(root)
        self.left = operation
        self.after = after

    def _dies(self) -> bool:
        self.left -= 1
        return self.left == 0

    def write(self, tiles: Sequence[tuple[Tile, bytes]]) -> None:
        for each in tiles:
            dies = self._dies()
            if dies and not self.after:
                raise Killed
            super().write([each])
            if dies:
                raise Killed

    def drop_partial(self, tile: Tile) -> None:
        dies = self._dies()
        if dies and not self.after:
            raise Killed
        super().drop_partial(tile)
        if dies:
            raise Killed

    def publish(self, checkpoint: bytes) -> None:
        dies = self._dies()
        if dies and not self.after:
            raise Killed
        super().publish(checkpoint)
        if dies:
            raise Killed


@pytest.mark.parametrize("after", [False, True])
def test_a_log_that_dies_at_any_file_goes_on_without_a_fork(tmp_path: Path, *, after: bool) -> None:
    for operation in range(1, 40):
        parts = LogParts(tmp_path / str(operation))
        parts.add(200)
        writer = parts.writer(tiles=DyingTiles(parts.log_folder, operation, after=after))
        died = False
        try:
            for _ in range(3):
                writer.flush()
                parts.add(120)
        except Killed:
            died = True
        parts.close_writer(writer)  # What the kernel does for a dead process.
        published = parts.log_folder / "checkpoint"
        seen = published.read_bytes() if published.exists() else None
        parts.add(3)
        writer = parts.writer()
        writer.flush()
        # What was published before the crash is one of the heads, and the newest has everything.
        assert seen is None or seen in [head.note for head in heads_of(parts)]
        assert writer.head is not None
        assert writer.head.size == len(parts.raws())
        check(parts)
        parts.close()
        if not died:
            assert operation > 10
            return
    raise AssertionError("the log never got through")


class FailingHeads:
    """`SthStore.append` that fails: before the head is durable, or after."""

    def __init__(self, append: Callable[..., None], *, persists: bool) -> None:
        self.append = append
        self.persists = persists
        self.fails = True

    def __call__(self, store: SthStore, head: SignedTreeHead, after: SignedTreeHead | None) -> None:
        if self.fails:
            self.fails = False
            if self.persists:
                self.append(store, head, after)
            raise ReceiptStoreUnavailable("disk full")
        self.append(store, head, after)


@pytest.mark.parametrize("persists", [False, True])
def test_a_head_that_failed_to_be_stored_forks_nothing_whether_it_is_there_or_not(
    parts: LogParts, monkeypatch: pytest.MonkeyPatch, *, persists: bool
) -> None:
    writer = parts.writer()
    writer.step()
    parts.add(50)
    failing = FailingHeads(SthStore.append, persists=persists)
    monkeypatch.setattr(SthStore, "append", lambda *arguments: failing(*arguments))
    with pytest.raises(ReceiptStoreUnavailable):
        writer.flush()
    assert [writer.problem] == ["store_unavailable"]
    parts.add(10)
    assert writer.flush().size == 60
    assert writer.problem is None
    assert [head.size for head in heads_of(parts)] == ([0, 50, 60] if persists else [0, 60])
    check(parts)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda p: (p.log_folder / "tile/0/001.p/44").unlink(), StoreCorrupt),
        (lambda p: _rewrite(p.log_folder / "tile/0/001.p/44", lambda data: bytes(len(data))), StoreCorrupt),
        (lambda p: _rewrite(p.log_folder / "tile/1/000.p/1", lambda data: bytes(32)), LogForked),
        (lambda p: (p.log_folder / "tile/entries/001.p/44").unlink(), StoreCorrupt),
        (lambda p: _rewrite(p.log_folder / "checkpoint", lambda data: data.replace(b"300", b"301")), LogForked),
        (lambda p: _rewrite(p.log_folder / "checkpoint", lambda data: b"nonsense"), LogForked),
        (lambda p: [path.unlink() for path in p.log_folder.glob("log.sqlite3*")], LogForked),
    ],
)
def test_a_damaged_log_is_not_gone_on_from(
    parts: LogParts, damage: Callable[[LogParts], object], error: type[Exception]
) -> None:
    parts.add(300)
    writer = parts.writer()
    writer.flush()
    parts.close_writer(writer)
    damage(parts)
    parts.add(1)
    writer = parts.writer()
    for _ in range(2):
        with pytest.raises(error):
            writer.flush()
    assert not list(parts.log_folder.rglob("*301*"))


def test_heads_that_were_set_back_are_a_fork(parts: LogParts) -> None:
    parts.add(5)
    writer = parts.writer()
    writer.flush()
    parts.close_writer(writer)
    saved = {path: path.read_bytes() for path in parts.log_folder.glob("log.sqlite3*")}
    for _ in range(2):
        parts.add(5)
        writer = parts.writer()
        writer.flush()
        parts.close_writer(writer)
    for path in parts.log_folder.glob("log.sqlite3*"):
        path.unlink()
    for path, data in saved.items():
        path.write_bytes(data)
        path.chmod(0o600)
    with pytest.raises(LogForked, match="not among the stored heads"):
        parts.writer().step()


def test_a_store_that_was_set_back_or_replaced_is_a_fork(tmp_path: Path) -> None:
    parts = LogParts(tmp_path / "one")
    parts.add(10)
    parts.writer().flush()
    parts.close()
    for count in (9, 0, 11):
        (tmp_path / "one" / "receipts.sqlite3").unlink()
        for path in (tmp_path / "one").glob("receipts.sqlite3-*"):
            path.unlink()
        again = LogParts(tmp_path / "one")
        again.add(count, WriterId("0b6ff3ac-8d3c-4c6c-9d0a-7a4c31a0a001"))
        with pytest.raises(LogForked, match="does not have the receipts"):
            again.writer().flush()
        again.close()


def test_two_writers_that_no_lock_keeps_apart_fork_nothing(tmp_path: Path) -> None:
    """As on a file system without locks, or when someone removed the lock's file: one of the two finds out."""
    one = LogParts(tmp_path)
    one.add(100)
    first = one.writer()
    first.flush()
    (one.log_folder / LOCK_NAME).unlink()
    two = LogParts(tmp_path)
    second = two.writer()
    two.add(50)
    assert second.flush().size == 150
    for writer in (first, second):
        one.add(30)
        with pytest.raises(LogBusy):
            writer.flush()
        # It went on from what is stored now, and so it is the other one's turn to find out.
        assert writer.flush().size == len(one.raws())
        check(one)
    assert [head.size for head in heads_of(one)] == [100, 150, 180, 210]
    one.close()
    two.close()


def test_a_missing_checkpoint_is_published_again(parts: LogParts) -> None:
    parts.add(10)
    writer = parts.writer()
    writer.flush()
    parts.close_writer(writer)
    (parts.log_folder / "checkpoint").unlink()
    parts.writer().step()
    check(parts)


def test_a_gap_in_the_store_is_never_signed(parts: LogParts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.add(10)
    writer = parts.writer()
    read = parts.store.read
    monkeypatch.setattr(
        parts.store, "read", lambda after, limit: [each for each in read(after, limit) if each.seq != 4]
    )
    with pytest.raises(StoreCorrupt, match="receipt 4 is missing"):
        writer.step()


def test_run_goes_on_after_what_may_pass_and_stops_at_what_may_not(
    parts: LogParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receipts.log.RETRY_AFTER_S", 0.001)
    parts.settings = LogSettings(max_batch_receipts=100, max_batch_age_ms=0, poll_interval_ms=1)
    writer = parts.writer()
    parts.add(250)
    stop = threading.Event()
    failing = FailingHeads(SthStore.append, persists=False)

    def append(*arguments: object) -> None:
        failing(*arguments)  # type: ignore[arg-type]
        if arguments[1].size == 250:  # type: ignore[attr-defined]
            stop.set()

    monkeypatch.setattr(SthStore, "append", append)
    writer.run(stop)
    assert writer.head is not None
    assert writer.head.size == 250
    check(parts)

    def busy(*arguments: object) -> None:
        raise LogBusy("another")

    monkeypatch.setattr(SthStore, "append", busy)
    parts.add(1)
    with pytest.raises(LogBusy):
        writer.run(threading.Event())
    assert writer.problem == "log_busy"


def test_a_head_that_other_keys_signed_is_not_gone_on_from(parts: LogParts) -> None:
    parts.add(3)
    writer = parts.writer()
    writer.flush()
    parts.close_writer(writer)
    parts.key_path.unlink()
    create_key_file(parts.key_path, ORIGIN, NOW_S, seeded("other keys"))
    with pytest.raises(StoreCorrupt, match="head 1 does not verify"):
        parts.writer().step()
