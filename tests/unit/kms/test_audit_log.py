from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kms.audit_check import readable_tail, verify_everything
from kms.audit_event import AuditEvent
from kms.audit_files import HEAD_SLOT_BYTES, AuditDamaged, AuditFiles
from kms.audit_head import verify_head
from kms.audit_log import AuditSettings, ChainedAuditLog
from kms.audit_open import open_audit_log
from kms.audit_restore import restore
from kms.clock import SYSTEM_CLOCK, Clock
from kms.errors import Backpressure, Internal, StoreUnavailable, Timeout
from kms.providers.inmem import InMemoryProvider
from kms.providers.provider import Attestation
from kms.telemetry import Telemetry
from receipts.merkle import leaf_hash
from tests.support.kms_audit import AuditParts, Change, Counter, State, WrappingProvider, event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIRST = "00000000.records"


@pytest.fixture
def parts(tmp_path: Path) -> AuditParts:
    return AuditParts(tmp_path / "audit")


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("audit_files", "audit_check", "audit_log"):
        for name, value in (("SEGMENT_BITS", 3), ("SEGMENT_RECORDS", 8)):
            if module != "audit_log" or name == "SEGMENT_RECORDS":
                monkeypatch.setattr(f"kms.{module}.{name}", value, raising=False)


def lines(parts: AuditParts, name: str = FIRST) -> list[bytes]:
    return (parts.folder / name).read_bytes().splitlines()


def filled(parts: AuditParts, count: int = 5) -> AuditParts:
    log = parts.open_whole()
    for number in range(count):
        log.append_now(event(number=str(number)))
    log.close()
    return parts


def verify(parts: AuditParts) -> int:
    files = AuditFiles(parts.folder)
    identity = files.read_identity()
    assert identity is not None
    return verify_everything(files, identity)


async def test_an_event_is_durable_and_says_all_there_is_when_append_returns(parts: AuditParts) -> None:
    log = parts.open_whole()
    entry = await log.append(event(number="1"))
    raw = lines(parts)[entry.index]
    log.close()
    assert entry.leaf_hash == leaf_hash(raw).hex()
    record = json.loads(raw)
    assert record["prev"] == leaf_hash(lines(parts)[entry.index - 1]).hex()
    del record["ts_ms"], record["prev"]
    assert record == {
        "v": 1,
        "seq": 1,
        "op": "sign",
        "result": "ok",
        "reason": "",
        "tenant": "core",
        "kid": "core/audit/ed25519/x#v1",
        "alg": "ed25519",
        "payload_b3": "7f" * 32,
        "op_id": "",
        "actor": "ab" * 16,
        "root": "12" * 8,
        "corr_id": "0198c5a0-0000-7000-8000-000000000000",
        "request_id": "r-1",
        "path": "/v1/kms/sign",
        "peer": "127.0.0.1:1",
        "transport": "http",
        "detail": {"number": "1"},
    }


