"""The table of vectors tells the truth about the files beside it."""

import hashlib
import re
from pathlib import Path

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
ROW = re.compile(r"^\| (\S+/\S+) \|.*\| ([0-9a-f]{64}) \|$", re.MULTILINE)


def test_every_listed_vector_file_has_its_recorded_checksum() -> None:
    rows = ROW.findall((VECTORS / "README.md").read_text())
    assert len(rows) >= 5
    for name, checksum in rows:
        assert hashlib.sha256((VECTORS / name).read_bytes()).hexdigest() == checksum, name
