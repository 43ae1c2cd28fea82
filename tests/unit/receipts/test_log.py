from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from receipts.checkpoint import verify_checkpoint
from receipts.errors import ReceiptStoreUnavailable
from receipts.log import DAY_S, LogSettings, LogWriter
from receipts.log_errors import LogBusy, LogUnavailable
from receipts.merkle import EMPTY_ROOT
from receipts.receipt_id import WriterId
from tests.support.log_parts import ORIGIN, LogParts, check, heads_of, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LogParts]:
    parts = LogParts(tmp_path)
    yield parts
    parts.close()


def test_an_empty_log_has_a_head_at_once(parts: LogParts) -> None:
    writer = parts.writer()
    assert writer.step() is False
    (head,) = heads_of(parts)
    assert (head.number, head.size, head.root, head.prev, head.consistency) == (1, 0, EMPTY_ROOT, None, ())
    assert writer.head == head
    assert writer.step() is False
    assert len(heads_of(parts)) == 1
    check(parts)


def test_a_batch_is_due_by_age(parts: LogParts) -> None:
    writer = parts.writer()
    writer.step()
    parts.add(3)
    writer.step()
    assert len(heads_of(parts)) == 1
    parts.clock.seconds += 0.4
    parts.add(2)
    writer.step()
    assert len(heads_of(parts)) == 1
    parts.clock.seconds += 0.1
    writer.step()
    assert [head.size for head in heads_of(parts)] == [0, 5]
    check(parts)


def test_a_batch_is_due_by_count(parts: LogParts) -> None:
    writer = parts.writer()
    writer.step()
    parts.add(250)
    while writer.step():
        pass
    assert [head.size for head in heads_of(parts)] == [0, 100, 200]
    parts.clock.seconds += 1
    writer.step()
    assert [head.size for head in heads_of(parts)] == [0, 100, 200, 250]
    check(parts)


def test_a_batch_is_due_when_its_entries_take_too_much_memory(parts: LogParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receipts.log.MAX_BATCH_BYTES", 1000)
    writer = parts.writer()
    writer.step()
    parts.add(20)
    writer.step()
    assert [head.size for head in heads_of(parts)] == [0, 20]


def test_every_utc_day_has_a_head(parts: LogParts) -> None:
    writer = parts.writer()
    writer.step()
    parts.clock.seconds = (parts.clock.now_s() // DAY_S + 1) * DAY_S - 1
    writer.step()
    assert len(heads_of(parts)) == 1
    parts.clock.seconds += 1
    writer.step()
    writer.step()
    first, second = heads_of(parts)
    assert second.time_s % DAY_S == 0
    assert (second.size, second.root, second.consistency) == (first.size, first.root, ())
    check(parts)


def test_the_times_of_heads_never_go_back_when_the_clock_does(parts: LogParts) -> None:
    writer = parts.writer()
    writer.step()
    parts.clock.seconds -= 3600
    parts.add(1)
    writer.flush()
    first, second = heads_of(parts)
    assert second.time_s == first.time_s
    check(parts)


def test_flush_takes_everything_that_is_stored(parts: LogParts) -> None:
    writer = parts.writer()
    assert writer.flush().size == 0
    parts.add(777)
    assert writer.flush().size == 777
    assert writer.flush().number == writer.flush().number
    check(parts)


def test_receipts_of_several_writers_are_one_log(parts: LogParts) -> None:
    other = WriterId("0b6ff3ac-8d3c-4c6c-9d0a-7a4c31a0a001")
    for _ in range(3):
        parts.add(7)
        parts.add(5, other)
    parts.writer().flush()
    check(parts)


def test_partial_tiles_go_once_the_full_one_is_published(parts: LogParts) -> None:
    writer = parts.writer()
    for _ in range(4):
        parts.add(70)
        writer.flush()
    tiles = {
        str(path.relative_to(parts.log_folder)) for path in (parts.log_folder / "tile").rglob("*") if path.is_file()
    }
    assert tiles == {
        "tile/0/000",
        "tile/0/001.p/24",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/24",
    }
    check(parts)


def test_a_second_writer_is_refused_until_the_first_is_gone(parts: LogParts) -> None:
    first = parts.writer()
    with pytest.raises(LogBusy):
        parts.writer()
    parts.close_writer(first)
    parts.writer().step()


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (255, 1), (256, 256), (300, 700), (1, 1, 1)])
def test_a_restarted_log_goes_on(parts: LogParts, counts: Sequence[int]) -> None:
    for count in counts:
        parts.add(count)
        writer = parts.writer()
        writer.flush()
        parts.close_writer(writer)
    check(parts)


def test_both_sets_of_keys_sign_one_head_when_they_rotate(parts: LogParts) -> None:
    writer = parts.writer()
    parts.add(2)
    writer.flush()
    old = parts.verifiers()
    new_keys = parts.signer.prepare_rotation(seeded("second set"))
    parts.add(2)  # The receipt that names the keys is among them.
    parts.signer.introduce(new_keys, 4)
    writer.flush()
    parts.add(2)
    writer.flush()
    new = parts.verifiers()[2:]
    first, joint, last = (head.note for head in heads_of(parts))
    verify_checkpoint(first, old, ORIGIN)
    verify_checkpoint(joint, old, ORIGIN)
    verify_checkpoint(joint, new, ORIGIN)
    verify_checkpoint(last, new, ORIGIN)
    for note, keys in ((first, new), (last, old)):
        with pytest.raises(ValueError, match="missing"):
            verify_checkpoint(note, keys, ORIGIN)
    retired, in_force = json.loads(parts.key_path.read_text())["sets"]
    assert retired["ed25519_seed"] is retired["ml_dsa_44_seed"] is None
    assert None not in in_force.values()
    check(parts)


@pytest.mark.parametrize(
    "settings",
    [{"max_batch_receipts": 0}, {"max_batch_age_ms": -1}, {"poll_interval_ms": 0}, {"max_batch_age_ms": 60_001}],
)
def test_settings_have_bounds(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        LogSettings(**settings)


def test_a_folder_that_cannot_be_made_is_log_unavailable(parts: LogParts) -> None:
    (parts.folder / "file").write_bytes(b"")
    with pytest.raises(LogUnavailable):
        LogWriter(parts.store, parts.folder / "file" / "log", parts.signer, origin=ORIGIN)


def test_a_database_of_another_program_gives_the_lock_back(parts: LogParts) -> None:
    parts.log_folder.mkdir()
    (parts.log_folder / "log.sqlite3").write_bytes(b"something else" * 1000)
    for _ in range(2):
        with pytest.raises(ReceiptStoreUnavailable):
            parts.writer()
