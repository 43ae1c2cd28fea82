"""The checkpoints' file, which only grows: read from its end at start, and a line at a time by whoever reads it all."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import msgspec
import pytest

from kms.audit_check import verify_everything
from kms.audit_files import AuditDamaged, AuditFiles
from kms.audit_log import AuditSettings
from tests.support.kms_audit import AuditParts, event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A, B = msgspec.json.encode("a\n\n\u2014") + b"\n", msgspec.json.encode("b") + b"\n"


def with_checkpoints(folder: Path, content: bytes) -> AuditFiles:
    (folder / "checkpoints").touch(0o600)
    (folder / "checkpoints").write_bytes(content)
    return AuditFiles(folder)


@pytest.mark.parametrize(
    ("content", "all_of_them"),
    [
        (b"", []),
        (b'"torn', []),
        (A, ["a\n\n\u2014"]),
        (A + B, ["a\n\n\u2014", "b"]),
        (A + B + A[:-1], ["a\n\n\u2014", "b"]),
        (A * 5000 + B, [*["a\n\n\u2014"] * 5000, "b"]),
    ],
    ids=["empty", "torn alone", "one", "two", "torn behind", "many"],
)
def test_whole_lines_are_read_and_the_last_of_them_is_the_newest(
    tmp_path: Path, content: bytes, all_of_them: list[str]
) -> None:
    files = with_checkpoints(tmp_path, content)
    assert [note.decode() for note in files.read_checkpoints()] == all_of_them
    assert files.newest_checkpoint() == (all_of_them[-1].encode() if all_of_them else None)


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert AuditFiles(tmp_path).newest_checkpoint() is None
    assert list(AuditFiles(tmp_path).read_checkpoints()) == []


@pytest.mark.parametrize(
    "content", [A + b"x\n", A + b'"' + b"x" * 9000 + b'"\n', A + b"x" * 40_000], ids=["no string", "long", "no end"]
)
def test_what_was_never_written_is_damage(tmp_path: Path, content: bytes) -> None:
    files = with_checkpoints(tmp_path, content)
    with pytest.raises(AuditDamaged) as caught:
        list(files.read_checkpoints())
    assert caught.value.reason == "checkpoint"
    if b"x" * 9000 not in content or not content.endswith(b"\n"):
        with pytest.raises(AuditDamaged):
            files.newest_checkpoint()


def test_all_that_are_there_now_are_read_and_none_that_come_later(tmp_path: Path) -> None:
    files = with_checkpoints(tmp_path, A + B)
    reading = files.read_checkpoints()
    with (tmp_path / "checkpoints").open("ab") as file:
        file.write(B * 3)
    assert len(list(reading)) == 2


def test_reading_them_all_takes_no_memory_for_them(tmp_path: Path) -> None:
    line = msgspec.json.encode("x" * 270) + b"\n"
    files = with_checkpoints(tmp_path, line * 30_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in files.read_checkpoints()) == 30_000
        assert files.newest_checkpoint() is not None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# A log with many of them


@pytest.fixture
def parts(tmp_path: Path) -> AuditParts:
    parts = AuditParts(tmp_path / "audit", settings=AuditSettings(append_s=10, checkpoint_after_s=3600))
    for number in range(4):
        log = parts.open_whole()
        log.append_now(event(number=str(number)))
        log.close()
    return parts


def verify(parts: AuditParts) -> int:
    files = AuditFiles(parts.folder)
    identity = files.read_identity()
    assert identity is not None
    return verify_everything(files, identity)


def test_a_log_starts_however_many_checkpoints_it_has(parts: AuditParts) -> None:
    path = parts.folder / "checkpoints"
    own = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(2**30 + 1)  # A hole: nothing is written.
        file.seek(0, 2)
        file.write(b"\n" + own)
    assert parts.fault() is None


def altered(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"\\n2\\n", b"\\n1\\n"), *lines[2:]]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines[:2], lines[3], lines[2], lines[-1]],
        altered,
        lambda lines: [lines[0], b'"x"\n', *lines[1:]],
    ],
    ids=["first two exchanged", "two exchanged", "another size", "one that is none"],
)
def test_an_older_checkpoint_that_was_changed_is_found_by_whoever_reads_them_all(
    parts: AuditParts, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = parts.folder / "checkpoints"
    own = path.read_bytes().splitlines(keepends=True)
    assert len(own) == 5
    assert verify(parts) == 8
    path.write_bytes(b"".join(change(own)))
    with pytest.raises(AuditDamaged) as caught:
        verify(parts)
    assert caught.value.reason == "checkpoint"


def test_older_checkpoints_are_compared_with_the_records(parts: AuditParts) -> None:
    """A head of this log that its records do not lead to: of a copy that went on in another way."""
    other = AuditParts(parts.folder.parent / "other")
    other.folder.mkdir(mode=0o700)
    for path in parts.folder.iterdir():
        (other.folder / path.name).touch(0o600)
        (other.folder / path.name).write_bytes(path.read_bytes())
    for each, number in ((parts, "4"), (other, "5")):
        log = each.open_whole()
        log.append_now(event(number=number))
        log.close()
        each.fault()
    ours = (parts.folder / "checkpoints").read_bytes().splitlines(keepends=True)
    theirs = (other.folder / "checkpoints").read_bytes().splitlines(keepends=True)
    assert ours[:5] == theirs[:5]
    assert verify(parts) == 11
    (parts.folder / "checkpoints").write_bytes(b"".join([*ours[:5], theirs[5], *ours[6:]]))
    with pytest.raises(AuditDamaged) as caught:
        verify(parts)
    assert caught.value.reason == "root"
    (parts.folder / "checkpoints").write_bytes(b"".join([*ours[:6], theirs[5], *ours[6:]]))
    with pytest.raises(AuditDamaged, match="contradict"):
        verify(parts)
