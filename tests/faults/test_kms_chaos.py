"""Faults of a running key service under load (G-6, TESTS.md §1.5).

Elsewhere: a token that is lost (tests/e2e/test_kms_backends.py), a store that was put back
(tests/unit/kms/test_audit_commands.py), a kill between any two steps (tests/faults/test_sealed_store_kill.py), a clock
that steps (tests/unit/kms/test_invariants_held.py).
"""

import contextlib
import gzip
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from kms.audit_record import parse_record
from tests.support.kms_flood import flooding, open_files, rss_bytes, sign_request
from tests.support.kms_service import DIGEST, KmsProcess

SLOW_SYNC = Path(__file__).parents[1] / "support" / "slow_sync.c"
MAX_RSS_BYTES = 512 * 1024 * 1024
SLOW_PEERS = 50
FAST = {"SIGN_RATE_LIMIT": "100000", "PQ_PRODUCE_HYBRID": "0"}


@pytest.fixture
def kms(tmp_path):
    started = []

    def start(**settings):
        process = KmsProcess(tmp_path, FAST | settings)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.stop()


def wait_until(true, timeout_s=15.0):
    end_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def ready(service):
    return service.ask("GET", "/readyz", token=None, role="metrics").status == 200


def audited_signatures(folder):
    """Count the signatures that the audit log has, record by record."""
    lines = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()).split(b"\n")
    records = [parse_record(line) for line in lines if line.startswith(b"{") and b'"seq"' in line]
    return sum(record.op == "sign" and record.result == "ok" for record in records)


def kill_under_load(service, tmp_path, kills, token):
    kid = service.create()
    with flooding(service, lambda _: sign_request(kid), threads=4, rate_per_s=200, token=token) as flood:
        for number in range(kills):
            enough = len(flood.took_s) + 20
            wait_until(lambda enough=enough: len(flood.took_s) >= enough)
            os.kill(service.service_pid, signal.SIGKILL)
            service.wait_for("serving", number + 2)
    assert service.ask("POST", *sign_request(kid)).status == 200
    assert ready(service)
    assert service.metric("kms_audit_integrity_failed_total") == 0
    answered = flood.statuses[200] + 1
    service.stop()
    found = audited_signatures(tmp_path / "kms-audit" if (tmp_path / "kms-audit").exists() else tmp_path)
    assert found >= answered, "an answer left without its record (I-2)"
    assert found <= answered + kills * 4, "more was signed than was asked for"
    print(f"{kills} kills: {answered} answered, {found} audited, {flood.lost} connections lost")


def test_killed_under_load_it_comes_back_and_every_answer_is_in_the_audit_log(kms, tmp_path):
    service = kms()
    kill_under_load(service, tmp_path, 2, service.token())


@pytest.mark.slow
def test_killed_eight_times_under_load_it_loses_no_answers_record(kms, tmp_path):
    """Fewer than the supervisor's bound of deaths in a minute."""
    service = kms()
    kill_under_load(service, tmp_path, 8, service.token())


def test_a_full_disk_refuses_what_must_be_audited_verifies_on_and_recovers_alone(kms):
    """No byte more may be written to any file of the service: RLIMIT_FSIZE, which needs no root."""
    service = kms()
    kid = service.create()
    path, body = sign_request(kid)
    signed = service.ask("POST", path, body).json
    check = body | {"sigs": signed["sigs"]}
    pid = service.service_pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    refused = service.ask("POST", path, body)
    assert (refused.status, refused.code) == (503, "StoreUnavailable")
    assert service.ask("POST", path, body).headers["retry-after"]
    assert service.ask("POST", "/v1/kms/verify", check).json["ok"] is True
    wait_until(lambda: not ready(service))
    assert service.service_pid == pid, "a full disk ends no process"
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    wait_until(lambda: ready(service))
    assert service.ask("POST", path, body).status == 200
    service.stop()
    service.log_file.unlink()
    again = kms()
    assert ready(again)
    assert again.ask("POST", path, body).status == 200


def test_a_slow_disk_costs_time_then_answers_and_never_a_record(kms, tmp_path, monkeypatch):
    gcc = shutil.which("gcc")
    assert gcc is not None, "gcc is not installed (tools/parts.sh gcc)"
    library, delay = tmp_path / "slow.so", tmp_path / "delay"
    subprocess.run([gcc, "-shared", "-fPIC", "-O1", "-o", str(library), str(SLOW_SYNC), "-ldl"], check=True, timeout=60)
    delay.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("SLOW_SYNC_FILE", str(delay))
    service = kms()
    kid, token = service.create(), service.token()
    path, body = sign_request(kid)
    sigs = service.ask("POST", path, body, token=token).json["sigs"]
    delay.write_text("60")
    began_s = time.monotonic()
    assert service.ask("POST", path, body, token=token).status == 200
    assert time.monotonic() - began_s >= 0.055
    delay.write_text("600")  # three times the append's deadline
    late = service.ask("POST", path, body, token=token)
    # Not 503: the log is there and takes records, this one was not durable within its deadline (kms.md, Errors).
    assert (late.status, late.code) == (504, "Timeout"), late.body
    assert late.json["error"]["retryable"] is True
    assert "sigs" not in late.json
    began_s = time.monotonic()
    assert service.ask("POST", "/v1/kms/verify", body | {"sigs": sigs}, token=token).json["ok"] is True
    delay.write_text("0")
    wait_until(lambda: service.ask("POST", path, body, token=token).status == 200)
    wait_until(lambda: ready(service))
    assert service.metric("kms_audit_integrity_failed_total") <= 1  # a checkpoint that was late is told
    assert service.metric('io_timeouts_total{op="audit"}') >= 1


