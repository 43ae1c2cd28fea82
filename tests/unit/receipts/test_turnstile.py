from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING

from receipts.turnstile import Turnstile, wait_for

if TYPE_CHECKING:
    from pathlib import Path


def test_one_is_inside_at_a_time(tmp_path: Path) -> None:
    one, two = Turnstile(tmp_path / "turn"), Turnstile(tmp_path / "turn")
    assert one.enter(0.0)
    assert not two.enter(time.monotonic() + 0.01)
    one.leave()
    assert two.enter(0.0)
    two.close()
    assert one.enter(0.0)
    one.close()


def test_its_file_is_the_owners_alone(tmp_path: Path) -> None:
    Turnstile(tmp_path / "turn").close()
    assert stat.S_IMODE((tmp_path / "turn").stat().st_mode) == 0o600


def test_waiting_ends_with_success_or_with_the_deadline() -> None:
    answers = iter([False, False, True])
    assert wait_for(lambda: next(answers), time.monotonic() + 5)
    assert wait_for(lambda: True, 0.0)
    assert not wait_for(lambda: False, 0.0)
