"""Tessera's fsck over our tiles: a program no one here wrote follows the whole log to its checkpoint."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from receipts.log import LogSettings
from tests.support.go_programs import build_or_skip
from tests.support.log_parts import ORIGIN, LogParts

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCE = Path(__file__).with_name("tessera")


@pytest.fixture(scope="module")
def fsck() -> Callable[[LogParts], str]:
    binary = build_or_skip("fsck", SOURCE, "github.com/transparency-dev/tessera/cmd/fsck")

    def run(parts: LogParts) -> str:
        key = parts.folder / "verifier-key"
        key.write_text(parts.signer.verifier_keys()[0].text)
        options = [f"--storage_url={parts.log_folder.as_uri()}/", f"--public_key={key}", f"--origin={ORIGIN}"]
        # With fewer workers it may wait for ever once one of them has found a fault. Its exit status is always 0.
        arguments = [str(binary), *options, "--ui=false", "-N=64"]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False).stderr

    return run


def log_of(folder: Path, *sizes: int) -> LogParts:
    parts = LogParts(folder, settings=LogSettings(max_batch_receipts=1_000_000))
    writer = parts.writer()
    before = 0
    for size in sizes:
        parts.add(size - before)
        before = writer.flush().size
    return parts


@pytest.mark.parametrize("sizes", [(1,), (255, 256), (1, 300, 1000), (3000,)])
def test_tessera_finds_our_log_whole(tmp_path: Path, fsck: Callable[[LogParts], str], sizes: tuple[int, ...]) -> None:
    parts = log_of(tmp_path, *sizes)
    parts.close()
    assert f"Successfully fsck'd log with size {sizes[-1]} " in fsck(parts)


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000"])
def test_tessera_finds_every_damage(tmp_path: Path, fsck: Callable[[LogParts], str], name: str) -> None:
    parts = log_of(tmp_path, 1, 300)
    parts.close()
    data = bytearray((parts.log_folder / name).read_bytes())
    data[len(data) // 2 if name != "checkpoint" else 30] ^= 1
    (parts.log_folder / name).write_bytes(data)
    found = fsck(parts)
    assert "fsck failed" in found
    assert "Successfully" not in found
