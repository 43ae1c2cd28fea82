"""docs/guides/auditor.md, its commands run as they stand there, on a real stack with traffic."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from receipts import verify
from tests.e2e.attack_stage import Stage, attack, open_stage
from tests.support.go_programs import build_or_skip

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/auditor.md").read_text()
TESSERA = ROOT / "tests/conformance/tessera"
TIMEOUT_S = 60


@dataclass
class Auditor:
    """Somebody with a folder and a shell; `python` there is the one of the tests, whose packages are installed."""

    folder: Path
    stage: Stage

    def type(self, command: str, *, status: int = 0) -> str:
        """Run a command of the guide, with the ports of this stack and the day that it is."""
        port = self.stage.stack.settings.ports.admin
        command = command.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("localhost:8080", f"localhost:{port}")
        command = command.replace("2026-11-20", today()).replace("2026-11-21", today())
        environ = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout


def today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


def blocks(text: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def section(title: str) -> list[str]:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return blocks(found[1])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with open_stage(tmp_path_factory.mktemp("a")) as opened:
        yield opened


@pytest.fixture(scope="module")
def auditor(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Auditor:
    for program in ("curl", "unzip"):
        assert shutil.which(program), f"{program} is missing (tools/parts.sh {program} installs it)"
    folder = tmp_path_factory.mktemp("auditor")
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(sys.executable)
    _some_traffic(stage)
    auditor = Auditor(folder, stage)
    for command in section("1. Get the log's keys, before you need them") + section("2. Get a pack"):
        auditor.type(command)
    return auditor


def _some_traffic(stage: Stage) -> None:
    for _ in range(3):
        with attack(stage, "http1") as attacker:
            assert attacker.send(attacker.signed()).status == 200
            assert attacker.send(attacker.request()).status == 401


def test_the_guide_leads_to_a_verdict(auditor: Auditor) -> None:
    first, since = section("3. Verify")
    assert auditor.type(first).endswith("VALID\n")
    shutil.copy(auditor.folder / "pack.zip", auditor.folder / "earlier.zip")
    _some_traffic(auditor.stage)
    auditor.type(section("2. Get a pack")[0])
    said = auditor.type(since)
    assert said.endswith("VALID\n")
    assert "joined     goes on from" in said
    data = bytearray((auditor.folder / "pack.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (auditor.folder / "tampered.zip").write_bytes(data)
    auditor.type("! python verify.py tampered.zip --trust jwks.json")


def test_the_digests_are_those_that_coreutils_compute(auditor: Auditor) -> None:
    lines = auditor.type(section("5. The same with programs that we did not write")[0]).splitlines()
    whole, _, comment, receipts, manifest = lines
    assert comment == f"signet-pack sha256 {whole.split()[0]}"
    assert f'"sha256":"{receipts.split()[0]}"' in manifest


def test_gos_and_tesseras_programs_agree(auditor: Auditor) -> None:
    taking, fsck = section("5. The same with programs that we did not write")[1:]
    auditor.type(taking)
    (program,) = re.findall(r"```go\n(.*?)```", GUIDE, re.DOTALL)
    source = {"main.go": program.encode()}
    check = build_or_skip("check", ROOT / "tests/conformance/go_tlog", sources=source)
    assert auditor.type(f'{check} "$(cat key)" 0.tlog-proof receipt').startswith("entry 0 is in the tree of ")
    package = "github.com/transparency-dev/tessera/cmd/fsck"
    built = build_or_skip("fsck", TESSERA, package)
    version = re.search(rf"{package}@(v[0-9.]+)", fsck)
    assert version is not None
    assert f"tessera {version[1]} " in (TESSERA / "go.mod").read_text()
    command = fsck.replace(f"go run {version[0]}", str(built))
    assert "Successfully fsck'd log with size" in auditor.type(f"{command.rstrip()} 2>&1")
    (auditor.folder / "key").write_text((auditor.folder / "key").read_text().replace("signet", "other"))
    assert "Successfully" not in auditor.type(f"{command.rstrip()} 2>&1 || true")


def test_the_commands_of_the_readme_work(auditor: Auditor) -> None:
    (block,) = [each for each in blocks((ROOT / "README.md").read_text()) if "/compliance/pack" in each]
    said = auditor.type(block.replace(".venv/bin/python", sys.executable).replace("pack.zip", "readme.zip"))
    assert said.endswith("VALID\n")
    assert verify.verify_file(auditor.folder / "readme.zip").receipts >= 6


def test_a_wrong_date_is_told(auditor: Auditor) -> None:
    command = section("2. Get a pack")[0].replace("2026-11-20", "2026-02-30").replace("-o pack.zip", "-o wrong.zip")
    auditor.type(command)
    assert json.loads((auditor.folder / "wrong.zip").read_text())["status"] == 400
    auditor.type("python verify.py wrong.zip --trust jwks.json", status=2)
