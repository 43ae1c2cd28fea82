from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kms.errors import StoreUnavailable
from kms.revocation import MAX_REVOCATIONS, RevocationError, Revocations, revoke
from kms.root_key import MAX_ROOT_LIFE_S
from kms.watched_file import LOOK_EVERY_S
from tests.support.log_parts import NOW_S, Clock

if TYPE_CHECKING:
    from pathlib import Path

TOKEN, OTHER, ROOT = "ab" * 16, "cd" * 16, "12" * 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "revoked.json"


def test_without_a_file_nothing_is_revoked_and_a_file_that_comes_counts(path: Path) -> None:
    clock = Clock()
    revocations = Revocations(path, clock.monotonic_s)
    assert not revocations.is_revoked(TOKEN, ROOT)
    revoke(path, NOW_S, token_ids=(TOKEN,))
    assert not revocations.is_revoked(TOKEN, ROOT)
    clock.seconds += LOOK_EVERY_S
    assert revocations.is_revoked(TOKEN, ROOT)
    assert not revocations.is_revoked(OTHER, ROOT)


def test_it_is_looked_at_often_enough_for_five_seconds() -> None:
    assert LOOK_EVERY_S <= 2.5


def test_a_revoked_root_takes_all_its_tokens_along(path: Path) -> None:
    revoke(path, NOW_S, root_ids=(ROOT,))
    revocations = Revocations(path, Clock().monotonic_s)
    assert revocations.is_revoked(TOKEN, ROOT)
    assert not revocations.is_revoked(TOKEN, "34" * 8)


def test_revocations_add_up_and_keep_their_first_time(path: Path) -> None:
    revoke(path, NOW_S, token_ids=(TOKEN,))
    revoke(path, NOW_S + 5, token_ids=(TOKEN, OTHER), root_ids=(ROOT,))
    assert json.loads(path.read_bytes()) == {
        "version": 1,
        "tokens": {TOKEN: NOW_S, OTHER: NOW_S + 5},
        "roots": {ROOT: NOW_S + 5},
    }


def test_what_no_root_can_verify_any_more_is_dropped(path: Path) -> None:
    revoke(path, NOW_S, token_ids=(TOKEN,), root_ids=(ROOT,))
    revoke(path, NOW_S + MAX_ROOT_LIFE_S - 1, token_ids=(OTHER,))
    assert set(json.loads(path.read_bytes())["tokens"]) == {TOKEN, OTHER}
    revoke(path, NOW_S + MAX_ROOT_LIFE_S, token_ids=("ef" * 16,))
    assert json.loads(path.read_bytes())["roots"] == {}
    assert set(json.loads(path.read_bytes())["tokens"]) == {OTHER, "ef" * 16}


@pytest.mark.parametrize("break_it", ["gone", "garbage", "open to others", "an unknown member", "a bad id"])
def test_when_revocations_are_not_known_any_more_nobody_is_let_in(path: Path, break_it: str) -> None:
    clock = Clock()
    revoke(path, NOW_S, token_ids=(TOKEN,))
    revocations = Revocations(path, clock.monotonic_s)
    content = path.read_bytes()
    if break_it == "gone":
        path.unlink()
    elif break_it == "garbage":
        path.write_text("{")
    elif break_it == "open to others":
        path.chmod(0o644)
    elif break_it == "an unknown member":
        path.write_text('{"version":1,"x":1}')
    else:
        path.write_text('{"version":1,"tokens":{"x":1}}')
    clock.seconds += LOOK_EVERY_S
    with pytest.raises(StoreUnavailable):
        revocations.is_revoked(OTHER, ROOT)
    assert revocations.problem is not None
    path.write_bytes(content)
    path.chmod(0o600)
    revocations.reload()
    assert not revocations.is_revoked(OTHER, ROOT)
    assert revocations.is_revoked(TOKEN, ROOT)


def test_a_file_that_cannot_be_used_at_start_is_refused(path: Path) -> None:
    path.write_text("{")
    path.chmod(0o600)
    with pytest.raises(RevocationError, match="not a file of revocations"):
        Revocations(path, Clock().monotonic_s)
    with pytest.raises(RevocationError, match="not a file of revocations"):
        revoke(path, NOW_S, token_ids=(TOKEN,))
    path.chmod(0o644)
    with pytest.raises(RevocationError, match="0600"):
        Revocations(path, Clock().monotonic_s)
    with pytest.raises(RevocationError, match="0600"):
        revoke(path, NOW_S, token_ids=(TOKEN,))


@pytest.mark.parametrize("token_id", ["", "x", TOKEN.upper(), TOKEN + "0", TOKEN + "\n"])
def test_only_ids_can_be_revoked(path: Path, token_id: str) -> None:
    with pytest.raises(RevocationError, match="not the id"):
        revoke(path, NOW_S, token_ids=(token_id,))
    with pytest.raises(RevocationError, match="not the id"):
        revoke(path, NOW_S, root_ids=(token_id,))
    assert not path.exists()


def test_revocations_are_bounded(path: Path) -> None:
    many = tuple(f"{number:032x}" for number in range(MAX_REVOCATIONS))
    revoke(path, NOW_S, token_ids=many)
    with pytest.raises(RevocationError, match="rotate the root"):
        revoke(path, NOW_S, token_ids=(TOKEN,))
    assert Revocations(path, Clock().monotonic_s).is_revoked(many[-1], ROOT)