async def test_many_at_once_share_syncs_and_keep_one_order(parts: AuditParts, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs = []
    real = os.fdatasync
    monkeypatch.setattr("os.fdatasync", lambda descriptor: (syncs.append(1), real(descriptor))[1])
    log = parts.open_whole()
    began = len(syncs)
    entries = await asyncio.gather(*(log.append(event(number=str(number))) for number in range(500)))
    spent = len(syncs) - began
    await asyncio.to_thread(log.close)
    assert [entry.index for entry in entries] == list(range(1, 501))
    assert spent < 100
    assert [json.loads(line)["detail"].get("number") for line in lines(parts)][1:] == [str(n) for n in range(500)]
    assert verify(parts) == 501


def test_a_log_goes_on_after_a_restart(parts: AuditParts) -> None:
    filled(parts)
    filled(parts)
    assert verify(parts) == 12
    assert parts.value("kms_audit_integrity_failed_total") == 0


@pytest.mark.parametrize("provider", [WrappingProvider, InMemoryProvider])
def test_the_audit_key_is_the_providers_and_heads_verify_under_it(
    parts: AuditParts, provider: Callable[[], object]
) -> None:
    parts.provider = provider()
    filled(parts)
    files = AuditFiles(parts.folder)
    identity = files.read_identity()
    assert identity is not None
    assert verify_head(identity, files.newest_checkpoint() or b"").size == 6
    assert parts.fault() is None


def test_another_key_than_the_logs_cannot_go_on(parts: AuditParts) -> None:
    filled(parts)
    path = parts.folder / "log.json"
    document = json.loads(path.read_bytes())
    document["public_key"] = "A" * 43 + "="
    path.write_text(json.dumps(document))
    assert parts.fault() == "head"


def test_a_provider_that_can_do_nothing_is_refused(parts: AuditParts) -> None:
    parts.provider = WrappingProvider()
    parts.provider.wraps_itself = False  # type: ignore[misc]
    with pytest.raises(StoreUnavailable, match="neither signs nor wraps"):
        parts.open()


class AttestingProvider(InMemoryProvider):
    """Shows what it was asked to bind."""

    shows = True

    def attest(self, handle: Any, nonce: bytes) -> Attestation | None:
        return Attestation("test-1", handle.encode() + nonce) if self.shows else None


def test_attested_sealing_binds_the_audit_key_to_the_head_of_each_opening(parts: AuditParts) -> None:
    provider = AttestingProvider()
    parts.provider, parts.attested = provider, True
    filled(parts)
    filled(parts)
    shown = json.loads((parts.folder / "attestation.json").read_bytes())
    evidence = base64.b64decode(shown["evidence_b64"])
    opening = [json.loads(line) for line in lines(parts) if b"audit_open" in line][-1]
    assert opening["detail"]["attestation"] == shown["class"] == "test-1"
    assert opening["detail"]["evidence_sha256"] == hashlib.sha256(evidence).hexdigest()
    head = next(each for each in AuditFiles(parts.folder).read_checkpoints() if each.split(b"\n")[1] == b"6")
    assert evidence[-32:] == hashlib.sha256(head.partition(b"\n\n")[0] + b"\n").digest()
    provider.shows = False
    with pytest.raises(StoreUnavailable, match="shows nothing"):
        parts.open()
    parts.attested = False
    assert parts.fault() is None


# Checkpoints (CONCURRENCY.md §2 and §6)


def test_a_checkpoint_is_made_every_n_records_every_t_seconds_and_at_the_end(parts: AuditParts) -> None:
    now = [100.0]
    parts.clock = Clock(SYSTEM_CLOCK.wall_ms, lambda: now[0])
    parts.settings = AuditSettings(append_s=10, checkpoint_every=3, checkpoint_after_s=60)
    log = parts.open_whole()
    for _ in range(3):
        log.append_now(event())
    wait_for(lambda: parts.value("kms_audit_checkpoint_total", result="ok") == 1)
    log.append_now(event())
    now[0] += 61
    wait_for(lambda: parts.value("kms_audit_checkpoint_total", result="ok") == 2)
    log.append_now(event())
    log.close()
    log.close()
    assert parts.value("kms_audit_checkpoint_total", result="ok") == 3
    assert len(list(AuditFiles(parts.folder).read_checkpoints())) == 4


def wait_for(holds: Callable[[], object]) -> None:
    done = threading.Event()
    for _ in range(400):
        if holds():
            return
        done.wait(0.01)
    raise AssertionError("did not come about in time")


def test_a_checkpoint_that_cannot_be_made_is_told_and_mended(parts: AuditParts) -> None:
    parts.settings = AuditSettings(append_s=10, checkpoint_every=1)
    log = parts.open_whole()
    wait_for(lambda: log._signed_size == log.size)
    signer, real = log._signer, log._signer.sign

    def away(message: bytes) -> bytes:
        raise StoreUnavailable("the token is away")

    signer.sign = away  # type: ignore[method-assign]
    log.append_now(event())
    wait_for(lambda: log.not_ready() == "audit_checkpoint")
    assert log.writable() is None
    assert parts.value("kms_audit_integrity_failed_total") == 1
    signer.sign = real  # type: ignore[method-assign]
    log.append_now(event())
    wait_for(lambda: log.not_ready() is None)
    log.close()
    assert parts.fault() is None


def test_a_checkpoint_that_takes_too_long_shows_while_it_does(parts: AuditParts) -> None:
    parts.provider = InMemoryProvider()
    now = [100.0]
    parts.clock = Clock(SYSTEM_CLOCK.wall_ms, lambda: now[0])
    parts.settings = AuditSettings(append_s=10, checkpoint_every=1)
    log = parts.open_whole()
    wait_for(lambda: log._signed_size == log.size)
    signer, real, hold = log._signer, log._signer.sign, threading.Event()
    signer.quick = False
    signer.sign = lambda message: (hold.wait(10), real(message))[1]  # type: ignore[method-assign]
    log.append_now(event())
    wait_for(lambda: log._signing_since_s is not None)
    assert log.not_ready() is None
    now[0] += 1.5
    assert log.not_ready() == "audit_checkpoint"
    assert log.append_now(event()).index == 2
    hold.set()
    wait_for(lambda: parts.value("io_timeouts_total", op="checkpoint") == 1)
    log.append_now(event())
    wait_for(lambda: log.not_ready() is None)
    log.close()
    assert parts.fault() is None


def test_a_record_that_no_checkpoint_comes_to_cover_shows(parts: AuditParts) -> None:
    now = [100.0]
    parts.clock = Clock(SYSTEM_CLOCK.wall_ms, lambda: now[0])
    parts.settings = AuditSettings(append_s=10, checkpoint_every=1, checkpoint_after_s=5)
    log = parts.open_whole()
    wait_for(lambda: log._signed_size == log.size)
    now[0] += 3600
    assert log.not_ready() is None, "an idle log owes no checkpoint"
    stuck, hold = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        stuck.set()
        hold.wait(10)

    log.on_checkpoint = wait
    log.append_now(event())
    assert stuck.wait(10)
    log.append_now(event())
    now[0] += 9
    assert log.not_ready() is None
    now[0] += 2
    assert log.not_ready() == "audit_checkpoint"
    hold.set()
    wait_for(lambda: log.not_ready() is None)
    log.close()


def test_checking_old_segments_holds_up_neither_checkpoints_nor_the_disk(
    parts: AuditParts, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(parts, 30)
    entered, stop, checked = threading.Event(), threading.Event(), []

    def slow(files: AuditFiles, number: int) -> None:
        checked.append(number)
        entered.set()
        stop.wait(20)

    monkeypatch.setattr("kms.audit_open.check_segment", slow)
    parts.settings = AuditSettings(append_s=10, checkpoint_every=1)
    log = parts.open_whole()
    assert entered.wait(10)
    wait_for(lambda: log._signed_size == log.size)
    real, failing = log._storage.append, [True]

    def append(data: bytes, at_bytes: int) -> None:
        if failing.pop() if failing else False:
            raise StoreUnavailable("full", reason="audit_disk")
        real(data, at_bytes)

    log._storage.append = append  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        log.append_now(event())
    wait_for(lambda: log.writable() is None)
    assert checked == [0], "the first segment is still being read"
    threading.Timer(0.05, stop.set).start()
    log.close()
    assert checked == [0], "the others are left when the service ends"
    assert not log._checking.is_alive()


# Backpressure (I-2 above CONCURRENCY.md §3)


async def test_a_full_queue_refuses_and_nothing_is_dropped(parts: AuditParts) -> None:
    parts.settings = AuditSettings(queue=4, append_s=10)
    log = parts.open_whole()
    hold, entered = threading.Event(), threading.Event()
    real = log._storage.append

    def slow(data: bytes, at_bytes: int) -> None:
        entered.set()
        hold.wait(10)
        real(data, at_bytes)

    log._storage.append = slow  # type: ignore[method-assign]
    first = asyncio.ensure_future(log.append(event()))
    await asyncio.to_thread(entered.wait, 10)
    waiting = [asyncio.ensure_future(log.append(event())) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Backpressure) as caught:
        await log.append(event())
    assert (caught.value.http_status, caught.value.retry_after_s) == (429, 1)
    assert parts.value("busy_rejections_total", queue="audit") == 1
    hold.set()
    assert [entry.index for entry in await asyncio.gather(first, *waiting)] == [1, 2, 3, 4, 5]
    await asyncio.to_thread(log.close)
    assert len(lines(parts)) == 6
    assert parts.value("kms_audit_dropped_total", kind="event") == 0


async def test_an_append_past_its_deadline_is_a_timeout(parts: AuditParts) -> None:
    log = parts.open_whole()
    log._settings = AuditSettings(append_s=0.05)
    hold = threading.Event()
    real = log._storage.append
    log._storage.append = lambda data, at: (hold.wait(10), real(data, at))[1]  # type: ignore[method-assign]
    with pytest.raises(Timeout):
        await log.append(event())
    assert parts.value("io_timeouts_total", op="audit") == 1
    hold.set()
    await asyncio.to_thread(log.close)
    with pytest.raises(StoreUnavailable):
        await log.append(event())


def test_a_disk_that_fails_refuses_and_serves_again_by_itself(
    parts: AuditParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = parts.open_whole()
    real, full = os.write, [True]

    def write(descriptor: int, data: Any) -> int:
        if full[0]:
            real(descriptor, bytes(data)[:10])
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr("os.write", write)
    with pytest.raises(StoreUnavailable) as caught:
        log.append_now(event())
    assert caught.value.reason == "audit_disk"
    assert log.writable() == log.not_ready() == "audit_disk"
    with pytest.raises(StoreUnavailable):
        log.append_now(event())
    full[0] = False
    wait_for(lambda: log.writable() is None)
    log.append_now(event())
    log.close()
    assert [json.loads(line)["op"] for line in lines(parts)] == ["audit_open", "audit_resumed", "sign"]
    assert parts.fault() is None


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_disk_that_fails_where_a_segment_ends_serves_again_by_itself(
    parts: AuditParts, small_segments: None, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log = parts.open_whole()
    for _ in range(7):
        log.append_now(event(epoch="3", digest="33" * 32))
    real: Any = getattr(os, call)
    full = [True]

    def failing(first: Any, second: Any, *rest: Any) -> Any:
        if full[0] and (str(first).endswith("00000001.records") if call == "open" else b"audit_continued" in second):
            raise OSError(28, "No space left on device")
        return real(first, second, *rest)

    monkeypatch.setattr(f"os.{call}", lambda first, second, *rest: failing(first, bytes_of(second), *rest))
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as caught:
            log.append_now(event())
        assert caught.value.reason == "audit_disk"
    full[0] = False
    wait_for(lambda: log.writable() is None)
    log.append_now(event())
    log.close()
    ops = [json.loads(line)["op"] for line in lines(parts, "00000001.records")]
    assert ops == ["audit_continued", "audit_resumed", "sign"]
    parts.state = State(3, "33" * 32)
    assert parts.fault() is None


def bytes_of(data: Any) -> Any:
    return bytes(data) if isinstance(data, memoryview) else data


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_folder_that_others_may_use_is_refused(parts: AuditParts, mode: int) -> None:
    filled(parts)
    parts.folder.chmod(mode)
    with pytest.raises(StoreUnavailable, match="0700") as caught:
        parts.open()
    assert caught.value.reason == "audit_folder"
    parts.folder.chmod(0o700)
    assert parts.fault() is None


def test_an_event_without_a_json_form_harms_no_other(parts: AuditParts) -> None:
    log = parts.open_whole()
    with pytest.raises(Internal):
        log.append_now(event(bad="\ud800"))
    assert log.append_now(event()).index == 1
    long = AuditEvent(
        "x" * 1000, "ok", "", "", "", "", "", "", None, {"n" * 999: "v" * 999, **dict.fromkeys("abc", "")}
    )
    assert log.append_now(long).index == 2
    log.close()
    assert verify(parts) == 3
    assert len(json.loads(lines(parts)[2])["op"]) == 256


# What is found at start (G-7, G-13)


def drop_last(count: int) -> Callable[[AuditParts], None]:
    def damage(parts: AuditParts) -> None:
        kept = lines(parts)[:-count]
        (parts.folder / FIRST).write_bytes(b"".join(line + b"\n" for line in kept))

    return damage


def edit(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[AuditParts], None]:
    def damage(parts: AuditParts) -> None:
        (parts.folder / FIRST).write_bytes(b"".join(line + b"\n" for line in change(lines(parts))))

    return damage


def overwrite(name: str, content: bytes) -> Callable[[AuditParts], None]:
    return lambda parts: (parts.folder / name).write_bytes(content) and None


def remove(name: str) -> Callable[[AuditParts], None]:
    return lambda parts: (parts.folder / name).unlink()


def rechained(records: list[bytes]) -> list[bytes]:
    """Change a record and mend the chain after it, as whoever owns the disk could."""
    from receipts.canonical_json import canonical

    out: list[bytes] = []
    for raw in records:
        record = json.loads(raw)
        if record["seq"] == 2:
            record["kid"] = "core/audit/ed25519/other#v1"
        if out:
            record["prev"] = leaf_hash(out[-1]).hex()
        out.append(canonical(record))
    return out


DAMAGE: dict[str, tuple[Callable[[AuditParts], None], str]] = {
    "the last record gone": (drop_last(1), "truncated"),
    "the last three records gone": (drop_last(3), "truncated"),
    "all records gone": (drop_last(6), "truncated"),
    "the records' file gone": (remove(FIRST), "truncated"),
    "cut in the middle of the last record": (
        lambda parts: os.truncate(parts.folder / FIRST, (parts.folder / FIRST).stat().st_size - 5),
        "truncated",
    ),
    "a hole": (edit(lambda records: records[:2] + records[3:]), "chain"),
    "a record doubled": (edit(lambda records: records[:3] + records[2:]), "chain"),
    "two records exchanged": (edit(lambda records: [records[0], records[2], records[1], *records[3:]]), "chain"),
    "the first record gone": (edit(lambda records: records[1:]), "chain"),
    "a record in other bytes": (edit(lambda records: [records[0].replace(b":", b": ", 1), *records[1:]]), "record"),
    "a byte of a record": (
        edit(lambda records: [records[0].replace(b"audit_open", b"audit_opem"), *records[1:]]),
        "chain",
    ),
    "a byte of the last record": (
        edit(lambda records: [*records[:-1], records[-1].replace(b'"sign"', b'"sigh"')]),
        "root",
    ),
    "history written anew": (edit(rechained), "root"),
    "garbage": (edit(lambda records: [*records, b"{}"]), "record"),
    "another log's records": (lambda parts: replace_with_other(parts, FIRST), "root"),
    "another log's heads": (lambda parts: replace_with_other(parts, "head"), "head"),
    "another log's checkpoints": (lambda parts: replace_with_other(parts, "checkpoints"), "checkpoint"),
    "no head": (remove("head"), "head"),
    "an empty head": (overwrite("head", bytes(2 * HEAD_SLOT_BYTES)), "head"),
    "a head that is none": (overwrite("head", b"x" * HEAD_SLOT_BYTES), "head"),
    "no checkpoints": (remove("checkpoints"), "checkpoint"),
    "checkpoints that are none": (overwrite("checkpoints", b"x\n"), "checkpoint"),
    "checkpoints too open": (lambda parts: (parts.folder / "checkpoints").chmod(0o644), "checkpoint"),
    "records too open": (lambda parts: (parts.folder / FIRST).chmod(0o644), "segment_missing"),
    "no identity": (remove("log.json"), "identity"),
    "an identity that is none": (overwrite("log.json", b"{}"), "identity"),
    "a segment too many": (overwrite("00000002.records", b""), "segment_missing"),
}


def replace_with_other(parts: AuditParts, name: str) -> None:
    other = filled(AuditParts(parts.folder.parent / "other"))
    (parts.folder / name).write_bytes((other.folder / name).read_bytes())


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
async def test_a_log_that_is_not_as_it_was_left_takes_no_records_until_an_operator_accepts_it(
    parts: AuditParts, damage: Callable[[AuditParts], None], reason: str
) -> None:
    filled(parts)
    damage(parts)
    log = parts.open()
    assert (log.integrity(), log.writable(), log.not_ready()) == (reason, reason, reason)
    assert parts.value("kms_audit_integrity_failed_total") == 1
    with pytest.raises(StoreUnavailable) as caught:
        await log.append(event())
    assert (caught.value.reason, caught.value.http_status) == (reason, 503)
    log.close()
    assert parts.fault() == reason, "the next start must find it too"
    for path in parts.folder.iterdir():
        path.chmod(0o600)
    fault = parts.fault()
    told = accept(parts) if fault is not None else {"log_epoch": "2"}
    if fault is not None:
        assert told["fault"] == fault
    assert told["log_epoch"] == "2"
    assert parts.fault() is None
    assert filled(parts)
    assert verify(parts) >= 3


def accept(parts: AuditParts) -> dict[str, str]:
    return restore(parts.folder, parts.provider, state=parts.state, counter=parts.counter)  # type: ignore[arg-type]


def test_an_accepted_rollback_is_audited_and_deletes_nothing(parts: AuditParts) -> None:
    filled(parts)
    before = lines(parts)
    drop_last(2)(parts)
    accept(parts)
    record = json.loads(lines(parts)[-1])
    assert record["op"] == "audit_restored"
    assert record["detail"] == {
        "fault": "truncated",
        "signed_size": "6",
        "kept_size": "4",
        "log_epoch": "2",
        "epoch": "0",
        "digest": "00" * 32,
    }
    assert lines(parts)[:4] == before[:4]
    assert {path.name for path in parts.folder.glob("*.aside-0")} == {
        "head.aside-0",
        "checkpoints.aside-0",
        f"{FIRST}.aside-0",
    }
    with pytest.raises(AuditDamaged, match="nothing to accept"):
        accept(parts)


def test_a_record_that_was_never_answered_is_cut_off(parts: AuditParts) -> None:
    filled(parts)
    with (parts.folder / FIRST).open("ab") as file:
        file.write(b'{"v":1,"seq":6')
    assert filled(parts)
    assert verify(parts) == 12


def test_a_head_half_written_is_covered_by_the_other(parts: AuditParts) -> None:
    filled(parts)
    path = parts.folder / "head"
    data = bytearray(path.read_bytes())
    sizes = [int(note.split(b"\n")[1]) for note in AuditFiles(parts.folder).read_heads()]
    place = sizes.index(max(sizes)) * HEAD_SLOT_BYTES
    data[place + 10] ^= 1
    path.write_bytes(data)
    assert parts.fault() is None


def test_one_process_at_a_time_writes(parts: AuditParts) -> None:
    log = parts.open_whole()
    with pytest.raises(StoreUnavailable, match="another process"):
        parts.open()
    log.close()
    assert parts.fault() is None


# Key store and counter (I-6)


@pytest.mark.parametrize(
    ("after", "fault"),
    [
        (State(3, "cc" * 32), None),
        (State(2, "bb" * 32), "key_store_rolled_back"),
        (State(0), "key_store_rolled_back"),
        (State(3, "dd" * 32), "key_store_changed"),
        (State(4, "dd" * 32), "audit_rolled_back"),
        (State(4, "dd" * 32, [Change(4)]), None),
        (State(6, "dd" * 32, [Change(4), Change(5), Change(6)]), None),
        (State(6, "dd" * 32, [Change(4), Change(6)]), "audit_rolled_back"),
    ],
)
def test_a_key_store_or_a_log_that_was_set_back_shows(parts: AuditParts, after: State, fault: str | None) -> None:
    log = parts.open_whole()
    for epoch, digest in ((1, "aa" * 32), (3, "cc" * 32), (2, "bb" * 32)):
        log.append_now(event("rotate", epoch=str(epoch), digest=digest))
    log.close()
    parts.state = after
    assert parts.fault() == fault
    if fault is not None:
        accept(parts)
        assert parts.fault() is None
        assert filled(parts)


def test_a_log_that_is_gone_while_keys_are_there_is_a_fault(parts: AuditParts) -> None:
    parts.state = State(5)
    assert parts.fault() == "audit_rolled_back"
    assert parts.fault() == "audit_rolled_back"


def test_a_log_put_back_from_a_copy_shows_by_the_counter(parts: AuditParts, tmp_path: Path) -> None:
    parts.counter = counter = Counter()
    filled(parts)
    assert counter.value == 42
    subprocess.run(["cp", "-a", str(parts.folder), str(tmp_path / "copy")], check=True)
    filled(parts)
    assert counter.value == 43
    subprocess.run(["rm", "-r", str(parts.folder)], check=True)
    (tmp_path / "copy").rename(parts.folder)
    assert parts.fault() == "audit_rolled_back"
    accept(parts)
    assert parts.fault() is None
    assert parts.fault() is None


def test_a_crash_before_the_counter_rose_is_no_rollback(parts: AuditParts) -> None:
    parts.counter = counter = Counter()
    filled(parts)
    counter.value -= 1
    assert parts.fault() is None
    counter.value -= 2
    assert parts.fault() == "audit_rolled_back"


# Segments


def test_full_segments_are_sealed_and_only_the_last_ones_are_read_at_start(
    parts: AuditParts, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(parts, 30)
    assert sorted(path.name for path in parts.folder.glob("*.sealed")) == [f"0000000{n}.sealed" for n in range(4)]
    assert json.loads(lines(parts, "00000003.records")[0])["op"] == "audit_continued"
    assert verify(parts) > 30
    read = []
    real = AuditFiles.read_segment
    monkeypatch.setattr(AuditFiles, "read_segment", lambda self, number: (read.append(number), real(self, number))[1])
    parts.state = State()
    log = parts.open_whole()
    assert read[:2] == [3, 4]
    wait_for(lambda: {0, 1, 2} <= set(read))
    log.close()


def test_what_older_segments_say_of_the_key_store_is_said_again(parts: AuditParts, small_segments: None) -> None:
    log = parts.open_whole()
    log.append_now(event("rotate", epoch="7", digest="77" * 32))
    for _ in range(20):
        log.append_now(event())
    log.close()
    parts.state = State(6)
    assert parts.fault() == "key_store_rolled_back"


@pytest.mark.parametrize(
    ("name", "change", "at_start"),
    [
        ("00000000.records", lambda data: data.replace(b'"sign"', b'"sigh"', 1), False),
        ("00000000.records", lambda data: data[:-20], True),
        ("00000000.sealed", lambda data: data.replace(b'"root":"', b'"root":"AAAA', 1)[:-7] + b'"}\n', True),
        ("00000001.sealed", lambda data: b"{}", True),
        ("00000003.records", lambda data: data.replace(b'"sign"', b'"sigh"', 1), False),
    ],
)
def test_a_change_in_an_old_segment_is_found(
    parts: AuditParts, small_segments: None, name: str, change: Callable[[bytes], bytes], at_start: object
) -> None:
    filled(parts, 30)
    path = parts.folder / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AuditDamaged):
        verify(parts)
    log = parts.open()
    assert isinstance(log, ChainedAuditLog) is (not at_start)
    wait_for(lambda: log.integrity() is not None)
    log.close()


@pytest.mark.parametrize("keep", [3, 8, 12, 16, 20])
def test_a_rollback_over_segments_is_accepted_where_it_ends(parts: AuditParts, small_segments: None, keep: int) -> None:
    filled(parts, 30)
    segment, records = divmod(keep, 8)
    path = parts.folder / f"0000000{segment}.records"
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:records]))
    assert parts.fault() is not None
    assert accept(parts)["kept_size"] == str(keep)
    assert parts.fault() is None
    filled(parts, 20)
    assert verify(parts) > keep + 20


def test_a_crash_between_a_full_segment_and_its_seal_is_mended(parts: AuditParts, small_segments: None) -> None:
    filled(parts, 7)
    assert not list(parts.folder.glob("*.sealed"))
    filled(parts, 3)
    (parts.folder / "00000001.records").stat()
    assert verify(parts) == 8 + 1 + 1 + 3


# In memory (I-11)


async def test_under_amnesia_nothing_is_written_and_heads_are_signed_all_the_same(tmp_path: Path) -> None:
    telemetry = Telemetry()
    log = open_audit_log(
        None,
        InMemoryProvider(),
        telemetry=telemetry,
        state=None,
        settings=AuditSettings(append_s=10, checkpoint_every=10),
    )
    assert isinstance(log, ChainedAuditLog)
    entries = [await log.append(event()) for _ in range(30)]
    assert [entry.index for entry in entries] == list(range(30))
    storage = log._storage
    wait_for(lambda: telemetry.registry.get_sample_value("kms_audit_checkpoint_total", {"result": "ok"}))
    assert verify_head(log.identity, storage.head).size == 30  # type: ignore[attr-defined]
    assert verify_head(log.identity, storage.checkpoints[-1]).size <= 30  # type: ignore[attr-defined]
    await asyncio.to_thread(log.close)
    assert not storage.batches  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


# SIGKILL


@pytest.mark.parametrize("after", [1, 7, 40])
def test_whatever_was_answered_is_there_after_sigkill(parts: AuditParts, after: int) -> None:
    filled(parts)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.kms_audit", str(parts.folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    answered = [process.stdout.readline().split() for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    answered += [line.split() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    assert parts.fault() is None
    stored = lines(parts)
    for index, leaf in answered:
        assert leaf_hash(stored[int(index)]).hex() == leaf
    drop_last(1)(parts)
    assert parts.fault() == "truncated"


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_kill_before_any_step_leaves_a_whole_log_with_all_that_was_answered(tmp_path: Path, begun: object) -> None:
    """Every write, sync, rename and cut of opening, appending, sealing, checkpointing and closing, one by one."""
    command = [sys.executable, "-m", "tests.support.kms_audit_steps", str(tmp_path), "begun" if begun else "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(steps) > 40
    assert {each["killed_before"] for each in steps} >= {"fdatasync", "write", "pwrite", "fsync", "ftruncate", ""}
    assert [each for each in steps if each["fault"] or each["lost"]] == []
    assert max(each["answered"] for each in steps) == 12


def test_readable_records_end_where_the_first_damage_is(parts: AuditParts) -> None:
    filled(parts)
    edit(lambda records: [*records[:3], b"{}", *records[3:]])(parts)
    assert readable_tail(AuditFiles(parts.folder)).tree.size == 3
