"""Bodies on the real Envoy while something breaks: its locks, killed workers, and what a body costs in memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.e2e.attack_stage import Stage, attack, open_stage, wait_until
from tests.e2e.attack_wire import Http1Session
from tests.e2e.body_upstream import in_place_of_the_app
from tools.stack_envoy import http_connection_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.attack_request import Request
    from tests.e2e.attack_stage import Attacker
    from tests.e2e.body_upstream import BodyUpstream

pytestmark = pytest.mark.e2e

BODY: Final = os.urandom(400_000)
LARGE_BYTES: Final = 64 << 20
MAX_GROWTH_BYTES: Final = 8 << 20
PIECE_BYTES: Final = 16_384


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stack of its own, to break. Its filter drains for no more than a second."""
    with open_stage(tmp_path, toml={"filter": {"drain_timeout_s": 1}}) as opened:
        yield opened


def change(stage: Stage, how: Callable[[list[dict[str, Any]]], None]) -> None:
    """Restart Envoy with its HTTP filters changed."""
    config = stage.stack.files.envoy
    document = json.loads(config.read_text())
    manager = http_connection_manager(document["static_resources"]["listeners"][0])
    how(manager["http_filters"])
    config.write_text(json.dumps(document))
    stage.stack.restart_part("envoy")


def drop(*names: str) -> Callable[[list[dict[str, Any]]], None]:
    def without(filters: list[dict[str, Any]]) -> None:
        filters[:] = [each for each in filters if each["name"] not in names]

    return without


def upload(attacker: Attacker, body: bytes = BODY, prefix: str = "/uploads") -> Request:
    return attacker.signed(attacker.request(attacker.target(prefix), method="POST", body=body))


def worker_pids(stage: Stage) -> list[int]:
    files = [Path(socket).with_suffix(".status.json") for socket in stage.stack.state["sockets"]]
    wait_until(lambda: all(file.exists() for file in files), "both workers tell how they are")
    return [int(json.loads(file.read_text())["pid"]) for file in files]


# -- the locks of the edge


def test_body_that_the_filter_ordered_to_be_seen_through_goes_nowhere_without_ext_proc(stage: Stage) -> None:
    change(stage, drop("signet.body"))
    with attack(stage, "http1") as attacker:
        answer = attacker.send(upload(attacker))
        assert (answer.status, answer.reason) == (503, "internal")
        assert not stage.seen_by_app()
        small = attacker.connect()
        request = attacker.signed(
            attacker.request(method="POST", body=b"small"), challenge=attacker.challenge(small), binding=small.binding
        )
        assert small.send(request).status == 200


def test_request_that_no_check_let_on_never_passes_ext_proc(stage: Stage) -> None:
    """With every other lock taken away, and the header that clients cannot send put there by the edge itself."""

    def unlocked(filters: list[dict[str, Any]]) -> None:
        drop("envoy.filters.http.ext_authz", "envoy.filters.http.rbac", "signet.body_in_hand")(filters)
        (composite,) = [each for each in filters if each["name"] == "signet.body"]
        tree = composite["typed_config"]["xds_matcher"]["matcher_tree"]
        tree["input"]["typed_config"]["header_name"] = "x-any"

    change(stage, unlocked)
    with attack(stage, "http1") as attacker:
        request = attacker.request(method="POST", body=BODY, headers=(("x-any", b"ordered"),))
        answer = attacker.send(request)
        assert (answer.status, answer.reason) == (503, "internal")
        assert not stage.seen_by_app()
        assert attacker.connect().send(attacker.request()).status == 200, "nothing else stood in the way"


@pytest.mark.parametrize(
    "mode",
    [
        {"request_body_mode": "STREAMED"},
        {"request_body_mode": "BUFFERED"},
        {"request_body_mode": "NONE", "request_trailer_mode": "SKIP"},
        {"request_body_mode": "BUFFERED", "request_header_mode": "SKIP"},
    ],
)
def test_edge_that_would_send_bodies_otherwise_sends_none(stage: Stage, mode: dict[str, str]) -> None:
    def otherwise(filters: list[dict[str, Any]]) -> None:
        (composite,) = [each for each in filters if each["name"] == "signet.body"]
        (action,) = composite["typed_config"]["xds_matcher"]["matcher_tree"]["exact_match_map"]["map"].values()
        action["action"]["typed_config"]["typed_config"]["typed_config"]["processing_mode"].update(mode)

    change(stage, otherwise)
    with attack(stage, "http2") as attacker:
        answer = attacker.send(upload(attacker))
        assert answer.status in {0, 413, 503}
        assert not stage.seen_by_app()


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_other_edge_sees_bodies_through_as_well(tmp_path: Path, protocol: str) -> None:
    with open_stage(tmp_path, edge="b") as stage, attack(stage, protocol) as attacker:
        assert attacker.send(upload(attacker)).status == 200
        (seen,) = stage.seen_by_app()
        assert seen["body_bytes"] == len(BODY)
        answer = attacker.send(upload(attacker).but(body=BODY[:-1] + bytes([BODY[-1] ^ 1])))
        assert (answer.status, answer.reason) == (400, "bad_content_digest")
        assert not stage.seen_by_app()


