"""The offline verifier: what it accepts, and everything that it must not."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from receipts import verify
from receipts.canonical_json import canonical
from receipts.checkpoint import HeadRequest, TreeHead, compose_checkpoint
from receipts.checkpoint_jwks import verifier_jwks
from receipts.checkpoint_keys import FileCheckpointSigner, create_key_file
from receipts.errors import StoreCorrupt
from receipts.log_notes import LogNotes
from receipts.merkle import EMPTY_ROOT
from receipts.receipt_id import WriterId
from receipts.rotation import rotate_keys
from receipts.signed_note import SignedNote
from receipts.sth import SignedTreeHead
from tests.support.log_parts import NOW_S, ORIGIN, LogParts, seeded
from tests.support.pack_parts import (
    DAY_S,
    WRITERS,
    Members,
    PackParts,
    chain,
    day,
    decision,
    pack_of,
    repack,
    unpack,
)

VERIFIER = Path(verify.__file__)


class Made:
    """Packs of three days, made once: day 1 goes on from day 0, day 2 is not over."""

    def __init__(self, folder: Path) -> None:
        parts = PackParts(folder)
        parts.add(30)
        parts.add(10, writer=1)
        parts.next_day()
        parts.add(17)
        parts.add(20, writer=2)
        parts.add(23)
        parts.next_day()
        self.packs = [parts.pack(0), parts.pack(1), parts.pack(2)]
        self.jwks = verifier_jwks(parts.log.signer.verifier_keys())
        parts.close()
        self.members = unpack(self.packs[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("packs"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Verify bytes as the command line does; return exit status and report."""

    def verify_bytes(data: bytes, *options: str) -> tuple[int, dict[str, Any]]:
        path = tmp_path / "checked.zip"
        path.write_bytes(data)
        status = verify.main([str(path), "--json", *options])
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert report["valid"] is {0: True, 1: False, 2: None}[status]
        return status, report

    return verify_bytes


Run = Callable[..., tuple[int, dict[str, Any]]]


def outcome(data: bytes, **options: Any) -> Exception | verify.Report:
    try:
        return verify.PackVerifier(io.BytesIO(data), **options).verify()
    except (verify.Invalid, verify.Unusable) as error:
        return error


# -- what is accepted


def test_every_day_verifies(made: Made, run: Run) -> None:
    expected = [(True, 0, 40, 2), (True, 40, 100, 2), (False, 100, 100, 0)]
    for pack, (complete, start, end, writers) in zip(made.packs, expected, strict=True):
        status, report = run(pack)
        assert status == 0
        found = (report["complete"], report["start"], report["end"], report["writers"])
        assert found == (complete, start, end, writers)
        assert report["receipts"] == report["inclusion_proofs"] == end - start


def test_report_counts_decisions_under_the_bundle(made: Made, run: Run) -> None:
    report = run(made.packs[1])[1]
    assert report["kinds"] == {"decision": 60}
    assert report["policy"] == {"asked": 60, "under_bundle": 60}


def test_keys_that_were_pinned_are_said_to_be(made: Made, run: Run, tmp_path: Path) -> None:
    trust = tmp_path / "jwks.json"
    trust.write_text(json.dumps(made.jwks))
    assert run(made.packs[0], "--trust", str(trust))[1]["keys_pinned"] == "by --trust"
    assert run(made.packs[0], "--trust", str(trust))[1]["warnings"] == []
    assert "not pinned" in run(made.packs[0])[1]["warnings"][0]


def test_packs_join(made: Made, run: Run, tmp_path: Path) -> None:
    older = tmp_path / "older.zip"
    older.write_bytes(made.packs[0])
    for number, warnings in ((1, []), (2, ["receipts 40 to 99 are in neither pack"])):
        status, report = run(made.packs[number], "--since", str(older))
        assert status == 0
        assert report["joined"] == f"goes on from {day(0)}, 40 entries"
        assert report["keys_pinned"] == "by the older pack"
        assert report["warnings"] == warnings


def test_unfinished_day_joins_the_same_day(tmp_path: Path) -> None:
    parts = PackParts(tmp_path)
    parts.add(5)
    early = parts.pack(0)
    parts.add(5)
    late = parts.pack(0)
    parts.close()
    older = outcome(early)
    assert isinstance(older, verify.Report)
    newer = outcome(late, since=older)
    assert isinstance(newer, verify.Report)
    assert newer.joined
    assert isinstance(outcome(early, since=newer), verify.Unusable)


