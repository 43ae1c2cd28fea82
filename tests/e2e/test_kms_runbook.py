"""The runbook's scripts against a real service, and the alerts with promtool (RUNBOOK.md §6, §13)."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from tests.support import softhsm
from tests.support.kms_service import DIGEST
from tests.support.provider_parts import running_softhsm

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts" / "runbooks"
RUNBOOK = ROOT / "docs" / "guides" / "kms-runbook.md"
ALERTS = ROOT / "monitoring" / "kms_alerts.yml"


def run(script, *arguments, **environ):
    command = [str(SCRIPTS / script), *arguments]
    env = {**os.environ, "PYTHON": sys.executable, **environ}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


def promtool(*arguments, folder):
    binary = shutil.which("promtool")
    # Not a skip: rules that nothing has run are not tested.
    assert binary is not None, "promtool is not installed (tools/parts.sh prometheus)"
    return subprocess.run([binary, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_alerts_do_what_their_cases_say():
    done = promtool("test", "rules", "kms_alerts_test.yml", folder=ALERTS.parent / "tests")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = (ALERTS.parent / "tests" / "kms_alerts_test.yml").read_text()
    for alert in re.findall(r"- alert: (\w+)", ALERTS.read_text()):
        assert re.search(rf"alertname: {alert}\n        exp_alerts:\n", cases), f"{alert} never sounds"
        assert re.search(rf"alertname: {alert}\n        exp_alerts: \[\]", cases), f"{alert} is never quiet"


def test_an_alert_that_never_sounds_fails_its_case(tmp_path):
    (tmp_path / "tests").mkdir()
    shutil.copy(ALERTS.parent / "tests" / "kms_alerts_test.yml", tmp_path / "tests")
    broken = ALERTS.read_text().replace("kms_audit_integrity_failed_total", "kms_audit_integrity_lost_total")
    (tmp_path / ALERTS.name).write_text(broken)
    assert promtool("test", "rules", "kms_alerts_test.yml", folder=tmp_path / "tests").returncode != 0


def test_every_alert_leads_to_a_section_of_the_runbook():
    sections = {
        heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    }
    links = re.findall(r"runbook: docs/guides/kms-runbook\.md#(\S+)", ALERTS.read_text())
    assert len(links) == ALERTS.read_text().count("- alert:")
    assert set(links) <= sections
    assert set(re.findall(r"\]\(#([a-z-]+)\)", RUNBOOK.read_text())) <= sections
    for script in re.findall(r"scripts/runbooks/(\w+\.sh)", RUNBOOK.read_text()):
        assert os.access(SCRIPTS / script, os.X_OK)


def test_the_runbook_calls_its_scripts_with_options_that_they_have():
    lines = re.findall(r"^ {4,}scripts/runbooks/(\w+\.sh)(.*)$", RUNBOOK.read_text(), re.MULTILINE)
    assert {name for name, _ in lines} == {path.name for path in SCRIPTS.glob("*.sh")}
    for name, rest in lines:
        known = set(re.findall(r"^ +(--[a-z-]+)\)", (SCRIPTS / name).read_text(), re.MULTILINE))
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, name


def test_the_slos_are_dumped_and_trouble_is_the_exit_status(kms):
    service = kms(BACKEND="inmem", AMNESIA="1")
    kid = service.create()
    body = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}
    for _ in range(3):
        assert service.ask("POST", "/v1/kms/sign", body).status == 200
    service.ask("POST", "/v1/kms/sign", body, token=None)
    base = f"http://{service.address('metrics')}"
    done = run("kms_dump_slos.sh", base)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"ready":true' in done.stdout
    assert re.search(r"^p95 sign ml-dsa: at most [0-9.]+ s of 3$", done.stdout, re.MULTILINE)
    assert 'rejected_total{reason="unauth"} 1.0' in done.stdout
    os.kill(service.service_pid, 9)
    service.wait_for("serving", 2)
    again = run("kms_dump_slos.sh", base)
    assert (again.returncode, "not zero: service_restarts_total 1.0" in again.stdout) == (1, True)
    service.stop()
    assert run("kms_dump_slos.sh", base).returncode == 1


def test_one_tenants_post_quantum_phase_is_rolled_back_and_nobody_elses(kms, tmp_path):
    policy = tmp_path / "tenants.toml"
    rows = '[default]\n[tenants.core]\nrate_per_s = 200\nverify_mode = "and"\n[tenants.other]\nverify_mode = "and"\n'
    policy.write_text(rows)
    policy.chmod(0o640)
    service = kms(BACKEND="inmem", AMNESIA="1", POLICY_PATH=str(policy))
    kid = service.create("hybrid")
    signed = service.ask("POST", "/v1/kms/sign", {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}).json["sigs"]
    half = {"payload_b3": DIGEST, "sigs": signed[:1], "kid_or_set": {"kid": kid}}
    refused = service.ask("POST", "/v1/kms/verify", half)
    assert refused.status != 200 or refused.json["ok"] is False
    where = ["--policy", str(policy), "--metrics", f"http://{service.address('metrics')}"]
    pid = ["--pid", str(service.process.pid)]
    for bad in (["--tenant", "nobody", *pid], ["--tenant", "../x", *pid], ["--tenant", "core"], ["--what", "x"]):
        assert run("kms_pq_rollback.sh", *where, *bad).returncode != 0
    assert policy.read_text() == rows
    done = run("kms_pq_rollback.sh", *where, "--tenant", "core", *pid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert service.ask("POST", "/v1/kms/verify", half).json["ok"] is True
    changed = '[default]\n[tenants.core]\nverify_mode = "or"\nrate_per_s = 200\n[tenants.other]\nverify_mode = "and"\n'
    assert policy.read_text() == changed
    assert stat.S_IMODE(policy.stat().st_mode) == 0o640
    broken = changed + "unknown = 1\n"
    policy.write_text(broken)
    refused = run("kms_pq_rollback.sh", *where, "--tenant", "core", *pid)
    assert (refused.returncode, policy.read_text()) == (1, broken)


def test_while_the_token_is_away_for_long_another_service_verifies_and_signs_nothing(kms, tmp_path, monkeypatch):
    monkeypatch.setenv("RON_KMS_TEST_PIN", softhsm.PIN)
    with running_softhsm(tmp_path / "hsm"):
        settings = {
            "BACKEND": "pkcs11",
            "PKCS11_MODULE_PATH": str(softhsm.MODULE),
            "PKCS11_SLOT_LABEL": softhsm.LABEL,
            "PKCS11_PIN_ENV": "RON_KMS_TEST_PIN",
            "PQ_PRODUCE_HYBRID": "0",
            "PQ_VERIFY_MODE": "or",
        }
        service = kms(**settings)
        kid = service.create("ed25519")
        sign = {"kid_or_set": {"kid": kid}, "payload_b3": DIGEST}
        check = sign | {"sigs": service.ask("POST", "/v1/kms/sign", sign).json["sigs"]}
        service.stop()
    state = tmp_path / "kms-state"
    before = {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()}
    service.log_file.unlink()
    scratch = tmp_path / "scratch"
    arguments = ["--state-dir", str(state), "--scratch", str(scratch)]
    with service.log_file.open("wb") as log:
        command = [str(SCRIPTS / "kms_failover_file_backend.sh"), *arguments]
        environ = service.environ | {"PYTHON": sys.executable}
        service.process = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=log)
    service.wait_for("serving")
    verdict = service.ask("POST", "/v1/kms/verify", check)
    assert verdict.json["ok"] is True
    assert verdict.json["cache_age_ms"] > 0
    flipped = dict(check, payload_b3=DIGEST[::-1])
    assert service.ask("POST", "/v1/kms/verify", flipped).json["ok"] is False
    assert service.ask("POST", "/v1/kms/sign", sign).status == 503
    assert service.ask("POST", "/v1/kms/keys", {"tenant": "core", "purpose": "app", "alg": "ed25519"}).status == 503
    ready = service.ask("GET", "/readyz", token=None, role="metrics")
    assert (ready.status, "audit_ready" in ready.json["missing"]) == (503, True)
    assert service.stop() == 0
    assert {path.name: path.read_bytes() for path in state.iterdir() if path.is_file()} == before
    assert run("kms_failover_file_backend.sh", *arguments).returncode == 1, "an old copy is never used again"
