"""Making compliance packs: what is in them, for which day, and what happens when a part fails."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from receipts import log_notes, verify
from receipts.checkpoint_jwks import verifier_keys_of
from receipts.errors import ReceiptStoreUnavailable, StoreCorrupt
from receipts.log_errors import EntryUnknown, LogUnavailable
from receipts.log_notes import MAX_HANDOUTS, Handout, LogNotes, Rotation
from receipts.log_reader import LogReader
from receipts.merkle import leaf_hash
from receipts.merkle_verify import verify_consistency
from receipts.pack import parse_day, plan_pack, stream_pack, write_pack
from receipts.pack_errors import PackDateError, PackTooLarge
from receipts.signed_note import parse_verifier_key
from receipts.sth import HeadChainVerifier, parse_sth_entry
from receipts.store import PrunedReceipt, ReceiptStore, StoredReceipt
from receipts.tlog_proof import parse_tlog_proof, verify_tlog_proof
from tests.support.log_parts import NOW_S, ORIGIN
from tests.support.pack_parts import POLICY, WRITERS, PackParts, day, unpack
from tests.support.scan_lookup import ScanLookup


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[PackParts]:
    made = PackParts(tmp_path)
    yield made
    made.close()


def report_on(data: bytes, **options: Any) -> verify.Report:
    return verify.PackVerifier(io.BytesIO(data), **options).verify()


# -- which day


def test_days_part_the_log_without_gap_or_overlap(parts: PackParts) -> None:
    sizes = []
    for count in (3, 0, 5, 1):
        if count:
            parts.add(count)
        sizes.append(parts.count)
        parts.next_day()
    starts = [0, *sizes[:-1]]
    for offset, (start, end) in enumerate(zip(starts, sizes, strict=True)):
        report = report_on(parts.pack(offset))
        assert (report.manifest.start, report.manifest.end) == (start, end)
        assert report.manifest.complete


def test_a_clock_that_goes_back_leaves_days_without_gap_or_overlap(parts: PackParts) -> None:
    """Days are those of the heads, whose times never go back: what came after the step is of the later day."""
    parts.add(3)
    parts.next_day()
    parts.add(4)
    parts.log.clock.seconds -= 86_400 + 3600
    parts.add(5)
    parts.log.clock.seconds += 2 * 86_400 + 3600
    parts.add(6)
    ends = [report_on(parts.pack(offset)).manifest.end for offset in range(3)]
    starts = [report_on(parts.pack(offset)).manifest.start for offset in range(3)]
    assert (starts, ends) == ([0, 3, 12], [3, 12, 18])


def test_day_without_traffic_is_a_valid_empty_pack(parts: PackParts) -> None:
    parts.writer.step()
    parts.next_day()
    parts.next_day()
    for offset in (0, 1):
        report = report_on(parts.pack(offset))
        assert (report.receipts, report.manifest.end, report.manifest.complete) == (0, 0, True)
    assert not report_on(parts.pack(2)).manifest.complete


def test_unfinished_day_says_so_until_it_is_over(parts: PackParts) -> None:
    parts.add(3)
    assert not json.loads(unpack(parts.pack())["manifest.json"])["complete"]
    parts.log.clock.seconds += 86_400
    assert not report_on(parts.pack()).manifest.complete, "the day is over, but no head shows it"
    parts.writer.step()
    assert report_on(parts.pack()).manifest.complete


def test_head_at_midnight_belongs_to_the_new_day(parts: PackParts) -> None:
    parts.add(2)
    parts.log.clock.seconds = parse_day(day(1)) - 1
    parts.add(3)
    parts.log.clock.seconds = parse_day(day(1))
    parts.add(4)
    assert report_on(parts.pack(0)).manifest.end == 5
    assert report_on(parts.pack(1)).manifest.start == 5


WRONG_DATES = ["", "today", "2027-1-5", "2027-02-29", "20270115", "2027-W01-1", "2027-01-15T00:00", " 2027-01-15"]


@pytest.mark.parametrize("date", [*WRONG_DATES, "1969-12-31", "٢٠٢٧-01-15", "2027-01-15\n", "9" * 5000])
def test_text_that_is_no_date_is_refused(parts: PackParts, date: str) -> None:
    parts.add(1)
    with pytest.raises(PackDateError, match="YYYY-MM-DD"):
        plan_pack(parts.source(), date, NOW_S)


def test_day_to_come_is_refused(parts: PackParts) -> None:
    parts.add(1)
    with pytest.raises(PackDateError, match="not begun"):
        plan_pack(parts.source(), day(1), NOW_S)


def test_day_before_the_log_is_refused_with_the_day_it_began(parts: PackParts) -> None:
    parts.add(1)
    with pytest.raises(PackDateError, match=f"began on {day(0)}"):
        plan_pack(parts.source(), day(-1), NOW_S)


def test_log_without_a_head_has_no_pack(parts: PackParts) -> None:
    with pytest.raises(EntryUnknown):
        plan_pack(parts.source(), day(0), NOW_S)


def test_day_with_too_many_receipts_is_refused(parts: PackParts, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.add(1)
    source = parts.source()
    large = dataclasses.replace(source.reader.head(), size=verify.MAX_RECEIPTS + 1)

    class Heads:
        def at_or_before(self, time_s: int) -> Any:
            return large if time_s >= NOW_S else None

        def read(self, *_: int) -> list[Any]:
            return []

    monkeypatch.setattr(source.reader, "heads", Heads())
    with pytest.raises(PackTooLarge):
        plan_pack(source, day(0), NOW_S)


# -- what is in it, read by the log's own code and not by the verifier


def test_contents_are_what_the_log_proves(parts: PackParts) -> None:
    parts.add(30)
    parts.next_day()
    parts.add(50, writer=1)
    parts.add(5)
    parts.next_day()
    members = unpack(parts.pack(1))
    manifest = json.loads(members["manifest.json"])
    assert [each["name"] for each in manifest["files"]] == list(members)[:-1]
    for each in manifest["files"]:
        data = members[each["name"]]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (each["bytes"], each["sha256"])
    raws = members["receipts.jsonl"].split(b"\n")[:-1]
    assert raws == parts.log.raws()[30:]
    keys = verifier_keys_of(json.loads(members["keys/jwks.json"]), ORIGIN)
    assert keys == parts.log.signer.verifier_keys()
    assert tuple(map(parse_verifier_key, members["keys/verifier-keys.txt"].decode().split())) == keys
    for index, raw in enumerate(raws, 30):
        proof = parse_tlog_proof(members[f"proofs/inclusion/{index}.tlog-proof"])
        head = verify_tlog_proof(proof, leaf_hash(raw), parts.log.verifiers(), ORIGIN)
        assert head.head.size == 85
    heads = [parse_sth_entry(each, number) for number, each in enumerate(json.loads(members["sth.json"]), 1)]
    chain = HeadChainVerifier(ORIGIN, parts.log.verifiers(), after=heads[0])
    for head_ in heads[1:]:
        chain.add(head_)
    assert heads[-2].note == members["checkpoint"]
    assert members["verify.py"] == Path(verify.__file__).read_bytes()
    assert members["policy/bundle"] == POLICY
    assert members["policy/digest"].decode().strip() == hashlib.sha256(POLICY).hexdigest()
    assert day(1) in members["README"].decode()


def test_predecessors_are_the_receipts_before_the_day(parts: PackParts) -> None:
    parts.add(5)
    parts.add(5, writer=1)
    parts.next_day()
    parts.add(2, writer=1)
    parts.add(2, writer=2)
    lines = unpack(parts.pack(1))["proofs/predecessors.jsonl"].splitlines()
    (only,) = map(json.loads, lines)
    assert (only["writer"], only["index"]) == (WRITERS[1], 9)
    assert only["receipt"].encode() == parts.log.raws()[9]


def test_bill_of_materials_is_cyclonedx(parts: PackParts) -> None:
    parts.add(1)
    bill = json.loads(unpack(parts.pack(request_algorithms=("ed25519", "rsa-pss-sha512")))["cbom.json"])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    named = {each["name"]: each["cryptoProperties"] for each in bill["components"]}
    assert {"SHA-256", "Ed25519", "ML-DSA-44", "rsa-pss-sha512"} <= set(named)
    assert named["ML-DSA-44"]["algorithmProperties"]["nistQuantumSecurityLevel"] == 2
    states = [
        each["relatedCryptoMaterialProperties"]["state"]
        for each in named.values()
        if each["assetType"] == "related-crypto-material"
    ]
    assert states == ["active", "active"]
    assert unpack(parts.pack(request_algorithms=("ed25519", "rsa-pss-sha512")))["cbom.json"] == json_again(bill)


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"commit": "a1" * 20}, "a1" * 20),
        ({"commit": "a1" * 32}, "a1" * 32),
        ({"commit": "A1" * 20}, None),
        ({"commit": "main"}, None),
        ({"commit": None}, None),
        ({"commit": 7}, None),
        ({}, None),
        ([], None),
        (b"\xff", None),
    ],
)
def test_bill_of_materials_names_the_policy_and_its_commit(parts: PackParts, stated: object, told: str | None) -> None:
    parts.add(1)
    bundle = stated if isinstance(stated, bytes) else json.dumps(stated).encode()
    bill = json.loads(unpack(parts.pack(policy=bundle))["cbom.json"])
    found = {each["name"]: each["value"] for each in bill["metadata"]["properties"]}
    expected = {"signet:policy-digest": hashlib.sha256(bundle).hexdigest(), "signet:policy-git-commit": told}
    assert found == {name: value for name, value in expected.items() if value is not None}


def json_again(bill: Any) -> bytes:
    return json.dumps(bill, indent=1).encode() + b"\n"


# -- joining


def test_pack_is_joined_to_the_last_one_handed_out(parts: PackParts) -> None:
    parts.add(7)
    first = parts.pack()
    assert json.loads(unpack(first)["manifest.json"])["since"] is None
    parts.add(30)
    second = unpack(parts.pack())
    since = json.loads(second["manifest.json"])["since"]
    assert since["size"] == 7
    (proof,) = json.loads(second["proofs/consistency.json"])
    hashes = [verify.decode_base64(each.encode(), "") for each in proof["hashes"]]
    old_root, root = (verify.decode_base64(proof[name].encode(), "") for name in ("from_root", "to_root"))
    verify_consistency(proof["from"], proof["to"], old_root, root, hashes)
    assert proof["from_root"] == since["root"]


def test_pack_that_was_not_taken_whole_was_not_handed_out(parts: PackParts) -> None:
    parts.add(7)
    source = parts.source()
    pieces = stream_pack(source, plan_pack(source, day(0), NOW_S))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert source.notes.handouts() == ()
    parts.pack()
    assert [each.size for each in source.notes.handouts()] == [7]


def test_pack_of_an_earlier_day_joins_one_that_came_before(parts: PackParts) -> None:
    for _ in range(3):
        parts.add(3)
        parts.next_day()
    since = {}
    for offset in (0, 2, 1):
        data = parts.pack(offset)
        report_on(data)
        since[offset] = json.loads(unpack(data)["manifest.json"])["since"]
    assert since[0] is None
    assert since[2]["size"] == since[1]["size"] == 3


def test_pack_asked_for_again_is_joined_to_however_old_it_is(parts: PackParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_notes, "MAX_HANDOUTS", 2)
    packs = []
    for offset in range(4):
        parts.add(3)
        parts.next_day()
        packs.append(parts.pack(offset))
    oldest = report_on(packs[0])
    with pytest.raises(verify.Invalid, match="no proof in the pack joins it"):
        report_on(packs[3], since=oldest)
    again = report_on(parts.pack(0))
    assert (again.manifest.end, again.manifest.root) == (oldest.manifest.end, oldest.manifest.root)
    assert report_on(parts.pack(3), since=oldest).joined


def test_notes_are_bounded_and_kept_private(tmp_path: Path) -> None:
    notes = LogNotes(tmp_path)
    for size in range(MAX_HANDOUTS + 5):
        notes.add_handout(Handout(day(), size, "00" * 32))
    assert [each.size for each in notes.handouts()] == list(range(5, MAX_HANDOUTS + 5))
    notes.add_handout(notes.handouts()[0])
    assert [each.size for each in notes.handouts()][-2:] == [MAX_HANDOUTS + 4, 5]
    notes.add_rotation(Rotation(3, "{}"))
    assert LogNotes(tmp_path).rotations() == (Rotation(3, "{}"),)
    assert (tmp_path / "packs.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'[{"date":"x","size":-1,"root":""}]', b"[" + b" " * 3_000_000]
)
def test_notes_that_are_damaged_are_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "packs.json").write_bytes(content)
    with pytest.raises(StoreCorrupt):
        LogNotes(tmp_path).handouts()
    with pytest.raises(StoreCorrupt):
        LogNotes(tmp_path).add_handout(Handout(day(), 1, "00" * 32))


def test_notes_that_cannot_be_read_are_unavailable(tmp_path: Path) -> None:
    (tmp_path / "packs.json").mkdir()
    with pytest.raises(LogUnavailable):
        LogNotes(tmp_path).handouts()


# -- faults


class FailingStore:
    """A store that is gone, or lies, from some receipt on."""

    def __init__(self, store: ReceiptStore, after: int, *, change: bytes | None = None, end: bool = False) -> None:
        self._store, self._after, self._change, self._end = store, after, change, end

    def read(self, after_seq: int, limit: int) -> list[StoredReceipt]:
        page = self._store.read(after_seq, limit)
        if all(each.seq <= self._after for each in page):
            return page
        if self._change is not None:
            return [
                dataclasses.replace(each, raw=self._change) if each.seq == self._after + 1 else each for each in page
            ]
        if self._end:
            return [each for each in page if each.seq <= self._after]
        raise ReceiptStoreUnavailable("gone")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({}, ReceiptStoreUnavailable),
        ({"change": b"{}"}, StoreCorrupt),
        ({"end": True}, StoreCorrupt),
    ],
)
def test_fault_in_the_middle_leaves_no_pack(
    parts: PackParts, tmp_path: Path, fault: dict[str, Any], error: type[Exception]
) -> None:
    parts.add(20)
    source = parts.source(store=FailingStore(parts.log.store, 10, **fault))
    out = tmp_path / "out.zip"
    plan = plan_pack(source, day(0), NOW_S)
    with pytest.raises(error):
        write_pack(source, plan, out)
    assert [each.name for each in tmp_path.iterdir() if "out" in each.name] == []
    given: list[bytes] = []
    with pytest.raises(error):
        given.extend(stream_pack(source, plan))
    with pytest.raises(verify.Unusable):
        report_on(b"".join(given))
    assert source.notes.handouts() == ()


def test_progress_tells_receipts_done(parts: PackParts, tmp_path: Path) -> None:
    parts.add(1200)
    source, told = parts.source(), cast("list[tuple[int, int]]", [])
    size = write_pack(
        source, plan_pack(source, day(0), NOW_S), tmp_path / "p.zip", lambda done, all_: told.append((done, all_))
    )
    assert told[-1] == (1200, 1200)
    assert len(told) > 2
    assert (tmp_path / "p.zip").stat().st_size == size
    checked: list[tuple[int, int]] = []
    verify.verify_file(tmp_path / "p.zip", progress=lambda done, all_: checked.append((done, all_)))
    assert checked[-1] == (1200, 1200)


def test_any_unzip_reads_it(parts: PackParts) -> None:
    parts.add(300)
    with zipfile.ZipFile(io.BytesIO(parts.pack())) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"signet-pack sha256 ")


# -- pruned payloads


class PrunedStore:
    """A store whose first receipts were pruned."""

    def __init__(self, store: ReceiptStore, upto: int) -> None:
        self._store, self._upto = store, upto

    def read(self, after_seq: int, limit: int) -> list[StoredReceipt]:
        return [self._pruned(each) for each in self._store.read(after_seq, limit)]

    def _pruned(self, each: StoredReceipt) -> StoredReceipt:
        if each.seq > self._upto:
            return each
        facts = (each.id, each.seq, each.writer, each.wseq, b"", each.decision, each.reason, each.status)
        return PrunedReceipt(*facts, leaf_hash=leaf_hash(each.raw))

    def by_writer(self, writer: str, wseq: int, before_seq: int) -> StoredReceipt | None:
        found = ScanLookup(self._store).by_writer(writer, wseq, before_seq)
        return None if found is None else self._pruned(found)


@pytest.mark.parametrize("upto", [1, 6, 10, 11, 25, 30])
def test_pruned_payloads_leave_a_pack_that_verifies(parts: PackParts, upto: int) -> None:
    parts.add(10)
    parts.next_day()
    parts.add(5, writer=1)
    parts.add(15)
    pruned = PrunedStore(parts.log.store, upto)
    for offset, (start, end) in enumerate(((0, 10), (10, 30))):
        report = report_on(parts.pack(offset, store=pruned, lookup=pruned))
        assert report.pruned == max(0, min(end, upto) - start)
        assert report.receipts == end - start


def test_pruned_line_with_another_leaf_is_refused(parts: PackParts) -> None:
    parts.add(5)
    pruned = PrunedStore(parts.log.store, 2)
    from tests.support.pack_parts import repack

    members = unpack(parts.pack(store=pruned))
    for old, new in ((b'"wseq":2', b'"wseq":3'), (b'"leaf":"', b'"leaf":"0'), (b'"pruned":true', b'"pruned":false')):
        changed = repack({**members, "receipts.jsonl": members["receipts.jsonl"].replace(old, new, 1)})
        with pytest.raises(verify.Invalid):
            report_on(changed)


def test_reader_of_a_pack_survives_a_log_that_goes_on(parts: PackParts) -> None:
    """A pack being streamed is of the head that it was planned for."""
    parts.add(300)
    source = parts.source()
    assert isinstance(source.reader, LogReader)
    pieces = stream_pack(source, plan_pack(source, day(0), NOW_S))
    given = [next(pieces)]
    parts.add(300)
    given += list(pieces)
    assert report_on(b"".join(given)).receipts == 300
