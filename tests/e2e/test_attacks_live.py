"""What the running stack promises beside its refusals: nothing lost on the way, one round trip, live changes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from pch.client import Client
from pch.client.challenge import ChallengeText, challenge_parts
from pch.httpsig.message import RequestMessage
from pch.httpsig.signature_base import signature_base
from pch.httpsig.signature_input import parse_signature_input
from pch.keys import generate, private_key_from_jwk, public_jwk
from pch.proof import binding_header
from tests.e2e.attack_accepted import BODY, COVERED
from tests.e2e.attack_check import send_check
from tests.e2e.attack_stage import WAIT_S, attack, body_of, wait_until
from tests.e2e.attack_wire import Http1Session, Http2Session
from tests.support.filter_parts import KeyPair
from tools.stack_config import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pch.client.exchange import Answer, WireRequest
    from tests.e2e.attack_request import Request
    from tests.e2e.attack_stage import Attacker, Stage

pytestmark = pytest.mark.e2e

BINDING = bytes(range(32))
LIVE_WITHIN_S = 2.0
FIELDS = (
    ("accept", b"text/html;q=0.5, */*"),
    ("content-type", b"text/plain; charset=utf-8"),
    ("cookie", b"a=1; b=2"),
    ("user-agent", b"attack (e2e)"),
    ("x-twice", b"one"),
    ("x-twice", b"two, three"),
    ("x-empty", b""),
    ("x-odd", b'"quoted\\" (comment)  two  blanks ;=,'),
    ("authorization", b"Bearer not-ours"),
)


def base_from_the_apps_view(record: dict[str, Any], request: Request, binding: bytes) -> bytes:
    """Rebuild the signature base from what the app logged; only the proof's own fields are not from there."""
    logged = [(name.lower(), value.encode("latin-1")) for name, value in record["headers"]]
    logged.append(("pch-channel-binding", binding_header(binding)))
    message = RequestMessage(record["method"], "https", record["authority"], record["target"], tuple(logged))
    (params,) = parse_signature_input([request.field("signature-input")]).values()
    return signature_base(message, params)


