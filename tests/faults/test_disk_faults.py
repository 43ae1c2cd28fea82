"""A disk that is full, and one that became read-only, under the stores of the running filter."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from receipts.store_sqlite import MIN_FREE_BYTES
from tests.e2e.attack_stage import open_stage
from tests.faults.fault_stage import FaultStage, stopped

pytestmark = pytest.mark.e2e

DISK_BYTES = MIN_FREE_BYTES + (16 << 20)


@dataclass
class Disk:
    """A small file system of our own or, where none may be mounted, limits on what the filter's processes write."""

    folder: Path
    mounted: bool

    @classmethod
    def at(cls, folder: Path) -> Disk:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, check=False)
        return cls(folder, mounted=done.returncode == 0)

    @contextlib.contextmanager
    def full(self, *pids: int) -> Iterator[None]:
        if not self.mounted:
            with _unable_to_write(*pids):
                yield
            return
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(4096))
        try:
            assert shutil.disk_usage(self.folder).free == 0
            yield
        finally:
            ballast.unlink()

    def remount(self, mode: str) -> None:
        if self.mounted:
            subprocess.run(["mount", "-o", f"remount,{mode}", str(self.folder)], check=True, capture_output=True)

    def unmount(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)


@contextlib.contextmanager
def _unable_to_write(*pids: int) -> Iterator[None]:
    before = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    for pid, (_, hard) in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for pid, limits in zip(pids, before, strict=True):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    made = Disk.at(tmp_path_factory.mktemp("disk"))
    print(f"the disk is {'a file system of its own' if made.mounted else 'limits on what processes may write'}")
    try:
        yield made
    finally:
        made.unmount()


@pytest.fixture(scope="module")
def running(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStage]:
    toml = {
        "receipts": {"url": f"sqlite:{disk.folder}/receipts.sqlite3"},
        "nonce_store": {"path": f"{disk.folder}/nonces.sqlite3"},
    }
    with open_stage(tmp_path_factory.mktemp("d"), toml=toml) as stage:
        yield FaultStage(stage)


@pytest.fixture
def faulty(running: FaultStage) -> Iterator[FaultStage]:
    running.wait_ready()
    yield running
    running.wait_ready()
    running.passes()
    running.nothing_seen_is_missing()


def test_full_disk_lets_nothing_through_and_is_told_until_there_is_room(faulty: FaultStage, disk: Disk) -> None:
    with faulty.replay_is_refused():
        with disk.full(*faulty.worker_pids()):
            # The log has room for some receipts in pages that it already has: what passes then is durable.
            for _ in range(200):
                answer = faulty.try_once()
                if answer.status == 503:
                    break
                faulty.nothing_seen_is_missing()
            faulty.nothing_passes("store_unavailable", open_route_too=False)
            if disk.mounted:
                faulty.wait_told("receipts", "store_unavailable")
        took_s = faulty.wait_ready()
        faulty.passes()
    print(f"disk full: ready {took_s:.2f} s after there was room, without a restart")


def test_read_only_disk_lets_nothing_through_until_it_can_be_written(faulty: FaultStage, disk: Disk) -> None:
    """A file system with files open for writing cannot become read-only, so the workers die and start on it."""
    pids = faulty.stage.stack.state["pids"]
    with stopped(pids["filter"]):
        for pid in faulty.worker_pids():
            os.kill(pid, signal.SIGKILL)
        faulty.stage.stack.stop_part("admin")
        if disk.mounted:
            disk.remount("ro")
    limits = contextlib.nullcontext() if disk.mounted else _unable_to_write(pids["filter"])
    try:
        with limits:
            if disk.mounted:  # under limits not even the log can be written
                faulty.wait_logged("receipts: store_unavailable", times=2)
            faulty.nothing_passes("internal")
    finally:
        if disk.mounted:
            disk.remount("rw")
    took_s, _ = faulty.passes()
    faulty.stage.stack.start_part("admin")
    print(f"disk read-only: passing {took_s:.2f} s after it could be written, through the supervisor's back-off")
