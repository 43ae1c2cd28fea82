"""Checkpoints that clients show us, held against our own log (docs/reference/pch.md §7).

A checkpoint that our log's keys signed and whose root is not ours at that size proves that two histories were signed:
whoever finds that raises the alarm. The keys come from a file that the log's owner publishes; its private ones are
never opened here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pch.errors import EvidenceRejected, StoreUnavailable
from receipts.checkpoint import VerifiedCheckpoint, verify_checkpoint
from receipts.checkpoint_jwks import JwksError, verifier_keys_of
from receipts.cli_places import VERIFIER_KEYS_NAME
from receipts.cosignature import note_verifier
from receipts.errors import StoreError
from receipts.log import DATABASE_NAME
from receipts.log_reader import LogReader
from receipts.merkle import ProofError
from receipts.merkle_prove import prove_consistency, subtree_root
from receipts.merkle_verify import verify_consistency
from receipts.signed_note import NoteError, VerifierKeyError

if TYPE_CHECKING:
    from pathlib import Path

    from receipts.signed_note import NoteVerifier
    from receipts.sth import SignedTreeHead

MAX_KEYS_FILE_BYTES: Final = 1 << 20
MAX_THREADS: Final = 2
MAX_WAITING_CHECKS: Final = 64
CHECK_TIMEOUT_S: Final = 1.0
MAX_TRUE_CHECKPOINTS: Final = 256
"""Checkpoints found true that are remembered: clients show the same one again and again."""


class LogForkFound(EvidenceRejected):
    """Our own keys signed a root that is not our log's at that size. Sizes in entries; digests in lower-case hex."""

    def __init__(self, size: int, own_root: bytes, claimed_root: bytes, note: bytes) -> None:
        super().__init__("a checkpoint that our keys signed contradicts our log")
        self.facts: dict[str, int | str] = {
            "size": size,
            "own_root": own_root.hex(),
            "claimed_root": claimed_root.hex(),
            "checkpoint_sha256": hashlib.sha256(note).hexdigest(),
        }


@dataclass(frozen=True, slots=True)
class _Keys:
    stamp: tuple[int, int, int]
    verifiers: tuple[NoteVerifier, ...]


class EvidenceLog:
    """Our log, as far as evidence is held against it. One event loop asks; a few threads of its own read."""

    def __init__(self, folder: Path, origin: str) -> None:
        self._folder, self._origin = folder, origin
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="evidence-log")
        self._waiting = 0
        self._true: dict[bytes, None] = {}  # Owned by the event loop.
        # What follows is replaced whole, so that two threads at most do the same work twice.
        self._reader: LogReader | None = None
        self._head: SignedTreeHead | None = None
        self._keys: _Keys | None = None

    async def check(self, checkpoint: str) -> None:
        """Check a signed note against our log, PCH §7.

        Raises `EvidenceRejected` when our log did not sign it, `LogForkFound` when it contradicts our log, and
        `StoreUnavailable` when that cannot be told, as of a tree larger than ours.
        """
        note = checkpoint.encode(errors="surrogatepass")
        digest = hashlib.sha256(note).digest()
        if digest in self._true:
            return
        if self._waiting >= MAX_WAITING_CHECKS:
            raise StoreUnavailable("too many checkpoints are being checked")
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._check, note)
        work.add_done_callback(self._done)
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await asyncio.shield(work)
        except TimeoutError as error:
            raise StoreUnavailable("the log was not read in time") from error
        self._true[digest] = None
        if len(self._true) > MAX_TRUE_CHECKPOINTS:
            del self._true[next(iter(self._true))]

    def close(self) -> None:
        """Let go of the log and the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._reader is not None:
            self._reader.close()

    def _done(self, work: asyncio.Future[None]) -> None:
        self._waiting -= 1
        if not work.cancelled():
            # Whoever waited has gone, perhaps; asking for it keeps asyncio from reporting it as lost.
            work.exception()

    def _check(self, note: bytes) -> None:
        try:
            reader = self._open()
            claimed = self._verified(note).head
            head = self._head
            if head is None or claimed.size > head.size:
                head = self._head = reader.head()
            if claimed.size > head.size:
                raise StoreUnavailable("the checkpoint is of a larger tree than our log knows of")
            own_root = _root_at(reader, head, claimed.size)
        except (StoreError, OSError) as error:
            raise StoreUnavailable("the log cannot be read") from error
        if not hmac.compare_digest(own_root, claimed.root):
            raise LogForkFound(claimed.size, own_root, claimed.root, note)

    def _open(self) -> LogReader:
        if self._reader is None:
            # The writer makes it; here it is only read.
            if not (self._folder / DATABASE_NAME).is_file():
                raise StoreUnavailable("there is no log here to check a checkpoint against")
            self._reader = LogReader(self._folder)
        return self._reader

    def _verified(self, note: bytes) -> VerifiedCheckpoint:
        try:
            return verify_checkpoint(note, self._verifiers(), self._origin)
        except NoteError as error:
            raise EvidenceRejected("the checkpoint is not one that our log signed") from error

    def _verifiers(self) -> tuple[NoteVerifier, ...]:
        """Give the keys of the file, read again whenever it was replaced."""
        path = self._folder / VERIFIER_KEYS_NAME
        with path.open("rb") as file:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._keys is not None and self._keys.stamp == stamp:
                return self._keys.verifiers
            data = file.read(MAX_KEYS_FILE_BYTES + 1)
        try:
            if len(data) > MAX_KEYS_FILE_BYTES:
                raise JwksError("the file is too long")
            jwks = json.loads(data)
            if not isinstance(jwks, dict):
                raise JwksError("not an object")
            keys = verifier_keys_of(jwks, self._origin)
        except (ValueError, JwksError, VerifierKeyError) as error:
            raise StoreUnavailable("the log's public keys cannot be read") from error
        self._keys = _Keys(stamp, tuple(note_verifier(key) for key in keys))
        return self._keys.verifiers


def _root_at(reader: LogReader, head: SignedTreeHead, size: int) -> bytes:
    """Compute our root at `size`, and prove that `head` goes on from it: damaged tiles must not look like a fork."""
    nodes = reader.nodes(head.size)
    root = subtree_root(nodes, 0, size)
    try:
        verify_consistency(size, head.size, root, head.root, prove_consistency(nodes, size, head.size))
    except ProofError as error:
        raise StoreUnavailable("the log's tiles do not lead to its newest head") from error
    return root
