"""The log over a store that dropped the payloads of its oldest receipts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from receipts.errors import StoreCorrupt
from receipts.fsck import check_log
from receipts.log import LogSettings
from receipts.log_errors import EntryPruned
from receipts.log_reader import LogReader
from receipts.merkle import leaf_hash
from receipts.merkle_verify import verify_inclusion
from receipts.prune import drop_bundles
from receipts.store import PrunedReceipt, StoredReceipt
from receipts.tile import ENTRIES, Tile
from receipts.tile_store import DirectoryTileStore
from tests.support.log_parts import ORIGIN, LogParts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def drop_payloads(parts: LogParts, pruned_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store answer as after a pruning."""
    read = parts.store.read

    def pruned(after_seq: int, limit: int) -> list[StoredReceipt]:
        return [_pruned(each) if each.seq <= pruned_to else each for each in read(after_seq, limit)]

    monkeypatch.setattr(parts.store, "read", pruned)


def _pruned(receipt: StoredReceipt) -> PrunedReceipt:
    return PrunedReceipt(
        receipt.id,
        receipt.seq,
        receipt.writer,
        receipt.wseq,
        b"",
        receipt.decision,
        receipt.reason,
        receipt.status,
        leaf_hash=leaf_hash(receipt.raw),
    )


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LogParts]:
    parts = LogParts(tmp_path, settings=LogSettings(max_batch_receipts=1000))
    parts.add(800)
    parts.writer().flush()
    yield parts
    parts.close()


def fsck(parts: LogParts) -> tuple[int, int]:
    report = check_log(
        parts.store,
        DirectoryTileStore(parts.log_folder),
        parts.reader().heads,
        origin=ORIGIN,
        verifiers=parts.verifiers(),
    )
    return report.integrated, report.pruned


@pytest.mark.parametrize("pruned_to", [0, 1, 256, 600, 768, 800])
def test_proofs_outlive_the_payloads(parts: LogParts, pruned_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [leaf_hash(raw) for raw in parts.raws()]
    drop_payloads(parts, pruned_to, monkeypatch)
    parts.close_all_writers()
    writer = parts.writer()
    writer.step()
    for _ in range(2):
        drop_bundles(DirectoryTileStore(parts.log_folder), pruned_to, 800)
    reader = LogReader(parts.log_folder, pruned_to=lambda: pruned_to)
    for index in (0, 255, 256, 700, 799):
        found = reader.prove_inclusion(index)
        verify_inclusion(leaves[index], index, 800, found.proof, found.head.root)
    bundles = [Tile(ENTRIES, 0), Tile(ENTRIES, 0, 7), Tile(ENTRIES, 1), Tile(ENTRIES, 2), Tile(ENTRIES, 3, 32)]
    for tile in bundles:
        if tile.index * 256 < pruned_to:
            with pytest.raises(EntryPruned):
                reader.tile(tile)
        elif tile.width != 7:
            reader.tile(tile)
    reader.close()
    files = {path.name for path in (parts.log_folder / "tile/entries").iterdir()}
    assert files == {f"{index:03}" for index in range(3) if index * 256 >= pruned_to} | {"003.p"}
    assert fsck(parts) == (800, pruned_to)
    parts.add(300)
    assert writer.flush().size == 1100
    assert fsck(parts) == (1100, pruned_to)


def test_a_receipt_that_was_pruned_before_it_was_in_the_log_is_never_signed(
    parts: LogParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.close_all_writers()
    parts.add(3)
    drop_payloads(parts, 802, monkeypatch)
    with pytest.raises(StoreCorrupt, match=r"receipt 80[12] was pruned"):
        parts.writer().flush()


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: _changed(receipt, leaf_hash=bytes(32)),
        lambda receipt: _changed(receipt, wseq=receipt.wseq + 1),
    ],
)
def test_a_changed_hash_in_the_place_of_a_payload_is_found(
    parts: LogParts, change: Callable[[PrunedReceipt], PrunedReceipt], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_payloads(parts, 256, monkeypatch)
    read = parts.store.read

    def changed(after_seq: int, limit: int) -> list[StoredReceipt]:
        return [
            change(each) if isinstance(each, PrunedReceipt) and each.seq == 100 else each
            for each in read(after_seq, limit)
        ]

    monkeypatch.setattr(parts.store, "read", changed)
    with pytest.raises(StoreCorrupt):
        fsck(parts)


def _changed(receipt: PrunedReceipt, *, leaf_hash: bytes | None = None, wseq: int | None = None) -> PrunedReceipt:
    return PrunedReceipt(
        receipt.id,
        receipt.seq,
        receipt.writer,
        wseq or receipt.wseq,
        b"",
        receipt.decision,
        receipt.reason,
        receipt.status,
        leaf_hash=leaf_hash or receipt.leaf_hash,
    )
