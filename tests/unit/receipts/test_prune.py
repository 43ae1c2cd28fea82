from __future__ import annotations

import argparse
import contextlib
import itertools
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from receipts import prune as pruning
from receipts.__main__ import main
from receipts.chain import ChainBroken
from receipts.errors import ReceiptStoreUnavailable, StoreError
from receipts.fsck import check_log
from receipts.log import LogSettings
from receipts.log_errors import EntryPruned
from receipts.log_reader import LogReader
from receipts.merkle_verify import verify_inclusion
from receipts.open_store import open_store
from receipts.prune import PruneDateError, PrunePlan, drop_bundles, parse_before, plan_pruning, prune
from receipts.receipt import LogEventReceipt, leaf_hash, parse_receipt
from receipts.receipt_id import WriterId
from receipts.store import MAX_BATCH_RECEIPTS, PrunableStore, PrunedReceipt, StoredReceipt
from receipts.store_check import check_store
from receipts.tile import ENTRIES, Tile
from receipts.tile_store import DirectoryTileStore
from tests.support.log_parts import ORIGIN, LogParts
from tests.support.receipt_checks import receipts_of, stored, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from receipts.receipt import ReceiptDraft

DAY_MS = 86_400_000
LOG_TIME_MS = 1_800_000_000_000  # 2027-01-15
NOON_MS = 1_763_726_400_000  # 2025-11-21T12:00:00Z
PRUNER = WriterId("99999999-2222-4333-8444-555555555555")
_RUNS = itertools.count(1)
KEY = (1_763_712_000_000).to_bytes(8, "big") + b"k" * 24


def fill(store: PrunableStore, drafts: list[ReceiptDraft], writer: WriterId) -> list[StoredReceipt]:
    tail, done = store.writer_tail(writer), []
    for start in range(0, len(drafts), MAX_BATCH_RECEIPTS):
        appended = store.append(drafts[start : start + MAX_BATCH_RECEIPTS], tail)
        tail = appended.tail
        done += [stored(outcome) for outcome in appended.outcomes]
    return done


def carry_out(store: PrunableStore, plan: PrunePlan) -> StoredReceipt | None:
    number = next(_RUNS)
    writer = WriterId(f"99999999-2222-4333-8444-{number:012x}")
    return prune(store, plan, now_ms=NOON_MS, random=number.to_bytes(10, "little"), writer=writer)


@pytest.fixture
def aged(any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId) -> list[StoredReceipt]:
    """Ten receipts, one an hour, the last of them now."""
    return fill(any_store, [make_draft(time_ms=NOON_MS - hours * 3_600_000) for hours in reversed(range(10))], writer)


def test_payloads_before_a_time_are_dropped_and_their_hashes_kept(
    any_store: PrunableStore, aged: list[StoredReceipt]
) -> None:
    plan = plan_pruning(any_store, NOON_MS - 3 * 3_600_000, None)
    assert plan == PrunePlan(NOON_MS - 3 * 3_600_000, 1, 6, 0)
    event = carry_out(any_store, plan)
    assert event is not None
    rows = list(receipts_of(any_store))
    assert [isinstance(row, PrunedReceipt) for row in rows] == [True] * 6 + [False] * 5
    assert rows[6:] == [*aged[6:], event]
    for old, row in zip(aged[:6], rows[:6], strict=True):
        assert isinstance(row, PrunedReceipt)
        assert row.raw == b""
        assert row.leaf_hash == leaf_hash(old.raw)
        assert (row.id, row.seq, row.writer, row.wseq, row.decision, row.reason, row.status) == (
            *(old.id, old.seq, old.writer, old.wseq),
            *(old.decision, old.reason, old.status),
        )
        assert any_store.get(old.id) == row
    assert any_store.get(aged[6].id) == aged[6]
    assert any_store.pruned_to() == 6
    assert verify(any_store) == 11
    report = check_store(any_store)
    assert (report.receipts, report.pruned, report.writers) == (11, 6, 2)


