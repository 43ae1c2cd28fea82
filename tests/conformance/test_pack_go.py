"""The Go program of docs/guides/auditor.md, as it stands there, on a pack of ours."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.go_programs import build_or_skip
from tests.support.pack_parts import PackParts, unpack

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/auditor.md"
MODULE = Path(__file__).with_name("go_tlog")


def test_program_of_the_guide_verifies_our_packs(tmp_path: Path) -> None:
    programs = re.findall(r"```go\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(programs) == 1
    program = build_or_skip("check", MODULE, sources={"main.go": programs[0].encode()})
    parts = PackParts(tmp_path / "log")
    parts.add(300)
    members = unpack(parts.pack())
    parts.close()
    key = members["keys/verifier-keys.txt"].decode().splitlines()[0]
    lines = members["receipts.jsonl"].split(b"\n")

    def check(index: int, receipt: bytes) -> subprocess.CompletedProcess[str]:
        (tmp_path / "proof").write_bytes(members[f"proofs/inclusion/{index}.tlog-proof"])
        (tmp_path / "receipt").write_bytes(receipt)
        command = [str(program), key, str(tmp_path / "proof"), str(tmp_path / "receipt")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    for index in (0, 1, 255, 256, 299):
        done = check(index, lines[index])
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"entry {index} is in the tree of 300 entries")
        assert check(index, lines[index].replace(b"GET", b"PUT")).returncode == 1
        assert check(index, lines[index - 1]).returncode == 1
