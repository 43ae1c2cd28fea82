"""A run that is told to end cleans up: by whatever signal, and also when it is told twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import contextlib, os, signal, sys, time
from loadtest.ending import end_as_by_an_interrupt
end_as_by_an_interrupt()
try:
    print("running", flush=True)
    time.sleep(60)
finally:
    os.kill(os.getpid(), int(sys.argv[1]))
    print("cleaned up", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_through_the_clean_up_and_the_exit_status_tells(number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, str(int(number))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert out == "cleaned up\n"
    assert process.returncode not in {0, -number}
