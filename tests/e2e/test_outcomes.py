"""How allowed requests end comes back from the real Envoy as one receipt each, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from extproc.outcome_watch import OutcomeWatch
from pch.client import AsyncClient
from pch.client.errors import ClientError
from pch.keys import private_key_from_jwk, public_jwk
from receipts.store_sqlite import SqliteReceiptStore
from tests.e2e.attack_request import Request
from tests.e2e.attack_stage import Attacker, Stage, attack, open_stage, wait_until
from tests.e2e.attack_wire import Http2Session
from tests.e2e.stack_client import change, manager_of
from tests.support.filter_parts import KeyPair
from tests.support.outcomes import outcomes_of, receipts
from tools.stack import Stack
from tools.stack_config import Ports, StackSettings

pytestmark = pytest.mark.e2e

PROMPT_S = 1.0
"""Within this time after its end the outcome of a request is in the store."""
SETTLE_S = 3.0
LOADED_S = 0.4
"""How long requests run between two ends of workers."""
SUCCESSORS_S = 60.0
both = pytest.mark.parametrize("protocol", ["http1", "http2"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("o")) as stage:
        yield stage


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stage]:
    """A stack for a test that breaks parts of it; its one key is that of the demonstration."""
    with Stack(StackSettings(tmp_path, Ports.free())) as stack:
        jwk = json.loads(stack.files.demo_key.read_text())
        key = KeyPair("demo", private_key_from_jwk(jwk), dict(public_jwk(jwk)))
        yield Stage(stack, {"demo": key})


def outcome(stage: Stage, decision: str, within_s: float = PROMPT_S) -> dict[str, Any]:
    """Wait for the outcome of a decision; give its facts."""
    found = wait_until(lambda: outcomes_of(stage.var, decision), f"the outcome of {decision}", within_s)
    assert len(found) == 1
    facts: dict[str, Any] = found[0]["outcome"]
    return facts


def pass_once(attacker: Attacker, query: str = "") -> tuple[str, int, float]:
    """Send one signed request; give its receipt, its status, and how long it took the client."""
    request = attacker.signed(attacker.request(attacker.target(rest=query)))
    began_s = time.monotonic()
    answer = attacker.send(request)
    assert answer.receipt_id is not None
    return answer.receipt_id, answer.status, time.monotonic() - began_s


def begin(attacker: Attacker, request: Request) -> None:
    """Send a request and do not wait for its answer."""
    session = attacker.session
    if isinstance(session, Http2Session):
        session._open(*request.http2())
        session._finish([])
    else:
        session.wire.send(request.http1())


def let_on(attacker: Attacker) -> str:
    """Wait until the filter lets the attacker's request on; give the decision."""
    return wait_until(
        lambda: next(
            (each["id"] for each in attacker.stage.receipts_of(attacker.marker) if each["decision"] == "allow"), ""
        ),
        "it is let on",
    )


@both
@pytest.mark.parametrize(
    ("query", "status", "flags"),
    [
        ("", 200, []),
        ("?status=404", 404, []),
        ("?status=500", 500, []),
        ("?bytes=2000000", 200, []),
        ("?drop=1", 503, ["upstream_connection_termination", "upstream_retry_limit_exceeded"]),
    ],
)
def test_allowed_request_has_one_outcome_with_what_the_client_saw(
    shared: Stage, protocol: str, query: str, status: int, flags: list[str]
) -> None:
    with attack(shared, protocol) as attacker:
        decision, seen, took_s = pass_once(attacker, query)
        facts = outcome(shared, decision)
    assert (seen, facts["status"], facts["flags"]) == (status, status, flags)
    assert 0 < facts["duration_us"] <= took_s * 1e6


@both
def test_slow_answer_has_its_whole_duration(shared: Stage, protocol: str) -> None:
    with attack(shared, protocol) as attacker:
        decision, _, took_s = pass_once(attacker, "?delay_ms=700")
        facts = outcome(shared, decision)
    assert 700_000 <= facts["duration_us"] <= took_s * 1e6


def test_answer_that_the_client_reads_slowly_ends_when_it_is_sent(shared: Stage) -> None:
    with attack(shared, "http1") as attacker:
        request = attacker.signed(attacker.request(attacker.target(rest="?bytes=20000000")))
        begin(attacker, request)
        decision = let_on(attacker)
        time.sleep(0.5)
        assert outcomes_of(shared.var, decision) == [], "it is still being sent"
        assert len(attacker.session.read().body) == 20_000_000
        facts = outcome(shared, decision)
    assert facts["status"] == 200
    assert facts["duration_us"] > 500_000


@both
def test_client_that_goes_away_ends_its_request_without_a_status(shared: Stage, protocol: str) -> None:
    with attack(shared, protocol) as attacker:
        request = attacker.signed(attacker.request(attacker.target(rest="?delay_ms=5000")))
        begin(attacker, request)
        decision = let_on(attacker)
    facts = outcome(shared, decision)
    assert facts["status"] is None
    assert set(facts["flags"]) & {"downstream_connection_termination", "downstream_remote_reset"}