def burst(service, seconds, factor):
    kid, token = service.create(), service.token()
    quiet = service.metric('rejected_total{reason="backpressure"}')
    with flooding(service, lambda _: sign_request(kid), threads=4, rate_per_s=40, token=token) as steady:
        wait_until(lambda: len(steady.took_s) > 60)
    assert set(steady.statuses) == {200}
    with flooding(service, lambda _: sign_request(kid), threads=16, rate_per_s=40 * factor, token=token) as peak:
        time.sleep(seconds)
    assert set(peak.statuses) <= {200, 429}
    assert peak.lost == 0
    refused = service.metric('rejected_total{reason="backpressure"}') - quiet
    assert refused == peak.statuses[429] > 0
    with flooding(service, lambda _: sign_request(kid), threads=4, rate_per_s=40, token=token) as after:
        wait_until(lambda: len(after.took_s) > 60)
    assert after.statuses[200] > 0.9 * sum(after.statuses.values())
    assert ready(service)
    assert rss_bytes(service.service_pid) < MAX_RSS_BYTES
    print(f"burst x{factor}: {dict(peak.statuses)}, p95 {steady.p95_s() * 1e3:.1f} -> {after.p95_s() * 1e3:.1f} ms")


def test_a_burst_of_ten_times_the_rate_is_refused_early_and_leaves_nothing_behind(kms):
    """The rate allows a quarter of the burst: the rest is 429, nothing is 5xx, no connection is lost."""
    burst(kms(SIGN_RATE_LIMIT="100"), 2.0, 10)


@pytest.mark.slow
def test_a_burst_of_ten_times_the_rate_for_a_minute(kms):
    burst(kms(SIGN_RATE_LIMIT="100"), 60.0, 10)


def test_a_rotate_flood_leaves_signing_and_every_version_verifying(kms):
    service = kms()
    kids = [service.create().partition("#")[0] for _ in range(4)]
    token = service.token()
    first = service.ask("POST", *sign_request(kids[0]), token=token).json

    def mixed(count):
        kid = kids[count % 4]
        return (f"/v1/kms/keys/{kid}/rotate", {}) if count % 2 else sign_request(kid)

    with flooding(service, mixed, threads=4, rate_per_s=100, token=token, keep=True) as flood:
        wait_until(lambda: len(flood.answers) >= 150, 30)
    assert set(flood.statuses) == {200}
    rotated = [answer for answer in flood.answers if "previous" in answer]
    assert len(rotated) > 40
    assert len({answer["kid"] for answer in rotated}) == len(rotated), "a version was given twice"
    for signed in [first, *(answer for answer in flood.answers if "sigs" in answer)][:40]:
        check = {"kid_or_set": {"kid": signed["kid"]}, "payload_b3": DIGEST, "sigs": signed["sigs"]}
        assert service.ask("POST", "/v1/kms/verify", check, token=token).json["ok"] is True
    assert service.metric('rejected_total{reason="pq_policy"}') == 0
    assert ready(service)


def was_cut(peer):
    """Tell whether the service ends the connection within the socket's timeout, unanswered."""
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def test_slow_peers_and_bombs_cost_nobody_else_anything(kms):
    service = kms(READ_TIMEOUT="1s")
    kid, token = service.create(), service.token()
    host, _, port = service.address("http").rpartition(":")
    files = open_files(service.service_pid)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)), 5)) for _ in range(SLOW_PEERS)]
        began_s = time.monotonic()
        for each in slow:
            each.sendall(b"POST /v1/kms/sign HTTP/1.1\r\nhost: k\r\ncontent-le")
        bomb = gzip.compress(bytes(900_000))
        for _ in range(5):
            answer = service.ask("POST", "/v1/kms/sign", bomb, token=token, content_encoding="gzip")
            assert answer.status == 400, answer.body
            assert answer.json["error"]["code"] in ("BadRequest", "TooLarge")
        assert service.ask("POST", *sign_request(kid), token=token).status == 200
        for each in slow:
            assert was_cut(each), "a peer that never ends its header still has its connection"
        assert time.monotonic() - began_s > 0.9
        wait_until(lambda: open_files(service.service_pid) < files + SLOW_PEERS // 2, 5)
    assert service.metric('io_timeouts_total{op="read"}') >= SLOW_PEERS
    assert service.metric('rejected_total{reason="ratio_cap"}') == 5
    assert rss_bytes(service.service_pid) < MAX_RSS_BYTES
    assert json.loads(service.ask("GET", "/readyz", token=None, role="metrics").body)["ready"] is True
