"""The real supervisor and its workers: starting again, reloading, stopping, and what is left when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from extproc.accepted import ACCEPTED_FILE
from extproc.config_fields import ConfigError
from extproc.errors import ServerFault
from extproc.supervisor import MIN_BACKOFF_S, Supervisor
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.check_calls import FilterCalls, reason_of, receipt_of
from tests.support.filter_process import FilterFolder, filter_folder, running, until
from tests.unit.policy.test_engines import COMPILED


@pytest.fixture
def served() -> Iterator[FilterFolder]:
    with filter_folder(drain_timeout_s=1) as folder:
        folder.start("serve")
        folder.pid(0)
        folder.pid(1)
        yield folder


def new_pid(folder: FilterFolder, old: int, index: int = 0) -> int:
    until(lambda: folder.status(index).get("pid", old) != old, f"worker {index} runs again; log:\n{folder.logged()}")
    return int(folder.status(index)["pid"])


def log_lines(folder: FilterFolder, text: str) -> list[float]:
    lines = (json.loads(line) for line in folder.logged().rpartition("\n")[0].splitlines() if line.startswith("{"))
    return [datetime.fromisoformat(line["time"]).timestamp() for line in lines if text in line["message"]]


def test_runs_the_configured_workers_and_stops_them_all(served: FilterFolder) -> None:
    pids = [served.pid(0), served.pid(1)]
    assert len({*pids, served.processes[0].pid}) == 3
    for index in (0, 1):
        with FilterCalls(served.socket(index)) as calls:
            assert reason_of(served.pass_once(calls)) == "allowed"
    served.processes[0].terminate()
    assert served.processes[0].wait(15) == 0
    assert not any(running(pid) for pid in pids)
    assert not list((served.folder / "run").glob("*.sock"))


def test_killed_worker_comes_back_and_the_other_one_goes_on(served: FilterFolder) -> None:
    victim, other = served.pid(0), served.pid(1)
    os.kill(victim, signal.SIGKILL)
    with FilterCalls(served.socket(1)) as calls:
        assert reason_of(served.pass_once(calls)) == "allowed"
    assert new_pid(served, victim) != victim
    with FilterCalls(served.socket(0)) as calls:
        assert reason_of(served.pass_once(calls)) == "allowed"
    assert served.pid(1) == other
    served.wait_logged("worker 0 ended with -9")


def test_worker_that_cannot_start_is_tried_again_more_and_more_rarely(served: FilterFolder) -> None:
    keys = served.keyring.read_bytes()
    served.keyring.write_text("[")
    os.kill(served.pid(0), signal.SIGKILL)
    for number in (2, 4):
        served.wait_logged(f"starting again in {number * MIN_BACKOFF_S:.1f} s")
    first, second = (log_lines(served, f"in {number * MIN_BACKOFF_S:.1f} s")[0] for number in (2, 4))
    assert second - first >= 2 * MIN_BACKOFF_S
    with FilterCalls(served.socket(1)) as calls:
        assert reason_of(served.pass_once(calls)) == "allowed", "the other one still has the good configuration"
    served.keyring.write_bytes(keys)
    until(lambda: running(int(served.status(0)["pid"])), "worker 0 runs again")
    assert served.processes[0].poll() is None


BROKEN_POLICY = '\n[policy]\nmodule = "gone.wasm"\n'
LATE_ROUTE = '\n[[route]]\nname = "late"\npath = "/late"\nguard = "open"\n'


@pytest.mark.parametrize("edit", ["[[route", LATE_ROUTE], ids=["broken", "good"])
def test_edit_counts_for_no_worker_before_a_reload_says_so(served: FilterFolder, edit: str) -> None:
    """A worker that starts again takes the configuration that was accepted, so that all decide alike."""
    served.config.write_text(served.config_text + edit)
    victim = served.pid(0)
    os.kill(victim, signal.SIGKILL)
    new_pid(served, victim)
    for index in (0, 1):
        with FilterCalls(served.socket(index)) as calls:
            assert reason_of(served.pass_once(calls)) == "allowed"
            assert reason_of(served.ask(calls, "/late")) == "no_route"


def test_worker_that_starts_after_a_reload_has_what_was_loaded(served: FilterFolder) -> None:
    served.config.write_text(served.config_text + LATE_ROUTE)
    served.processes[0].send_signal(signal.SIGHUP)
    served.wait_logged("configuration reloaded", times=2)
    victim = served.pid(0)
    os.kill(victim, signal.SIGKILL)
    new_pid(served, victim)
    with FilterCalls(served.socket(0)) as calls:
        assert reason_of(served.ask(calls, "/late")) == "allowed"


def test_reload_reaches_every_worker_also_one_that_is_just_starting(served: FilterFolder) -> None:
    victim = served.pid(0)
    os.kill(victim, signal.SIGKILL)
    until(lambda: not running(victim), "the worker is dead")
    served.config.write_text(served.config_text + LATE_ROUTE)
    for _ in range(3):
        served.processes[0].send_signal(signal.SIGHUP)
        served.wait_logged("configuration reloaded")
    new_pid(served, victim)
    for index in (0, 1):
        with FilterCalls(served.socket(index)) as calls:
            until(lambda: reason_of(served.ask(calls, "/late")) == "allowed", "the new route is in force")
    assert len(log_lines(served, "starting again")) == 1, "no worker was ended by a reload"


def test_hung_worker_is_killed_when_it_does_not_drain(served: FilterFolder) -> None:
    hung = served.pid(0)
    os.kill(hung, signal.SIGSTOP)
    served.processes[0].terminate()
    assert served.processes[0].wait(20) == 0
    served.wait_logged("worker 0 did not drain in time and is killed")
    assert not running(hung)


def test_killed_supervisor_takes_its_workers_with_it_and_a_new_one_takes_over(served: FilterFolder) -> None:
    pids = [served.pid(0), served.pid(1)]
    served.processes[0].kill()
    served.processes[0].wait()
    again = served.start("serve")
    served.wait_logged("worker 0 drains")
    until(lambda: not any(running(pid) for pid in pids), "the old workers ended")
    for index in (0, 1):
        new_pid(served, pids[index], index)
        with FilterCalls(served.socket(index)) as calls:
            assert reason_of(served.pass_once(calls)) == "allowed"
    again.send_signal(signal.SIGINT)
    assert again.wait(15) == 0


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_folder_where_others_may_put_sockets_is_refused(mode: int) -> None:
    with filter_folder(workers=1) as folder:
        (folder.folder / "run").chmod(mode)
        with pytest.raises(ServerFault, match=r"filter\.socket_dir.*0700"):
            Supervisor(folder.config, {}).run()
        assert list((folder.folder / "run").iterdir()) == []


def test_folder_that_others_may_only_pass_is_served() -> None:
    with filter_folder(workers=1) as folder:
        (folder.folder / "run").chmod(0o755)
        folder.start("serve")
        folder.pid()


def test_leftover_metrics_of_an_earlier_run_are_dropped() -> None:
    with filter_folder(workers=1) as folder:
        stale = folder.folder / "run" / "metrics" / "counter_1.db"
        stale.parent.mkdir()
        stale.write_bytes(b"left")
        folder.start("serve")
        folder.pid()
        assert not stale.exists()


def test_what_no_worker_could_start_from_is_not_accepted(served: FilterFolder) -> None:
    served.config.write_text(served.config_text + BROKEN_POLICY)
    served.processes[0].send_signal(signal.SIGHUP)
    served.wait_logged("configuration not reloaded", times=2)
    assert (served.folder / "run" / ACCEPTED_FILE).read_text() == served.config_text
    victim = served.pid(0)
    os.kill(victim, signal.SIGKILL)
    new_pid(served, victim)
    with FilterCalls(served.socket(0)) as calls:
        assert reason_of(served.pass_once(calls)) == "allowed"


@pytest.mark.parametrize("module", [None, b"", b"\x00asm\x01\x00\x00\x00"], ids=["absent", "empty", "no policy"])
def test_a_policy_that_no_worker_could_use_starts_nothing(module: bytes | None) -> None:
    with filter_folder(workers=1) as folder:
        if module is not None:
            (folder.folder / "gone.wasm").write_bytes(module)
        folder.config.write_text(folder.config_text + BROKEN_POLICY)
        with pytest.raises(ConfigError, match="policy"):
            Supervisor(folder.config, {})
        assert list((folder.folder / "run").iterdir()) == []


def digest_of(folder: FilterFolder, response: CheckResponse) -> str:
    with contextlib.closing(SqliteReceiptStore(folder.folder / "receipts.sqlite3")) as store:
        stored = store.get(receipt_of(response))  # type: ignore[arg-type]
    assert stored is not None
    return str(json.loads(stored.raw)["policy"]["digest"])


def test_a_policy_file_that_was_changed_decides_nothing_before_a_reload() -> None:
    with filter_folder(drain_timeout_s=1) as served:
        module = served.folder / "own.wasm"
        module.write_bytes(COMPILED.read_bytes())
        served.config.write_text(served.config_text + '\n[policy]\nmodule = "own.wasm"\n')
        served.start("serve")
        victim, _ = served.pid(0), served.pid(1)
        module.write_bytes(COMPILED.read_bytes() + b"\x00\x02\x01x")
        os.kill(victim, signal.SIGKILL)
        new_pid(served, victim)

        def digests() -> list[str]:
            found = []
            for index in (0, 1):
                with FilterCalls(served.socket(index)) as calls:
                    found.append(digest_of(served, served.pass_once(calls)))
            return found

        before = digests()
        assert len({*before}) == 1, "a worker that started again decides by the policy that the other one runs"
        served.processes[0].send_signal(signal.SIGHUP)
        served.wait_logged("configuration reloaded", times=2)
        after = digests()
        assert len({*after}) == 1
        assert after != before


def test_a_reload_that_cannot_be_kept_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with filter_folder(workers=1) as folder:
        supervisor = Supervisor(folder.config, {})
        supervisor._prepare()
        (folder.folder / "run" / f"{ACCEPTED_FILE}.tmp").mkdir()
        folder.config.write_text(folder.config_text + LATE_ROUTE)
        supervisor._accept()
        assert "nothing changes" in caplog.text
        assert (folder.folder / "run" / ACCEPTED_FILE).read_text() == folder.config_text


def test_a_supervisor_that_ends_leaves_what_its_successor_accepted() -> None:
    with filter_folder(workers=1) as folder:
        accepted = folder.folder / "run" / ACCEPTED_FILE
        old, new = (Supervisor(folder.config, {}) for _ in range(2))
        old._prepare()
        new._prepare()
        assert old._stop_all([]) == 0
        assert accepted.read_text() == folder.config_text
        assert new._stop_all([]) == 0
        assert not accepted.exists()
        last = Supervisor(folder.config, {})
        last._prepare()
        accepted.unlink()
        assert last._stop_all([]) == 0, "nothing to remove is no failure"
