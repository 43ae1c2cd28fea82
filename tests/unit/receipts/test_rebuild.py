from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from receipts.errors import StoreCorrupt
from receipts.log import LogSettings
from receipts.log_errors import LogForked
from receipts.prune import drop_bundles
from receipts.tile import ENTRIES, Tile
from receipts.tile_store import DirectoryTileStore
from tests.support.log_parts import LogParts, check
from tests.unit.receipts.test_log_pruned import drop_payloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 5000


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LogParts]:
    parts = LogParts(tmp_path, settings=LogSettings(max_batch_receipts=100_000))
    parts.add(SIZE)
    parts.writer().flush()
    parts.close_all_writers()
    yield parts
    parts.close()


def files_of(parts: LogParts) -> dict[str, bytes]:
    root = parts.log_folder / "tile"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _without(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _with(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "mended"),
    [
        (lambda root: None, 0),
        (_without("tile/0/000"), 1),
        (_without("tile/0/019.p/136"), 1),
        (_without("tile/entries/019.p/136"), 1),
        (_with("tile/0/007", bytes(8192)), 1),
        (_with("tile/entries/012", b""), 1),
        (_with("tile/1/000.p/19", bytes(10)), 1),
        (lambda root: [_without("tile/0/019.p/136")(root), _with("tile/0/019", bytes(7))(root)], 1),
        (lambda root: shutil.rmtree(root / "tile"), 41),
    ],
)
def test_every_lost_or_damaged_tile_comes_back_as_it_was(
    parts: LogParts, damage: Callable[[Path], None], mended: int
) -> None:
    before = files_of(parts)
    damage(parts.log_folder)
    assert (files_of(parts) == before) == (mended == 0)
    writer = parts.writer()
    assert writer.rebuild() == mended
    assert files_of(parts) == before
    parts.add(300)
    assert writer.flush().size == SIZE + 300
    check(parts)


def test_a_log_without_a_head_has_nothing_to_write_again(tmp_path: Path) -> None:
    parts = LogParts(tmp_path)
    parts.add(3)
    assert parts.writer().rebuild() == 0
    parts.close()


def test_nothing_is_written_from_receipts_that_lead_elsewhere(parts: LogParts, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(parts.log_folder / "tile")
    read = parts.store.read
    writer = parts.writer()
    for change, error in (
        (lambda found: [each for each in found if each.seq != 4000], StoreCorrupt),
        (lambda found: [each for each in found if each.seq <= 4000], LogForked),
        (lambda found: [each for each in found if each.seq != 1], StoreCorrupt),
    ):
        monkeypatch.setattr(parts.store, "read", lambda after, limit, change=change: change(read(after, limit)))
        with pytest.raises(error):
            writer.rebuild()
        assert not (parts.log_folder / "tile").exists()


def test_bundles_of_pruned_payloads_do_not_come_back(parts: LogParts, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_payloads(parts, 600, monkeypatch)
    assert drop_bundles(DirectoryTileStore(parts.log_folder), 600, SIZE) == 3
    before = files_of(parts)
    shutil.rmtree(parts.log_folder / "tile")
    writer = parts.writer()
    assert writer.rebuild() == len(before)
    assert files_of(parts) == before
    assert DirectoryTileStore(parts.log_folder).read(Tile(ENTRIES, 2)) is None
