"""Attacks on the verifier itself: on its verdict, its exit status, its memory, and on whoever reads its report."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from receipts import verify
from receipts.pack_zip import ZipStream
from receipts.receipt import leaf_hash, seal
from tests.support import merkle_reference as reference
from tests.support.pack_parts import WRITERS, PackParts, chain, decision, pack_of, repack, unpack

PIECE_BYTES = 256 << 10
"""What the verifier unpacks at once."""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return pack_of(tmp_path_factory.mktemp("pack") / "log", chain(4))


def report_of(data: bytes, since: verify.Report | None = None) -> verify.Report:
    return verify.PackVerifier(io.BytesIO(data), since=since).verify()


def refusal_of(data: bytes, since: verify.Report | None = None) -> verify.Invalid:
    with pytest.raises(verify.Invalid) as caught:
        report_of(data, since)
    return caught.value


# -- the end of a member


def is_left_over(data: bytes) -> bool:
    """Tell whether unpacking piece by piece takes in all packed bytes before it gives out the last piece."""
    deflate = zlib.compressobj(3, zlib.DEFLATED, -15)
    waiting, inflate = deflate.compress(data) + deflate.flush(), zlib.decompressobj(-15)
    while waiting:
        inflate.decompress(waiting, PIECE_BYTES)
        waiting = inflate.unconsumed_tail
    return not inflate.eof


def test_member_that_ends_just_after_a_piece_is_read_whole() -> None:
    line = b'{"decision":"allow","id":"019aa56d-607b-7cd3-94eb-485fd695f47e"}\n' * 9000
    members = {f"m{more}": line[: PIECE_BYTES + more] for more in range(0, 320, 5)}
    members |= {f"z{more}": bytes(PIECE_BYTES + more) for more in range(0, 320, 5)}
    assert any(map(is_left_over, members.values()))
    stream, out = ZipStream(), []
    for name, data in members.items():
        out += list(stream.add(name, [data]))
    container = verify.Container(io.BytesIO(b"".join([*out, *stream.finish()])))
    for name, data in members.items():
        assert b"".join(container.chunks(name)) == data, name


def zip_of(packed: bytes, data: bytes) -> bytes:
    """A zip with one deflated member, whatever its packed bytes are."""
    name, crc = b"member", zlib.crc32(data)
    header = struct.pack("<4s2B4H3L2H", b"PK\3\4", 20, 0, 8, 8, 0, 33, 0, 0, 0, len(name), 0) + name
    sizes = struct.pack("<3L", crc, len(packed), len(data))
    member = header + packed + b"PK\7\x08" + sizes
    facts = struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, 0)
    entry = struct.pack("<4s4B4H", b"PK\1\2", 20, 3, 20, 0, 8, 8, 0, 33) + sizes + facts + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(member), verify.TRAILER_BYTES)
    whole = member + entry + end
    return whole + verify.TRAILER_PREFIX + hashlib.sha256(whole).hexdigest().encode()


def stored_blocks(size: int) -> tuple[bytes, bytes]:
    """A deflate stream of exactly `size` bytes, and what it unpacks to."""
    packed, data = b"", b""
    while len(packed) < size:
        count = min(65_535, size - len(packed) - 5)
        last = len(packed) + 5 + count == size
        packed += struct.pack("<BHH", last, count, count ^ 0xFFFF) + bytes(count)
        data += bytes(count)
    return packed, data


@pytest.mark.parametrize("size", [1000, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES])
def test_bytes_after_the_end_of_a_member_are_refused_wherever_it_ends(size: int) -> None:
    packed, data = stored_blocks(size)
    assert b"".join(verify.Container(io.BytesIO(zip_of(packed, data))).chunks("member")) == data
    for hidden in (b"x", b"x" * PIECE_BYTES):
        container = verify.Container(io.BytesIO(zip_of(packed + hidden, data)))
        with pytest.raises(verify.Invalid, match="goes on after its end"):
            list(container.chunks("member"))
    container = verify.Container(io.BytesIO(zip_of(packed[:-1], data)))
    with pytest.raises(verify.Invalid, match="ends early"):
        list(container.chunks("member"))


# -- chains from one pack to the next


def fork(before: bytes, number: int) -> bytes:
    """A second receipt of the first writer under a number that it used before."""
    return seal(decision(500 + number), WRITERS[0], number, leaf_hash(before))


def anew() -> list[bytes]:
    """The writer's chain begins again."""
    return [*chain(6), *chain(3, first=100)]


def behind() -> list[bytes]:
    """The third day goes on from the end of the first, as if the second had never been."""
    return [*chain(6), fork(chain(3)[2], 4)]