@pytest.mark.parametrize("rest", ["", "?", "/a;b=1/%C3%A9?x=1&x=%2e%2E//..;/%00"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_what_the_app_logs_is_what_was_signed(sqlite_stage: Stage, protocol: str, framing: str, rest: str) -> None:
    """The base rebuilt from the app's log has the digest that the receipt holds: not one covered byte was changed."""
    with attack(sqlite_stage, protocol) as attacker:
        names = dict.fromkeys(name for name, _ in FIELDS)
        unsigned = attacker.request(attacker.target(rest=rest), "PUT", headers=FIELDS, body=BODY, framing=framing)
        request = attacker.signed(unsigned, components=(*COVERED, "content-digest", *names))
        answer = attacker.send(request)
        assert answer.status == 200
        (record,) = sqlite_stage.seen_by_app()
        assert body_of(record) == BODY
        base = base_from_the_apps_view(record, request, attacker.session.binding)
        receipt = sqlite_stage.receipt(answer.receipt_id or "")
        assert hashlib.sha256(base).hexdigest() == receipt["proof"]["signatures"][0]["base_sha256"]
        assert hashlib.sha256(BODY).hexdigest() == receipt["request"]["content_sha256"] == record["body_sha256"]
        assert set(receipt["proof"]["covered"]) >= {f'"{name}"' for name in names}


def test_folded_field_reaches_the_app_as_it_was_verified(sqlite_stage: Stage) -> None:
    """Envoy unfolds obs-fold before anyone looks (RFC 9112 §5.2), so filter and app read one and the same line."""
    with attack(sqlite_stage, "http1") as attacker:
        session = attacker.session
        assert isinstance(session, Http1Session)
        unsigned = attacker.request(headers=(("x-note", b"a b"),))
        for folded, reason in ((b"a\r\n b", None), (b"a \r\n b", "bad_signature")):
            request = attacker.signed(unsigned, components=(*COVERED, "x-note"))
            answer = session.raw(request.http1().replace(b"x-note: a b", b"x-note: " + folded))
            assert answer.reason == reason
        (record,) = sqlite_stage.seen_by_app()
        assert [value for name, value in record["headers"] if name == "x-note"] == ["a b"]


@pytest.mark.parametrize("host", ["app.test", "%h"])
def test_absolute_form_is_read_alike_by_filter_and_app(sqlite_stage: Stage, host: str) -> None:
    """RFC 9112 §3.2.2: the target's authority counts and Host does not, for whoever reads it."""
    with attack(sqlite_stage, "http1") as attacker:
        session = attacker.session
        assert isinstance(session, Http1Session)
        request = attacker.signed()
        line = f"GET http://{attacker.stage.authority}{request.target} HTTP/1.1\r\nHost: {host}\r\n"
        head, _, rest = request.http1().partition(b"\r\nHost: ")
        assert head.startswith(b"GET ")
        answer = session.raw(line.replace("%h", attacker.stage.authority).encode() + rest.partition(b"\r\n")[2])
        assert answer.status == 200
        (record,) = sqlite_stage.seen_by_app()
        assert (record["authority"], record["target"]) == (attacker.stage.authority, request.target)


def test_steady_state_is_one_round_trip(sqlite_stage: Stage) -> None:
    exchanges: list[int] = []

    def note(_wire: WireRequest, answer: Answer) -> None:
        exchanges.append(answer.status)

    signer = sqlite_stage.keys["demo"].signer
    url = f"https://{sqlite_stage.authority}/protected/steady"
    with Client(key=signer, verify=sqlite_stage.stack.files.tls / "ca.pem", observer=note) as client:
        answers = [client.request("POST", url, content=b"x").status for _ in range(20)]
    assert answers == [200] * 20
    assert exchanges == [401] + [200] * 20, "one challenge is asked for, and every answer brings the next one"


# -- an edge that vouches for nothing


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_edge_without_the_module_lets_nothing_onto_a_bound_route(unbound_stage: Stage, protocol: str) -> None:
    with attack(unbound_stage, protocol) as attacker:
        challenge = unbound_stage.mint(attacker.session.binding)
        good = attacker.signed(challenge=challenge)
        claimed = (("signet.tls", attacker.session.binding.hex().encode()), ("x-signet-binding", b"tls-exporter"))
        zeros = attacker.signed(challenge=unbound_stage.mint(bytes(32)), binding=bytes(32))
        none = attacker.signed(challenge=unbound_stage.mint(bytes(32)), binding=None)
        for request in (attacker.request(), good, good.but(headers=(*claimed, *good.headers)), zeros, none):
            answer = attacker.send(request)
            assert (answer.status, answer.reason) == (403, "binding_missing")
            assert answer.challenges == []
            assert answer.get("www-authenticate") is None
            assert unbound_stage.receipt(answer.receipt_id or "")["reason"] == "binding_missing"
        assert unbound_stage.seen_by_app() == []


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_edge_without_the_module_serves_a_route_declared_without_binding(unbound_stage: Stage, protocol: str) -> None:
    with attack(unbound_stage, protocol) as attacker:
        asked = attacker.send(attacker.request(attacker.target("/unbound")))
        assert asked.reason == "missing_signature"
        request = attacker.signed(
            attacker.request(attacker.target("/unbound")), binding=None, challenge=asked.challenges[0]
        )
        assert attacker.send(request.flipped()).reason == "bad_signature"
        assert attacker.send(request).status == 200
        assert attacker.send(request).reason == "nonce_replay"
        (record,) = unbound_stage.seen_by_app()
        assert dict(record["headers"])["x-signet-binding"] == "none"


# -- a store that lost its contents


@pytest.mark.redis
def test_store_that_lost_its_contents_makes_older_challenges_stale(redis_stage: Stage) -> None:
    with attack(redis_stage, "http2") as attacker:
        spent, unspent = attacker.signed(), attacker.signed()
        assert attacker.send(spent).status == 200
        with redis.Redis(port=redis_stage.stack.settings.ports.redis) as server:
            server.flushall()
        assert attacker.send(spent).reason == "stale_challenge"
        assert attacker.send(unspent).reason == "stale_challenge"
        wait_until(lambda: attacker.send(attacker.signed()).status == 200, "challenges issued later are good")
        assert attacker.send(spent).reason == "stale_challenge"
        assert len(redis_stage.seen_by_app()) == 2


# -- keys and configuration that change while the stack runs


def clients(stage: Stage, *words: str) -> str:
    command = [
        sys.executable,
        "-m",
        "extproc",
        "clients",
        words[0],
        "--config",
        str(stage.stack.files.toml),
        *words[1:],
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reason_on(stage: Stage, attacker: Attacker, worker: int, **options: Any) -> str:
    """Ask one worker about a request that is good apart from what the options say."""
    request = attacker.signed(binding=BINDING, challenge=stage.mint(BINDING), **options)
    return send_check(stage.stack.files.socket(worker), request, BINDING, os.urandom(8).hex()).reason


def test_keys_come_and_go_on_every_worker_within_two_seconds(sqlite_stage: Stage, tmp_path: Path) -> None:
    stage = sqlite_stage
    private = generate("ed25519")
    public = dict(public_jwk(private))
    (tmp_path / "new.jwk.json").write_text(json.dumps(public))
    stage.keys["new"] = KeyPair("newcomer", private_key_from_jwk(private), public)
    key_id = stage.keys["new"].signer.key_id
    changes = (
        (("add", "--subject", "newcomer", "--jwk", str(tmp_path / "new.jwk.json")), "unknown_key", "allowed"),
        (("revoke", "--key-id", key_id), "allowed", "key_revoked"),
    )
    with attack(stage, "http2") as attacker:
        for words, before, after in changes:
            assert {reason_on(stage, attacker, worker, key="new") for worker in (0, 1)} == {before}
            assert key_id in clients(stage, *words)
            changed_s = time.monotonic()
            for worker in (0, 1):
                wait_until(
                    lambda worker=worker, after=after: reason_on(stage, attacker, worker, key="new") == after,  # type: ignore[misc]
                    f"worker {worker} says {after}",
                    LIVE_WITHIN_S,
                )
            assert time.monotonic() - changed_s < LIVE_WITHIN_S
            answer = attacker.send(attacker.signed(key="new"))
            assert (answer.reason or "allowed") == after
        (record,) = stage.seen_by_app()
        assert dict(record["headers"])["x-signet-subject"] == "newcomer"


def epoch_of(challenge: str) -> int:
    return challenge_parts(ChallengeText(challenge)).epoch


def test_sealing_key_rotates_under_both_workers(sqlite_stage: Stage) -> None:
    """Challenges of the former epoch stay good; those of the new one are good on the worker that did not seal them."""
    stage = sqlite_stage
    with attack(stage, "http2") as attacker:
        former = attacker.challenge()
        command = [sys.executable, "-m", "extproc", "rotate-sealing-key", "--config", str(stage.stack.files.toml)]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=30)
        assert {reason_on(stage, attacker, worker) for worker in (0, 1)} == {"allowed"}
        assert attacker.send(attacker.signed(challenge=former)).status == 200
        fresh = wait_until(
            lambda: c if epoch_of(c := attacker.challenge()) > epoch_of(former) else None,
            "challenges of the new epoch",
        )
        assert attacker.send(attacker.signed(challenge=fresh)).status == 200
        assert len(stage.seen_by_app()) == 2


# -- what stays secret


def test_no_log_metric_or_receipt_holds_what_a_client_kept_for_the_app(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    secret = f"very-secret-{os.urandom(8).hex()}"
    fields = (("cookie", f"c={secret}".encode()), ("authorization", f"Bearer {secret}".encode()))
    with attack(stage, "http2") as attacker:
        target = attacker.target(rest=f"?token={secret}")
        request = attacker.signed(attacker.request(target, "POST", headers=fields, body=secret.encode()))
        refused = attacker.send(request.flipped())
        allowed = attacker.send(request)
        assert (refused.reason, allowed.status) == ("bad_signature", 200)
        assert secret not in refused.body.decode()
    signature = request.field("signature").decode().split(":")[1]
    sealing = [each["key_b64"] for each in json.loads((stage.var / "sealing.json").read_text())["epochs"]]
    access_log = stage.stack.files.logs / "envoy.log"
    wait_until(lambda: attacker.marker in access_log.read_text(), "Envoy writes its access log", 15)
    logs = [path for path in stage.stack.files.logs.rglob("*") if path.is_file() and path != stage.stack.files.app_log]
    texts = {path.name: path.read_text(errors="replace") for path in logs}
    texts["metrics"] = stage.admin_text("/metrics").decode()
    texts["receipts"] = stage.admin_text("/receipts/latest?limit=20").decode()
    for name, text in texts.items():
        for kept in (secret, signature, allowed.challenges[0], attacker.session.binding.hex(), *sealing):
            assert kept not in text, f"{name} tells a secret"


def test_files_and_sockets_of_the_filter_are_private(sqlite_stage: Stage) -> None:
    names = ["sealing.json", "run/signet-0.sock", "run/signet-1.sock"]
    names += [path.name for path in sqlite_stage.var.glob("*.sqlite3*")]
    assert {"nonces.sqlite3", "receipts.sqlite3"} <= set(names)
    modes = {name: oct((sqlite_stage.var / name).stat().st_mode & 0o777) for name in names}
    assert modes == dict.fromkeys(names, "0o600")


# -- a flood of refusals


def test_flood_of_refusals_is_refused_and_counted_to_the_last_one(sqlite_stage: Stage) -> None:
    """Past 200 receipts a second and worker the rest is counted in summaries (PCH §5); none is let through or lost."""
    stage = sqlite_stage

    def summarised() -> float:
        lines = stage.admin_text("/metrics").decode().splitlines()
        name = "signet_refusals_summarised_total "
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = summarised()
    with attack(stage, "http2") as attacker:
        session = attacker.session
        assert isinstance(session, Http2Session)
        answers = [answer for _ in range(16) for answer in session.send_all([attacker.request()] * 100)]
        assert {answer.reason for answer in answers} == {"missing_signature"}
        untold = sum(answer.receipt_id is None for answer in answers)
        wait_until(lambda: summarised() - before == untold, "every refusal without a receipt is in a summary")
        assert attacker.send(attacker.signed()).status == 200
        assert len(stage.seen_by_app()) == 1


@pytest.fixture
def toml(sqlite_stage: Stage) -> Iterator[Path]:
    """The filter's configuration file, put back and loaded again afterwards."""
    path = sqlite_stage.stack.files.toml
    original = path.read_text()
    yield path
    path.write_text(original)
    reload(sqlite_stage, "loaded")


def reloads(stage: Stage, outcome: str) -> float:
    wanted = f'signet_config_reloads_total{{outcome="{outcome}"}} '
    lines = stage.admin_text("/metrics").decode().splitlines()
    return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


def reload(stage: Stage, outcome: str) -> None:
    """Send SIGHUP and wait until both workers counted it."""
    before = reloads(stage, outcome)
    os.kill(stage.stack.state["pids"]["filter"], signal.SIGHUP)
    wait_until(lambda: reloads(stage, outcome) == before + 2, f"both workers {outcome} the configuration")


@pytest.mark.parametrize(
    "bad",
    [
        "not TOML [",
        '\n[[route]]\nname = "typo"\npath = "/typo/**"\nguarded = false\n',
        '\n[[route]]\nname = "bad"\npath = "/bad/**"\nmax_body_bytes = -1\n',
        "\n[surprise]\nkey = 1\n",
    ],
)
def test_reload_takes_a_good_configuration_and_keeps_it_when_the_next_is_bad(
    sqlite_stage: Stage, toml: Path, bad: str
) -> None:
    stage = sqlite_stage
    with attack(stage, "http2") as attacker:
        small = attacker.request(attacker.target("/small"), "POST", body=b"123456789")

        def both() -> set[str]:
            return {reason_on(stage, attacker, worker, request=small) for worker in (0, 1)}

        assert both() == {"body_too_large"}
        good = toml.read_text().replace("max_body_bytes = 8\n", "max_body_bytes = 9\n")
        toml.write_text(good)
        reload(stage, "loaded")
        assert both() == {"allowed"}
        toml.write_text(good.replace("max_body_bytes = 9\n", "max_body_bytes = 8\n") + bad)
        reload(stage, "refused")
        assert both() == {"allowed"}, "the good configuration stays in force, whole"
        answer = attacker.send(attacker.signed(small))
        assert answer.status == 200
        assert len(stage.seen_by_app()) == 1


def test_reload_under_traffic_lets_nothing_through_unverified(sqlite_stage: Stage, toml: Path) -> None:
    """A route becomes guarded by other keys while requests for it keep coming: each is decided by one whole version."""
    stage = sqlite_stage
    with attack(stage, "http2") as attacker:

        def ask_for_alices() -> str | None:
            return attacker.send(attacker.signed(attacker.request(attacker.target("/alice")))).reason

        seen = [ask_for_alices()]
        toml.write_text(toml.read_text().replace('subjects = ["alice"]', 'subjects = ["demo"]'))
        os.kill(stage.stack.state["pids"]["filter"], signal.SIGHUP)
        deadline = time.monotonic() + WAIT_S
        while seen[-5:] != [None] * 5:
            assert time.monotonic() < deadline
            seen.append(ask_for_alices())
        assert set(seen) == {"policy_denied", None}
        assert len(stage.seen_by_app()) == seen.count(None)