def test_the_log_records_a_pruning(any_store: PrunableStore, aged: list[StoredReceipt]) -> None:
    event = carry_out(any_store, plan_pruning(any_store, NOON_MS, None))
    assert event is not None
    parsed = parse_receipt(event.raw)
    assert isinstance(parsed, LogEventReceipt)
    assert (parsed.event.name, parsed.event.facts) == (
        "pruned",
        {"before_ms": NOON_MS, "first_seq": 1, "last_seq": 9, "receipts": 9},
    )


def test_a_second_pruning_goes_on_from_the_first(any_store: PrunableStore, aged: list[StoredReceipt]) -> None:
    carry_out(any_store, plan_pruning(any_store, NOON_MS - 7 * 3_600_000, None))
    plan = plan_pruning(any_store, NOON_MS - 3_600_000, None)
    assert (plan.first_seq, plan.last_seq, plan.receipts) == (3, 8, 6)
    carry_out(any_store, PrunePlan(plan.before_ms, plan.first_seq, plan.last_seq))
    assert any_store.pruned_to() == 8
    assert verify(any_store) == 12


def test_nothing_to_prune_writes_nothing(any_store: PrunableStore, aged: list[StoredReceipt]) -> None:
    for before_ms in (0, NOON_MS - 9 * 3_600_000):
        plan = plan_pruning(any_store, before_ms, None)
        assert plan.receipts == 0
        assert carry_out(any_store, plan) is None
    assert list(receipts_of(any_store)) == aged
    assert any_store.pruned_to() == 0


def test_an_empty_store_has_nothing_to_prune(any_store: PrunableStore) -> None:
    assert plan_pruning(any_store, NOON_MS, None).receipts == 0


