"""`python -m extproc rotate-sealing-key`: a new epoch seals, the former one still opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from extproc.__main__ import main
from extproc.challenge import issue, open_challenge
from extproc.sealing_keys import FileSealingKeys
from extproc.worker import now_ms

CONFIG = '[sealing]\npath = "sealing.json"\n[[route]]\nname = "a"\npath = "/**"\n'


def test_rotation_seals_anew_and_keeps_open_challenges_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "filter.toml"
    config.write_text(CONFIG)
    keys = FileSealingKeys(tmp_path / "sealing.json", now_ms, 60)
    asked = {"realm": "r", "authority": "a.example", "binding32": bytes(32), "now_ms": now_ms()}
    before = issue(keys, random16=bytes(16), **asked)  # type: ignore[arg-type]
    assert main(["rotate-sealing-key", "--config", str(config)]) == 0
    assert "epoch 2" in capsys.readouterr().out
    keys.reload()
    assert keys.current().epoch == 2
    assert open_challenge(before, keys, max_age_ms=60_000, **asked).epoch == 1  # type: ignore[arg-type]


def test_rotation_without_a_key_file_fails_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "filter.toml"
    config.write_text(CONFIG)
    assert main(["rotate-sealing-key", "--config", str(config)]) == 1
    assert "sealing.json" in capsys.readouterr().err
