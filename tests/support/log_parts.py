"""A log with everything it is made of, on a clock that only tests move."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from receipts.checkpoint_keys import FileCheckpointSigner, create_key_file
from receipts.cosignature import note_verifier
from receipts.facts import WindowFacts
from receipts.fsck import check_log
from receipts.log import LogSettings, LogWriter
from receipts.log_reader import LogReader
from receipts.merkle import leaf_hash
from receipts.merkle_verify import verify_inclusion
from receipts.receipt import ReceiptDraft
from receipts.receipt_id import ReceiptId, WriterId, new_receipt_id
from receipts.sth import HeadChainVerifier
from receipts.store import MAX_BATCH_RECEIPTS
from receipts.store_sqlite import SqliteReceiptStore
from receipts.tile_store import DirectoryTileStore
from tests.support import merkle_reference as reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from receipts.checkpoint import CheckpointSigner
    from receipts.signed_note import NoteVerifier
    from receipts.sth import SignedTreeHead
    from receipts.tile_store import TileStore

ORIGIN = "log.example.com/signet"
NOW_S = 1_800_000_000
WRITER = WriterId("7c9e6679-7425-40de-944b-e07fc1f90ae7")


def seeded(seed: str) -> Callable[[int], bytes]:
    """Bytes that are the same for every run."""
    state = [hashlib.sha256(seed.encode()).digest()]

    def random_bytes(count: int) -> bytes:
        state[0] = hashlib.sha256(state[0]).digest()
        return (state[0] * 8)[:count]

    return random_bytes


@dataclass
class Clock:
    seconds: float = NOW_S

    def now_s(self) -> int:
        return int(self.seconds)

    def monotonic_s(self) -> float:
        return self.seconds


def draft(number: int) -> ReceiptDraft:
    return ReceiptDraft(
        kind="summary",
        id=new_receipt_id(NOW_S * 1000, hashlib.sha256(b"%d" % number).digest()[:10]),
        time_ms=NOW_S * 1000,
        route="protected",
        window=WindowFacts(NOW_S * 1000 - 1000, NOW_S * 1000),
        counts={"bad_signature": number + 1},
    )


@dataclass
class LogParts:
    """Everything of one log below `folder`."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    settings: LogSettings = field(default_factory=lambda: LogSettings(max_batch_receipts=100, max_batch_age_ms=500))

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True, parents=True)
        self.key_path = self.folder / "checkpoint-keys.json"
        if not self.key_path.exists():
            create_key_file(self.key_path, ORIGIN, NOW_S, seeded("first set"))
        self.signer = FileCheckpointSigner(self.key_path, self.clock.now_s)
        self.store = SqliteReceiptStore(self.folder / "receipts.sqlite3")
        self.log_folder = self.folder / "log"
        self._open: list[LogWriter | LogReader | SqliteReceiptStore] = [self.store]

    def add(self, count: int, writer: WriterId = WRITER) -> None:
        """Store `count` receipts more."""
        tail = self.store.writer_tail(writer)
        for start in range(0, count, MAX_BATCH_RECEIPTS):
            numbers = range(tail.wseq, tail.wseq + min(MAX_BATCH_RECEIPTS, count - start))
            drafts = [draft(number) for number in numbers]
            if writer != WRITER:
                drafts = [dataclasses.replace(each, id=_other_id(writer, each)) for each in drafts]
            tail = self.store.append(drafts, tail).tail

    def raws(self) -> list[bytes]:
        raws: list[bytes] = []
        while page := self.store.read(len(raws), 1000):
            raws += [each.raw for each in page]
        return raws

    def writer(self, *, signer: CheckpointSigner | None = None, tiles: TileStore | None = None) -> LogWriter:
        writer = LogWriter(
            self.store,
            self.log_folder,
            signer or self.signer,
            origin=ORIGIN,
            settings=self.settings,
            tiles=tiles,
            clock_s=self.clock.now_s,
            monotonic_s=self.clock.monotonic_s,
        )
        self._open.append(writer)
        return writer

    def reader(self) -> LogReader:
        reader = LogReader(self.log_folder)
        self._open.append(reader)
        return reader

    def verifiers(self) -> Sequence[NoteVerifier]:
        return [note_verifier(key) for key in self.signer.verifier_keys()]

    def close(self) -> None:
        for each in self._open:
            each.close()
        self._open.clear()

    def close_all_writers(self) -> None:
        for each in [each for each in self._open if isinstance(each, LogWriter)]:
            self.close_writer(each)

    def close_writer(self, writer: LogWriter) -> None:
        writer.close()
        self._open.remove(writer)


def _other_id(writer: WriterId, each: ReceiptDraft) -> ReceiptId:
    return new_receipt_id(each.time_ms, hashlib.sha256(f"{writer} {each.id}".encode()).digest()[:10])


def heads_of(parts: LogParts) -> list[SignedTreeHead]:
    return parts.reader().heads.read(0, 1000)


def check(parts: LogParts) -> None:
    """Everything is whole, and every head has the root of the definition."""
    reader = parts.reader()
    check_log(
        parts.store,
        DirectoryTileStore(parts.log_folder),
        reader.heads,
        origin=ORIGIN,
        verifiers=parts.verifiers(),
    )
    leaves = [leaf_hash(raw) for raw in parts.raws()]
    chain = HeadChainVerifier(ORIGIN, parts.verifiers())
    for head in reader.heads.read(0, 1000):
        chain.add(head)
        assert head.root == reference.mth(leaves[: head.size])
    last = reader.head()
    assert (parts.log_folder / "checkpoint").read_bytes() == last.note
    for index in {0, last.size // 2, last.size - 1} if last.size else set():
        proof = reader.prove_inclusion(index)
        verify_inclusion(leaves[index], index, last.size, proof.proof, last.root)
