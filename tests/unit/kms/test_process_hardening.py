"""What the OS is asked to do for a process that holds keys, in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kms.process_hardening import Hardening, raise_descriptor_limit

ROOT = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
SHOW = """
import ctypes, json, resource, sys
from pathlib import Path
from kms.process_hardening import harden_process
from kms.providers.secret_buffer import SecretBuffer
{before}
done = harden_process()
with SecretBuffer(32) as secret:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps([
        done.core_dumps_off, done.undumpable, done.locked, list(done.warnings), secret.locked,
        resource.getrlimit(resource.RLIMIT_CORE)[1], ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        int(status["VmLck"].split()[0]),
    ]))
"""


def hardened(before: str = "") -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(before=before)], capture_output=True, env=ENVIRONMENT, timeout=30, check=True
    )
    return json.loads(done.stdout)


def test_every_descriptor_that_the_system_grants_is_taken() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_core_dumps_and_tracing_are_off_and_secrets_are_locked() -> None:
    core_off, undumpable, locked, warnings, secret_locked, core_limit, dumpable, locked_kib = hardened()
    assert (core_off, undumpable, core_limit, dumpable) == (True, True, 0, 0)
    assert locked in {"all", "secrets"}
    assert warnings == []
    assert secret_locked is True
    assert isinstance(locked_kib, int)
    assert locked_kib >= 4


def test_a_limit_on_locked_memory_is_told_and_breaks_nothing() -> None:
    """Without the capability and with no page to lock, the service starts all the same and says so."""
    without_capability = """
import os
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
"""
    core_off, _, locked, warnings, secret_locked, *_ = hardened(without_capability)
    assert core_off is True
    assert locked == "none"
    assert secret_locked is False
    assert any("RLIMIT_MEMLOCK" in str(warning) for warning in warnings if warning)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (Hardening(core_dumps_off=True, undumpable=True, locked="all"), 0),
        (Hardening(core_dumps_off=True, undumpable=True, locked="secrets"), 0),
        (Hardening(core_dumps_off=False, undumpable=False, locked="none"), 3),
    ],
)
def test_what_was_not_granted_is_said(report: Hardening, told: int) -> None:
    assert len(report.warnings) == told
