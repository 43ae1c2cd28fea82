"""Checkpoints that clients show: true ones, foreign ones, larger ones, and those that prove a fork; on a real log."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from extproc.evidence_log import MAX_KEYS_FILE_BYTES, EvidenceLog, LogForkFound
from pch.errors import EvidenceRejected, StoreUnavailable
from pch.evidence import canonical_evidence, evidence_field
from pch.reasons import Reason
from receipts.canonical_json import canonical
from receipts.checkpoint import HeadRequest, TreeHead, compose_checkpoint, parse_checkpoint
from receipts.checkpoint_jwks import verifier_jwks
from receipts.checkpoint_keys import FileCheckpointSigner, create_key_file
from receipts.cli_places import VERIFIER_KEYS_NAME
from receipts.merkle import EMPTY_ROOT
from receipts.receipt import LogEventReceipt, parse_receipt
from receipts.signed_note import SignedNote
from tests.support.filter_parts import CONFIG, DEFAULT_COMPONENTS, FilterParts, KeyPair, edge_request, signed_message
from tests.support.log_parts import NOW_S, ORIGIN, LogParts, seeded


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogParts]:
    made = LogParts(tmp_path / "own")
    yield made
    made.close()


@pytest.fixture
async def checks(log: LogParts) -> AsyncIterator[EvidenceLog]:
    grow(log, 300)
    publish(log)
    made = EvidenceLog(log.log_folder, ORIGIN)
    yield made
    made.close()


def grow(log: LogParts, count: int) -> str:
    """Add entries, and give the checkpoint over all of them."""
    log.add(count)
    writer = log.writer()
    while writer.step():
        pass
    log.clock.seconds += 10
    while writer.step():
        pass
    log.close_writer(writer)
    return (log.log_folder / "checkpoint").read_bytes().decode()


def publish(log: LogParts) -> None:
    data = canonical(verifier_jwks(log.signer.verifier_keys()))
    (log.log_folder / VERIFIER_KEYS_NAME).write_bytes(data)


def signed_by(signer: FileCheckpointSigner, head: TreeHead) -> str:
    """Have a head signed as the first of a log: whoever holds the keys may sign two histories."""
    request = HeadRequest(TreeHead(head.origin, 0, EMPTY_ROOT), head, (), NOW_S)
    return SignedNote(compose_checkpoint(head), signer.sign(request)).data.decode()


def forged(log: LogParts, size: int) -> str:
    return signed_by(log.signer, TreeHead(ORIGIN, size, hashlib.sha256(b"another history").digest()))


async def test_the_newest_checkpoint_and_every_older_one_are_true(log: LogParts, checks: EvidenceLog) -> None:
    newest = (log.log_folder / "checkpoint").read_bytes().decode()
    await checks.check(newest)
    await checks.check(newest)
    older = [head.note.decode() for head in log.reader().heads.read(0, 100)]
    assert len(older) > 1
    for each in older:
        await checks.check(each)
    await checks.check(signed_by(log.signer, TreeHead(ORIGIN, 0, EMPTY_ROOT)))


async def test_a_checkpoint_that_came_after_is_found_by_looking_once_more(log: LogParts, checks: EvidenceLog) -> None:
    await checks.check((log.log_folder / "checkpoint").read_bytes().decode())
    await checks.check(grow(log, 50))


async def test_one_of_a_larger_tree_cannot_be_told(log: LogParts, checks: EvidenceLog) -> None:
    with pytest.raises(StoreUnavailable):
        await checks.check(forged(log, 5000))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 300])
async def test_another_root_that_our_keys_signed_is_a_fork(log: LogParts, checks: EvidenceLog, size: int) -> None:
    note = forged(log, size)
    with pytest.raises(LogForkFound) as found:
        await checks.check(note)
    assert found.value.facts["size"] == size
    assert found.value.facts["claimed_root"] == hashlib.sha256(b"another history").hexdigest()
    assert found.value.facts["checkpoint_sha256"] == hashlib.sha256(note.encode()).hexdigest()
    with pytest.raises(LogForkFound):
        await checks.check(note)


def _flip_signature(note: str) -> str:
    head, _, last = note.rstrip("\n").rpartition(" ")
    return f"{head} {last[:20]}{'A' if last[20] != 'A' else 'B'}{last[21:]}\n"


async def test_what_our_log_did_not_sign_is_rejected_without_an_alarm(
    log: LogParts, checks: EvidenceLog, tmp_path: Path
) -> None:
    newest = (log.log_folder / "checkpoint").read_bytes().decode()
    create_key_file(tmp_path / "foreign.json", ORIGIN, NOW_S, seeded("foreign"))
    foreign = FileCheckpointSigner(tmp_path / "foreign.json", lambda: NOW_S)
    create_key_file(tmp_path / "other.json", "other.example/log", NOW_S, seeded("other"))
    other = FileCheckpointSigner(tmp_path / "other.json", lambda: NOW_S)
    lines = newest.split("\n")
    notes = {
        "no note": "hello",
        "signature changed": _flip_signature(newest),
        "size changed": newest.replace(f"\n{parse_checkpoint_size(newest)}\n", "\n7\n"),
        "other keys": signed_by(foreign, TreeHead(ORIGIN, 7, bytes(32))),
        "other log": signed_by(other, TreeHead("other.example/log", 7, bytes(32))),
        "one signature": "\n".join([*lines[:5], ""]),
        "surplus line": newest + "\n",
        "much too long": newest + "x" * 60_000,
    }
    for name, note in notes.items():
        with pytest.raises(EvidenceRejected) as refused:
            await checks.check(note)
        assert not isinstance(refused.value, LogForkFound), name


def parse_checkpoint_size(note: str) -> int:
    return parse_checkpoint((note.split("\n\n", maxsplit=1)[0] + "\n").encode()).size


async def test_damaged_tiles_are_no_alarm(log: LogParts, checks: EvidenceLog) -> None:
    newest = (log.log_folder / "checkpoint").read_bytes().decode()
    for tile in (log.log_folder / "tile" / "0").rglob("*"):
        if tile.is_file():
            tile.chmod(0o600)
            tile.write_bytes(bytes(len(tile.read_bytes())))
    with pytest.raises(StoreUnavailable):
        await checks.check(newest)
    with pytest.raises(StoreUnavailable):
        await checks.check(forged(log, 300))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"keys":1}', b" " * (MAX_KEYS_FILE_BYTES + 1)])
async def test_keys_that_cannot_be_read_leave_it_open(log: LogParts, checks: EvidenceLog, content: bytes) -> None:
    (log.log_folder / VERIFIER_KEYS_NAME).write_bytes(content)
    with pytest.raises(StoreUnavailable):
        await checks.check(forged(log, 7))


async def test_keys_are_read_again_when_the_file_is_replaced(
    log: LogParts, checks: EvidenceLog, tmp_path: Path
) -> None:
    note = forged(log, 300)
    create_key_file(tmp_path / "foreign.json", ORIGIN, NOW_S, seeded("foreign"))
    foreign = FileCheckpointSigner(tmp_path / "foreign.json", lambda: NOW_S)
    path = log.log_folder / VERIFIER_KEYS_NAME
    path.write_bytes(canonical(verifier_jwks(foreign.verifier_keys())))
    with pytest.raises(EvidenceRejected) as refused:
        await checks.check(note)
    assert not isinstance(refused.value, LogForkFound)
    replaced = path.with_suffix(".new")
    replaced.write_bytes(canonical(verifier_jwks(log.signer.verifier_keys())))
    replaced.replace(path)
    with pytest.raises(LogForkFound):
        await checks.check(note)


async def test_without_a_log_it_cannot_be_told(log: LogParts, tmp_path: Path) -> None:
    nothing = EvidenceLog(tmp_path / "nothing", ORIGIN)
    with pytest.raises(StoreUnavailable):
        await nothing.check(forged(log, 7))
    assert not (tmp_path / "nothing").exists()
    nothing.close()


async def test_only_so_many_are_checked_at_once(
    log: LogParts, checks: EvidenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extproc.evidence_log.MAX_WAITING_CHECKS", 3)
    notes = [forged(log, size) for size in range(1, 9)]
    results = await asyncio.gather(*(checks.check(note) for note in notes), return_exceptions=True)
    assert sum(isinstance(result, LogForkFound) for result in results) == 3
    assert sum(isinstance(result, StoreUnavailable) for result in results) == 5
    with pytest.raises(LogForkFound):
        await checks.check(notes[0])


async def test_a_log_that_hangs_is_given_up(
    log: LogParts, checks: EvidenceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extproc.evidence_log.CHECK_TIMEOUT_S", 0.0)
    with pytest.raises(StoreUnavailable):
        await checks.check(forged(log, 7))


# -- the alarm, from the header to the log


@pytest.fixture
async def parts(log: LogParts, tmp_path: Path) -> AsyncIterator[FilterParts]:
    grow(log, 20)
    publish(log)
    section = f'[log]\ndir = "{log.log_folder}"\norigin = "{ORIGIN}"\n'
    built = FilterParts(tmp_path, {"ed": KeyPair.new("alice")}, section + CONFIG)
    await built.start()
    yield built
    await built.stop()


async def shown(parts: FilterParts, note: str) -> Reason:
    evidence = canonical_evidence({"type": "pch.evidence.v1", "checkpoint": note})
    message = signed_message(
        parts.keys["ed"],
        parts.challenge(),
        headers=(("pch-evidence", evidence_field(evidence)),),
        components=(*DEFAULT_COMPONENTS, "pch-channel-binding", "pch-evidence"),
    )
    # ML-DSA-44 cosignatures make a note of four kilobytes; the edge counts the header, and this is no test of budgets.
    return (await parts.answer(dataclasses.replace(edge_request(message), header_bytes=100))).reason


def events(parts: FilterParts) -> list[LogEventReceipt]:
    receipts = [parse_receipt(stored.raw) for stored in parts.store.latest(100)]
    return [each for each in receipts if isinstance(each, LogEventReceipt)]


async def test_a_true_checkpoint_passes(log: LogParts, parts: FilterParts) -> None:
    assert await shown(parts, (log.log_folder / "checkpoint").read_text()) is Reason.ALLOWED
    assert not events(parts)


async def test_a_fork_is_refused_told_counted_and_recorded_once(
    log: LogParts, parts: FilterParts, caplog: pytest.LogCaptureFixture
) -> None:
    note = forged(log, 20)
    with caplog.at_level(logging.CRITICAL):
        assert await shown(parts, note) is Reason.EVIDENCE_REJECTED
        assert await shown(parts, note) is Reason.EVIDENCE_REJECTED
    assert [record.getMessage()[:8] for record in caplog.records] == ["LOG FORK"]
    assert parts.registry.get_sample_value("signet_log_forks_total") == 2
    (event,) = events(parts)
    assert event.event.name == "log_fork"
    assert event.event.facts["size"] == 20
    assert event.event.facts["checkpoint_sha256"] == hashlib.sha256(note.encode()).hexdigest()
    assert json.loads(parts.store.latest(1)[0].raw)["reason"] == "evidence_rejected"
    assert await shown(parts, forged(log, 19)) is Reason.EVIDENCE_REJECTED
    assert len(events(parts)) == 2


async def test_a_foreign_checkpoint_is_refused_without_an_alarm(log: LogParts, parts: FilterParts) -> None:
    assert await shown(parts, "not a note") is Reason.EVIDENCE_REJECTED
    assert parts.registry.get_sample_value("signet_log_forks_total") == 0
    assert not events(parts)


async def test_a_larger_tree_is_503(log: LogParts, parts: FilterParts) -> None:
    assert await shown(parts, forged(log, 21)) is Reason.STORE_UNAVAILABLE
    assert not events(parts)
