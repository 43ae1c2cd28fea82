"""Files that others replace: read whole or not at all, noticed when changed, replaced atomically."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from extproc import file_watch
from extproc.file_watch import (
    FileRefusedError,
    identity_of,
    locked,
    read_file,
    replace,
    unchanged,
    write_new,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def age(path: Path) -> None:
    """Make the file look as if it had been left alone for an hour."""
    modified_ns = path.stat().st_mtime_ns - 3_600_000_000_000
    os.utime(path, ns=(modified_ns, modified_ns))


def test_a_file_is_read_whole_and_not_shown(path: Path) -> None:
    path.write_bytes(b"secret")
    read = read_file(path, max_bytes=6, forbidden_mode=0)
    assert read.content == b"secret"
    assert read.identity == identity_of(path)
    assert "secret" not in repr(read)


@pytest.mark.parametrize("kind", ["absent", "folder", "too large", "too open", "pipe"])
def test_a_file_that_cannot_be_trusted_is_refused(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
        # Opened for both ends, so that nobody waits for a writer.
        descriptor = os.open(path, os.O_RDWR)
    elif kind != "absent":
        path.write_bytes(b"1234567")
        path.chmod(0o604 if kind == "too open" else 0o600)
    with pytest.raises(FileRefusedError, match=str(path)):
        read_file(path, max_bytes=6, forbidden_mode=0o077)
    if kind == "pipe":
        os.close(descriptor)


def test_a_file_that_changes_while_it_is_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"one")
    fstat = os.fstat

    def write_after(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        path.write_bytes(b"other")
        return status

    monkeypatch.setattr(file_watch.os, "fstat", write_after)
    with pytest.raises(FileRefusedError, match="changed while it was read"):
        read_file(path, max_bytes=100, forbidden_mode=0)


def test_a_settled_file_is_unchanged_until_it_changes(path: Path) -> None:
    path.write_bytes(b"one")
    age(path)
    known = identity_of(path)
    assert unchanged(known, path)
    path.write_bytes(b"two")
    assert not unchanged(known, path)


@pytest.mark.parametrize("change", ["rewritten", "replaced", "removed", "mode"])
def test_every_change_of_a_settled_file_shows(path: Path, change: str) -> None:
    path.write_bytes(b"one")
    age(path)
    known, before = identity_of(path), path.stat()
    if change == "removed":
        path.unlink()
    elif change == "mode":
        path.chmod(0o600 if stat.S_IMODE(before.st_mode) != 0o600 else 0o640)
    elif change == "replaced":
        replace(path, b"two", 0o600)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not unchanged(known, path)


def test_a_file_written_a_moment_ago_is_never_taken_for_unchanged(path: Path) -> None:
    path.write_bytes(b"one")
    assert not unchanged(identity_of(path), path)
    assert not unchanged(None, path)
    assert identity_of(path.with_name("absent")) is None


def test_of_several_that_create_a_file_one_wins_and_none_sees_a_part(path: Path) -> None:
    won: list[bytes] = []
    contents = [bytes([65 + n]) * 100_000 for n in range(8)]

    def create(content: bytes) -> None:
        if write_new(path, content):
            won.append(content)
        assert path.read_bytes() in contents

    threads = [threading.Thread(target=create, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [path.read_bytes()] == won
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_replacement_has_the_mode_asked_for_and_leaves_nothing_behind(path: Path) -> None:
    path.write_bytes(b"old")
    previous = os.umask(0o077)
    try:
        replace(path, b"new", 0o640)
    finally:
        os.umask(previous)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_replacement_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_watch.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(path, b"new", 0o640)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_is_held_by_one_at_a_time(path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(path):
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
