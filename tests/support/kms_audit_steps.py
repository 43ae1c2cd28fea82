"""A program that kills itself before every system call by which the audit log changes its files, one after the other.

For each step it forks a child that opens a log, appends and closes, and dies there; then another that opens what is
left. One line of JSON each: what was killed, how many answers there were, which of them are lost, and what is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import kms.audit_check
import kms.audit_files
import kms.audit_log
from kms.audit_files import AuditFiles
from kms.audit_log import AuditSettings
from tests.support.kms_audit import AuditParts, event

CALLS = ("write", "pwrite", "fsync", "fdatasync", "rename", "replace", "link", "ftruncate")
MAX_STEPS = 400
APPENDS = 12


def main(folder: Path, *, begun: bool) -> None:
    for module in (kms.audit_files, kms.audit_check, kms.audit_log):
        module.SEGMENT_RECORDS = 8  # type: ignore[attr-defined]
    kms.audit_check.SEGMENT_BITS = 3  # type: ignore[misc,attr-defined]
    for step in range(MAX_STEPS):
        parts = AuditParts(folder / str(step), settings=AuditSettings(append_s=10, checkpoint_every=4))
        if begun:
            in_child(lambda pipe, parts=parts: append(parts, 5, pipe))
        before = size_of(parts)
        told = in_child(lambda pipe, parts=parts, step=step: (kill_before(step, pipe), append(parts, APPENDS, pipe)))
        answers = [line.split() for line in told if not line.startswith("killed")]
        killed = next((line.split()[1] for line in told if line.startswith("killed")), "")
        fault = "".join(in_child(lambda pipe, parts=parts: os.write(pipe, (parts.fault() or "").encode())))
        stored = all_records(parts)
        lost = [index for index, leaf in answers if leaf_of(stored, int(index)) != leaf]
        whole = "" if size_of(parts) >= before else "shorter"
        line = {"killed_before": killed, "answered": len(answers), "lost": lost, "fault": fault or whole}
        sys.stdout.write(json.dumps(line) + "\n")
        if not killed:
            return
    raise AssertionError("the steps have no end")


def append(parts: AuditParts, count: int, pipe: int) -> None:
    log = parts.open_whole()
    for _ in range(count):
        entry = log.append_now(event())
        real_write(pipe, f"{entry.index} {entry.leaf_hash}\n".encode())
    log.close()


real_write = os.write


def kill_before(step: int, pipe: int) -> None:
    left = [step]

    def wrap(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if left[0] == 0:
                real_write(pipe, f"killed {name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*arguments, **named)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))


def in_child(work: Any) -> list[str]:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            work(write_end)
        except BaseException as error:
            real_write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        told = pipe.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in {0, -signal.SIGKILL}:
        raise AssertionError(f"a child ended with {status}")
    return told


def size_of(parts: AuditParts) -> int:
    return len(all_records(parts))


def all_records(parts: AuditParts) -> list[bytes]:
    files = AuditFiles(parts.folder)
    count = len(list(parts.folder.glob("*.records"))) if parts.folder.exists() else 0
    return [line for number in range(count) for line in files.read_segment(number).split(b"\n")[:-1]]


def leaf_of(stored: list[bytes], index: int) -> str:
    from receipts.merkle import leaf_hash

    return leaf_hash(stored[index]).hex() if index < len(stored) else ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), begun=sys.argv[2] == "begun")