def test_text_report_ends_in_the_verdict(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.zip"
    path.write_bytes(made.packs[1])
    assert verify.main([str(path)]) == 0
    assert capsys.readouterr().out.endswith("VALID\n")
    path.write_bytes(made.packs[1][:-1])
    assert verify.main([str(path)]) == 2
    assert capsys.readouterr().out.startswith("UNUSABLE")


def test_pack_verifies_itself_without_signet_or_network(made: Made, tmp_path: Path) -> None:
    (tmp_path / "verify.py").write_bytes(made.members["verify.py"])
    (tmp_path / "pack.zip").write_bytes(made.packs[1])
    guard = (
        "import sys, runpy\n"
        "def hook(event, args):\n"
        "    writes = event == 'open' and 'w' in str(args[1])\n"
        "    if event.startswith(('socket.', 'subprocess.', 'os.system')) or writes:\n"
        "        raise SystemExit(f'{event} is not for a verifier')\n"
        "sys.addaudithook(hook)\n"
        "sys.argv = ['verify.py', 'pack.zip']\n"
        "runpy.run_path('verify.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", guard], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("VALID\n"), done.stderr
    assert done.returncode == 0


def test_verifier_is_one_file_of_the_standard_library_and_cryptography() -> None:
    assert made_of(VERIFIER) <= {*sys.stdlib_module_names, "cryptography"}
    assert not made_of(VERIFIER) & {"socket", "http", "urllib", "ssl", "asyncio", "subprocess", "os"}


def made_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).partition(".")[0])
    return names


# -- one byte


def test_any_changed_byte_of_the_file_is_found(made: Made) -> None:
    pack, source = made.packs[1], random.Random(1)
    ends = [*range(40), *range(len(pack) - 130, len(pack))]
    for at in [*ends, *(source.randrange(len(pack)) for _ in range(400))]:
        changed = bytearray(pack)
        changed[at] ^= 1 << source.randrange(8)
        assert isinstance(outcome(bytes(changed)), Exception), f"byte {at}"


def test_any_changed_byte_of_any_member_is_found(made: Made) -> None:
    source = random.Random(2)
    with zipfile.ZipFile(io.BytesIO(made.packs[1])) as archive:
        infos = archive.infolist()
    assert len(infos) > 70
    for info in infos:
        if not info.file_size:
            continue
        for _ in range(3):
            changed = dict(made.members)
            data = bytearray(changed[info.filename])
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
            changed[info.filename] = bytes(data)
            manifest = changed.pop("manifest.json")
            assert isinstance(outcome(packed_as_is({**changed, "manifest.json": manifest})), Exception), info.filename


def packed_as_is(members: Members) -> bytes:
    """A whole zip with a true last line, and the manifest as it was."""
    from receipts.pack_zip import ZipStream

    stream, out = ZipStream(), []
    for name, data in members.items():
        out += list(stream.add(name, [data]))
    return b"".join([*out, *stream.finish()])


def test_untouched_members_put_together_again_verify(made: Made) -> None:
    assert isinstance(outcome(packed_as_is(made.members)), verify.Report)
    assert isinstance(outcome(repack(made.members)), verify.Report)


EVIDENCE = [
    *("checkpoint", "keys/jwks.json", "keys/verifier-keys.txt", "policy/bundle", "policy/digest", "sth.json"),
    *("proofs/consistency.json", "proofs/predecessors.jsonl", "receipts.jsonl", "proofs/tile/0/000.p/100"),
    *("proofs/inclusion/40.tlog-proof", "proofs/inclusion/99.tlog-proof"),
]


@pytest.mark.parametrize("name", EVIDENCE)
def test_changed_byte_is_found_though_all_digests_were_made_anew(made: Made, name: str) -> None:
    source = random.Random(name)
    for _ in range(40):
        changed = dict(made.members)
        data = bytearray(changed[name])
        at = source.randrange(len(data))
        data[at] ^= 1 << source.randrange(8)
        changed[name] = bytes(data)
        assert isinstance(outcome(repack(changed)), Exception), f"{name} byte {at}"


# -- receipts


def lines_of(made: Made) -> list[bytes]:
    return made.members["receipts.jsonl"].split(b"\n")[:-1]


def with_lines(made: Made, lines: list[bytes]) -> bytes:
    return repack({**made.members, "receipts.jsonl": b"".join(line + b"\n" for line in lines)})


