"""The log's one writer: takes stored receipts into the tree, and publishes signed heads.

A head comes about in this order, and a crash between any two steps is mended by starting again:

1. the tiles of the new tree are durable;
2. the signer signed the head, having verified that it goes on from the last one;
3. the head is durable in `log.sqlite3`, added only if the last one there is still the one it goes on from;
4. the checkpoint is published; partial tiles that a full one replaced are dropped.

After a crash the writer goes on from the last durable head and the tiles of its size. Receipts have a fixed order,
so whatever it had begun comes out the same again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from receipts.checkpoint import (
    CheckpointSigner,
    HeadRequest,
    SignerBehind,
    TreeHead,
    compose_checkpoint,
    verify_checkpoint,
)
from receipts.cosignature import note_verifier
from receipts.errors import StoreCorrupt, StoreError
from receipts.log_errors import LogBusy, LogForked, LogUnavailable
from receipts.merkle import leaf_hash
from receipts.merkle_prove import prove_consistency, subtree_root
from receipts.rebuild import rebuild_tiles
from receipts.signed_note import NoteError, NoteVerifier, SignedNote, parse_note
from receipts.sth import HeadChainBroken, SignedTreeHead, note_hash, tree_head, verify_head
from receipts.sth_store import SthStore
from receipts.store import PrunedReceipt, StoredReceipt
from receipts.tile import TILE_WIDTH, split_hashes
from receipts.tile_store import DirectoryTileStore, TileStore
from receipts.tiled_tree import TiledTree, TileNodes, read_stored

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from receipts.store import ReceiptStore

DATABASE_NAME: Final = "log.sqlite3"
LOCK_NAME: Final = "writer.lock"
READ_RECEIPTS: Final = 256
"""Receipts read from the store at once: at most 16 MiB."""
MAX_BATCH_BYTES: Final = 32 * 1024 * 1024
"""Entries between two heads take no more memory than this and one read."""
RETRY_AFTER_S: Final = 1.0
"""Pause after a step that failed in a way that may pass."""
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How often a head is made.

    `max_batch_receipts`: at the latest after so many receipts (1 to 1,000,000). `max_batch_age_ms`: at the latest
    so long after the oldest receipt of a batch was read (0 to 60,000). `poll_interval_ms`: how often the store is
    asked for more (1 to 10,000). Raises ValueError out of these bounds.
    """

    max_batch_receipts: int = 8192
    max_batch_age_ms: int = 500
    poll_interval_ms: int = 50

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_batch_receipts", 1, 1_000_000),
            ("max_batch_age_ms", 0, 60_000),
            ("poll_interval_ms", 1, 10_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is not {least} to {most}")


def _wall_clock_s() -> int:
    return int(time.time())


class LogWriter:
    """Integrates the receipts of `store` into the log in `folder`. One thread owns an object, one process a log.

    `origin`: the log's name, which its keys have too. `clock_s`: POSIX seconds; `monotonic_s` never goes back.
    Raises LogBusy when another process writes this log, StoreError when it cannot be opened.
    """

    def __init__(
        self,
        store: ReceiptStore,
        folder: Path | str,
        signer: CheckpointSigner,
        *,
        origin: str,
        settings: LogSettings | None = None,
        tiles: TileStore | None = None,
        clock_s: Callable[[], int] = _wall_clock_s,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        folder = Path(folder)
        self._store = store
        self._signer = signer
        self._origin = origin
        self._settings = settings or LogSettings()
        self._clock_s = clock_s
        self._monotonic_s = monotonic_s
        self._lock = _take_lock(folder)
        try:
            self._tiles = DirectoryTileStore(folder) if tiles is None else tiles
            self._heads = SthStore(folder / DATABASE_NAME)
        except BaseException:
            os.close(self._lock)
            raise
        self._tree: TiledTree | None = None  # None: what is in memory may not be what is stored; load it again.
        self._head: SignedTreeHead | None = None
        self._oldest_read_s = 0.0
        self._unpublished_bytes = 0
        self._least_size = 0
        self.problem: str | None = None
        """Why the last step failed, None when it did not; any thread may read it."""

    def step(self) -> bool:
        """Read receipts that are new, and make a head if one is due; return whether there may be more to do at once.

        A head is due when a batch is full or old enough, when a UTC day began, and at the log's very start. Raises
        LogForked and StoreCorrupt, after which nothing may be signed; LogBusy, LogUnavailable and other StoreError,
        after which the next step starts again from what is stored.
        """
        with self._starting_again_on_error():
            tree = self._tree or self._load()
            more = self._read_new(tree)
            if self._is_due(tree, more=more):
                self._make_head(tree)
            return more

    def flush(self) -> SignedTreeHead:
        """Integrate every receipt that is stored now, and return the newest head. Raises as `step` does."""
        with self._starting_again_on_error():
            tree = self._tree or self._load()
            newest = self._store.latest(1)
            while newest and tree.size < newest[0].seq:
                self._read_new(tree)
                if self._is_full(tree):
                    self._make_head(tree)
            if self._head is None or tree.size > self._head.size:
                self._make_head(tree)
            if self._head is None or self._head.size < tree.size:
                raise LogForked(f"a head of {self._least_size} entries was signed, {tree.size} are stored")
            return self._head

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set; what may pass is tried again after `RETRY_AFTER_S`.

        Raises LogForked, StoreCorrupt, LogBusy.
        """
        while not stop.is_set():
            try:
                pause_s = 0.0 if self.step() else self._settings.poll_interval_ms / 1000
            except (StoreCorrupt, LogBusy):
                raise
            except StoreError:  # Kept in `problem`, which readiness and metrics show.
                pause_s = RETRY_AFTER_S
            if pause_s:
                stop.wait(pause_s)

    @property
    def head(self) -> SignedTreeHead | None:
        """The last head that this object knows to be durable; any thread may read it."""
        return self._head

    def rebuild(self) -> int:
        """Write the tiles of the newest head again that were lost or damaged; return how many; see `receipts.rebuild`.

        Raises LogForked, StoreCorrupt, LogUnavailable, ReceiptStoreUnavailable.
        """
        self._tree, head = None, self._heads.last()
        if head is None:
            return 0
        self._verify(head, self._verifiers())
        return rebuild_tiles(self._store, self._tiles, head)

    def close(self) -> None:
        """Close everything and let another writer in; what was read since the last head is read again then."""
        self._heads.close()
        os.close(self._lock)

    @contextlib.contextmanager
    def _starting_again_on_error(self) -> Iterator[None]:
        """Report how a step ended; after an error, what is in memory may not be what is stored."""
        try:
            yield
        except BaseException as error:
            self._tree = None
            self.problem = error.code if isinstance(error, StoreError) else type(error).__name__
            raise
        self.problem = None

    def _read_new(self, tree: TiledTree) -> bool:
        """Append the next receipts to the tree; return whether the store may have more."""
        room = self._settings.max_batch_receipts - (tree.size - self._size())
        limit = min(READ_RECEIPTS, room) if room > 0 else READ_RECEIPTS
        receipts = self._store.read(tree.size, limit)
        if receipts and tree.size == self._size():
            self._oldest_read_s = self._monotonic_s()
        for receipt in receipts:
            if receipt.seq != tree.size + 1:
                raise StoreCorrupt(f"receipt {tree.size + 1} is missing from the store")
            if isinstance(receipt, PrunedReceipt):
                raise StoreCorrupt(f"receipt {receipt.seq} was pruned before it was in the log")
            tree.append(receipt.raw)
            self._unpublished_bytes += len(receipt.raw)
        if len(receipts) < limit and tree.size < self._least_size:
            raise LogForked(f"a head of {self._least_size} entries was signed, {tree.size} are stored")
        return len(receipts) == limit

    def _size(self) -> int:
        return 0 if self._head is None else self._head.size

    def _is_due(self, tree: TiledTree, *, more: bool) -> bool:
        if self._is_full(tree):
            return True
        if tree.size < self._least_size:
            return False
        if self._head is None or self._clock_s() // DAY_S > self._head.time_s // DAY_S:
            return not more
        age_ms = (self._monotonic_s() - self._oldest_read_s) * 1000
        return tree.size > self._head.size and age_ms >= self._settings.max_batch_age_ms

    def _is_full(self, tree: TiledTree) -> bool:
        full = tree.size - self._size() >= self._settings.max_batch_receipts
        return tree.size >= self._least_size and (full or self._unpublished_bytes >= MAX_BATCH_BYTES)

    def _make_head(self, tree: TiledTree) -> None:
        """Take the tree as it is through steps 1 to 4 of this module."""
        tiles = tree.take()
        self._tiles.write(tiles)
        signed = self._sign(tree)
        if signed is None:
            return
        request, note = signed
        data = note.data
        try:
            checkpoint = verify_checkpoint(data, self._verifiers(), self._origin)
        except NoteError as error:
            raise LogUnavailable(f"the signer's answer does not verify: {error.code}") from error
        if checkpoint.time_s is None or checkpoint.time_s < request.not_before_s:
            raise LogUnavailable("the signer's clock went back")
        last = self._head
        nodes = TileNodes(self._tiles, tree.size)
        head = SignedTreeHead(
            number=1 if last is None else last.number + 1,
            note=data,
            size=tree.size,
            root=checkpoint.head.root,
            time_s=checkpoint.time_s,
            prev=None if last is None else note_hash(last.note),
            consistency=tuple(prove_consistency(nodes, self._size(), tree.size)),
        )
        self._heads.append(head, last)
        self._head = head
        self._unpublished_bytes = 0
        self._tiles.publish(data)
        self._signer.confirm(note)
        for tile, _ in tiles:
            if not tile.is_partial:
                self._tiles.drop_partial(tile)

    def _sign(self, tree: TiledTree) -> tuple[HeadRequest, SignedNote] | None:
        """Have the tree's head signed; None when the signer went further before, so that more must be read first."""
        new = TreeHead(self._origin, tree.size, tree.root())
        nodes = TileNodes(self._tiles, tree.size)
        not_before_s = 0 if self._head is None else self._head.time_s
        old = tree_head(self._head, self._origin)
        request = HeadRequest(old, new, tuple(prove_consistency(nodes, old.size, new.size)), not_before_s)
        try:
            signatures = self._signer.sign(request)
        except SignerBehind as behind:
            # It signed a head that this log did not get to store. Its tree must be the beginning of ours.
            if behind.size > tree.size:
                self._least_size = behind.size
                return None
            old = TreeHead(self._origin, behind.size, subtree_root(nodes, 0, behind.size))
            request = HeadRequest(old, new, tuple(prove_consistency(nodes, old.size, new.size)), not_before_s)
            signatures = self._signer.sign(request)
        return request, SignedNote(compose_checkpoint(new), signatures)

    def _verifiers(self) -> Sequence[NoteVerifier]:
        return [note_verifier(key) for key in self._signer.verifier_keys()]

    def _load(self) -> TiledTree:
        """Go on from what is stored, once it is consistent; publish the last head if a crash prevented that."""
        head = self._heads.last()
        verifiers = self._verifiers()
        published = self._tiles.read_checkpoint()
        if head is None:
            if published is not None:
                raise LogForked("a checkpoint is published, but no head is stored")
            tree = TiledTree()
        else:
            tree = self._load_tree(head, verifiers)
            if published != head.note:
                self._check_published(published, head)
                self._tiles.publish(head.note)
            self._signer.confirm(parse_note(head.note))
        self._head = head
        self._tree = tree
        self._unpublished_bytes = 0
        self._least_size = 0
        return tree

    def _load_tree(self, head: SignedTreeHead, verifiers: Sequence[NoteVerifier]) -> TiledTree:
        self._verify(head, verifiers)
        tree = TiledTree.load(self._tiles, head.size)
        if tree.root() != head.root:
            raise LogForked(f"the tiles lead to another root than head {head.number}")
        self._check_receipts(head.size)
        return tree

    def _verify(self, head: SignedTreeHead, verifiers: Sequence[NoteVerifier]) -> None:
        try:
            verify_head(head, self._origin, verifiers)
        except (NoteError, HeadChainBroken) as error:
            raise StoreCorrupt(f"head {head.number} does not verify") from error

    def _check_receipts(self, size: int) -> None:
        """Check that the last tile of leaves is that of the store's receipts: a store set back would show here."""
        if size == 0:
            return
        index = (size - 1) // TILE_WIDTH
        leaves = split_hashes(*read_stored(self._tiles, 0, index, size))
        receipts = self._store.read(index * TILE_WIDTH, len(leaves))
        if [leaf_of(receipt) for receipt in receipts] != leaves:
            raise LogForked(f"the store does not have the receipts of the log up to {size}")

    def _check_published(self, published: bytes | None, head: SignedTreeHead) -> None:
        """Refuse to put a head in the place of any but the one before it: the stored heads were set back."""
        before = self._heads.read(head.number - 2, 1) if head.number > 1 else []
        if published is not None and published not in [each.note for each in before]:
            raise LogForked("the published checkpoint is not among the stored heads")


def leaf_of(receipt: StoredReceipt) -> bytes:
    """Give a receipt's leaf hash, also when its payload was dropped: 32 bytes."""
    return receipt.leaf_hash if isinstance(receipt, PrunedReceipt) else leaf_hash(receipt.raw)


def _take_lock(folder: Path) -> int:
    """Become the one writer; the kernel lets the next one in when this process dies."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LogUnavailable(f"system: {type(error).__name__} {error.errno}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise LogBusy("another process writes this log") from error
    return lock
