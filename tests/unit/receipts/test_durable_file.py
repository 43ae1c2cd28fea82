"""Files that are on disk, whole, when the call returns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from receipts.durable_file import replace_synced, replace_unsynced, sync, write_synced


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and renamed, in order."""
    seen: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def seen_fsync(descriptor: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def seen_replace(path: Path, target: Path) -> Path:
        seen.append(f"rename {path.name} {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    return seen


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path: Path, events: list[str]) -> None:
    path = tmp_path / "notes.json"
    replace_synced(path, b"one")
    assert events == ["sync notes.json.tmp", "rename notes.json.tmp notes.json", f"sync {tmp_path.name}"]
    events.clear()
    replace_unsynced(path, b"two")
    assert events == ["sync notes.json.tmp", "rename notes.json.tmp notes.json"]
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    sync(path)
    assert events[-1] == "sync notes.json"


def test_what_a_crash_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.json.tmp").write_bytes(b"half of a longer file")
    replace_synced(tmp_path / "notes.json", b"two")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("notes.json", b"two")]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"another's")
    (tmp_path / "notes.json").symlink_to(target)
    (tmp_path / "other.json.tmp").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        write_synced(tmp_path / "notes.json", b"x")
    with pytest.raises(OSError, match="symbolic"):
        replace_synced(tmp_path / "other.json", b"x")
    replace_synced(tmp_path / "notes.json", b"x")
    assert not (tmp_path / "notes.json").is_symlink()
    assert target.read_bytes() == b"another's"


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.json"
    replace_synced(path, b"one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_synced(path, b"two")
    assert path.read_bytes() == b"one"
