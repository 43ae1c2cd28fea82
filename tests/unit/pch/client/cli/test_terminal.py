"""What the command line reads from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pch.client.cli.terminal import UsageError, read_evidence
from pch.client.limits import MAX_FIELD_FILE_BYTES


def test_evidence_may_be_spelt_as_people_spell_it(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    path.write_text('{\n  "type": "pch.evidence.v1",\n  "claims": {"b": 1, "a": 2}\n}\n')
    assert read_evidence(str(path)) == {"type": "pch.evidence.v1", "claims": {"b": 1, "a": 2}}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"x"', b'{"a":1,"a":1}', b"\xff", b"[" * 200_000, b" " * (MAX_FIELD_FILE_BYTES + 1)],
)
def test_evidence_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evidence.json"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_evidence(str(path))


def test_evidence_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_evidence(str(tmp_path / "none.json"))
