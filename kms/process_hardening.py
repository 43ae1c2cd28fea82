"""Keep this process's memory to itself: no core dumps, no ptrace by its own user, no swap where the OS allows (I-8)."""

from __future__ import annotations

import ctypes
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
# Lock a page once it is used: a process reserves far more than it touches.
_MCL_ONFAULT: Final = 4
_CAP_IPC_LOCK: Final = 14
_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Hardening:
    """What the OS granted. `locked`: every page, only the pages of secrets (each by itself), or none at all."""

    core_dumps_off: bool
    undumpable: bool
    locked: Literal["all", "secrets", "none"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say what was not granted, for the log at start."""
        told = []
        if not self.core_dumps_off:
            told.append("core dumps could not be turned off")
        if not self.undumpable:
            told.append("the process may be traced by its own user")
        if self.locked == "none":
            told.append("memory cannot be locked: raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK")
        return tuple(told)


def harden_process() -> Hardening:
    """Do what can be done, once, before the first key is opened. Nothing of it raises: the result tells."""
    libc = ctypes.CDLL(None, use_errno=True)
    return Hardening(_no_core_dumps(), libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, _lock_pages(libc))


def raise_descriptor_limit() -> None:
    """Take every descriptor that the OS grants: connections are bounded by settings, not by a shell's default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _no_core_dumps() -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        return False
    return True


def _lock_pages(libc: ctypes.CDLL) -> Literal["all", "secrets", "none"]:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    # Under a limit, locking all that is to come would make allocations fail later: then only secrets are locked.
    unlimited = soft == resource.RLIM_INFINITY or _may_lock_without_limit()
    if unlimited and libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
        return "all"
    return "secrets" if soft >= resource.getpagesize() else "none"


def _may_lock_without_limit() -> bool:
    """Look for CAP_IPC_LOCK among the effective capabilities."""
    try:
        lines = _STATUS.read_text().splitlines()
        capabilities = next(line for line in lines if line.startswith("CapEff:"))
        return bool(int(capabilities.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    except (OSError, StopIteration, ValueError):
        return False