@both
def test_open_route_has_outcomes_too(shared: Stage, protocol: str) -> None:
    with attack(shared, protocol) as attacker:
        assert attacker.send(attacker.request(attacker.target("/public", "?status=418"))).status == 418
        (decision,) = wait_until(lambda: shared.receipts_of(attacker.marker), "the decision")
        assert decision["reason"] == "unguarded"
        assert outcome(shared, decision["id"])["status"] == 418


def test_refused_requests_have_none(shared: Stage) -> None:
    with attack(shared, "http2") as attacker:
        refused = [attacker.send(attacker.request()), attacker.send(attacker.request("/nowhere"))]
        spent = attacker.signed()
        allowed, again = attacker.send(spent), attacker.send(spent)
        refused += [
            again,
            attacker.send(attacker.signed(key="revoked")),
            attacker.send(attacker.signed(key="stranger")),
        ]
        assert allowed.receipt_id is not None
        assert outcome(shared, allowed.receipt_id)["status"] == 200
        last, _, _ = pass_once(attacker)
        outcome(shared, last)
    assert {answer.status for answer in refused} == {401, 403}
    for answer in refused:
        assert answer.receipt_id is not None
        assert outcomes_of(shared.var, answer.receipt_id) == []
    told = {each["refers_to"] for each in receipts(shared.var) if each["kind"] == "outcome"}
    decisions = {each["id"]: each["decision"] for each in receipts(shared.var) if each["kind"] == "decision"}
    assert {decisions[each] for each in told} == {"allow"}


def test_client_cannot_speak_of_decisions_in_headers(shared: Stage) -> None:
    with attack(shared, "http1") as other, attack(shared, "http1") as attacker:
        begin(other, other.signed(other.request(other.target(rest="?delay_ms=800"))))
        victim = let_on(other)
        forged = (("x-signet-receipt", victim.encode()), ("pch-receipt", f'"{victim}"'.encode()))
        answer = attacker.send(attacker.signed(attacker.request(attacker.target(rest="?status=500"), headers=forged)))
        assert answer.receipt_id not in {None, victim}
        assert outcome(shared, str(answer.receipt_id))["status"] == 500
        assert outcomes_of(shared.var, victim) == []
        other.session.read()
    assert outcome(shared, victim)["status"] == 200


# -- many at once, and workers that end


@dataclass
class Load:
    """Requests from many clients at once, until told to stop. `passed`: receipt and status of each answer."""

    stage: Stage
    passed: list[tuple[str, int]] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, requests: int | None = None, clients: int = 8) -> None:
        key = json.loads(self.stage.stack.files.demo_key.read_text())
        async with contextlib.AsyncExitStack() as stack:
            made = [
                await stack.enter_async_context(AsyncClient(key=key, verify=self.stage.stack.files.tls / "ca.pem"))
                for _ in range(clients)
            ]
            each = None if requests is None else requests // clients
            await asyncio.gather(*(self._some(client, each) for client in made))

    async def _some(self, client: AsyncClient, count: int | None) -> None:
        for number in itertools.count() if count is None else range(count):
            if self.stop.is_set():
                return
            status = (200, 404, 500)[number % 3]
            try:
                answer = await client.get(f"{self.stage.stack.state['https']}/protected/load?status={status}")
            except ClientError as error:
                self.failed[type(error).__name__] += 1
                continue
            if answer.receipt_id is not None and answer.status == status:
                self.passed.append((answer.receipt_id, status))
            else:
                self.failed[f"{answer.status} {answer.reason}"] += 1


