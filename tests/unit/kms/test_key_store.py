"""The key store: durable, one writer a key, one effect an op_id, never older than the audit log says (I-6, I-14)."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kms import key_store
from kms.audit_anchor import AuditedState, state_fault
from kms.errors import Backpressure, Conflict, Internal, StoreUnavailable, Timeout
from kms.key_change import AppliedChange
from kms.key_record import KeyState
from kms.key_store import KeyStore
from kms.op_answers import OP_TTL_MS, OpAnswers, OpKey
from kms.state_file import FILE_NAME
from tests.support.kms_core import HandClock
from tests.support.kms_records import change_of, name_of, record_of, version_of

OP_ID = "8f9a2c34-0000-4000-8000-000000000001"


@contextlib.asynccontextmanager
async def running(directory: Path | None) -> AsyncIterator[KeyStore]:
    store = KeyStore(directory, HandClock().clock)
    store.start()
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


async def test_a_change_is_there_after_a_restart_with_the_same_digest(tmp_path: Path) -> None:
    record = record_of(versions=2)
    async with running(tmp_path) as store:
        before = store.state_digest()
        applied = await store.commit(change_of(record))
        assert store.keys.find(record.name) is record
        assert (applied.epoch, applied.former_digest, applied.digest) == (1, before, store.state_digest())
    async with running(tmp_path) as store:
        assert store.keys.find(record.name) == record
        assert (store.epoch, store.state_digest()) == (1, applied.digest)
        assert store.unaudited() == [applied]


async def test_amnesia_keeps_nothing() -> None:
    async with running(None) as store:
        await store.commit(change_of(record_of()))
        assert store.epoch == 1
    async with running(None) as store:
        assert (store.epoch, list(store.keys)) == (0, [])


async def test_every_change_has_a_greater_epoch_and_another_digest() -> None:
    async with running(None) as store:
        record = record_of()
        seen = [store.state_digest()]
        await store.commit(change_of(record))
        for state in (KeyState.DISABLED, KeyState.ENABLED, KeyState.DISABLED):
            seen.append(store.state_digest())
            changed = record.changed(state, None)
            applied = await store.commit(change_of(changed, record, verb="state"))
            assert applied.former_digest == seen[-1]
            record = changed
        seen.append(store.state_digest())
        assert (store.epoch, len(set(seen))) == (4, 5)


async def test_of_two_changes_made_from_one_record_the_second_is_refused() -> None:
    async with running(None) as store:
        record = record_of()
        await store.commit(change_of(record))
        outcomes = await asyncio.gather(
            *(store.commit(change_of(record.rotated(version_of(2)), record)) for _ in range(5)),
            return_exceptions=True,
        )
        refused = [each for each in outcomes if isinstance(each, Conflict)]
        assert len(refused) == 4
        assert {each.reason for each in refused} == {"rotate_race"}
        assert len(store.keys.find(record.name).versions) == 2
        assert store.epoch == 2


async def test_an_answer_is_found_by_its_op_id_also_after_a_restart(tmp_path: Path) -> None:
    op = OpKey("core", "create_key", OP_ID)
    async with running(tmp_path) as store:
        assert store.find_answer(op, b"d" * 32) is None
        await store.commit(change_of(record_of(), op_id=OP_ID))
    async with running(tmp_path) as store:
        found = store.find_answer(op, b"d" * 32)
        assert found is not None
        assert found.answer == b'{"kid":"x"}'
        with pytest.raises(Conflict):
            store.find_answer(op, b"e" * 32)
        with pytest.raises(Conflict) as race:
            await store.commit(change_of(record_of(name_of(9)), op_id=OP_ID))
        assert race.value.reason == "op_id_race"
        assert store.epoch == 1


async def test_answers_over_the_bound_leave_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as store:
        monkeypatch.setattr(store._answers, "_max_ops", 3)
        for number in range(6):
            await store.commit(change_of(record_of(name_of(number)), op_id=f"{number}"))
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        kept = [row[0] for row in connection.execute("SELECT op_id FROM ops ORDER BY op_id")]
    # The last one's eviction is made durable with the change after it.
    assert kept == ["2", "3", "4", "5"]


def answers_in(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return [row[0] for row in connection.execute("SELECT op_id FROM ops ORDER BY op_id")]


async def test_an_op_id_that_fell_out_and_is_used_again_at_once_keeps_its_new_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as store:
        monkeypatch.setattr(store._answers, "_max_ops", 2)
        for number, op_id in enumerate(["0", "1", "2", "0"]):
            await store.commit(change_of(record_of(name_of(number)), op_id=op_id))
        assert answers_in(tmp_path) == ["0", "1", "2"]
        await store.commit(change_of(record_of(name_of(9))))
        assert answers_in(tmp_path) == ["0", "2"]


async def test_an_op_id_that_falls_out_and_comes_back_in_one_batch_is_kept(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, HandClock().clock)
    try:
        store._apply([change_of(record_of(name_of(1)), op_id="0")])
        late = HandClock()
        late.now_s += OP_TTL_MS / 1000 + 10
        store._clock = late.clock
        store._apply([change_of(record_of(name_of(2)), op_id="1"), change_of(record_of(name_of(3)), op_id="0")])
        store._apply([change_of(record_of(name_of(4)))])
        assert answers_in(tmp_path) == ["0", "1"]
    finally:
        store.close()


async def test_answers_that_a_start_finds_over_the_bound_leave_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as store:
        for number in range(4):
            await store.commit(change_of(record_of(name_of(number)), op_id=f"{number}"))
    with monkeypatch.context() as patched:
        patched.setattr(key_store, "OpAnswers", lambda: OpAnswers(max_ops=2))
        async with running(tmp_path) as store:
            await store.commit(change_of(record_of(name_of(9))))
    assert answers_in(tmp_path) == ["2", "3"]


async def test_one_change_that_has_no_form_fails_alone(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, HandClock().clock)
    try:
        bad = replace(record_of(name_of(2)), policy_hints=(("n", 2**64),))
        first, refused, third = store._apply(
            [change_of(record_of(name_of(1))), change_of(bad), change_of(record_of(name_of(3)))]
        )
        assert isinstance(refused, Internal)
        assert isinstance(refused.__cause__, OverflowError)
        assert isinstance(first, AppliedChange)
        assert isinstance(third, AppliedChange)
        assert third.former_digest == first.digest
    finally:
        store.close()
    async with running(tmp_path) as again:
        assert (again.epoch, again.state_digest()) == (2, third.digest)
        assert sorted(str(record.name) for record in again.keys) == [str(name_of(1)), str(name_of(3))]


async def test_of_changes_in_one_batch_a_tenant_gets_no_more_parts_than_it_may_have() -> None:
    store = KeyStore(None, HandClock().clock)
    try:
        changes = [
            replace(change_of(record_of(name_of(number, tenant=tenant))), tenant_parts_max=2)
            for number, tenant in enumerate(["core", "core", "core", "acme", "acme"])
        ]
        refused = [isinstance(each, StoreUnavailable) for each in store._apply(changes)]
        assert refused == [False, False, True, False, False]
        record = store.keys.find(name_of(0))
        destroyed = record.changed(KeyState.DESTROYED, None)
        store._apply([replace(change_of(destroyed, record, verb="destroy"), tenant_parts_max=2)])
        (applied,) = store._apply([changes[2]])
        assert isinstance(applied, AppliedChange)
    finally:
        store.close()


async def test_changes_whose_event_is_on_disk_are_forgotten_with_the_next_change(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        first = await store.commit(change_of(record_of(name_of(1)), op_id=OP_ID))
        assert store.unaudited_of(OpKey("core", "create_key", OP_ID)) == first
        store.mark_audited(first.epoch)
        assert store.unaudited() == []
        assert store.unaudited_of(OpKey("core", "create_key", OP_ID)) is None
        second = await store.commit(change_of(record_of(name_of(2))))
    async with running(tmp_path) as store:
        assert store.unaudited() == [second]


async def test_a_file_is_this_users_alone_and_open_once(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    async with running(folder):
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with pytest.raises(StoreUnavailable) as refused:
            KeyStore(folder, HandClock().clock)
        assert refused.value.reason == "key_store_locked"
    async with running(folder):
        pass


async def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path):
        pass
    (tmp_path / FILE_NAME).chmod(0o644)
    with pytest.raises(StoreUnavailable):
        KeyStore(tmp_path, HandClock().clock)


def alter(folder: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys SET record = x'00'",
        "UPDATE keys SET name = replace(name, 'core', 'acme')",
        "DROP TABLE keys",
        "PRAGMA user_version = 9",
        "PRAGMA application_id = 9",
    ],
)
async def test_a_file_that_contradicts_itself_is_not_opened(tmp_path: Path, statement: str) -> None:
    async with running(tmp_path) as store:
        await store.commit(change_of(record_of()))
    alter(tmp_path, statement)
    with pytest.raises(StoreUnavailable):
        KeyStore(tmp_path, HandClock().clock)


def test_a_foreign_database_is_not_made_ours(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch(0o600)
    alter(tmp_path, "CREATE TABLE theirs (x)")
    with pytest.raises(StoreUnavailable) as refused:
        KeyStore(tmp_path, HandClock().clock)
    assert refused.value.reason == "key_store_format"


async def test_the_epoch_cannot_sink_in_the_file(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await store.commit(change_of(record_of()))
    with pytest.raises(sqlite3.IntegrityError):
        alter(tmp_path, "UPDATE state SET epoch = 0")


def audited(epoch: int, digest: str) -> AuditedState:
    return AuditedState(epoch, digest)


async def test_a_store_put_back_from_a_copy_is_told_by_the_audit_log(tmp_path: Path) -> None:
    live, copy = tmp_path / "live", tmp_path / "copy"
    async with running(live) as store:
        first = await store.commit(change_of(record_of(name_of(1))))
        store.mark_audited(first.epoch)
    shutil.copytree(live, copy)
    async with running(live) as store:
        second = await store.commit(change_of(record_of(name_of(2))))
        assert state_fault(audited(second.epoch, second.digest), store) is None
    async with running(copy) as store:
        assert state_fault(audited(first.epoch, first.digest), store) is None
        assert state_fault(audited(second.epoch, second.digest), store) == "key_store_rolled_back"


async def test_a_record_changed_in_place_is_told_by_the_audit_log(tmp_path: Path) -> None:
    record = record_of(versions=2)
    async with running(tmp_path) as store:
        applied = await store.commit(change_of(record))
    altered = record.changed(KeyState.ENABLED, 2)
    data = key_store.encode_record(altered).hex()
    alter(tmp_path, f"UPDATE keys SET record = x'{data}'")
    async with running(tmp_path) as store:
        assert store.keys.find(record.name) == altered
        assert state_fault(audited(applied.epoch, applied.digest), store) == "key_store_changed"


async def test_an_audit_log_older_than_the_store_is_told_but_not_a_crash_between_the_two(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        first = await store.commit(change_of(record_of(name_of(1))))
        await store.commit(change_of(record_of(name_of(2))))
        assert state_fault(audited(first.epoch, first.digest), store) is None
        store.mark_audited(1)
        store.mark_audited(2)
        await store.commit(change_of(record_of(name_of(3))))
        assert state_fault(audited(0, ""), store) == "audit_rolled_back"


async def test_a_failed_transaction_changes_nothing_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as store:
        record = record_of(name_of(1))
        await store.commit(change_of(record))
        before = (store.epoch, store.state_digest())
        tidy = store._tidy

        def fail(audited_epochs: set[int], epoch: int) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store, "_tidy", fail)
        for change in (change_of(record_of(name_of(2))), change_of(record.rotated(version_of(2)), record)):
            with pytest.raises(StoreUnavailable) as refused:
                await store.commit(change)
            assert refused.value.reason == "key_store"
        assert (store.epoch, store.state_digest()) == before
        assert store.keys.get(name_of(2)) is None
        monkeypatch.setattr(store, "_tidy", tidy)
        applied = await store.commit(change_of(record.rotated(version_of(2)), record))
        assert applied.former_digest == before[1]
    async with running(tmp_path) as store:
        assert (store.epoch, store.state_digest()) == (2, applied.digest)


async def test_full_slow_and_closed_stores_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    store = KeyStore(None, HandClock().clock)
    with pytest.raises(StoreUnavailable):
        await store.commit(change_of(record_of()))
    store.close()
    monkeypatch.setattr(key_store, "MAX_PENDING_CHANGES", 1)
    monkeypatch.setattr(key_store, "COMMIT_TIMEOUT_S", 0.02)
    async with running(None) as slow:
        started, release = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        apply = slow._commits._commit

        def held(changes: object) -> object:
            loop.call_soon_threadsafe(started.set)
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(5)
            return apply(changes)  # type: ignore[arg-type]

        monkeypatch.setattr(slow._commits, "_commit", held)
        first = asyncio.create_task(slow.commit(change_of(record_of(name_of(1)))))
        await started.wait()
        second = asyncio.create_task(slow.commit(change_of(record_of(name_of(2)))))
        await asyncio.sleep(0)
        with pytest.raises(Backpressure):
            await slow.commit(change_of(record_of(name_of(3))))
        with pytest.raises(Timeout):
            await first
        with pytest.raises(Timeout):
            await second
        release.set()


_KILLED = """
import asyncio, os, sys
from pathlib import Path
from kms.clock import SYSTEM_CLOCK
from kms.key_store import KeyStore
from tests.support.kms_records import change_of, name_of, record_of

async def main():
    store = KeyStore(Path(sys.argv[1]), SYSTEM_CLOCK)
    store.start()
    for number in range(100):
        applied = await store.commit(change_of(record_of(name_of(number)), op_id=str(number)))
        print(applied.epoch, applied.digest, flush=True)
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.parametrize("at", [0, 7])
async def test_what_was_answered_before_a_kill_is_there_after_it(tmp_path: Path, at: int) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _KILLED, str(tmp_path), str(at)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        timeout=30,
    )
    assert done.returncode == -9, done.stderr
    epoch, digest = done.stdout.split()[-2:]
    async with running(tmp_path) as store:
        assert (str(store.epoch), store.state_digest()) == (epoch, digest)
        assert [change.epoch for change in store.unaudited()] == list(range(1, at + 2))
        assert store.find_answer(OpKey("core", "create_key", str(at)), b"d" * 32) is not None