def test_what_stands_behind_a_newer_receipt_stays(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    """A clock that stepped back: only a beginning of the log is dropped, never a receipt that is not old."""
    fill(any_store, [make_draft(time_ms=time_ms) for time_ms in (5, 7, 20, 6)], writer)
    assert plan_pruning(any_store, 10, None).last_seq == 2


def test_only_what_the_log_has_taken_in_is_dropped(any_store: PrunableStore, aged: list[StoredReceipt]) -> None:
    plan = plan_pruning(any_store, NOON_MS, 4)
    assert (plan.last_seq, plan.waiting) == (4, 5)
    carry_out(any_store, plan)
    assert plan_pruning(any_store, NOON_MS, 2) == PrunePlan(NOON_MS, 5, 4, 5)


def test_a_plan_looks_as_far_as_the_store_goes(
    any_store: PrunableStore, aged: list[StoredReceipt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_LOOK_RECEIPTS", 3)
    assert plan_pruning(any_store, NOON_MS - 3 * 3_600_000, None).last_seq == 6
    assert plan_pruning(any_store, NOON_MS + 1, None).last_seq == 10


def test_a_pruning_broken_off_is_completed_by_the_next(
    any_store: PrunableStore, aged: list[StoredReceipt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "DROP_RECEIPTS", 2)
    plan = plan_pruning(any_store, NOON_MS, None)

    def breaks(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(any_store, plan, now_ms=NOON_MS, random=bytes(10), writer=PRUNER, progress=breaks)
    assert [row.raw == b"" for row in receipts_of(any_store)] == [True] * 2 + [False] * 9
    assert any_store.pruned_to() == 9  # What may be gone at any moment counts as gone.
    again = plan_pruning(any_store, NOON_MS, None)
    assert again.receipts == 0
    told: list[int] = []
    assert prune(any_store, again, now_ms=NOON_MS, random=b"x" * 10, writer=PRUNER, progress=told.append) is None
    assert told == [2, 4, 6, 7]
    assert [row.raw == b"" for row in receipts_of(any_store)] == [True] * 9 + [False] * 2
    assert verify(any_store) == 11


def test_an_event_that_cannot_be_stored_drops_nothing(any_store: PrunableStore, aged: list[StoredReceipt]) -> None:
    plan = plan_pruning(any_store, NOON_MS - 3_600_000, None)
    prune(any_store, plan, now_ms=NOON_MS, random=bytes(10), writer=PRUNER)
    with pytest.raises(StoreError, match="id"):
        # The same moment and random bytes: the same id.
        prune(any_store, PrunePlan(NOON_MS, 9, 10), now_ms=NOON_MS, random=bytes(10), writer=aged[0].writer)
    assert any_store.pruned_to() == 8


def test_a_retried_check_gets_its_decision_after_pruning_too(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    first = fill(any_store, [make_draft(idempotency_key=KEY, decision="deny", reason="x", status=403)], writer)[0]
    carry_out(any_store, plan_pruning(any_store, NOON_MS, None))
    outcome = any_store.append([make_draft(idempotency_key=KEY)], any_store.writer_tail(writer)).outcomes[0]
    assert isinstance(outcome, PrunedReceipt)
    assert outcome.duplicate
    assert (outcome.id, outcome.decision, outcome.reason, outcome.status) == (first.id, "deny", "x", 403)
    assert verify(any_store) == 2


def test_chains_go_on_after_all_of_a_writer_was_dropped(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    fill(any_store, [make_draft() for _ in range(3)], writer)
    carry_out(any_store, plan_pruning(any_store, NOON_MS, None))
    fill(any_store, [make_draft()], writer)
    assert verify(any_store) == 5


def run_sql(url: str, statement: str) -> None:
    """Run one statement as whoever may do everything but switch triggers off."""
    if url.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:"))) as connection, connection:
            connection.execute(statement)
    else:
        with psycopg.connect(url) as connection:
            connection.execute("SET search_path = signet")
            connection.execute(statement.replace("x''", "''").encode())


REFUSED = {
    "a payload that no pruning permits": "UPDATE receipts SET raw = x'', trace_id = NULL WHERE seq = 7",
    "another payload": "UPDATE receipts SET raw = leaf_hash, trace_id = NULL WHERE seq = 6",
    "a payload put back": "UPDATE receipts SET raw = leaf_hash WHERE seq = 1",
    "a payload dropped, and its trace kept": "UPDATE receipts SET raw = x'', trace_id = 'a' WHERE seq = 6",
    "a row": "DELETE FROM receipts WHERE seq = 1",
    "a permit that the log does not record": "INSERT INTO prunings VALUES (9, 8)",
    "a permit for what comes after it": "INSERT INTO prunings VALUES (11, 11)",
    "a permit widened": "UPDATE prunings SET up_to_seq = 9",
    "a permit taken back": "DELETE FROM prunings",
    **{
        f"{column} beside it": f"UPDATE receipts SET raw = x'', trace_id = NULL, {column} = {value} WHERE seq = 6"
        for column, value in {
            "seq": "60",
            "id": "'another'",
            "writer": "'another'",
            "wseq": "60",
            "time_ms": "0",
            "kind": "'log_event'",
            "decision": "NULL",
            "reason": "'other'",
            "status": "200",
            "idempotency_key": "leaf_hash",
            "leaf_hash": "(SELECT leaf_hash FROM receipts WHERE seq = 1)",
        }.items()
    },
}


@pytest.fixture
def half_pruned(any_store: PrunableStore, aged: list[StoredReceipt]) -> PrunableStore:
    """Ten receipts and an event: the first two are dropped, and up to the sixth may be."""

    def breaks(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pruning, "DROP_RECEIPTS", 2)
        prune(any_store, PrunePlan(NOON_MS, 1, 6), now_ms=NOON_MS, random=bytes(10), writer=PRUNER, progress=breaks)
    return any_store


@pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED)
def test_the_database_refuses_every_other_change(statement: str, half_pruned: PrunableStore, store_url: str) -> None:
    before = list(receipts_of(half_pruned))
    with pytest.raises((sqlite3.IntegrityError, psycopg.Error)):
        run_sql(store_url, statement)
    assert list(receipts_of(half_pruned)) == before
    assert half_pruned.pruned_to() == 6


def test_the_permitted_change_is_the_one_it_seems(half_pruned: PrunableStore, store_url: str) -> None:
    """The statements above are refused for what they add to this one."""
    run_sql(store_url, "UPDATE receipts SET raw = x'', trace_id = NULL WHERE seq = 6")
    assert isinstance(half_pruned.read(5, 1)[0], PrunedReceipt)


@pytest.mark.parametrize(("event_seq", "up_to_seq"), [(3, 2), (99, 2), (11, 11), (11, 0)])
def test_only_a_recorded_pruning_is_permitted(
    event_seq: int, up_to_seq: int, any_store: PrunableStore, aged: list[StoredReceipt]
) -> None:
    carry_out(any_store, PrunePlan(NOON_MS, 1, 5))
    with pytest.raises(ReceiptStoreUnavailable):
        any_store.permit_pruning(event_seq, up_to_seq)
    assert any_store.pruned_to() == 5


def test_dropped_payloads_are_gone_from_the_files(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    store = open_store(f"sqlite:{tmp_path / 'a'}")
    fill(store, [make_draft(reason=f"unheard_of_{number}") for number in range(50)], writer)
    # Of all that a payload says, only the reason is kept beside it.
    marker = b'"reason":"unheard_of_'
    assert any(marker in path.read_bytes() for path in tmp_path.iterdir())
    carry_out(store, plan_pruning(store, NOON_MS, None))
    assert not any(marker in path.read_bytes() for path in tmp_path.iterdir())
    store.close()


def test_a_change_to_a_kept_hash_is_found(
    tmp_path: Path, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    store = open_store(f"sqlite:{tmp_path / 'a'}")
    fill(store, [make_draft() for _ in range(3)], writer)
    carry_out(store, PrunePlan(NOON_MS, 1, 2))
    with contextlib.closing(sqlite3.connect(tmp_path / "a")) as connection, connection:
        connection.execute("DROP TRIGGER receipts_keep_values")
        connection.execute("UPDATE receipts SET leaf_hash = zeroblob(32) WHERE seq = 2")
    with pytest.raises(ChainBroken):
        verify(store)
    with pytest.raises(StoreError, match="receipt 3"):
        check_store(store)
    store.close()


DATES = {
    "2025-11-21": NOON_MS - DAY_MS // 2,
    "2025-11-22": NOON_MS + DAY_MS // 2,
    "1970-01-01": 0,
}


@pytest.mark.parametrize(("text", "before_ms"), DATES.items())
def test_dates_are_utc_days(text: str, before_ms: int) -> None:
    assert parse_before(text, NOON_MS) == before_ms


@pytest.mark.parametrize(
    "text", ["", "yesterday", "20251121", "2025-11-31", "2025-W01-1", "1969-12-31", "2025-11-23", " 2025-11-21"]
)
def test_what_is_no_date_or_still_to_come_is_refused(text: str) -> None:
    with pytest.raises(PruneDateError):
        parse_before(text, NOON_MS)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogParts]:
    parts = LogParts(tmp_path, settings=LogSettings(max_batch_receipts=1000))
    parts.add(800)
    parts.writer().flush()
    yield parts
    parts.close()


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    pruning.register(parser.add_subparsers(required=True))
    parsed = parser.parse_args(["prune", *arguments])
    assert parsed.run is pruning.run
    return pruning.run(parsed, clock_ms=lambda: LOG_TIME_MS)


def whole(log: LogParts) -> tuple[int, int]:
    reader = log.reader()
    report = check_log(
        log.store,
        DirectoryTileStore(log.log_folder),
        reader.heads,
        origin=ORIGIN,
        verifiers=log.verifiers(),
    )
    return report.receipts, report.pruned


def test_older_proofs_verify_after_a_pruning_and_the_log_goes_on(log: LogParts) -> None:
    raws, before = log.raws(), log.reader()
    proofs = [before.prove_inclusion(index) for index in (0, 255, 256, 799)]
    log.close_all_writers()
    assert (
        command(
            "--before", "2027-01-16", "--store", f"sqlite:{log.folder}/receipts.sqlite3", "--log", str(log.log_folder)
        )
        == 0
    )
    assert log.store.pruned_to() == 800
    writer = log.writer()
    log.add(300)
    head = writer.flush()
    assert head.size == 800 + 1 + 300
    reader = LogReader(log.log_folder, pruned_to=log.store.pruned_to)
    for proof in proofs:
        verify_inclusion(leaf_hash(raws[proof.index]), proof.index, proof.head.size, proof.proof, proof.head.root)
        again = reader.prove_inclusion(proof.index)
        assert again.leaf == leaf_hash(raws[proof.index])
    assert reader.prove_consistency(800, head.size)
    for index in range(4):
        with pytest.raises(EntryPruned):
            reader.tile(Tile(ENTRIES, index))
    reader.close()
    assert whole(log) == (1101, 800)


def test_the_bundle_at_the_logs_end_goes_with_the_next_pruning(log: LogParts) -> None:
    log.close_all_writers()
    tiles = DirectoryTileStore(log.log_folder)
    assert drop_bundles(tiles, 800, 800) == 3
    assert drop_bundles(tiles, 800, 800) == 0
    log.add(300)
    log.writer().flush()
    assert tiles.read(Tile(ENTRIES, 3)) is not None
    assert drop_bundles(tiles, 800, 1100) == 1
    assert [tiles.read(Tile(ENTRIES, index)) for index in range(4)] == [None] * 4


def test_a_bundle_after_the_pruned_ones_stays(log: LogParts) -> None:
    assert drop_bundles(DirectoryTileStore(log.log_folder), 256, 800) == 1
    assert drop_bundles(DirectoryTileStore(log.log_folder), 257, 800) == 1
    assert drop_bundles(DirectoryTileStore(log.log_folder), 0, 800) == 0


def test_receipts_that_the_log_has_not_taken_in_stay(log: LogParts, capsys: pytest.CaptureFixture[str]) -> None:
    log.add(5)
    url = f"sqlite:{log.folder}/receipts.sqlite3"
    assert command("--before", "2027-01-16", "--store", url, "--log", str(log.log_folder)) == 0
    said = capsys.readouterr().out
    assert "800 receipts (seq 1 to 800), recorded as " in said
    assert "5 receipts as old stay" in said
    assert "32 of these payloads stay in the log's last bundle" in said
    log.close_all_writers()
    log.writer().flush()
    assert whole(log) == (806, 800)


def test_a_dry_run_changes_nothing(log: LogParts, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:{log.folder}/receipts.sqlite3"
    assert command("--before", "2027-01-16", "--store", url, "--log", str(log.log_folder), "--dry-run") == 0
    assert capsys.readouterr().out == "would drop the payloads of 800 receipts (seq 1 to 800)\n"
    assert whole(log) == (800, 0)


BAD_COMMANDS = {
    "a bad date": ("--before", "2026-13-01", "--no-log"),
    "a date to come": ("--before", "9999-01-01", "--no-log"),
    "no log there": ("--before", "2027-01-16", "--log", "elsewhere"),
    "no such kind of store": ("--before", "2027-01-16", "--no-log", "--store", "mysql://root:hunter2@x/y"),
}


@pytest.mark.parametrize("arguments", BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_a_command_that_cannot_begin_says_why(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prune", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err
    assert "hunter2" not in said.err + said.out
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_opened_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGNET_RECEIPTS_URL", f"sqlite:{tmp_path / 'missing' / 'a'}")
    assert main(["prune", "--before", "2025-01-01", "--no-log"]) == 1
    assert "store_unavailable" in capsys.readouterr().err
