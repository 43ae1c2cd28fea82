from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from receipts.errors import ReceiptStoreUnavailable, StoreCorrupt
from receipts.log_errors import LogBusy
from receipts.merkle import EMPTY_ROOT
from receipts.signed_note import NoteError
from receipts.sth import HeadChainBroken, HeadChainVerifier, SignedTreeHead, note_hash, parse_sth_entry, tree_head
from receipts.sth_store import MAX_HEADS, SthStore
from tests.support.log_parts import ORIGIN, LogParts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from receipts.signed_note import NoteVerifier


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[SignedTreeHead], Sequence[NoteVerifier]]:
    """Heads of 0, 3, 3, 10 and 17 entries."""
    parts = LogParts(tmp_path_factory.mktemp("log"))
    writer = parts.writer()
    for count, seconds in ((0, 0), (3, 10), (0, 86_400), (7, 10), (7, 10)):
        parts.clock.seconds += seconds
        parts.add(count)
        writer.step()
        writer.flush()
    found = parts.reader().heads.read(0, 1000), parts.verifiers()
    parts.close()
    return found


def verify(heads: Sequence[SignedTreeHead], verifiers: Sequence[NoteVerifier]) -> None:
    chain = HeadChainVerifier(ORIGIN, verifiers)
    for head in heads:
        chain.add(head)


def test_heads_survive_sth_json_and_verify(chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]]) -> None:
    heads, verifiers = chain
    assert [head.size for head in heads] == [0, 3, 3, 10, 17]
    entries = json.loads(json.dumps([head.entry() for head in heads]))
    assert set(entries[0]) == {"note", "size", "root", "time", "prev", "consistency"}
    assert entries[0]["prev"] is None
    assert entries[1]["prev"] == note_hash(entries[0]["note"].encode()).hex()
    read = [parse_sth_entry(entry, number) for number, entry in enumerate(entries, start=1)]
    assert read == heads
    verify(read, verifiers)


def test_a_chain_goes_on_from_a_trusted_head(chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]]) -> None:
    heads, verifiers = chain
    later = HeadChainVerifier(ORIGIN, verifiers, after=heads[2])
    later.add(heads[3])
    assert later.add(heads[4]).head.size == 17
    with pytest.raises(HeadChainBroken, match="does not follow"):
        HeadChainVerifier(ORIGIN, verifiers, after=heads[1]).add(heads[3])
    with pytest.raises(HeadChainBroken, match="does not follow"):
        HeadChainVerifier(ORIGIN, verifiers).add(heads[1])


def _at(place: int, **members: Any) -> Callable[[list[SignedTreeHead]], list[SignedTreeHead]]:
    def change(heads: list[SignedTreeHead]) -> list[SignedTreeHead]:
        return [*heads[:place], dataclasses.replace(heads[place], **members), *heads[place + 1 :]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda heads: heads[1:],
        lambda heads: [heads[0], *heads[2:]],
        lambda heads: [heads[1], heads[0], *heads[2:]],
        lambda heads: [*heads, heads[-1]],
        lambda heads: _at(1, number=3)(heads),
        lambda heads: _at(1, size=4)(heads),
        lambda heads: _at(1, root=bytes(32))(heads),
        lambda heads: _at(1, time_s=heads[1].time_s + 1)(heads),
        lambda heads: _at(1, prev=None)(heads),
        lambda heads: _at(1, prev=bytes(32))(heads),
        lambda heads: _at(0, prev=bytes(32))(heads),
        lambda heads: _at(3, consistency=())(heads),
        lambda heads: _at(3, consistency=heads[4].consistency)(heads),
        lambda heads: _at(3, consistency=(*heads[3].consistency, bytes(32)))(heads),
        lambda heads: _at(2, consistency=(bytes(32),))(heads),
        lambda heads: _at(3, note=heads[4].note)(heads),
        lambda heads: _at(3, note=heads[3].note.replace(b"\n10\n", b"\n11\n"))(heads),
        lambda heads: [
            heads[0],
            dataclasses.replace(heads[3], number=2, prev=note_hash(heads[0].note), consistency=()),
            dataclasses.replace(heads[1], number=3, prev=note_hash(heads[3].note), consistency=()),
        ],
    ],
)
def test_a_changed_chain_does_not_verify(
    chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]],
    change: Callable[[list[SignedTreeHead]], list[SignedTreeHead]],
) -> None:
    heads, verifiers = chain
    verify(heads, verifiers)
    with pytest.raises((HeadChainBroken, NoteError)):
        verify(change(heads), verifiers)


