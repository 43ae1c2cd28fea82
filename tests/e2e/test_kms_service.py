"""The key service as it is started: processes, sockets, signals (CONCURRENCY.md §2 and §6, CONFIG.md §5)."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from kms.capability import identity_of, read_token
from kms.revocation import revoke
from tests.support.kms_certificates import make_certificate, pem
from tests.support.kms_service import DIGEST, KmsProcess

MEMORY = {"BACKEND": "inmem", "AMNESIA": "1"}


def sign(service, kid, **rest):
    return service.ask("POST", "/v1/kms/sign", {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}, **rest)


def test_the_embedded_default_serves_within_two_seconds(tmp_path, kms):
    KmsProcess(tmp_path)  # makes the root key and the passphrase
    took_s = []
    for _ in range(2):
        began_s = time.monotonic()
        service = kms()
        assert service.ask("GET", "/readyz", token=None, role="metrics").status == 200
        took_s.append(time.monotonic() - began_s)
        service.stop()
        service.log_file.unlink()
    assert min(took_s) < 2.0


def test_the_metrics_port_tells_health_readiness_version_and_metrics(kms):
    service = kms(**MEMORY)

    def ask(path, method="GET"):
        return service.ask(method, path, token=None, role="metrics")

    assert ask("/healthz").json == {"ok": True, "degraded": []}
    assert 0 < service.metric("process_resident_memory_bytes") < 512 * 1024 * 1024
    ready = ask("/readyz")
    assert ready.status == 200
    assert ready.json["ready"] is True
    assert set(ready.json) == {"ready", "missing", "degraded", "retry_after", "snapshot"}
    assert ready.json["snapshot"]["backend"] == "inmem"
    assert ready.json["snapshot"]["pq_mode"] == "and"
    assert ask("/version").json["service"] == "ron-kms"
    kid = service.create()
    sign(service, kid)
    sign(service, kid, token=None)
    text = ask("/metrics").body.decode()
    for name in (
        'kms_ops_total{alg="ed25519",op="sign",result="ok"}',
        'kms_latency_seconds_bucket{alg="ed25519",le="0.001",op="sign"}',
        "kms_audit_integrity_failed_total 0.0",
        'busy_rejections_total{queue="sign"}',
        'rejected_total{reason="unauth"} 1.0',
        'http_requests_total{method="POST",route="/v1/kms/sign",status="200"} 1.0',
    ):
        assert name in text, name
    assert ask("/elsewhere").status == 404
    refused = ask("/metrics", "POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET")
    assert ask("/v1/kms/sign").status == 404


def test_a_killed_service_is_started_again_and_no_connection_is_refused(kms):
    service = kms()
    kid, token = service.create(), service.token()
    address = service.address("http")
    first = service.service_pid
    os.kill(first, signal.SIGKILL)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: sign(service, kid, token=token).status, range(16)))
    assert answers == [200] * 16
    assert service.wait_for("serving", 2)["pid"] != first
    assert service.address("http") == address
    assert service.metric("service_restarts_total") == 1.0
    assert service.events("service_died")[0]["exit_status"] == -signal.SIGKILL


def test_told_to_stop_it_drains_signs_the_last_checkpoint_and_ends_with_zero(kms, tmp_path):
    service = kms(UNIX_PATH=str(tmp_path / "kms.sock"), UNIX_ALLOWED_UIDS=str(os.getuid()))
    service.create()
    pid = service.service_pid
    assert service.stop() == 0
    assert [event["event"] for name in ("draining", "stopped") for event in service.events(name)] == [
        "draining",
        "stopped",
    ]
    assert service.events("readyz_false")[-1]["missing"] == ["listener_bound"]
    assert not (tmp_path / "kms.sock").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert kms().ask("GET", "/readyz", token=None, role="metrics").status == 200


def audited(folder, op):
    """Give the details of the audit log's records of one operation, in their order."""
    lines = [line for path in sorted(folder.glob("kms-audit/*.records")) for line in path.read_text().splitlines()]
    return [record["detail"] for record in map(json.loads, lines) if record["op"] == op]


def test_a_revoked_capability_ends_within_five_seconds_and_the_audit_log_names_it(kms, tmp_path):
    service = kms()
    kid, token = service.create(), service.token()
    assert sign(service, kid, token=token).status == 200
    began_s, token_id = time.monotonic(), identity_of(read_token(token))[1]
    revoke(tmp_path / "revoked.json", int(time.time()), token_ids=(token_id,))
    while sign(service, kid, token=token).status != 401:
        assert time.monotonic() - began_s < 5
        time.sleep(0.05)
    assert sign(service, kid).status == 200, "another capability is not touched"
    while not audited(tmp_path, "capabilities_revoked"):
        assert time.monotonic() - began_s < 6, "GOVERNANCE.md §3: an entry within a second"
        time.sleep(0.05)
    assert audited(tmp_path, "capabilities_revoked") == [{"ids.00": token_id}]
    while len(rules := audited(tmp_path, "rules_in_force")) < 2:
        assert time.monotonic() - began_s < 6
        time.sleep(0.05)
    first, changed = rules
    assert (first["revocations"], changed["revocations"], changed["changed"]) == ("0", "1", "revocations")