@contextlib.contextmanager
def watched(stage: Stage) -> Iterator[OutcomeWatch]:
    """A watch on the stack's receipts for which nothing may take longer than it has."""
    store = SqliteReceiptStore(stage.var / "receipts.sqlite3")
    watch = OutcomeWatch(store, clock_ms=lambda: time.time_ns() // 1_000_000, overdue_ms=0)
    with contextlib.closing(store):
        watch.step()
        yield watch


def settle(stage: Stage) -> tuple[Counter[str], dict[str, Any]]:
    """Wait until no outcome comes any more; give how many each allowed decision has, and their facts."""
    count, quiet_since_s = -1, time.monotonic()
    while time.monotonic() < quiet_since_s + SETTLE_S / 2:
        all_of = receipts(stage.var)
        if len(all_of) != count:
            count, quiet_since_s = len(all_of), time.monotonic()
        time.sleep(0.1)
    told = Counter({each["id"]: 0 for each in all_of if each["kind"] == "decision" and each["decision"] == "allow"})
    told.update(each["refers_to"] for each in all_of if each["kind"] == "outcome")
    return told, {each["refers_to"]: each["outcome"] for each in all_of if each["kind"] == "outcome"}


def test_every_one_of_many_has_its_own_outcome(own: Stage) -> None:
    load = Load(own)
    asyncio.run(load.run(600))
    told, facts = settle(own)
    assert not load.failed
    assert len(load.passed) == 600
    assert set(told.values()) == {1}
    assert [facts[receipt]["status"] for receipt, _ in load.passed] == [status for _, status in load.passed]
    lines = own.admin_text("/metrics").decode().splitlines()
    assert f"signet_outcomes_written_total {len(told)}.0" in lines
    assert f"signet_outcomes_received_total {len(told)}.0" in lines


def worker_pid(stage: Stage, index: int) -> int | None:
    """Give the process id that a worker wrote down; None while there is none."""
    try:
        return int(json.loads((stage.var / "run" / f"signet-{index}.status.json").read_text())["pid"])
    except FileNotFoundError:
        return None


async def end_workers(stage: Stage, load: Load, number: signal.Signals) -> None:
    """Send `number` to one worker after the other while requests run; each time wait for its successor."""
    running = asyncio.create_task(load.run())
    try:
        async with asyncio.timeout(SUCCESSORS_S):
            for index in (0, 1, 0):
                await asyncio.sleep(LOADED_S)
                pid = worker_pid(stage, index)
                assert pid is not None
                os.kill(pid, number)
                while worker_pid(stage, index) in {None, pid}:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(LOADED_S)
    finally:
        load.stop.set()
        await running


def test_worker_that_drains_loses_no_outcome(own: Stage) -> None:
    load = Load(own)
    with watched(own) as watch:
        asyncio.run(end_workers(own, load, signal.SIGTERM))
        told, _ = settle(own)
        watch.step()
    assert not load.failed
    assert set(told.values()) == {1}
    assert (watch.waiting, watch.missing) == (0, 0)


def test_worker_that_is_killed_loses_few_and_they_are_counted(own: Stage) -> None:
    load = Load(own)
    with watched(own) as watch:
        asyncio.run(end_workers(own, load, signal.SIGKILL))
        told, _ = settle(own)
        watch.step()
    assert set(told.values()) <= {0, 1}
    lost = sum(not count for count in told.values())
    assert watch.waiting + watch.missing == lost
    assert lost < len(told) / 4, "what some flush intervals hold"
    # Afterwards it goes on as before.
    with attack(own, "http2") as attacker:
        for _ in range(20):
            decision, _, _ = pass_once(attacker)
            assert outcome(own, decision)["status"] == 200


@contextlib.contextmanager
def stopped(stage: Stage) -> Iterator[Callable[[], None]]:
    """Both workers stand still from the call of what this gives to the end of the block."""
    pids = [worker_pid(stage, index) or 0 for index in (0, 1)]
    assert all(pids)
    try:
        yield lambda: [os.kill(pid, signal.SIGSTOP) for pid in pids].clear()
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_workers_that_stand_still_get_what_waited(own: Stage) -> None:
    with attack(own, "http1") as attacker, stopped(own) as stop:
        begin(attacker, attacker.signed(attacker.request(attacker.target(rest="?delay_ms=300"))))
        decision = let_on(attacker)
        stop()
        answer = attacker.session.read()
    assert (answer.status, answer.receipt_id) == (200, decision)
    assert outcome(own, decision, SETTLE_S)["status"] == 200


def envoy_stat(stage: Stage, name: str) -> int:
    url = f"http://127.0.0.1:{stage.stack.settings.ports.envoy_admin}/stats?filter={name}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(line.rpartition(": ")[2]) for line in lines)


def no_one_to_tell(document: dict[str, Any]) -> None:
    """Let Envoy tell how requests ended to a cluster without a host, and hold one entry back."""
    (logger,) = (
        each for each in manager_of(document)["access_log"] if each["name"] == "envoy.access_loggers.http_grpc"
    )
    common = logger["typed_config"]["common_config"]
    common["buffer_size_bytes"] = 1
    common["grpc_service"]["envoy_grpc"]["cluster_name"] = "no_one"
    clusters = document["static_resources"]["clusters"]
    cluster = next(each for each in clusters if each["name"] == "signet_filter")
    clusters.append(cluster | {"name": "no_one", "load_assignment": {"cluster_name": "no_one", "endpoints": []}})


def test_what_envoy_drops_is_counted_as_missing(own: Stage) -> None:
    change(own, no_one_to_tell)
    with watched(own) as watch, attack(own, "http2") as attacker:
        for _ in range(20):
            assert pass_once(attacker)[1] == 200
        # All but the first, which waits: one connection is one thread of Envoy's, with one buffer.
        wait_until(lambda: envoy_stat(own, "access_logs.grpc_access_log.logs_dropped") == 19, "Envoy dropped the rest")
        told, _ = settle(own)
        watch.step()
    assert list(told.values()) == [0] * 20
    assert watch.waiting + watch.missing == 20