RECEIPT_ATTACKS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "the first is dropped": (lambda lines: lines[1:], 40),
    "one is dropped": (lambda lines: lines[:7] + lines[8:], 47),
    "the last is dropped": (lambda lines: lines[:-1], 99),
    "all are dropped": (lambda _: [], 40),
    "one is there twice": (lambda lines: [*lines[:9], lines[8], *lines[9:]], 49),
    "one more at the end": (lambda lines: [*lines, lines[-1]], 100),
    "two change places": (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], 44),
    "one byte": (lambda lines: [*lines[:20], lines[20].replace(b"GET", b"GEU"), *lines[21:]], 60),
    "an empty line": (lambda lines: [*lines[:30], b"", *lines[30:]], 70),
    "one is said to be pruned": (
        lambda lines: [
            *lines[:3],
            b'{"leaf":"%b","pruned":true,"writer":"%b","wseq":1}' % (b"00" * 32, WRITERS[0].encode()),
            *lines[4:],
        ],
        43,
    ),
    "garbage": (lambda lines: [*lines[:2], b"{", *lines[3:]], 42),
}


@pytest.mark.parametrize("attack", RECEIPT_ATTACKS)
def test_first_receipt_that_fails_is_named(made: Made, run: Run, attack: str) -> None:
    change, index = RECEIPT_ATTACKS[attack]
    status, report = run(with_lines(made, change(lines_of(made))))
    assert status == 1
    assert report["receipt"]["index"] == index


def test_refusal_that_became_a_pass_is_named_with_its_id(made: Made, run: Run) -> None:
    lines = lines_of(made)
    at = next(number for number, line in enumerate(lines) if b'"decision":"deny"' in line)
    lines[at] = lines[at].replace(b'"decision":"deny"', b'"decision":"allow"')
    status, report = run(with_lines(made, lines))
    assert status == 1
    assert report["receipt"] == {"index": 40 + at, "id": json.loads(lines[at])["id"]}


def test_receipts_and_tiles_changed_alike_fail_at_the_signed_root(made: Made, run: Run) -> None:
    lines = lines_of(made)
    lines[10] = lines[10].replace(b'"GET"', b'"PUT"')
    tile = bytearray(made.members["proofs/tile/0/000.p/100"])
    tile[32 * 50 : 32 * 51] = verify.leaf_hash(lines[10])
    data = b"".join(line + b"\n" for line in lines)
    status, report = run(repack({**made.members, "receipts.jsonl": data, "proofs/tile/0/000.p/100": bytes(tile)}))
    assert status == 1
    assert report["check"] in ("chain", "head", "proof")


# -- a log whose operator cheats: all signatures are true, the chains are not


def broken_prev() -> list[bytes]:
    raws = chain(10)
    value = json.loads(raws[6])
    value["prev"] = "00" * 32
    raws[6] = verify.canonical_text(value).encode()
    return raws


def other_version() -> list[bytes]:
    return [*chain(3), verify.canonical_text({**json.loads(chain(4)[3]), "v": 2}).encode()]