@pytest.mark.parametrize("entries", [anew, behind])
def test_numbers_that_come_again_are_found_with_the_older_pack(
    tmp_path: Path, entries: Callable[[], list[bytes]]
) -> None:
    older = report_of(pack_of(tmp_path / "older", entries(), days=(3, 6), offset=1))
    newer = pack_of(tmp_path / "newer", entries(), days=(3, 6), offset=2)
    assert report_of(newer).warnings, "by itself it shows nothing of it"
    refusal = refusal_of(newer, older)
    assert (refusal.check, refusal.index) == ("since", 6)


def test_numbers_of_the_older_pack_do_not_come_again_between_the_two(tmp_path: Path) -> None:
    second = fork(chain(1)[0], 2)
    entries = [*chain(3), second, fork(second, 3)]
    newer = unpack(pack_of(tmp_path / "newer", entries, days=(3, 4), offset=2, hides=True))
    newer["proofs/predecessors.jsonl"] = predecessor(entries, 3, second)
    assert isinstance(report_of(repack(newer)), verify.Report)
    older = report_of(pack_of(tmp_path / "older", entries, days=(3, 4), offset=0))
    refusal = refusal_of(repack(newer), older)
    assert (refusal.check, refusal.index) == ("since", 4)


def test_a_chain_goes_on_also_over_a_day_between(tmp_path: Path) -> None:
    parts, packs = PackParts(tmp_path), []
    for offset in range(3):
        parts.add(3)
        parts.next_day()
        packs.append(parts.pack(offset))
    parts.close()
    for older in map(report_of, packs[:2]):
        assert report_of(packs[2], older).joined


def test_a_day_that_was_cut_short_is_found_with_the_next_one(tmp_path: Path) -> None:
    """An operator signs truly, but shows of the first day neither its last head nor the receipts that came with it."""
    parts = PackParts(tmp_path)
    parts.add(3)
    short = unpack(parts.pack(0))
    parts.add(3)
    parts.next_day()
    parts.add(2)
    parts.next_day()
    whole, newer = parts.pack(0), parts.pack(1)
    leaves = list(map(leaf_hash, parts.log.raws()))
    parts.close()
    heads, closing = json.loads(short["sth.json"]), json.loads(unpack(whole)["sth.json"])[-1]
    closing["prev"] = hashlib.sha256(heads[-1]["note"].encode()).hexdigest()
    proof = reference.subproof(3, leaves[: closing["size"]])
    closing["consistency"] = [base64.b64encode(each).decode() for each in proof]
    short["sth.json"] = b"[\n" + b",\n".join(json.dumps(each).encode() for each in [*heads, closing]) + b"\n]\n"
    older = report_of(repack(short, lambda manifest: manifest.update(complete=True)))
    assert (older.manifest.end, older.manifest.complete) == (3, True), "by itself it shows nothing of it"
    assert report_of(newer, report_of(whole)).joined
    for later in (newer, whole):
        assert refusal_of(later, older).check == "since"


def predecessor(entries: list[bytes], index: int, receipt: bytes | None) -> bytes:
    leaves = list(map(leaf_hash, entries))
    line = {
        "writer": WRITERS[0],
        "index": index,
        "receipt": None if receipt is None else receipt.decode(),
        "leaf": base64.b64encode(leaves[index]).decode(),
        "proof": [base64.b64encode(each).decode() for each in reference.path(index, leaves)],
    }
    return json.dumps(line).encode() + b"\n"


def test_first_receipt_of_a_writer_has_none_before_it_not_even_a_pruned_one(tmp_path: Path) -> None:
    members = unpack(pack_of(tmp_path / "log", anew(), days=(6,), offset=1, hides=True))
    refusal = refusal_of(repack({**members, "proofs/predecessors.jsonl": predecessor(anew(), 5, None)}))
    assert (refusal.check, refusal.index) == ("chain", 6)


# -- what is said of a receipt whose payload is gone

GONE: dict[str, dict[str, Any]] = {
    "number 0": {"wseq": 0},
    "number -1": {"wseq": -1},
    "a number that is a truth": {"wseq": True},
    "a writer that is none": {"writer": "\x1b[2J\x1b[HVALID"},
    "a writer in capitals": {"writer": str(WRITERS[0]).upper()},
    "one more member": {"more": 1},
}


def with_first_gone(pack: bytes, change: dict[str, Any]) -> bytes:
    members = unpack(pack)
    first, rest = members["receipts.jsonl"].split(b"\n", 1)
    gone = {"leaf": leaf_hash(first).hex(), "pruned": True, "writer": WRITERS[0], "wseq": 1} | change
    line = verify.canonical_text(gone).encode()
    return repack({**members, "receipts.jsonl": line + b"\n" + rest}, lambda manifest: manifest.update(pruned=1))


@pytest.mark.parametrize("attack", GONE)
def test_line_of_a_pruned_receipt_that_lies_is_refused(pack: bytes, attack: str) -> None:
    assert report_of(with_first_gone(pack, {})).pruned == 1
    assert refusal_of(with_first_gone(pack, GONE[attack])).index == 0