@pytest.mark.parametrize(
    "members",
    [
        {"note": None},
        {"note": "\ud800"},
        {"note": "x" * (256 * 1024 + 1)},
        {"size": -1},
        {"size": 2**63},
        {"size": 1.5},
        {"size": True},
        {"size": "1"},
        {"root": "AA=="},
        {"root": "!" * 44},
        {"root": "A" * 44},
        {"root": "A" * 42 + "B="},
        {"time": -1},
        {"time": None},
        {"prev": "00"},
        {"prev": "A" * 64},
        {"consistency": None},
        {"consistency": ["x"]},
        {"consistency": ["A" * 43 + "="] * 65},
        {"more": 1},
    ],
)
def test_what_is_no_entry_is_refused(
    chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]], members: dict[str, Any]
) -> None:
    entry = chain[0][3].entry()
    parse_sth_entry(entry, 4)
    with pytest.raises(HeadChainBroken):
        parse_sth_entry(entry | members, 4)


@pytest.mark.parametrize("entry", [None, [], "x", {}, {"note": "x"}])
def test_what_is_no_object_is_refused(entry: object) -> None:
    with pytest.raises(HeadChainBroken):
        parse_sth_entry(entry, 1)


def test_without_a_head_the_tree_is_empty(chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]]) -> None:
    assert tree_head(None, ORIGIN).root == EMPTY_ROOT
    assert tree_head(chain[0][3], ORIGIN).size == 10


@pytest.fixture
def store(tmp_path: Path, chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]]) -> SthStore:
    store = SthStore(tmp_path / "log.sqlite3")
    for before, head in zip([None, *chain[0]], chain[0], strict=False):
        store.append(head, before)
    return store


def test_heads_are_found(store: SthStore, chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]]) -> None:
    heads = chain[0]
    assert store.last() == heads[-1]
    assert store.read(0, MAX_HEADS) == heads
    assert store.read(1, 2) == heads[1:3]
    assert store.read(5, 1) == []
    assert [store.covering(size) for size in (0, 1, 3, 4, 10, 17, 18)] == [
        heads[0],
        heads[1],
        heads[1],
        heads[3],
        heads[3],
        heads[4],
        None,
    ]
    assert store.at_or_before(heads[0].time_s - 1) is None
    assert store.at_or_before(heads[1].time_s) == heads[1]
    assert store.at_or_before(heads[2].time_s + 1) == heads[2]
    store.close()
    assert store.last() == heads[-1]


def test_a_head_is_added_only_after_the_one_it_goes_on_from(
    store: SthStore, chain: tuple[list[SignedTreeHead], Sequence[NoteVerifier]]
) -> None:
    heads = chain[0]
    new = dataclasses.replace(heads[-1], number=6, prev=note_hash(heads[-1].note))
    for head, after in (
        (new, heads[-2]),
        (new, None),
        (dataclasses.replace(new, number=5), heads[-2]),
        (dataclasses.replace(new, number=7), heads[-1]),
        (dataclasses.replace(new, number=1, prev=None), None),
    ):
        with pytest.raises(LogBusy):
            store.append(head, after)
    assert store.last() == heads[-1]
    store.append(new, heads[-1])
    with pytest.raises(LogBusy):
        store.append(new, heads[-1])


def test_heads_are_neither_changed_nor_deleted(store: SthStore) -> None:
    for statement in ("DELETE FROM sth", "UPDATE sth SET size = 0"):
        with pytest.raises(ReceiptStoreUnavailable), store._connected() as connection:
            connection.execute(statement)
    assert store.last() is not None


def test_another_programs_file_is_refused(tmp_path: Path, store: SthStore) -> None:
    with store._connected() as connection:
        connection.execute("PRAGMA user_version = 2")
    store.close()
    with pytest.raises(StoreCorrupt):
        SthStore(tmp_path / "log.sqlite3")


@pytest.mark.parametrize("limit", [0, MAX_HEADS + 1])
def test_a_page_has_bounds(store: SthStore, limit: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        store.read(0, limit)


def test_the_file_is_private(store: SthStore, tmp_path: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("log.sqlite3*")} == {0o600}