# -- a worker that dies


@dataclass
class SlowUpload:
    """An upload of which the app has the beginning."""

    session: Http1Session
    rest: bytes

    def finish(self) -> int:
        """Send what is left and give the status, 0 for none."""
        return self.session.raw(self.rest, method="POST").status


@contextlib.contextmanager
def half_an_upload(stage: Stage, attacker: Attacker, app: BodyUpstream) -> Iterator[SlowUpload]:
    session = attacker.session
    assert isinstance(session, Http1Session)
    raw = upload(attacker).http1()
    session.wire.send(raw[:-50_000])
    wait_until(lambda: app.seen and len(app.seen[0].raw) > PIECE_BYTES, "the beginning of the body")
    yield SlowUpload(session, raw[-50_000:])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_worker_that_ends_amid_a_body_ends_the_request_and_the_app_has_nothing_whole(
    stage: Stage, how: signal.Signals
) -> None:
    with attack(stage, "http1") as attacker, in_place_of_the_app(stage.stack) as app:
        with half_an_upload(stage, attacker, app) as slow:
            if how is signal.SIGKILL:
                for pid in worker_pids(stage):
                    os.kill(pid, how)
            else:
                stage.stack.stop_part("filter")
            arrived = app.only()
            assert not arrived.whole
            assert slow.finish() in {0, 503}
        assert not arrived.whole


def test_bodies_pass_again_once_killed_workers_are_back(stage: Stage) -> None:
    for pid in worker_pids(stage):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while True:
        with attack(stage, "http2") as attacker, contextlib.suppress(AssertionError):
            if attacker.send(upload(attacker)).status == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (seen,) = stage.seen_by_app()
    assert seen["body_bytes"] == len(BODY)


def test_body_is_seen_through_by_whichever_worker_is_asked(stage: Stage) -> None:
    """Round robin over two workers: of some uploads the Check went to one worker and the body to the other."""
    with attack(stage, "http2") as attacker:
        for _ in range(6):
            assert attacker.send(upload(attacker)).status == 200
    verdicts = {each["id"]: each for each in stage.receipts_of(attacker.marker)}
    writers = [
        (verdicts[each["refers_to"]]["writer"], each["writer"])
        for each in verdicts.values()
        if each["kind"] == "body_verdict"
    ]
    assert len(writers) == 6
    assert any(decided != saw for decided, saw in writers)


def test_body_whose_verdict_cannot_be_stored_does_not_pass(stage: Stage) -> None:
    with attack(stage, "http1") as attacker, in_place_of_the_app(stage.stack) as app:
        with half_an_upload(stage, attacker, app) as slow:
            database = stage.var / "receipts.sqlite3"
            with locked(database):
                assert slow.finish() == 503
        assert not app.only().whole


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the write lock of `database`, as a stuck process would."""
    import sqlite3

    connection = sqlite3.connect(database, isolation_level=None, timeout=5)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


# -- memory


def forget_peak(pid: int) -> None:
    """Make what the process has resident now its peak: that of its start would hide what comes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """Give the most memory that the process had resident since its peak was forgotten."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_64_mib_go_through_in_flat_memory(stage: Stage) -> None:
    body = bytes(LARGE_BYTES)
    pids = worker_pids(stage)
    with attack(stage, "http1") as attacker:
        for _ in range(4):  # Both workers have decided something before.
            assert attacker.send(upload(attacker, bytes(4096))).status == 200
        for pid in pids:
            forget_peak(pid)
        before = [peak_bytes(pid) for pid in pids]
        assert attacker.send(upload(attacker, body)).status == 200
        assert attacker.send(upload(attacker, body)).status == 200
        after = [peak_bytes(pid) for pid in pids]
    assert [each["body_bytes"] for each in stage.seen_by_app()][-2:] == [LARGE_BYTES] * 2
    growth = [most - least for most, least in zip(after, before, strict=True)]
    assert max(growth) <= MAX_GROWTH_BYTES