CHEATS: dict[str, tuple[Callable[[], list[bytes]], int]] = {
    "a decision was left out": (lambda: chain(10)[:4] + chain(10)[5:], 4),
    "the first was left out": (lambda: chain(10)[1:], 0),
    "a decision is there twice": (lambda: [*chain(5), chain(5)[4]], 5),
    "two have one number": (lambda: [*chain(5), chain(5, first=100)[4]], 5),
    "the order of one writer was changed": (lambda: [chain(5)[i] for i in (0, 2, 1, 3, 4)], 1),
    "prev is that of no receipt": (broken_prev, 6),
    "the version is unknown": (other_version, 3),
    "an entry is no receipt": (lambda: [*chain(2), b"{}"], 2),
    "an entry is a number": (lambda: [*chain(2), b"1"], 2),
    "an entry is not canonical": (lambda: [*chain(2), chain(3)[2].replace(b'"v":1', b'"v": 1')], 2),
    "a member is there twice": (lambda: [*chain(2), chain(3)[2].replace(b'"v":1', b'"v":1,"v":1')], 2),
    "wseq is huge": (lambda: [chain(1)[0].replace(b'"wseq":1', b'"wseq":' + b"9" * 5000)], 0),
    "wseq is a truth": (lambda: [chain(1)[0].replace(b'"wseq":1', b'"wseq":true')], 0),
    "wseq is a double": (lambda: [chain(1)[0].replace(b'"wseq":1', b'"wseq":1.5')], 0),
    "writer is a list": (lambda: [chain(1)[0].replace(b'"%b"' % WRITERS[0].encode(), b'["a"]')], 0),
    "kind is a list": (lambda: [chain(1)[0].replace(b'"decision","plan"', b'["decision"],"plan"')], 0),
    "kind is an object": (lambda: [chain(1)[0].replace(b'"decision","plan"', b'{},"plan"')], 0),
    "depth without end": (lambda: [b"[" * 30_000], 0),
    "not UTF-8": (lambda: [*chain(1), b'{"a":"\xff"}'], 1),
    "a lone surrogate": (lambda: [*chain(1), b'{"a":"\\ud800"}'], 1),
    "a number that is none": (lambda: [*chain(1), b'{"a":NaN}'], 1),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_log_that_is_signed_but_not_whole_is_refused(tmp_path: Path, run: Run, cheat: str) -> None:
    entries, index = CHEATS[cheat]
    status, report = run(pack_of(tmp_path / "log", entries(), hides=True))
    assert status == 1
    assert report["receipt"]["index"] == index


def test_log_of_the_same_kind_that_is_whole_is_accepted(tmp_path: Path, run: Run) -> None:
    entries = [raw for pair in zip(chain(20), chain(20, writer=1, first=50), strict=True) for raw in pair]
    assert run(pack_of(tmp_path / "log", entries))[0] == 0


def test_gap_across_midnight_is_refused(tmp_path: Path) -> None:
    raws = chain(12)
    whole = pack_of(tmp_path / "whole", raws, days=(6,), offset=1)
    assert isinstance(outcome(whole), verify.Report)
    # The same, but number 7 is in no day: the second day's first one is number 8.
    cheat = [*raws[:6], *raws[7:]]
    with pytest.raises(StoreCorrupt, match="no receipt 7"):
        pack_of(tmp_path / "cheat", cheat, days=(6,), offset=1)
    found = outcome(pack_of(tmp_path / "hidden", cheat, days=(6,), offset=1, hides=True))
    assert isinstance(found, verify.Invalid)
    assert found.index == 6
    members = unpack(whole)
    without = repack({**members, "proofs/predecessors.jsonl": b""})
    found = outcome(without)
    assert isinstance(found, verify.Invalid)
    assert found.index == 6


# -- keys


def test_keys_of_another_log_are_refused(made: Made, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    create_key_file(path, ORIGIN, NOW_S, seeded("another"))
    trust = tmp_path / "jwks.json"
    trust.write_text(json.dumps(verifier_jwks(FileCheckpointSigner(path, lambda: 0).verifier_keys())))
    status, report = run(made.packs[0], "--trust", str(trust))
    assert status == 1
    assert "trusted key" in report["message"]


@pytest.mark.parametrize("missing", ["OKP", "AKP"])
def test_one_kind_of_signature_is_not_enough(made: Made, run: Run, tmp_path: Path, missing: str) -> None:
    trust = tmp_path / "jwks.json"
    trust.write_text(json.dumps({"keys": [key for key in made.jwks["keys"] if key["kty"] != missing]}))
    assert run(made.packs[0], "--trust", str(trust))[0] == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"keys":[]}', b'{"keys":[1]}', b"\xff", b'{"keys":{}}'])
def test_trust_that_is_no_jwk_set_is_unusable(made: Made, run: Run, tmp_path: Path, content: bytes) -> None:
    trust = tmp_path / "jwks.json"
    trust.write_bytes(content)
    assert run(made.packs[0], "--trust", str(trust))[0] == 2
    assert run(made.packs[0], "--trust", str(tmp_path / "absent"))[0] == 2


@pytest.fixture
def rotated(tmp_path: Path) -> Iterator[tuple[PackParts, dict[str, Any]]]:
    """A log whose keys rotated on its first day, and its first keys."""
    parts = PackParts(tmp_path / "rotated")
    parts.add(5)
    first = verifier_jwks(parts.log.signer.verifier_keys())
    writer = WriterId("11111111-1111-4111-8111-111111111111")
    rotate_keys(
        parts.log.store,
        LogNotes(parts.log.log_folder),
        parts.log.signer,
        writer=writer,
        now_ms=NOW_S * 1000,
        random_bytes=seeded("second"),
    )
    parts.add(5)
    parts.add(5)
    parts.next_day()
    parts.add(5)
    parts.next_day()
    yield parts, first
    parts.close()


def test_old_keys_vouch_for_new_ones(rotated: tuple[PackParts, dict[str, Any]]) -> None:
    parts, first = rotated
    for offset in (0, 1):
        pack = parts.pack(offset)
        report = outcome(pack, trust=first)
        assert isinstance(report, verify.Report)
        # Without the entry that names them, nothing makes the new keys good.
        members = {**unpack(pack), "keys/rotations.jsonl": b""}
        assert isinstance(outcome(repack(members), trust=first), Exception)


def test_cosigning_alone_does_not_carry_trust(tmp_path: Path) -> None:
    """Who adds lines to a true head and forks the log from there must not pass with the old keys pinned."""
    true = PackParts(tmp_path / "true")
    true.add(5)
    pinned = verifier_jwks(true.log.signer.verifier_keys())
    head = true.log.reader().head()
    true.close()
    thief = LogParts(tmp_path / "thief")
    thief.key_path.unlink()
    create_key_file(thief.key_path, ORIGIN, NOW_S, seeded("thief"))
    thief.close()
    forged = PackParts(tmp_path / "thief")
    forged.add(9)
    forged.next_day()
    members = unpack(forged.pack(0))
    own = members["checkpoint"]
    forged.close()
    line = {
        "index": 0,
        "receipt": members["receipts.jsonl"].split(b"\n")[0].decode(),
        "head": (head.note + own.partition(b"\n\n")[2]).decode(),
        "inclusion": [],
        "consistency": [],
    }
    members["keys/rotations.jsonl"] = json.dumps(line).encode() + b"\n"
    found = outcome(repack(members), trust=pinned)
    assert isinstance(found, verify.Invalid)


@pytest.mark.parametrize("place", ["closing", "opening"])
def test_bounds_of_the_day_need_keys_that_are_trusted(tmp_path: Path, place: str) -> None:
    """Who cuts a day short must not get away with a head of their own that says where it begins, or that it is over."""
    parts = PackParts(tmp_path / "true")
    parts.add(5)
    pinned = verifier_jwks(parts.log.signer.verifier_keys())
    keys, members = parts.log.signer.verifier_keys(), unpack(parts.pack())
    parts.close()
    path = tmp_path / "thief.json"
    create_key_file(path, ORIGIN, NOW_S, seeded("thief"))
    when = NOW_S + DAY_S if place == "closing" else NOW_S - DAY_S
    thief = FileCheckpointSigner(path, lambda: when)
    (true,) = json.loads(members["sth.json"])
    head = (
        TreeHead(ORIGIN, 5, base64.b64decode(true["root"])) if place == "closing" else TreeHead(ORIGIN, 0, EMPTY_ROOT)
    )
    signatures = thief.sign(HeadRequest(head, head, (), 0))
    note = SignedNote(compose_checkpoint(head), signatures).data
    forged = SignedTreeHead(2, note, head.size, head.root, when, None, ()).entry()
    if place == "closing":
        heads = [true, {**forged, "prev": hashlib.sha256(true["note"].encode()).hexdigest()}]
    else:
        heads = [forged, {**true, "prev": hashlib.sha256(note).hexdigest()}]
    members["sth.json"] = b"[\n" + b",\n".join(json.dumps(each).encode() for each in heads) + b"\n]\n"
    shown = (*keys, *thief.verifier_keys())
    members["keys/jwks.json"] = canonical(verifier_jwks(shown)) + b"\n"
    members["keys/verifier-keys.txt"] = "".join(f"{key.text}\n" for key in shown).encode()
    pack = repack(members, lambda manifest: manifest.update(complete=place == "closing"))
    assert isinstance(outcome(pack), verify.Report), "whoever pins no keys believes the thief's"
    found = outcome(pack, trust=pinned)
    assert isinstance(found, verify.Invalid)
    assert "trusted key" in found.message


# -- since


def test_pack_of_another_tree_does_not_join(made: Made, tmp_path: Path) -> None:
    fork = PackParts(tmp_path / "fork")
    fork.add(40, writer=3)
    fork.next_day()
    older = outcome(fork.pack(0))
    fork.close()
    assert isinstance(older, verify.Report)
    found = outcome(made.packs[1], since=older)
    assert isinstance(found, verify.Invalid)


def test_pack_without_a_proof_to_the_older_one_does_not_join(made: Made) -> None:
    older = outcome(made.packs[0])
    assert isinstance(older, verify.Report)
    bare = repack({**unpack(made.packs[2]), "proofs/consistency.json": b"[]\n"}, lambda each: each.update(since=None))
    found = outcome(bare, since=older)
    assert isinstance(found, verify.Invalid)
    assert found.check == "since"


def test_older_pack_must_itself_be_valid(made: Made, run: Run, tmp_path: Path) -> None:
    older = tmp_path / "older.zip"
    older.write_bytes(with_lines(made, lines_of(made)[1:]))
    assert run(made.packs[2], "--since", str(older))[0] == 1
    older.write_bytes(b"no zip")
    assert run(made.packs[2], "--since", str(older))[0] == 2


# -- heads


def heads_of(made: Made) -> list[dict[str, Any]]:
    heads: list[dict[str, Any]] = json.loads(made.members["sth.json"])
    return heads


def with_heads(made: Made, heads: list[dict[str, Any]]) -> bytes:
    text = b"[\n" + b",\n".join(json.dumps(head).encode() for head in heads) + b"\n]\n"
    return repack({**made.members, "sth.json": text})


HEAD_ATTACKS: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "one is left out": lambda heads: [*heads[:2], *heads[3:]],
    "the opening one is left out": lambda heads: heads[1:],
    "the closing one is left out": lambda heads: heads[:-1],
    "two change places": lambda heads: [heads[0], heads[2], heads[1], *heads[3:]],
    "one is there twice": lambda heads: [*heads[:2], heads[1], *heads[2:]],
    "none is there": lambda _: [],
    "prev is another": lambda heads: [heads[0], {**heads[1], "prev": "00" * 32}, *heads[2:]],
    "prev is none": lambda heads: [heads[0], {**heads[1], "prev": None}, *heads[2:]],
    "the time is another": lambda heads: [heads[0], {**heads[1], "time": heads[1]["time"] + 1}, *heads[2:]],
    "the size is another": lambda heads: [heads[0], {**heads[1], "size": 1}, *heads[2:]],
    "the size is a double": lambda heads: [heads[0], {**heads[1], "size": float(heads[1]["size"])}, *heads[2:]],
    "the size is huge": lambda heads: [heads[0], {**heads[1], "size": 10**30}, *heads[2:]],
    "consistency is cut": lambda heads: [*heads[:2], {**heads[2], "consistency": []}, *heads[3:]],
    "the post-quantum line is gone": lambda heads: [heads[0], without_line(heads[1], 1), *heads[2:]],
    "the Ed25519 line is gone": lambda heads: [heads[0], without_line(heads[1], 0), *heads[2:]],
    "a member is added": lambda heads: [heads[0], {**heads[1], "more": 1}, *heads[2:]],
}


