"""The writer of a store, or of a log, killed at every system call that changes what is stored, or its disk full there.

    LD_PRELOAD=kill_at.so python -m tests.support.kill_steps store|log HOW FIRST STRIDE FOLDER [STORE_URL]

HOW: `b`efore a call, `t`orn in its middle, `a`fter it, `f`ull from it on; see kill_at.c. For each call chosen a child
does the work and dies, and another starts again from what it left and checks everything. Prints how many died.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from receipts import store_sqlite
from receipts.errors import StoreError
from receipts.log import LogSettings
from receipts.log_notes import LogNotes
from receipts.open_store import open_store
from receipts.prune import drop_bundles, plan_pruning, prune
from receipts.receipt_id import WriterId
from receipts.rotation import rotate_keys
from receipts.sth import note_hash
from receipts.store_check import check_store
from receipts.tile_store import DirectoryTileStore
from receipts.writer import ReceiptWriter
from tests.support.log_parts import NOW_S, LogParts, check, draft, heads_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from receipts.log import LogWriter
    from receipts.store import PrunableStore

SOURCE: Final = Path(__file__).with_name("kill_at.c")
DONE, NEVER_REACHED, BROKEN = 0, 9, 1
NOW_MS: Final = NOW_S * 1000
DAY_MS: Final = 86_400_000
AT_ONCE, ROUNDS = 4, 3
FIRST, MORE = 250, 30


def build(folder: Path) -> Path:
    """Compile what is preloaded."""
    library = folder / "kill_at.so"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


class Stage:
    """What a child works on. `tell` gives away what a client may have seen; only then must it be there for ever."""

    def __init__(self, folder: Path, url: str | None, told: socket.socket, call: int, how: str) -> None:
        self.folder, self.url, self.call, self.how = folder, url, call, how
        self._told = told
        self._library = ctypes.CDLL(None)
        self._library.signet_arm.argtypes = [ctypes.c_long, ctypes.c_char]
        self._library.signet_disarm.restype = ctypes.c_long

    def tell(self, what: str) -> None:
        self._told.send(what.encode() + b"\n")

    def run(self, work: Callable[[], None]) -> int:
        """Work until the chosen call; after a full disk, once more with room."""
        self._library.signet_arm(self.call, self.how.encode())
        try:
            work()
        except StoreError:
            if self.how != "f":
                raise
        reached = self._library.signet_disarm() >= self.call
        if self.how == "f":
            work()
        return DONE if reached else NEVER_REACHED


# -- the store


def _work_on_store(stage: Stage) -> int:
    store_sqlite.CHECKPOINT_AFTER_BYTES = 3000  # type: ignore[misc]  # So that some batch moves the log.
    opened: list[PrunableStore] = []

    def work() -> None:
        if not opened:
            opened.append(open_store(stage.url or f"sqlite:{stage.folder / 'receipts'}", write_wait_ms=5000))
        asyncio.run(_append(stage, opened[0]))
        _prune(opened[0])

    return stage.run(work)


async def _append(stage: Stage, store: PrunableStore) -> None:
    writer = ReceiptWriter(store, writer_id=WriterId(str(uuid.uuid4())))
    writer.start()
    numbers = itertools.count(int.from_bytes(os.urandom(4), "big"))

    async def work() -> None:
        for _ in range(ROUNDS):
            stage.tell((await writer.append(draft(next(numbers)), 20.0)).id)

    try:
        outcomes = await asyncio.gather(*(work() for _ in range(AT_ONCE)), return_exceptions=True)
    finally:
        await writer.aclose(5.0)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _prune(store: PrunableStore) -> None:
    plan = plan_pruning(store, NOW_MS + DAY_MS, None)
    # Its own time lies after the day, so that the event itself is not pruned by the next one.
    prune(store, plan, now_ms=NOW_MS + 2 * DAY_MS, random=os.urandom(10), writer=WriterId(str(uuid.uuid4())))


def _check_store(stage: Stage, told: set[str]) -> int:
    store = open_store(stage.url or f"sqlite:{stage.folder / 'receipts'}", write_wait_ms=5000)
    for _ in range(2):
        report, seq, stored = check_store(store), 0, set()
        while page := store.read(seq, 1000):
            stored |= {each.id for each in page}
            seq = page[-1].seq
        assert told <= stored, f"{len(told - stored)} receipts that were told of are missing"
        assert report.receipts == len(stored)
        asyncio.run(_append(stage, store))
        _prune(store)
    store.check()
    assert check_store(store).pruned == store.pruned_to()
    store.close()
    return DONE


# -- the log


def _parts(stage: Stage) -> LogParts:
    return LogParts(stage.folder, settings=LogSettings(max_batch_receipts=100))


def _work_on_log(stage: Stage) -> int:
    parts = _parts(stage)
    parts.add(FIRST)
    opened: list[LogWriter] = []

    def work() -> None:
        if not opened:
            opened.append(parts.writer())
        writer = opened[0]
        while writer.step():
            _tell_head(stage, writer)
        writer.flush()
        _tell_head(stage, writer)
        _rotate(parts)
        writer.flush()
        _tell_head(stage, writer)
        size = writer.head.size if writer.head is not None else 0
        drop_bundles(DirectoryTileStore(parts.log_folder), 0, size)

    return stage.run(work)


def _rotate(parts: LogParts) -> None:
    writer, notes = WriterId(str(uuid.uuid4())), LogNotes(parts.log_folder)
    rotate_keys(parts.store, notes, parts.signer, writer=writer, now_ms=NOW_MS, random_bytes=os.urandom)


def _tell_head(stage: Stage, writer: LogWriter) -> None:
    if writer.head is not None:
        stage.tell(note_hash(writer.head.note).hex())


def _check_log(stage: Stage, told: set[str]) -> int:
    published = stage.folder / "log/checkpoint"
    if published.exists():
        told = told | {note_hash(published.read_bytes()).hex()}
    parts = _parts(stage)
    parts.clock.seconds += 10
    parts.add(MORE)
    writer = parts.writer()
    head = writer.flush()
    assert head.size == len(parts.raws()) >= FIRST + MORE
    assert told <= {note_hash(each.note).hex() for each in heads_of(parts)}, "a head that was published is gone"
    check(parts)
    _rotate(parts)
    assert writer.flush().size > head.size
    check(parts)
    parts.close()
    return DONE


# -- one child for each call

WORK: Final = {"store": (_work_on_store, _check_store), "log": (_work_on_log, _check_log)}


def _in_child(work: Callable[[], int]) -> int:
    """Run in a process of its own; give its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = BROKEN
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _read(told: socket.socket) -> set[str]:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := told.recv(1 << 16):
            data += piece
    return set(data.decode().split("\n")[:-1])


def main(name: str, how: str, first: str, stride: str, folder: str, url: str | None = None) -> None:
    work, verify = WORK[name]
    for count, call in enumerate(itertools.count(int(first), int(stride))):
        place = Path(folder, f"{how}{call}")
        place.mkdir()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        stage = Stage(place, url, theirs, call, how)
        status = _in_child(lambda stage=stage: work(stage))  # type: ignore[misc]
        told = _read(ours)
        if status not in {NEVER_REACHED, DONE if how == "f" else -signal.SIGKILL}:
            raise SystemExit(f"call {call}: the child ended with {status}")
        if _in_child(lambda stage=stage, told=told: verify(stage, told)) != DONE:  # type: ignore[misc]
            raise SystemExit(f"call {call}: what it left is not whole")
        ours.close()
        theirs.close()
        if status == NEVER_REACHED:
            print(count)
            return


if __name__ == "__main__":
    began = time.monotonic()
    main(*sys.argv[1:])
    print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
