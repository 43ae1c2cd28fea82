from __future__ import annotations

import errno
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from extproc import signal_board
from extproc.breaker import BreakerState, Phase, Seen
from extproc.probe_budget import LANES
from extproc.signal_board import _COUNTERS, MAX_ROUTES, SignalBoard, SignalBoardError

ROUTES = ["a", "b", "c"]
STATE = BreakerState(phase=Phase.OPEN, epoch=3, since_ms=1_700_000_000_000, dwell_ms=4_000, relapses=2)


def test_counters_of_all_workers_add_up_and_routes_stay_apart(tmp_path: Path) -> None:
    boards = [SignalBoard(tmp_path, ROUTES, index, 3) for index in range(3)]
    for number, board in enumerate(boards, 1):
        heard = Seen(samples=10 * number, failed=number, slow=2 * number, probes=3, probes_failed=1, withdrawn=2)
        board.add(1, heard)
        board.add(1, Seen(samples=1))
    for board in boards:
        assert board.totals(1) == Seen(samples=63, failed=6, slow=12, probes=9, probes_failed=3, withdrawn=6)
        assert board.totals(0) == board.totals(2) == Seen()


def test_what_is_seen_while_another_worker_writes_is_never_impossible(tmp_path: Path) -> None:
    board = SignalBoard(tmp_path, ROUTES, 0, 1)
    board._words[1] = board._words[2] = 5
    board._words[4] = 7
    assert board.totals(0) == Seen()


def test_a_state_is_read_by_the_others_as_it_was_told_and_not_by_its_owner(tmp_path: Path) -> None:
    one, other = SignalBoard(tmp_path, ROUTES, 0, 2), SignalBoard(tmp_path, ROUTES, 1, 2)
    assert other.states(0) == []
    one.tell(0, STATE)
    assert other.states(0) == [STATE]
    assert one.states(0) == other.states(1) == []
    one.tell(0, replace(STATE, epoch=4, phase=Phase.HALF_OPEN))
    assert other.states(0) == [replace(STATE, epoch=4, phase=Phase.HALF_OPEN)]


def test_a_state_that_is_half_written_is_left_out_and_mended_by_its_next_writer(tmp_path: Path) -> None:
    one, other = SignalBoard(tmp_path, ROUTES, 0, 2), SignalBoard(tmp_path, ROUTES, 1, 2)
    one.tell(0, STATE)
    # As a worker leaves it that is killed between two words.
    one._words[_COUNTERS] += 1
    assert other.states(0) == []
    SignalBoard(tmp_path, ROUTES, 0, 2).tell(0, STATE)
    assert other.states(0) == [STATE]


def test_a_phase_that_is_none_is_left_out(tmp_path: Path) -> None:
    one, other = SignalBoard(tmp_path, ROUTES, 0, 2), SignalBoard(tmp_path, ROUTES, 1, 2)
    one.tell(0, STATE)
    one._words[_COUNTERS + 2] = 9
    assert other.states(0) == []


def test_counters_outlive_the_worker_that_wrote_them(tmp_path: Path) -> None:
    board = SignalBoard(tmp_path, ROUTES, 0, 1)
    board.add(0, Seen(samples=7))
    board.close()
    assert SignalBoard(tmp_path, ROUTES, 0, 1).totals(0) == Seen(samples=7)


def test_another_set_of_routes_or_workers_has_another_board(tmp_path: Path) -> None:
    SignalBoard(tmp_path, ROUTES, 0, 1).add(0, Seen(samples=7))
    assert SignalBoard(tmp_path, ["a", "c", "b"], 0, 1).totals(0) == Seen()
    assert SignalBoard(tmp_path, ROUTES, 0, 2).totals(0) == Seen()


def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    SignalBoard(tmp_path, ROUTES, 0, 1)
    (file,) = tmp_path.glob("breaker-*.board")
    assert file.stat().st_mode & 0o777 == 0o600


def test_probes_of_a_lane_that_come_back_to_another_worker_are_out_no_more(tmp_path: Path) -> None:
    one, other = SignalBoard(tmp_path, ROUTES, 0, 2), SignalBoard(tmp_path, ROUTES, 1, 2)
    one.move_probe(1, LANES - 1, 1)
    one.move_probe(1, 0, 1)
    assert (other.probes_out(1, LANES - 1), other.probes_out(1, 0), other.probes_out(0, 0)) == (1, 1, 0)
    other.move_probe(1, LANES - 1, -1)
    assert (one.probes_out(1, LANES - 1), one.probes_out(1, 0)) == (0, 1)
    other.move_probe(1, LANES - 1, -1)
    assert one.probes_out(1, LANES - 1) == -1
    assert other.states(1) == []
    assert one.totals(2) == Seen()
    assert one.probes_out(2, 0) == 0


def test_a_board_of_another_boot_is_removed_and_nothing_of_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one\n")
    monkeypatch.setattr(signal_board, "BOOT_ID_FILE", boot)
    former = SignalBoard(tmp_path, ROUTES, 1, 2)
    former.add(0, Seen(samples=7))
    former.tell(0, STATE)
    boot.write_text("two\n")
    board = SignalBoard(tmp_path, ROUTES, 0, 2)
    assert (board.totals(0), board.states(0)) == (Seen(), [])
    assert len(list(tmp_path.glob("*.board"))) == 1
    boot.unlink()
    with pytest.raises(SignalBoardError):
        SignalBoard(tmp_path, ROUTES, 0, 2)


def test_a_board_has_all_its_room_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SignalBoard(tmp_path, ROUTES, 0, 2)
    (file,) = tmp_path.glob("breaker-*.board")
    assert file.stat().st_blocks * 512 >= file.stat().st_size

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SignalBoardError):
        SignalBoard(tmp_path, ROUTES, 0, 3)


def write_many(folder: Path, index: int) -> None:
    board = SignalBoard(folder, ROUTES, index, 2)
    for number in range(2_000):
        board.add(0, Seen(samples=2, failed=1))
        board.tell(0, replace(STATE, epoch=number, since_ms=number, dwell_ms=number, relapses=number))


def test_two_processes_that_write_at_once_lose_nothing_and_are_never_read_half(tmp_path: Path) -> None:
    reader = SignalBoard(tmp_path, ROUTES, 0, 2)
    writer = multiprocessing.get_context("spawn").Process(target=write_many, args=(tmp_path, 1))
    writer.start()
    read = 0
    while writer.is_alive():
        for state in reader.states(0):
            read += 1
            assert state.epoch == state.since_ms == state.dwell_ms == state.relapses
    writer.join(60)
    assert writer.exitcode == 0
    assert reader.totals(0) == Seen(samples=4_000, failed=2_000)
    assert reader.states(0)[0].epoch == 1_999
    assert read > 0


@pytest.mark.parametrize(
    ("routes", "index", "workers"),
    [(ROUTES, -1, 1), (ROUTES, 2, 2), (ROUTES, 0, 65), ([], 0, 1), ([str(n) for n in range(MAX_ROUTES + 1)], 0, 1)],
)
def test_more_than_it_holds_is_refused(tmp_path: Path, routes: list[str], index: int, workers: int) -> None:
    with pytest.raises(SignalBoardError):
        SignalBoard(tmp_path, routes, index, workers)


def test_a_folder_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(SignalBoardError):
        SignalBoard(tmp_path / "absent", ROUTES, 0, 1)
