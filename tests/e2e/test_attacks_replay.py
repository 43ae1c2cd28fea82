"""Replays on the real stack: at once, later, racing, on both filter processes, over restarts, by a retried Check."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from extproc.ext_authz import EDGE_BODY_BYTES_KEY, EDGE_METADATA_KEY
from extproc.nonce_store import RETRY_WINDOW_MS
from pch.httpsig.content_digest import content_digest
from tests.e2e.attack_check import EDGE_METADATA, Verdict, send_check
from tests.e2e.attack_stage import Attacker, attack, wait_until
from tests.e2e.attack_wire import Answer, Http1Session, Http2Session
from tools.stack_envoy import http_connection_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.attack_request import Request
    from tests.e2e.attack_stage import Stage

pytestmark = pytest.mark.e2e

BINDING = bytes(range(32))
COPIES = 6
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def stage(request: pytest.FixtureRequest) -> Stage:
    found: Stage = request.getfixturevalue(f"{request.param}_stage")
    return found


@pytest.fixture
def attacker(stage: Stage) -> Iterator[Attacker]:
    with attack(stage, "http2") as one:
        yield one


def sockets(stage: Stage) -> tuple[Path, Path]:
    return stage.stack.files.socket(0), stage.stack.files.socket(1)


def direct(attacker: Attacker, **options: Any) -> Request:
    """A request signed for the binding that the direct Checks of this file vouch for."""
    return attacker.signed(binding=BINDING, challenge=attacker.stage.mint(BINDING), **options)


def ask(worker: Path, request: Request, stream_id: str, edge: str = "edge-of-the-test") -> Verdict:
    return send_check(worker, request, BINDING, stream_id, edge)


def reasons(answers: list[Answer]) -> list[str]:
    return sorted(answer.reason or "allowed" for answer in answers)


@dataclass(frozen=True, slots=True)
class Early:
    """A request that was let through when this file began, under `stream_id`."""

    request: Request
    stream_id: str
    spent_at_s: float


@pytest.fixture(scope="module", autouse=True)
def spent_early(sqlite_stage: Stage, redis_stage: Stage) -> dict[int, Early]:
    """Spend one challenge of each store before the other tests, for the one that has to wait for it."""
    found: dict[int, Early] = {}
    for stage in (sqlite_stage, redis_stage):
        with attack(stage, "http2") as attacker:
            early = Early(direct(attacker), attacker.marker, time.monotonic())
            assert ask(sockets(stage)[0], early.request, early.stream_id).reason == "allowed"
            found[id(stage)] = early
    return found


# -- races


def test_of_racing_copies_exactly_one_passes_on_two_processes(stage: Stage, attacker: Attacker) -> None:
    """Copies go out in one write on one connection; rounds go on until both processes took part in one race."""
    session = attacker.session
    assert isinstance(session, Http2Session)
    mixed_races = 0
    for round_number in range(60):
        request = attacker.signed(attacker.request(attacker.target(rest=f"/{round_number}")))
        answers = session.send_all([request] * COPIES)
        assert reasons(answers) == ["allowed"] + ["nonce_replay"] * (COPIES - 1)
        assert len(stage.seen_by_app()) == 1
        writers = {stage.receipt(answer.receipt_id or "")["writer"] for answer in answers}
        mixed_races += len(writers) == 2
        if mixed_races == 10:
            break
    assert mixed_races == 10, "both processes have to take part"


def test_of_racing_checks_on_both_sockets_exactly_one_passes(stage: Stage, attacker: Attacker) -> None:
    workers = sockets(stage)
    with ThreadPoolExecutor(COPIES) as pool:
        for round_number in range(20):
            request = direct(attacker)
            racing = [
                pool.submit(ask, workers[number % 2], request, f"{attacker.marker}-{round_number}-{number}")
                for number in range(COPIES)
            ]
            verdicts = sorted(each.result().reason for each in racing)
            assert verdicts == ["allowed"] + ["nonce_replay"] * (COPIES - 1)


def test_of_different_requests_racing_with_one_challenge_exactly_one_passes(stage: Stage, attacker: Attacker) -> None:
    session = attacker.session
    assert isinstance(session, Http2Session)
    challenge = attacker.challenge()
    racing = [
        attacker.signed(attacker.request(attacker.target(rest=f"/{number}")), challenge=challenge)
        for number in range(COPIES)
    ]
    assert reasons(session.send_all(racing)) == ["allowed"] + ["nonce_replay"] * (COPIES - 1)
    assert len(stage.seen_by_app()) == 1


def test_racing_copies_on_two_connections_pass_at_most_once(stage: Stage, attacker: Attacker) -> None:
    request = attacker.signed()
    other = attacker.connect()
    with ThreadPoolExecutor(2) as pool:
        answers = [each.result() for each in [pool.submit(one.send, request) for one in (attacker.session, other)]]
    assert [answer.reason for answer in answers] == [None, "binding_mismatch"]
    assert len(stage.seen_by_app()) == 1


# -- replays of other bytes that are the same to a verifier


def test_equivalent_p256_signature_is_a_replay(stage: Stage, attacker: Attacker) -> None:
    """(r, n - s) verifies as well as (r, s): the challenge, not the signature's bytes, is what is spent."""
    request = attacker.signed(key="p256")
    signature = base64.b64decode(request.field("signature")[5:-1])
    s = (P256_ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    twin = request.having("signature", b"pch=:" + base64.b64encode(signature[:32] + s) + b":")
    assert attacker.send(request).status == 200
    assert attacker.send(twin).reason == "nonce_replay"
    assert len(stage.seen_by_app()) == 1


@pytest.mark.parametrize("change", ["target", "label", "key", "content", "times"])
def test_spent_challenge_signs_nothing_else(stage: Stage, attacker: Attacker, change: str) -> None:
    challenge = attacker.challenge()
    signings: dict[str, Callable[[], Request]] = {
        "target": lambda: attacker.signed(attacker.request(attacker.target(rest="/other")), challenge=challenge),
        "label": lambda: attacker.signed(label="other", challenge=challenge),
        "key": lambda: attacker.signed(key="p256", challenge=challenge),
        "content": lambda: attacker.signed(attacker.request(method="POST", body=b"x"), challenge=challenge),
        "times": lambda: attacker.signed(created_in_s=1, challenge=challenge),
    }
    assert attacker.send(attacker.signed(challenge=challenge)).status == 200
    assert attacker.send(signings[change]()).reason == "nonce_replay"
    assert len(stage.seen_by_app()) == 1


def test_refused_by_policy_spends_the_challenge_too(stage: Stage, attacker: Attacker) -> None:
    challenge = attacker.challenge()
    not_mine = attacker.signed(attacker.request(attacker.target("/alice")), challenge=challenge)
    assert attacker.send(not_mine).reason == "policy_denied"
    assert attacker.send(not_mine).reason == "nonce_replay"
    assert attacker.send(attacker.signed(challenge=challenge)).reason == "nonce_replay"
    assert stage.seen_by_app() == []


# -- pipelines


def test_request_hidden_behind_a_signed_one_needs_its_own_proof(stage: Stage) -> None:
    with attack(stage, "http1") as attacker:
        session = attacker.session
        assert isinstance(session, Http1Session)
        signed = attacker.signed(attacker.request(method="POST", body=b"body"))
        session.wire.send(signed.http1() + attacker.request().http1() + signed.http1())
        first, second, third = session.read("POST"), session.read(), session.read("POST")
        assert (first.status, second.reason, third.reason) == (200, "missing_signature", "nonce_replay")
        assert len(stage.seen_by_app()) == 1


def test_bytes_behind_the_content_are_another_request(stage: Stage) -> None:
    with attack(stage, "http1") as attacker:
        session = attacker.session
        assert isinstance(session, Http1Session)
        signed = attacker.signed(attacker.request(method="POST", body=b"body"))
        session.wire.send(signed.http1() + b"GET /protected/smuggled")
        assert session.read("POST").status == 200
        session.wire.send(b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert session.read().reason == "missing_signature"
        (record,) = stage.seen_by_app()
        assert record["body_bytes"] == 4


# -- retried Checks, and what only looks like one


def test_retried_check_gets_the_stored_decision_from_either_process(stage: Stage, attacker: Attacker) -> None:
    first_worker, second_worker = sockets(stage)
    request = direct(attacker)
    first = ask(first_worker, request, attacker.marker)
    assert (first.reason, first.subject) == ("allowed", "demo")
    for worker in (first_worker, second_worker):
        assert ask(worker, request, attacker.marker) == first
    assert len(stage.receipts_of(attacker.marker)) == 1, "one decision, one receipt"


def test_retried_check_of_a_refusal_stays_refused(stage: Stage, attacker: Attacker) -> None:
    first_worker, second_worker = sockets(stage)
    good = direct(attacker, request=attacker.request(method="POST", body=b"body"))
    assert good.field("content-digest") == content_digest(b"body").encode()
    refused = ask(first_worker, good.but(body=b"b0dy"), attacker.marker)
    assert refused.reason == "bad_content_digest"
    assert ask(second_worker, good, attacker.marker) == refused


@pytest.mark.parametrize("change", ["stream", "edge", "bytes"])
def test_check_that_only_looks_retried_is_a_replay(stage: Stage, attacker: Attacker, change: str) -> None:
    first_worker, second_worker = sockets(stage)
    challenge = stage.mint(BINDING)
    request = attacker.signed(binding=BINDING, challenge=challenge)
    other = attacker.signed(binding=BINDING, challenge=challenge, created_in_s=1)
    assert ask(first_worker, request, attacker.marker).reason == "allowed"
    replays: dict[str, Callable[[], Verdict]] = {
        "stream": lambda: ask(second_worker, request, attacker.marker + "-2"),
        "edge": lambda: ask(second_worker, request, attacker.marker, edge="another-edge"),
        "bytes": lambda: ask(second_worker, other, attacker.marker),
    }
    assert replays[change]().reason == "nonce_replay"


def test_edge_names_itself_under_the_key_that_the_filter_reads(stage: Stage) -> None:
    config = json.loads(stage.stack.files.envoy.read_text())
    manager = http_connection_manager(config["static_resources"]["listeners"][0])
    (authz,) = (each for each in manager["http_filters"] if each["name"] == "envoy.filters.http.ext_authz")
    metadata = {each["key"]: each["value"] for each in authz["typed_config"]["grpc_service"]["initial_metadata"]}
    assert metadata == {
        EDGE_METADATA_KEY: "%ENVIRONMENT(SIGNET_EDGE_INSTANCE)%",
        EDGE_BODY_BYTES_KEY: "131072",
    }
    assert EDGE_METADATA == EDGE_METADATA_KEY


def test_failed_signature_burns_nothing_on_either_process(stage: Stage, attacker: Attacker) -> None:
    workers = sockets(stage)
    request = direct(attacker)
    for number, worker in enumerate([*workers, *workers]):
        assert ask(worker, request.flipped(), f"{attacker.marker}-{number}").reason == "bad_signature"
    assert ask(workers[1], request, attacker.marker).reason == "allowed"
    assert ask(workers[0], request, f"{attacker.marker}-again").reason == "nonce_replay"


def test_client_cannot_choose_the_stream_id_that_a_challenge_is_spent_under(stage: Stage, attacker: Attacker) -> None:
    request = attacker.signed().adding("x-request-id", b"5e0c3d2a-0000-4000-8000-000000000000")
    assert attacker.send(request).status == 200
    assert attacker.send(request).reason == "nonce_replay"
    ids = {each["request"]["edge_request_id"] for each in stage.receipts_of(attacker.marker)}
    assert len(ids) == 3
    assert len(stage.seen_by_app()) == 1


# -- later, and over the end of a process


def worker_pid(stage: Stage, worker: int) -> int:
    status = json.loads(sockets(stage)[worker].with_suffix(".status.json").read_text())
    return int(status["pid"])


def answers(worker: Path, attacker: Attacker) -> bool:
    try:
        return ask(worker, attacker.request(), os.urandom(8).hex()).reason == "missing_signature"
    except grpc.RpcError:
        return False


def test_retry_of_long_ago_counts_as_a_replay(stage: Stage, attacker: Attacker, spent_early: dict[int, Early]) -> None:
    """The stored decision is good for 10 s; the wait is short when the other tests ran before."""
    early = spent_early[id(stage)]
    verdict = wait_until(
        lambda: v if (v := ask(sockets(stage)[1], early.request, early.stream_id)).reason != "allowed" else None,
        "a retry of long ago counts as a replay",
        RETRY_WINDOW_MS / 1000 + 5,
    )
    assert verdict.reason == "nonce_replay"
    assert time.monotonic() - early.spent_at_s >= RETRY_WINDOW_MS / 1000 - 0.1
    assert ask(sockets(stage)[0], early.request, f"{attacker.marker}-2").reason == "nonce_replay"


def test_replay_is_refused_while_and_after_a_worker_is_killed(stage: Stage, attacker: Attacker) -> None:
    request = attacker.signed()
    assert attacker.send(request).status == 200
    spent = direct(attacker)
    assert ask(sockets(stage)[0], spent, attacker.marker).reason == "allowed"
    pid = worker_pid(stage, 0)
    os.kill(pid, signal.SIGKILL)
    for _ in range(20):
        assert attacker.send(request).reason == "nonce_replay"
    wait_until(lambda: answers(sockets(stage)[0], attacker), "the killed worker is back")
    assert ask(sockets(stage)[0], spent, f"{attacker.marker}-2").reason == "nonce_replay"
    assert attacker.send(attacker.signed()).status == 200
    assert len(stage.seen_by_app()) == 2


def test_replay_is_refused_after_the_filter_was_restarted(stage: Stage, attacker: Attacker) -> None:
    request, unspent, spent = attacker.signed(), attacker.signed(), direct(attacker)
    worker = sockets(stage)[0]
    assert attacker.send(request).status == 200
    assert ask(worker, spent, attacker.marker).reason == "allowed"
    stage.stack.restart_part("filter")
    wait_until(lambda: attacker.send(attacker.request()).reason == "missing_signature", "the filter answers again")
    assert attacker.send(request).reason == "nonce_replay"
    assert ask(worker, spent, f"{attacker.marker}-2").reason == "nonce_replay"
    assert attacker.send(unspent).status == 200, "what was not spent before is good after it"
    assert len(stage.seen_by_app()) == 2
