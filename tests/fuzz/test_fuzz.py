"""Every fuzz target under atheris: a few seconds in the gate, a minute each in the long runs, hours by `make fuzz`."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import kms_fuzz, token_fuzz
from tests.support.kms_fuzz import SEEDS, TARGETS
from tests.support.token_fuzz import PRIMITIVES, VERBS

RUN = Path(__file__).with_name("run_target.py")
GATE_S = 2
LONG_S = 60
HOURS = float(os.environ.get("SIGNET_FUZZ_HOURS", "0"))


def fuzz(target, seconds, corpus):
    # Not a skip: what was not fuzzed is not shown.
    assert importlib.util.find_spec("atheris"), "atheris is not installed (the extra `dev` has it on Linux)"
    # A process begins with its parent's peak of memory, which libFuzzer would hold against the target: a small parent.
    command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(RUN), target, str(seconds), str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds * 3 + 60)
    assert done.returncode == 0, done.stderr[-4000:]
    executed = int(re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)[1])
    crashes = [path.name for path in Path(corpus).iterdir() if path.name.startswith(("crash-", "timeout-", "oom-"))]
    assert crashes == []
    return executed


@pytest.mark.parametrize("target", TARGETS)
def test_no_bytes_make_a_parser_raise_anything_but_its_refusal(target, tmp_path):
    executed = fuzz(target, GATE_S, tmp_path / "corpus")
    print(f"{target}: {executed} inputs in {GATE_S} s")
    assert executed > 20


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_minute_of_any_bytes_finds_nothing(target, tmp_path):
    seconds = max(LONG_S, int(HOURS * 3600 / len(TARGETS)))
    executed = fuzz(target, seconds, tmp_path / "corpus")
    print(f"{target}: {executed} inputs in {seconds} s")
    assert executed > 1000


@pytest.mark.parametrize("target", [name for name, seeds in SEEDS.items() if seeds])
def test_the_seeds_are_taken_and_not_refused(target, monkeypatch):
    """Otherwise a target would only ever see refusals."""

    class Never(Exception):
        pass

    monkeypatch.setattr(kms_fuzz, "KmsError", Never)
    monkeypatch.setattr(kms_fuzz, "AuditRecordError", Never)
    for name in ("ConnectionLostError", "StoreUnavailable", "NotFound"):
        monkeypatch.setattr(token_fuzz, name, Never)
    for seed in SEEDS[target]:
        TARGETS[target](seed)


@pytest.mark.parametrize("primitive", range(len(PRIMITIVES)))
@pytest.mark.parametrize("verb", range(len(VERBS)))
def test_a_token_as_it_should_be_is_used_and_one_that_fails_is_refused(verb, primitive):
    assert token_fuzz.outcome(bytes([verb, primitive])) is not None
    for fault in range(1, 8):
        assert token_fuzz.outcome(bytes([verb, primitive]) + bytes([fault]) * 64) is None


def test_a_parser_that_breaks_is_found(tmp_path):
    """The run itself: a target that raises ends it with a crash."""
    broken = tmp_path / "broken.py"
    text = RUN.read_text().replace("TARGETS[name])", "lambda data: 1 // (0 if data[:1] == b'[' else 1))")
    broken.write_text(text.replace("Path(__file__).resolve().parents[2]", repr(str(RUN.parents[2]))))
    command = [sys.executable, str(broken), "codec_bundle", "5", str(tmp_path / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stdout + done.stderr
