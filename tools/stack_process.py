"""Start processes that die with us, know them again later, and end them and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

RUN_ID_VARIABLE: Final = "STACK_RUN_ID"
"""Marks every process of one run, also those that a part starts itself."""
POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be mistaken for a later one with the same pid.

    `start_ticks`: field 22 of /proc/<pid>/stat, since boot; `boot_id`: which boot that was.
    """

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Identify a running process. Raises `ProcessLookupError` if there is none."""
        return cls(pid, _start_ticks(pid), _boot_id())

    def alive(self) -> bool:
        """Tell whether this very process still runs (a zombie does not)."""
        try:
            return _boot_id() == self.boot_id and _start_ticks(self.pid) == self.start_ticks
        except ProcessLookupError:
            return False


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(pid) from error
    fields = stat.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        raise ProcessLookupError(pid)
    return int(fields[19])


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Part:
    """One process of the stack, in a process group of its own. Owned by the supervising process's main thread.

    `environ` is asked at each start: what must be new each time is.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, environ: Callable[[], Mapping[str, str]], cwd: Path
    ) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._environ = environ
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def exit_status(self) -> int | None:
        """What the process ended with, or None while it runs or before it ran."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start the process; its output is appended to its log file. Raises `OSError`."""
        # preexec_fn is safe here: the supervising process has one thread, which is also why the death signal holds.
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(self._environ()),
                cwd=self._cwd,
                process_group=0,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )

    def stop(self, grace_s: float) -> None:
        """End the process and what it left behind in its group: first asked, then made to."""
        if self._process is None:
            return
        group = self._process.pid
        self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Our own group: it was made by start() and its number is not reused while a member lives.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)

    def log_tail(self, lines: int) -> str:
        """Give the last `lines` lines of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def processes_of_run(run_id: str) -> Iterator[ProcessIdentity]:
    """Find every process of this user that carries the mark of run `run_id`, but not this one."""
    mark = f"{RUN_ID_VARIABLE}={run_id}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                yield ProcessIdentity.of(int(folder.name))
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue


def end(process: ProcessIdentity, grace_s: float) -> None:
    """End exactly this process: asked first, made to after `grace_s`."""
    for sign, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if not process.alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, sign)
        deadline = time.monotonic() + patience_s
        while process.alive() and time.monotonic() < deadline:
            time.sleep(POLL_S)