def without_line(head: dict[str, Any], number: int) -> dict[str, Any]:
    text, _, lines = head["note"].partition("\n\n")
    kept = [line for at, line in enumerate(lines.splitlines()) if at != number]
    return {**head, "note": f"{text}\n\n" + "".join(f"{line}\n" for line in kept)}


@pytest.mark.parametrize("attack", HEAD_ATTACKS)
def test_heads_that_were_tampered_with_are_refused(made: Made, run: Run, attack: str) -> None:
    assert len(heads_of(made)) >= 4
    assert run(with_heads(made, heads_of(made)))[0] == 0
    assert run(with_heads(made, HEAD_ATTACKS[attack](heads_of(made))))[0] == 1


# -- manifest

MANIFEST_ATTACKS: dict[str, Any] = {
    **{f"{name} is missing": {name: ...} for name in verify.MANIFEST_MEMBERS},
    "another format": {"format": "signet-pack/2"},
    "another origin": {"origin": "other"},
    "another date": {"date": day(0)},
    "no date": {"date": "2027-13-40"},
    "a date with time": {"date": "2027-01-16T00"},
    "a list for a date": {"date": []},
    "complete is another": {"complete": False},
    "complete is a number": {"complete": 1},
    "start is another": {"start": 39},
    "start is a truth": {"start": True},
    "start is negative": {"start": -1},
    "start is huge": {"start": 10**400},
    "end is another": {"end": 99},
    "end is a text": {"end": "100"},
    "range is the whole world": {"end": 2**63 - 1, "receipts": 2**63 - 41},
    "root is another": {"root": "A" * 43 + "="},
    "root is short": {"root": "AAAA"},
    "receipts is another": {"receipts": 59},
    "pruned is another": {"pruned": 1},
    "created is no number": {"created_s": "now"},
    "since is unknown": {"since": {"size": 3, "root": "A" * 43 + "="}},
    "since is no object": {"since": 1},
    "no files": {"files": []},
    "files is a number": {"files": 7},
    "a file is a number": {"files": [1]},
    "more": {"more": 1},
}


