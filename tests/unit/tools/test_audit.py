"""`make audit` passes only when every package was looked up: without the advisory service it fails and says so."""

import os
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[3]


def audit(tmp_path, *overrides):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    proxy = f"http://127.0.0.1:{port}"
    environ = {name: text for name, text in os.environ.items() if name.lower() != "no_proxy"}
    environ |= {"HTTPS_PROXY": proxy, "https_proxy": proxy, "XDG_CACHE_HOME": str(tmp_path)}
    # The virtual environment is not rebuilt in a test, however old its stamp.
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", *overrides, "audit"]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)


def test_without_the_advisory_service_it_fails_and_says_so(tmp_path):
    done = audit(tmp_path)
    assert done.returncode != 0
    assert "signet: NOT audited" in done.stderr
    assert "127.0.0.1" in done.stderr


def test_what_the_service_does_not_know_is_no_pass():
    """pip-audit skips such packages and ends with 0 unless it is told to be strict."""
    shown = subprocess.run(
        ["make", "--dry-run", "-o", ".venv/.installed", "audit"], cwd=ROOT, capture_output=True, text=True, timeout=30
    ).stdout
    assert "pip-audit --strict --require-hashes" in shown
    assert "-r requirements.lock" in shown
    assert "-r requirements-tpm.lock" in shown


def test_a_clean_audit_passes(tmp_path):
    assert audit(tmp_path, "AUDIT=true").returncode == 0
