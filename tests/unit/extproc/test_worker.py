"""One real worker process: serving, reloading, telling what is wrong, draining."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import sqlite3
import time
from collections.abc import Iterator

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from extproc import worker
from extproc.config import load_config
from extproc.policy_engine import route_data
from extproc.worker import end_tasks
from receipts.chain import ChainVerifier
from receipts.receipt import DecisionReceipt, SummaryReceipt, parse_receipt
from receipts.store_sqlite import SqliteReceiptStore
from tests.support.check_calls import FilterCalls, challenge_of, reason_of, receipt_of
from tests.support.filter_process import REPOSITORY, FilterFolder, filter_folder, until
from tests.support.opa_parts import opa_server

WORKER = ("worker", "--index", "0")


@pytest.fixture(scope="module")
def served() -> Iterator[FilterFolder]:
    """A worker that tests share; they leave it as they found it."""
    with filter_folder(workers=1) as folder:
        folder.start(*WORKER)
        folder.pid()
        yield folder


@pytest.fixture(scope="module")
def calls(served: FilterFolder) -> Iterator[FilterCalls]:
    with FilterCalls(served.socket()) as made:
        yield made


def wait_problem(folder: FilterFolder, part: str) -> str:
    until(lambda: part in folder.status().get("problems", {}), f"{part} is told as a problem")
    return str(folder.status()["problems"][part])


def wait_well(folder: FilterFolder) -> None:
    until(lambda: folder.status().get("problems") == {}, "no problem is told any more")


def test_decides_and_keeps_the_receipt_of_what_it_answered(served: FilterFolder, calls: FilterCalls) -> None:
    refused = served.ask(calls)
    passed = calls.check(served.signed(challenge_of(refused)))
    assert [reason_of(refused), reason_of(passed)] == ["missing_signature", "allowed"]
    store = SqliteReceiptStore(served.folder / "receipts.sqlite3")
    with contextlib.closing(store):
        for response in (refused, passed):
            stored = store.get(receipt_of(response))  # type: ignore[arg-type]
            assert stored is not None
            assert stored.reason == reason_of(response)


def test_tells_health_and_status(served: FilterFolder, calls: FilterCalls) -> None:
    wait_well(served)
    assert calls.health() == "SERVING"
    assert {calls.health(f"signet.{part}") for part in ("nonce_store", "receipts", "keyring", "sealing")} == {"SERVING"}
    status = served.status()
    assert status["pid"] == served.processes[0].pid
    assert abs(time.time() * 1000 - status["time_ms"]) < 5000


@pytest.mark.parametrize("part", ["keyring", "sealing"])
def test_broken_file_is_told_without_traffic_and_the_old_one_stays(
    served: FilterFolder, calls: FilterCalls, part: str
) -> None:
    path = served.folder / f"{part}.json"
    good = path.read_bytes()
    challenge = challenge_of(served.ask(calls))
    wait_well(served)
    try:
        path.write_bytes(b"[{")
        assert path.name in wait_problem(served, part)
        until(lambda: calls.health(f"signet.{part}") == "NOT_SERVING", "health tells it")
        assert calls.health() == "SERVING", "it still decides"
        assert reason_of(calls.check(served.signed(challenge))) == "allowed"
        assert reason_of(served.pass_once(calls)) == "allowed"
    finally:
        path.write_bytes(good)
    wait_well(served)
    until(lambda: calls.health(f"signet.{part}") == "SERVING", "health is well again")


RELOADABLE = '\n[[route]]\nname = "late"\npath = "/late/**"\nguard = "open"\n'
REFUSED_RELOADS = {
    "not TOML": "[[route",
    "unknown key": '\n[[route]]\nname = "x"\npath = "/x"\nsurprise = 1\n',
    "gone": "",
    "a floor without room for its slots": "\n[plan.breaker]\nfloor_window_ms = 9\n",
}
NEEDS_RESTART = {
    "filter.workers": ("workers = 1", "workers = 2"),
    "keyring": ("poll_interval_ms = 50", "poll_interval_ms = 51"),
    "receipts.max_refusal_receipts_per_s": ("[admin]", "[receipts]\nmax_refusal_receipts_per_s = 7\n[admin]"),
}


def test_reload_takes_new_routes(served: FilterFolder, calls: FilterCalls) -> None:
    assert reason_of(served.ask(calls, "/late/1")) == "no_route"
    loaded = sum("configuration reloaded" in message for message in served.messages())
    served.config.write_text(served.config_text + RELOADABLE)
    served.processes[0].send_signal(signal.SIGHUP)
    until(lambda: reason_of(served.ask(calls, "/late/1")) == "allowed", "the new route is in force")
    served.config.write_text(served.config_text)
    served.processes[0].send_signal(signal.SIGHUP)
    until(lambda: reason_of(served.ask(calls, "/late/1")) == "no_route", "the old routes are in force")
    served.wait_logged("configuration reloaded", times=loaded + 2)


@pytest.mark.parametrize("name", [*REFUSED_RELOADS, *NEEDS_RESTART])
def test_bad_configuration_is_refused_and_the_old_one_stays(
    served: FilterFolder, calls: FilterCalls, name: str
) -> None:
    refused = sum("configuration not reloaded" in message for message in served.messages())
    added = REFUSED_RELOADS.get(name)
    text = served.config_text.replace(*NEEDS_RESTART[name]) if added is None else served.config_text + added
    assert text != served.config_text or name == "gone"
    try:
        if name == "gone":
            served.config.unlink()
        else:
            # The good part of a bad file does not count either.
            served.config.write_text(RELOADABLE + text if added else text + RELOADABLE)
        served.processes[0].send_signal(signal.SIGHUP)
        served.wait_logged("configuration not reloaded", times=refused + 1)
        assert reason_of(served.ask(calls, "/late/1")) == "no_route"
        assert reason_of(served.pass_once(calls)) == "allowed"
    finally:
        served.config.write_text(served.config_text)
    if added is None:
        assert any(f"a change of {name} needs a restart" in message for message in served.messages())


def test_drain_finishes_the_call_that_waits_for_a_store(served: FilterFolder) -> None:
    with filter_folder(workers=1, nonce_timeout_ms=8000) as folder:
        process = folder.start(*WORKER)
        folder.pid()
        with FilterCalls(folder.socket()) as calls, sqlite3.connect(folder.folder / "nonces.sqlite3") as nonces:
            challenge = challenge_of(folder.ask(calls))
            nonces.execute("BEGIN IMMEDIATE")
            call = calls.start(folder.signed(challenge))
            calls.check(folder.signed("A" * 60))  # answered after the first one has come to the store
            process.terminate()
            folder.wait_logged("worker 0 drains")
            assert not call.done()
            nonces.rollback()
            response = CheckResponse.FromString(call.result())
        nonces.close()
        assert reason_of(response) == "allowed"
        assert process.wait(10) == 0
        assert not folder.socket().exists()
        assert folder.status() == {}
        with contextlib.closing(SqliteReceiptStore(folder.folder / "receipts.sqlite3")) as store:
            assert store.get(receipt_of(response)) is not None  # type: ignore[arg-type]


def test_drain_writes_the_summary_that_is_not_due(served: FilterFolder) -> None:
    with filter_folder(workers=1) as folder:
        folder.config.write_text(folder.config_text + "[receipts]\nmax_refusal_receipts_per_s = 1\n")
        process = folder.start(*WORKER)
        folder.pid()
        with FilterCalls(folder.socket()) as calls:
            for _ in range(30):
                assert reason_of(folder.ask(calls)) == "missing_signature"
        process.terminate()
        assert process.wait(10) == 0
        with contextlib.closing(SqliteReceiptStore(folder.folder / "receipts.sqlite3")) as store:
            chain = ChainVerifier()
            receipts = [chain.add(stored.raw) for stored in store.read(0, 1000)]
        counted = sum(sum(each.counts.values()) for each in receipts if isinstance(each, SummaryReceipt))
        assert counted > 0
        assert counted + sum(isinstance(each, DecisionReceipt) for each in receipts) == 30


def test_ends_when_its_supervisor_does(served: FilterFolder) -> None:
    read, write = os.pipe()
    with filter_folder(workers=1) as folder:
        process = folder.start(*WORKER, "--lifeline-fd", str(read), pass_fds=(read,))
        os.close(read)
        folder.pid()
        assert process.poll() is None
        os.close(write)
        assert process.wait(10) == 0
        assert not folder.socket().exists()


def test_second_worker_on_one_socket_takes_over_without_a_gap(served: FilterFolder) -> None:
    with filter_folder(workers=1) as folder:
        first = folder.start(*WORKER)
        folder.pid()
        folder.start(*WORKER)
        folder.wait_logged("worker 0 serves", times=2)
        first.terminate()
        assert first.wait(10) == 0
        with FilterCalls(folder.socket()) as calls:
            assert reason_of(folder.pass_once(calls)) == "allowed"


@pytest.mark.parametrize(
    ("obstacle", "said"),
    [
        ("socket", "signet-0.sock exists and is no socket"),
        ("keyring.json", "keyring.json"),
        ("sealing.json", "sealing.json"),
        ("receipts.sqlite3", "receipts: "),
    ],
)
def test_start_that_cannot_be_is_one_clear_line_and_ends(obstacle: str, said: str) -> None:
    with filter_folder(workers=1) as folder:
        path = folder.socket() if obstacle == "socket" else folder.folder / obstacle
        path.write_text("not what it should be")
        process = folder.start(*WORKER)
        assert process.wait(15) == 1
        assert said in folder.logged()
        assert "Traceback" not in folder.logged()


async def test_tasks_end_although_one_takes_the_first_cancelling_for_something_else() -> None:
    async def hard_of_hearing() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def broken() -> None:
        raise RuntimeError("gone long ago")

    tasks = [asyncio.create_task(work()) for work in (hard_of_hearing, broken)]
    await asyncio.sleep(0)
    await end_tasks(tasks)
    assert [task.done() for task in tasks] == [True, True]


async def test_a_task_that_never_ends_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "CANCEL_WAIT_S", 0.01)
    enough = False

    async def deaf() -> None:
        while not enough:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await end_tasks([task])
    assert not task.done()
    assert "1 tasks of the worker do not end" in caplog.text
    enough = True
    task.cancel()
    await task


def policy_digest(folder: FilterFolder, calls: FilterCalls) -> str:
    """Send a request that passes; give the digest of the policy that its receipt names."""
    passed = folder.pass_once(calls)
    assert reason_of(passed) == "allowed"
    with contextlib.closing(SqliteReceiptStore(folder.folder / "receipts.sqlite3")) as store:
        stored = store.get(receipt_of(passed))  # type: ignore[arg-type]
    assert stored is not None
    receipt = parse_receipt(stored.raw)
    assert isinstance(receipt, DecisionReceipt)
    assert receipt.policy is not None
    return receipt.policy.digest


def test_receipts_follow_the_policy_of_an_opa_server_and_a_reload_goes_on_asking_it() -> None:
    with filter_folder(workers=1) as folder:
        data = folder.folder / "data.json"
        data.write_bytes(route_data(load_config(folder.config, {})))
        with opa_server(REPOSITORY / "policy/shield.rego", data) as (port, _):
            folder.config.write_text(
                folder.config_text + f'\n[policy]\nengine = "opa"\nopa_port = {port}\ntimeout_ms = 5000\n'
            )
            folder.start(*WORKER)
            folder.pid()
            with FilterCalls(folder.socket()) as calls:
                before = policy_digest(folder, calls)
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                with contextlib.closing(connection):
                    connection.request("PUT", "/v1/data/signet/routes/other", b"{}")
                    assert connection.getresponse().status == 204
                changed = until(
                    lambda: found if (found := policy_digest(folder, calls)) != before else "", "another digest"
                )
                folder.processes[0].send_signal(signal.SIGHUP)
                folder.wait_logged("configuration reloaded")
                assert policy_digest(folder, calls) == changed
            folder.processes[0].terminate()
            assert folder.processes[0].wait(15) == 0
            assert "Unclosed" not in folder.logged()
