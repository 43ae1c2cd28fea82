"""What one client does to the breaker, and to the bodies of others, on the real Envoy with the real filter."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.attack_stage import Attacker, Stage, attack, open_stage, wait_until
from tests.e2e.attack_wire import Http2Session, _H2Stream
from tests.support.outcomes import outcomes_of
from tests.support.redis_server import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.attack_request import Request

pytestmark = pytest.mark.e2e

BODY: Final = os.urandom(140_000)
TRIES: Final = 30
"""More than the samples without which no breaker trips."""
BREAKER: Final = {
    "min_samples": 5,
    "max_gain": 0.5,
    "base_dwell_ms": 500,
    "max_dwell_ms": 1_000,
    "probe_timeout_ms": 30_000,
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("k"), toml={"plan.breaker": BREAKER}) as opened:
        yield opened


def upload(attacker: Attacker, key: str, query: str = "") -> Request:
    request = attacker.request(attacker.target("/big", query), method="POST", body=BODY, framing="chunked")
    return attacker.signed(request, key)


def stall(attacker: Attacker, key: str) -> None:
    """Begin an upload of unknown length, and never end it."""
    session = attacker.session
    assert isinstance(session, Http2Session)
    fields, body, _ = upload(attacker, key).http2()
    stream = session._h2.get_next_available_stream_id()
    session._streams[stream] = _H2Stream()
    session._h2.send_headers(stream, [(name.encode(), value) for name, value in fields])
    session._send_body(stream, body or b"", last=False)


def phase(stage: Stage) -> float:
    prefix = 'signet_breaker_phase{route="big"} '
    lines = stage.admin_text("/metrics").decode().splitlines()
    return next(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))


def test_slow_uploads_of_one_subject_neither_shut_others_out_nor_look_like_a_failing_app(stage: Stage) -> None:
    with attack(stage, "http2") as slow, attack(stage, "http2") as other:
        for _ in range(8):
            stall(slow, "alice")
        refused = []
        for _ in range(TRIES):
            session = slow.connect()
            answer = session.send(upload_on(slow, "alice"))
            if answer.status == 503:
                refused.append(answer.receipt_id)
        assert len(refused) > 5
        last = refused[-1]
        if last is not None:
            told = wait_until(lambda: outcomes_of(stage.var, last), "the outcome of a refused body")
            assert told[0]["outcome"]["status"] == 503
        time.sleep(0.5)
        assert phase(stage) == 0
        assert [other.send(upload(other, "demo")).status for _ in range(4)] == [200] * 4


def upload_on(attacker: Attacker, key: str) -> Request:
    """Sign an upload for the newest connection."""
    session = attacker._sessions[-1]
    request = attacker.request(attacker.target("/big"), method="POST", body=BODY, framing="chunked")
    return attacker.signed(request, key, challenge=attacker.challenge(session), binding=session.binding)


def test_what_the_app_answers_itself_opens_the_breaker(stage: Stage) -> None:
    """The mean moves by time, not by requests: the app goes on failing until it has moved far enough."""
    with attack(stage, "http2") as attacker:

        def fails_once_more() -> bool:
            attacker.send(attacker.signed(attacker.request(attacker.target("/big", "?status=503"))))
            return phase(stage) > 0

        wait_until(fails_once_more, "the breaker opens")


def download(stage: Stage, attacker: Attacker, key: str) -> None:
    """Ask for much, and read none of it."""
    session = attacker.session
    assert isinstance(session, Http2Session)
    request = attacker.request(attacker.target("/big", "?bytes=8000000"))
    session._open(*attacker.signed(request, key, challenge=stage.mint(session.binding)).http2())
    session.wire.send(session._h2.data_to_send())


def test_downloads_that_one_subject_does_not_read_keep_no_breaker_from_closing(stage: Stage) -> None:
    held = 0
    with attack(stage, "http2") as slow, attack(stage, "http2") as other, attack(stage, "http2") as failing:

        def opens() -> bool:
            failing.send(failing.signed(failing.request(failing.target("/big", "?status=503"))))
            return phase(stage) > 0

        def closes() -> bool:
            nonlocal held
            if held < 60:
                download(stage, slow, "alice")
                held += 1
            for _ in range(3):
                challenge = stage.mint(other.session.binding)
                other.send(other.signed(other.request(other.target("/big")), challenge=challenge))
            return phase(stage) == 0

        wait_until(opens, "the breaker opens")
        # Less than the time after which probes that nothing was heard of are given up.
        wait_until(closes, "the breaker closes", within_s=20.0)
        assert held > 5


def test_a_second_instance_hears_of_it_over_redis(tmp_path_factory: pytest.TempPathFactory) -> None:
    with redis_server() as url, contextlib.ExitStack() as stages:
        toml = {"plan.breaker": BREAKER, "filter": {"breaker_share": "redis"}, "nonce_store": {"url": url}}
        failing, other = (stages.enter_context(open_stage(tmp_path_factory.mktemp("s"), toml=toml)) for _ in range(2))
        with attack(failing, "http2") as attacker:

            def the_other_is_open() -> bool:
                attacker.send(attacker.signed(attacker.request(attacker.target("/big", "?status=503"))))
                return phase(other) > 0

            wait_until(the_other_is_open, "the breaker opens where nothing failed", within_s=10.0)
        assert "signet_breaker_share_peers 1.0" in other.admin_text("/metrics").decode()