@pytest.mark.parametrize("attack", MANIFEST_ATTACKS)
def test_manifest_that_lies_is_refused(made: Made, run: Run, attack: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for name, value in MANIFEST_ATTACKS[attack].items():
            if value is ...:
                del manifest[name]
            else:
                manifest[name] = value

    assert run(repack(made.members, change))[0] in (1, 2)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"a":1,"a":2}', b"[" * 100_000])
@pytest.mark.parametrize("name", ["manifest.json", "keys/jwks.json", "proofs/consistency.json", "sth.json"])
def test_json_that_is_something_else_is_refused(made: Made, run: Run, name: str, content: bytes) -> None:
    members = {**made.members, name: content}
    data = packed_as_is(members) if name == "manifest.json" else repack(members)
    assert run(data)[0] in (1, 2)


# -- the container


def reordered(members: Members) -> Members:
    names = list(members)
    names[0], names[3] = names[3], names[0]
    return {name: members[name] for name in names}


MEMBER_ATTACKS: dict[str, Callable[[Members], Members]] = {
    "one is missing": lambda members: {name: data for name, data in members.items() if name != "checkpoint"},
    "a proof is missing": lambda members: {n: d for n, d in members.items() if n != "proofs/inclusion/50.tlog-proof"},
    "a tile is missing": lambda members: {n: d for n, d in members.items() if n != "proofs/tile/0/000.p/100"},
    "the manifest is missing": lambda members: {n: d for n, d in members.items() if n != "manifest.json"},
    "one more": lambda members: {"extra": b"x", **members},
    "two change places": reordered,
    "path upwards": lambda members: {"../evil": b"x", **members},
    "absolute path": lambda members: {"/etc/evil": b"x", **members},
    "drive letter": lambda members: {"C:/evil": b"x", **members},
    "backslash": lambda members: {"a\\b": b"x", **members},
    "dot": lambda members: {"./README": b"x", **members},
    "double slash": lambda members: {"a//b": b"x", **members},
    "folder": lambda members: {"proofs/": b"", **members},
    "control character": lambda members: {"a\x1bb": b"x", **members},
    "not ASCII": lambda members: {"réadme": b"x", **members},
    "long name": lambda members: {"a" * 5000: b"x", **members},
}