def test_when_the_supervisor_dies_the_service_drains_and_ends(kms):
    service = kms(**MEMORY)
    pid = service.service_pid
    service.process.kill()
    service.process.wait()
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s and not service.events("stopped"):
        time.sleep(0.02)
    assert service.events("supervisor_gone")
    assert service.events("stopped")[0]["pid"] == pid


def test_matrix_sighup_reloads_safe_keys_in_place_and_replaces_the_service_for_others(kms, tmp_path):
    config = tmp_path / "Config.toml"
    config.write_text("[limits]\nmax_body_bytes = '1KiB'\n")
    service = kms(**MEMORY)
    kid, token = service.create(), service.token()
    pid, address = service.service_pid, service.address("http")
    padded = json.dumps({"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}).encode().ljust(1500)
    assert service.ask("POST", "/v1/kms/sign", padded, token=token).code == "TooLarge"

    config.write_text("[limits]\nmax_body_bytes = '4KiB'\n")
    service.signal(signal.SIGHUP)
    assert service.wait_for("config_updated")["changed"] == ["limits.max_body_bytes"]
    assert service.ask("POST", "/v1/kms/sign", padded, token=token).status == 200
    assert service.service_pid == pid

    config.write_text("[limits]\nmax_body_bytes = '4 KiB'\n")
    service.signal(signal.SIGHUP)
    service.wait_for("config_refused", 2)
    assert service.ask("POST", "/v1/kms/sign", padded, token=token).status == 200
    deadline_s = time.monotonic() + 5
    while service.ask("GET", "/readyz", token=None, role="metrics").status != 503 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert service.ask("GET", "/readyz", token=None, role="metrics").json["missing"] == ["config_loaded"]

    config.write_text("[queues]\nsign = 7\n")
    service.signal(signal.SIGHUP)
    assert service.wait_for("config_replaces_service")["changed"] == ["queues.sign"]
    assert service.wait_for("serving", 2)["pid"] != pid
    assert service.address("http") == address
    assert service.ask("GET", "/readyz", token=None, role="metrics").status == 200


def test_a_reload_that_waits_for_its_disk_holds_up_no_request(kms, tmp_path):
    """The tenants' table is a pipe that nobody has written to yet: as slow as a disk can be."""
    table = tmp_path / "tenants.toml"
    table.write_text("[default]\n")
    service = kms(**MEMORY, POLICY_PATH=str(table))
    kid, token = service.create(), service.token()
    table.unlink()
    os.mkfifo(table)
    service.signal(signal.SIGHUP)
    end_s = time.monotonic() + 10
    while (writer := open_for_reader(table)) is None:
        assert time.monotonic() < end_s, "nobody reads the table"
        time.sleep(0.02)
    assert sign(service, kid, token=token).status == 200
    assert ready_answer(service).status == 200
    assert service.events("config_updated") == []
    os.write(writer, b"[default]\nallow = false\n")
    os.close(writer)
    service.wait_for("config_updated")
    assert sign(service, kid, token=token).code == "NoCapability"


def open_for_reader(pipe):
    """Open a pipe for writing when somebody has opened it for reading."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def ready_answer(service):
    return service.ask("GET", "/readyz", token=None, role="metrics")


def wait_until_ready(service):
    end_s = time.monotonic() + 5
    while ready_answer(service).status != 200:
        assert time.monotonic() < end_s, ready_answer(service).body
        time.sleep(0.05)


def test_a_reload_that_names_what_cannot_be_opened_leaves_the_service_as_it_is(kms, tmp_path):
    config = tmp_path / "Config.toml"
    for name in ("one", "other"):
        key, certificate = make_certificate(name, None)
        for suffix, content in (("pem", pem(certificate)), ("key", pem(key))):
            (tmp_path / f"{name}.{suffix}").write_bytes(content)
            (tmp_path / f"{name}.{suffix}").chmod(0o600)
    service = kms(**MEMORY)
    kid, token, pid = service.create(), service.token(), service.service_pid
    unusable = (
        "[tls]\nenabled = true\ncert_path = 'one.pem'\nkey_path = 'other.key'\n",
        "[policy]\npath = 'absent.toml'\n",
    )
    for count, text in enumerate(unusable, 1):
        config.write_text(text)
        service.signal(signal.SIGHUP)
        service.wait_for("config_refused", 2 * count)  # the supervisor's, and the service's own
        assert sign(service, kid, token=token).status == 200
        assert service.service_pid == pid
        assert service.wait_for("readyz_false")["missing"] == ["config_loaded"]
    config.write_text("")
    service.signal(signal.SIGHUP)
    wait_until_ready(service)
    assert service.process.poll() is None
    assert service.events("config_replaces_service") == service.events("service_died") == []


def test_a_successor_that_does_not_serve_gives_way_to_the_last_configuration_that_did(kms, tmp_path):
    config = tmp_path / "Config.toml"
    config.write_text("[queues]\nsign = 7\n")
    service = kms()
    kid, token, address = service.create(), service.token(), service.address("http")
    (tmp_path / "file").write_text("no folder")
    config.write_text("[service]\nstate_dir = 'file'\n")
    service.signal(signal.SIGHUP)
    assert sign(service, kid, token=token).status == 200  # waits in the socket meanwhile
    service.wait_for("serving", 2)
    assert service.address("http") == address
    refused = service.wait_for("config_refused")
    assert refused["exit_status"] in (1, 2)
    assert ready_answer(service).json["missing"] == ["config_loaded"]

    pid = service.service_pid
    service.signal(signal.SIGHUP)  # the same again ends nothing
    service.wait_for("config_needs_restart")
    assert len(service.wait_for("config_refused", 2)) > 0
    assert sign(service, kid, token=token).status == 200
    assert service.service_pid == pid

    os.kill(pid, signal.SIGKILL)  # nor does it come back by a crash
    assert sign(service, kid, token=token).status == 200
    assert service.wait_for("serving", 3)["pid"] != pid

    config.write_text("[queues]\nsign = 7\n")
    service.signal(signal.SIGHUP)
    wait_until_ready(service)
    assert sign(service, kid, token=token).status == 200


def test_a_broken_file_does_not_keep_a_crashed_service_away(kms, tmp_path):
    config = tmp_path / "Config.toml"
    service = kms(**MEMORY)
    config.write_text("max_conns = [\n")
    os.kill(service.service_pid, signal.SIGKILL)
    service.wait_for("serving", 2)
    assert service.ask("GET", "/v1/kms/openapi.json", token=None).status == 200
    assert ready_answer(service).json["missing"] == ["config_loaded"]
    config.write_text("")
    service.signal(signal.SIGHUP)
    wait_until_ready(service)


def test_a_reload_may_move_the_listener_itself(kms, tmp_path):
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        first, second = (f"127.0.0.1:{each.getsockname()[1]}" for each in (one, other))
    config = tmp_path / "Config.toml"
    config.write_text(f'bind_addr = "{first}"\n')
    environ = {name: text for name, text in KmsProcess(tmp_path, MEMORY).environ.items() if name != "RON_KMS_BIND_ADDR"}
    service = KmsProcess(tmp_path, MEMORY)
    with service.log_file.open("ab") as log:
        service.process = subprocess.Popen(
            [sys.executable, "-m", "kms", "serve"], cwd=tmp_path, env=environ, stderr=log
        )
    try:
        service.wait_for("serving")
        assert service.address("http") == first
        config.write_text(f'bind_addr = "{second}"\n')
        service.signal(signal.SIGHUP)
        service.wait_for("serving", 2)
        assert service.address("http") == second
        assert service.ask("GET", "/v1/kms/openapi.json", token=None).status == 200
        host, _, port = first.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=1)
    finally:
        service.stop()


def test_an_unusable_configuration_ends_with_two_and_says_which_key(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "kms", "serve", "--bind", "nowhere"],
        cwd=tmp_path,
        env=KmsProcess(tmp_path, MEMORY).environ,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "bind_addr" in ended.stderr
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "kms", "serve", "--bind", f"127.0.0.1:{port}"]
        ended = subprocess.run(command, cwd=tmp_path, env=KmsProcess(tmp_path, MEMORY).environ, capture_output=True)
    assert ended.returncode == 2
    assert b"Address already in use" in ended.stderr


def test_without_its_root_key_it_does_not_start(tmp_path):
    environ = KmsProcess(tmp_path, MEMORY | {"ROOT_KEY_FILE": "absent"}).environ
    command = [sys.executable, "-m", "kms", "serve"]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "root" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_neighbours_need_their_uid_on_the_list_and_a_capability(kms, tmp_path):
    path = tmp_path / "kms.sock"
    service = kms(UNIX_PATH=str(path), UNIX_ALLOWED_UIDS=str(os.getuid()), **MEMORY)
    assert path.stat().st_mode & 0o777 == 0o600
    kid = service.create()
    assert sign(service, kid, role="unix").status == 200
    assert sign(service, kid, role="unix", token=None).status == 401
    assert service.wait_for("sign_result", 2)["peer_addr"] == f"uid:{os.getuid()}"


def test_a_neighbour_whose_uid_is_not_on_the_list_gets_nothing(kms, tmp_path):
    service = kms(UNIX_PATH=str(tmp_path / "kms.sock"), UNIX_ALLOWED_UIDS=str(os.getuid() + 1), **MEMORY)
    with pytest.raises((ConnectionResetError, BrokenPipeError, ConnectionError)):
        service.ask("GET", "/v1/kms/openapi.json", role="unix")
    assert service.metric('rejected_total{reason="peer_uid"}') == 1.0
