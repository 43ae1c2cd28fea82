from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from receipts.log_errors import LogUnavailable
from receipts.tile import ENTRIES, Tile, TileError, encode_entries
from receipts.tile_store import DirectoryTileStore, read_tile

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = b"".join(bytes([number]) * 32 for number in range(256))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryTileStore:
    return DirectoryTileStore(tmp_path / "new" / "log")


def test_tiles_lie_where_the_specification_says(tmp_path: Path, store: DirectoryTileStore) -> None:
    store.write([(Tile(0, 1_234_067), WHOLE), (Tile(ENTRIES, 5, 2), encode_entries([b"a", b"b"]))])
    root = tmp_path / "new" / "log"
    assert (root / "tile/0/x001/x234/067").read_bytes() == WHOLE
    assert (root / "tile/entries/005.p/2").read_bytes() == b"\0\1a\0\1b"
    assert store.read(Tile(0, 1_234_067)) == WHOLE
    assert store.read(Tile(0, 1_234_068)) is None
    assert store.read(Tile(0, 1_234_067, 3)) is None


def test_everything_is_private_and_nothing_unfinished_stays(tmp_path: Path, store: DirectoryTileStore) -> None:
    store.write([(Tile(0, 0), WHOLE), (Tile(0, 1, 1), WHOLE[:32])])
    store.publish(b"note")
    paths = list((tmp_path / "new").rglob("*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir() and path.name != "new"} == {0o700}
    assert sorted(path.name for path in paths if path.is_file()) == ["000", "1", "checkpoint"]


def test_the_checkpoint_is_replaced(store: DirectoryTileStore) -> None:
    assert store.read_checkpoint() is None
    store.publish(b"one")
    store.publish(b"two")
    assert store.read_checkpoint() == b"two"


def test_a_dropped_partial_tile_is_cut_from_the_full_one(store: DirectoryTileStore) -> None:
    store.write([(Tile(0, 0, 3), WHOLE[:96]), (Tile(0, 0, 7), WHOLE[:224])])
    assert read_tile(store, Tile(0, 0, 5)) is None
    store.write([(Tile(0, 0), WHOLE)])
    store.drop_partial(Tile(0, 0))
    store.drop_partial(Tile(0, 0))
    assert store.read(Tile(0, 0, 3)) is None
    assert read_tile(store, Tile(0, 0, 3)) == WHOLE[:96]
    assert read_tile(store, Tile(0, 1)) is None
    store.write([(Tile(0, 0), WHOLE[:-1])])
    with pytest.raises(TileError):
        read_tile(store, Tile(0, 0, 3))


def test_each_file_is_synced_before_its_rename_and_its_folder_after(
    store: DirectoryTileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, type(store._root).replace

    def seen_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def seen_replace(path: Path, target: Path) -> Path:
        events.append(f"rename {path.name} {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(type(store._root), "replace", seen_replace)
    store.write([(Tile(0, 0), WHOLE), (Tile(0, 1), WHOLE)])
    assert events == [
        "sync 000.tmp",
        "rename 000.tmp 000",
        "sync 001.tmp",
        "rename 001.tmp 001",
        # Also the folders in which new folders were made.
        *[f"sync {name}" for name in (store._root.parent.name, "log", "tile", "0")],
    ]


def test_a_file_left_over_by_a_crash_is_written_over(tmp_path: Path, store: DirectoryTileStore) -> None:
    store.publish(b"one")
    (tmp_path / "new/log/checkpoint.tmp").write_bytes(b"half of a longer file")
    store.publish(b"two")
    assert store.read_checkpoint() == b"two"


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.write([(Tile(0, 0), WHOLE)]),
        lambda store: store.publish(b"x"),
        lambda store: store.read_checkpoint(),
        lambda store: store.drop_partial(Tile(0, 0)),
    ],
)
def test_what_the_system_raises_becomes_log_unavailable(
    tmp_path: Path, call: Callable[[DirectoryTileStore], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryTileStore(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    monkeypatch.setattr("shutil.rmtree", full)
    monkeypatch.setattr("pathlib.Path.read_bytes", full)
    with pytest.raises(LogUnavailable, match="28"):
        call(store)