@pytest.mark.parametrize("attack", MEMBER_ATTACKS)
def test_members_that_are_not_those_of_a_pack_are_refused(made: Made, run: Run, attack: str) -> None:
    assert run(repack(MEMBER_ATTACKS[attack](dict(made.members))))[0] in (1, 2)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_that_is_there_twice_is_refused(made: Made, run: Run) -> None:
    from receipts.pack_zip import ZipStream

    stream, out = ZipStream(), []
    for name, data in made.members.items():
        out += list(stream.add(name, [data]))
        if name == "checkpoint":
            out += list(stream.add(name, [data]))
    status, report = run(b"".join([*out, *stream.finish()]))
    assert status == 2
    assert "twice" in report["message"]


def test_cut_anywhere_is_unusable(made: Made) -> None:
    pack = made.packs[2]
    for size in [*range(0, 400, 13), *range(0, len(pack), 997), *range(len(pack) - 200, len(pack))]:
        assert isinstance(outcome(pack[:size]), verify.Unusable), size


@pytest.mark.parametrize("extra", [b"\n", b"x" * 200, b"PK\5\6" + bytes(18)])
def test_bytes_before_or_after_are_refused(made: Made, extra: bytes) -> None:
    assert isinstance(outcome(made.packs[2] + extra), verify.Unusable)
    assert isinstance(outcome(extra + made.packs[2]), verify.Unusable)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\5\6" + bytes(18), bytes(5000)])
def test_what_is_no_zip_is_unusable(run: Run, content: bytes) -> None:
    assert run(content)[0] == 2


