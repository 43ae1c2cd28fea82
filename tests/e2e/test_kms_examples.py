"""docs/reference/kms-examples.sh against a running service (INTEROP.md §8)."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.kms_service import KmsProcess

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "reference" / "kms-examples.sh"


def run(service, token):
    environ = {
        **os.environ,
        "MACAROON": token,
        "KMS_URL": f"http://{service.address('http')}",
        "KMS_GRPC": service.address("grpc"),
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run([SCRIPT], env=environ, capture_output=True, text=True, timeout=60)


def test_the_examples_hold_and_fail_without_their_scopes(tmp_path):
    service = KmsProcess(tmp_path, {"DEADLINE_AUDIT_APPEND": "2s"}).start()
    try:
        done = run(service, service.token())
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith("all examples hold\n")
        assert "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24" in done.stdout
        refused = run(service, service.token("kms:rotate", "kms:read"))
        assert refused.returncode != 0
        assert "all examples hold" not in refused.stdout
    finally:
        service.stop()
