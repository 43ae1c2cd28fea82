"""What every receipt store promises, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from receipts.errors import ReceiptFormatError, ReceiptStoreUnavailable, ReceiptTooLarge, StoreError
from receipts.facts import PolicyFacts
from receipts.receipt import leaf_hash, parse_receipt
from receipts.receipt_id import ReceiptId, WriterId
from receipts.store import MAX_BATCH_RECEIPTS, MAX_LATEST, PrunableStore, StoredReceipt, WriterTail
from tests.support.receipt_checks import receipts_of, stored, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from receipts.receipt import ReceiptDraft

ROOT = Path(__file__).parents[3]
OTHER_WRITER = WriterId("11111111-2222-4333-8444-555555555555")
KEY = (1_763_712_000_000).to_bytes(8, "big") + b"k" * 24


def test_receipts_come_back_as_they_were_sealed(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    drafts = [make_draft(), make_draft(decision="deny", reason="nonce_replay", status=401)]
    appended = any_store.append(drafts, WriterTail(writer))
    one, two = (stored(outcome) for outcome in appended.outcomes)
    assert (one.seq, one.wseq, one.decision, one.reason, one.status, one.duplicate) == (
        1,
        1,
        "allow",
        "allowed",
        None,
        False,
    )
    assert (two.seq, two.wseq, two.decision, two.reason, two.status) == (2, 2, "deny", "nonce_replay", 401)
    assert parse_receipt(two.raw).prev == leaf_hash(one.raw).hex()
    assert appended.tail == WriterTail(writer, 2, leaf_hash(two.raw)) == any_store.writer_tail(writer)
    assert any_store.get(drafts[0].id) == one
    assert any_store.latest(5) == [two, one]
    assert any_store.latest(1) == [two]
    assert any_store.read(1, 5) == [two]
    assert verify(any_store) == 2


def test_every_kind_can_be_stored(any_store: PrunableStore, examples: Any, writer: WriterId) -> None:
    appended = any_store.append(list(examples.values()), WriterTail(writer))
    kinds = [parse_receipt(stored(outcome).raw).__struct_config__.tag for outcome in appended.outcomes]
    assert kinds == list(examples)
    summary = stored(appended.outcomes[3])
    assert (summary.decision, summary.reason, summary.status) == (None, None, None)
    assert verify(any_store) == 5


def test_what_was_never_stored_is_not_found(any_store: PrunableStore, writer: WriterId) -> None:
    assert any_store.get(ReceiptId("019aa56d-607b-7abc-8abc-0123456789ab")) is None
    assert any_store.latest(10) == []
    assert any_store.read(0, 10) == []
    assert any_store.writer_tail(writer) == WriterTail(writer, 0, None)


def test_writers_have_chains_of_their_own_in_one_order(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    tails = {each: WriterTail(each) for each in (writer, OTHER_WRITER)}
    for each in (writer, OTHER_WRITER, OTHER_WRITER, writer):
        tails[each] = any_store.append([make_draft()], tails[each]).tail
    assert [(row.writer, row.wseq) for row in any_store.read(0, 9)] == [
        (writer, 1),
        (OTHER_WRITER, 1),
        (OTHER_WRITER, 2),
        (writer, 2),
    ]
    assert verify(any_store) == 4


def test_a_key_stored_already_gives_the_stored_receipt(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    first = stored(any_store.append([make_draft(idempotency_key=KEY)], WriterTail(writer)).outcomes[0])
    again = any_store.append(
        [make_draft(idempotency_key=KEY, decision="deny", reason="policy_denied", status=403)], WriterTail(OTHER_WRITER)
    )
    assert again.outcomes == (dataclasses.replace(first, duplicate=True),)
    assert again.tail == WriterTail(OTHER_WRITER)
    assert any_store.read(0, 9) == [first]
    assert verify(any_store) == 1


def test_a_key_twice_in_one_batch_is_stored_once_and_the_chain_closes_up(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    drafts = [
        make_draft(),
        make_draft(idempotency_key=KEY),
        make_draft(idempotency_key=KEY),
        make_draft(),
        make_draft(),
    ]
    appended = any_store.append(drafts, WriterTail(writer))
    rows = [stored(outcome) for outcome in appended.outcomes]
    assert [row.wseq for row in rows] == [1, 2, 2, 3, 4]
    assert [row.duplicate for row in rows] == [False, False, True, False, False]
    assert rows[2].raw == rows[1].raw
    assert appended.tail.wseq == 4
    assert verify(any_store) == 4


def test_a_draft_that_cannot_be_sealed_harms_no_other(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    drafts = [
        make_draft(),
        make_draft(reason="Not A Token"),
        make_draft(policy=PolicyFacts("0" * 64, {"pad": "x" * 70_000})),
        make_draft(),
    ]
    appended = any_store.append(drafts, WriterTail(writer))
    assert [type(outcome) for outcome in appended.outcomes] == [
        StoredReceipt,
        ReceiptFormatError,
        ReceiptTooLarge,
        StoredReceipt,
    ]
    assert appended.tail.wseq == 2
    assert verify(any_store) == 2


def test_an_id_used_twice_is_an_error_of_its_own(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    draft = make_draft()
    appended = any_store.append([draft, draft, make_draft()], WriterTail(writer))
    assert [type(outcome) for outcome in appended.outcomes] == [StoredReceipt, StoreError, StoredReceipt]
    assert verify(any_store) == 2


def test_a_chain_that_went_on_elsewhere_stores_nothing(
    any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    any_store.append([make_draft()], WriterTail(writer))
    with pytest.raises(ReceiptStoreUnavailable, match="chain"):
        any_store.append([make_draft()], WriterTail(writer))
    assert verify(any_store) == 1
    any_store.append([make_draft()], any_store.writer_tail(writer))
    assert verify(any_store) == 2


@pytest.mark.parametrize("number", [0, MAX_BATCH_RECEIPTS + 1])
def test_batches_are_bounded(
    number: int, any_store: PrunableStore, make_draft: Callable[..., ReceiptDraft], writer: WriterId
) -> None:
    with pytest.raises(ValueError, match="a batch has"):
        any_store.append([make_draft() for _ in range(number)], WriterTail(writer))


@pytest.mark.parametrize("limit", [0, -1, MAX_LATEST + 1, 10_001])
def test_reads_are_bounded(limit: int, any_store: PrunableStore) -> None:
    with pytest.raises(ValueError, match="limit is"):
        any_store.latest(limit)
    if limit != MAX_LATEST + 1:
        with pytest.raises(ValueError, match="limit is"):
            any_store.read(0, limit)


def test_processes_share_one_store(any_store: PrunableStore, store_url: str) -> None:
    """Two processes write at once; keys that both use are stored once, and both hear of the same receipt."""
    command = [
        sys.executable,
        str(ROOT / "tests" / "faults" / "receipt_store_process.py"),
        store_url,
        "150",
        "8",
        "shared-keys",
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) for _ in range(2)
    ]
    told: list[list[dict[str, Any]]] = []
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        told.append([json.loads(line) for line in output.splitlines()])
    rows = list(receipts_of(any_store))
    assert [len(lines) for lines in told] == [150, 150]
    assert {line["id"] for lines in told for line in lines} == {row.id for row in rows}
    by_key = [{line["key"]: line["id"] for line in lines if line["key"]} for lines in told]
    assert by_key[0] == by_key[1]
    assert len(by_key[0]) == 50
    duplicates = sum(line["duplicate"] for lines in told for line in lines)
    assert len(rows) == 300 - duplicates
    assert duplicates == 50
    assert len({row.writer for row in rows}) == 2
    assert verify(any_store) == len(rows)