# -- members of other types

VECTORS = Path(__file__).parents[2] / "vectors" / "receipts"
OTHER_TYPES: list[Any] = [None, True, 0, -1, 2**53, 1.5, 1e300, "", "x", "\x1b[2J", [], [[]], {}, {"a": {}}]


@pytest.mark.parametrize("kind", ["decision", "body_verdict", "outcome", "summary", "log_event"])
def test_member_of_any_other_type_ends_in_a_verdict(pack: bytes, kind: str) -> None:
    receipt = json.loads((VECTORS / f"{kind}.json").read_bytes())
    report, refused = report_of(pack), set()
    for name in receipt:
        for value in OTHER_TYPES:
            raw = verify.canonical_text({**receipt, "wseq": 1, "prev": None, name: value}).encode()
            report.tails.clear()
            try:
                verify.Chains({}, None, report).add(0, raw, leaf_hash(raw), "")
            except verify.Invalid:
                refused.add(name)
            with contextlib.suppress(verify.Invalid):
                verify._introduced_keys(raw, "log.example.com/signet")
    assert {"v", "kind", "id", "time_ms", "writer", "wseq", "prev"} <= refused


def test_event_that_introduces_no_keys_ends_in_a_verdict() -> None:
    receipt = json.loads((VECTORS / "log_event.json").read_bytes())
    for value in OTHER_TYPES:
        for event in (value, {"name": value}, {"name": "log_keys_added", "facts": value}):
            introducing(receipt, event)
        for texts in (value, [value], ["+"], ["a+b"], ["log.example.com/signet+00000000+AQ=="]):
            introducing(receipt, {"name": "log_keys_added", "facts": {"verifier_keys": texts}})


def introducing(receipt: dict[str, Any], event: Any) -> None:
    raw = verify.canonical_text({**receipt, "event": event}).encode()
    with contextlib.suppress(verify.Invalid):
        assert verify._introduced_keys(raw, "log.example.com/signet") == frozenset()


# -- memory


def test_predecessor_of_a_writer_that_is_none_is_not_kept(pack: bytes) -> None:
    line = json.loads(predecessor(chain(4), 0, None)) | {"writer": "x" * 500_000}
    refusal = refusal_of(repack({**unpack(pack), "proofs/predecessors.jsonl": json.dumps(line).encode() + b"\n"}))
    assert (refusal.check, "writer" in refusal.message) == ("form", True)


def test_json_that_grows_fourfold_when_it_is_read_is_unusable() -> None:
    long = b"a" * verify.DEFAULT_MAX_MEMBER_BYTES
    assert verify.parse_json(b'"' + long + b'"', "it") == long.decode()
    with pytest.raises(verify.Unusable):
        verify.parse_json(b'"' + long + "\N{GRINNING FACE}".encode() + b'"', "it")


# -- whoever reads the report


@pytest.mark.parametrize(
    "origin", ["", "a b", "a+b", "a\x1b[2Jb", "a\rVALID", "a\x9b2Jb", "a\N{RIGHT-TO-LEFT OVERRIDE}b"]
)
def test_origin_that_a_terminal_would_act_on_is_refused(pack: bytes, origin: str) -> None:
    assert "origin" in refusal_of(repack(unpack(pack), lambda manifest: manifest.update(origin=origin))).message


def test_what_nobody_expected_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_memory(*_arguments: Any, **_options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(verify, "verify_file", no_memory)
    assert verify.main([str(tmp_path / "p.zip"), "--json"]) == verify.EXIT_UNUSABLE
    answer = json.loads(capsys.readouterr().out)
    assert (answer["valid"], answer["message"]) == (None, "the verifier failed: MemoryError")


def test_verdict_that_cannot_be_written_is_none_unless_it_is_the_bad_one(pack: bytes, tmp_path: Path) -> None:
    command = [sys.executable, verify.__file__]
    good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
    good.write_bytes(pack)
    bad.write_bytes(with_first_gone(pack, GONE["number 0"]))
    for path, status in ((good, verify.EXIT_UNUSABLE), (bad, verify.EXIT_INVALID)):
        for shell in ('"$@" > /dev/full', '"$@" >&-'):
            done = subprocess.run(["sh", "-c", shell, "sh", *command, str(path)], capture_output=True, timeout=60)
            assert (done.returncode, done.stderr) == (status, b""), shell
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command, str(good)], capture_output=True, timeout=60)
    assert done.returncode == verify.EXIT_VALID


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_name_that_the_terminal_cannot_show_does_not_change_the_verdict(tmp_path: Path, encoding: str) -> None:
    command = [sys.executable, verify.__file__, f"{tmp_path}/\N{SNOWMAN}\udcff.zip"]
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == verify.EXIT_UNUSABLE
    assert done.stdout.startswith(b"UNUSABLE")
    assert done.stderr == b""