def test_file_that_cannot_be_read_is_unusable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        assert verify.main([str(path), "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["valid"] is None


def test_zip_bombs_are_refused_before_they_are_unpacked(made: Made, run: Run) -> None:
    zeros = bytes(64 << 20)
    for name in ("receipts.jsonl", "sth.json", "proofs/predecessors.jsonl", "checkpoint", "policy/bundle"):
        status, report = run(repack({**made.members, name: zeros}))
        assert status == 2
        assert "larger" in report["message"]


def test_member_that_unpacks_to_more_than_it_says_is_refused(made: Made) -> None:
    pack = bytearray(made.packs[1])
    with zipfile.ZipFile(io.BytesIO(made.packs[1])) as archive:
        info = archive.getinfo("sth.json")
    for at in [at for at in range(len(pack) - 4) if pack[at : at + 4] == struct.pack("<L", info.file_size)]:
        pack[at : at + 4] = struct.pack("<L", info.file_size - 1)
    assert isinstance(outcome(bytes(pack)), Exception)


def test_large_packs_have_a_directory_of_the_64_bit_kind(made: Made, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What zipfile writes past 2 GiB, brought about by lowering its limit."""
    from receipts.pack_zip import ZipStream

    stream, out = ZipStream(), []
    for name, data in made.members.items():
        out += list(stream.add(name, [data], large=name in ("receipts.jsonl", "sth.json")))
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    pack = b"".join([*out, *stream.finish()])
    assert pack.count(b"PK\6\6") == 1
    assert run(pack)[0] == 0
    source, end = random.Random(3), len(pack) - verify.TRAILER_BYTES
    for at in [*range(end - 98, end), *(source.randrange(len(pack)) for _ in range(40))]:
        changed = bytearray(pack)
        changed[at] ^= 1 << source.randrange(8)
        assert isinstance(outcome(bytes(changed)), Exception), f"byte {at - end}"


PREDECESSOR_ATTACKS: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "none": lambda _: [],
    "twice": lambda lines: [*lines, *lines],
    "another index": lambda lines: [{**lines[0], "index": 3}],
    "an index in the day": lambda lines: [{**lines[0], "index": 50}],
    "another writer": lambda lines: [{**lines[0], "writer": WRITERS[3]}],
    "another leaf": lambda lines: [{**lines[0], "leaf": "A" * 43 + "="}],
    "another receipt": lambda lines: [{**lines[0], "receipt": lines[0]["receipt"].replace("GET", "PUT")}],
    "no proof": lambda lines: [{**lines[0], "proof": []}],
    "a receipt that is none": lambda lines: [{**lines[0], "receipt": "{}"}],
    "a receipt with a lone surrogate": lambda lines: [{**lines[0], "receipt": "\ud800"}],
    "one of no writer here": lambda lines: [*lines, {**lines[0], "writer": WRITERS[3], "receipt": None}],
}


@pytest.mark.parametrize("attack", PREDECESSOR_ATTACKS)
def test_predecessors_that_were_tampered_with_are_refused(made: Made, run: Run, attack: str) -> None:
    name = "proofs/predecessors.jsonl"
    lines = [json.loads(line) for line in made.members[name].splitlines()]
    assert len(lines) == 1
    changed = b"".join(json.dumps(line).encode() + b"\n" for line in PREDECESSOR_ATTACKS[attack](lines))
    assert run(repack({**made.members, name: changed}))[0] == 1
    same = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert run(repack({**made.members, name: same}))[0] == 0


def test_lines_have_a_bound_and_an_end(made: Made, run: Run) -> None:
    for name in ("receipts.jsonl", "sth.json", "proofs/predecessors.jsonl", "keys/rotations.jsonl"):
        data = made.members[name]
        noise = random.Random(4).randbytes(3 << 20).replace(b"\n", b"x")
        for changed in (noise, noise + b"\n" + data, data + b"x", data.removesuffix(b"\n") + b" "):
            assert run(repack({**made.members, name: changed}))[0] in (1, 2)


@pytest.mark.parametrize("text", [b"[" + b"1," * 1_000_000 + b"1]", b"[" + b"{}," * 900_000 + b"{}]"])
def test_json_of_many_small_parts_is_refused_before_it_is_parsed(made: Made, run: Run, text: bytes) -> None:
    noise = random.Random(5).randbytes(60_000).hex().encode()
    members = {**made.members, "proofs/consistency.json": text[:-1] + b',"' + noise + b'"]'}
    assert run(repack(members))[0] == 2


@pytest.mark.parametrize("name", ["format", "origin", "date", "root"])
def test_lone_surrogates_are_refused(made: Made, run: Run, name: str) -> None:
    assert run(repack(made.members, lambda manifest: manifest.update({name: "\ud800"})))[0] in (1, 2)


def test_chain_of_the_older_pack_must_go_on(tmp_path: Path) -> None:
    """An older pack that shows another end of a writer's chain does not join."""
    raws = chain(12)
    newer = pack_of(tmp_path / "a", raws, days=(6,), offset=1)
    older = outcome(pack_of(tmp_path / "b", raws, days=(6,), offset=0))
    assert isinstance(older, verify.Report)
    assert isinstance(outcome(newer, since=older), verify.Report)
    older.tails[WRITERS[0]] = (6, bytes(32))
    found = outcome(newer, since=older)
    assert isinstance(found, verify.Invalid)
    assert (found.check, found.index) == ("since", 6)


@pytest.mark.parametrize("field", ["flags", "method", "version", "offset", "disk", "size", "name_length", "extra"])
def test_directory_that_lies_is_refused(made: Made, field: str) -> None:
    pack = bytearray(made.packs[1])
    at = pack.find(b"PK\1\2", pack.rfind(b"PK\7\x08"))
    places = {"flags": 8, "method": 10, "version": 6, "offset": 42, "disk": 34}
    places |= {"size": 24, "name_length": 28, "extra": 30}
    pack[at + places[field]] ^= 1
    assert isinstance(outcome(bytes(pack)), Exception)


def test_huge_counts_in_the_end_record_are_refused_at_once(made: Made) -> None:
    pack = bytearray(made.packs[1])
    end = len(pack) - 22 - verify.TRAILER_BYTES
    for place, width in ((8, 2), (10, 2), (12, 4), (16, 4)):
        changed = bytearray(pack)
        changed[end + place : end + place + width] = b"\xff" * width
        assert isinstance(outcome(bytes(changed)), verify.Unusable)


def test_decision_example_is_canonical_with_its_double() -> None:
    from receipts.receipt import seal

    raw = seal(decision(1), WRITERS[0], 1, None)
    assert b"1e-7" in raw
    assert verify.parse_receipt(raw, 0)["wseq"] == 1


assert DAY_S == verify.DAY_S
