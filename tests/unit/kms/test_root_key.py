from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from kms.root_key import (
    MAX_MINTING_AGE_S,
    MAX_ROOT_LIFE_S,
    MAX_ROOTS,
    RootKeyError,
    RootKeys,
    create_root_file,
    read_roots,
    rotate_root,
)
from tests.support.log_parts import NOW_S, Clock, seeded

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_root_file(tmp_path / "root.json", NOW_S, seeded("root"))
    return tmp_path / "root.json"


def change(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_bytes())
    document["roots"][-1].update(changes)
    path.write_text(json.dumps(document))


def test_a_new_file_is_private_and_never_replaces_another(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(RootKeyError, match="already"):
        create_root_file(path, NOW_S, seeded("other"))
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["root.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o777])
def test_a_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(RootKeyError, match="0600"):
        RootKeys(path, Clock().monotonic_s)
    path.chmod(0o600)
    assert RootKeys(path, Clock().monotonic_s).find(read_roots(path)[0].id)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"version":1,"roots":[]}',
        b'{"version":2,"roots":[]}',
        b"\xff",
        b" " * 20_000,
    ],
    ids=repr,
)
def test_what_is_no_root_key_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RootKeyError):
        read_roots(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "x"},
        {"id": "AB" * 8},
        {"key_b64": "AA=="},
        {"key_b64": "secret"},
        {"created_s": -1},
        {"not_after_s": NOW_S - 1},
        {"not_after_s": NOW_S + MAX_ROOT_LIFE_S + 1},
        {"more": 1},
    ],
    ids=str,
)
def test_a_root_out_of_its_bounds_is_refused_and_not_quoted(path: Path, changes: dict[str, Any]) -> None:
    change(path, **changes)
    with pytest.raises(RootKeyError) as caught:
        read_roots(path)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_two_roots_of_one_id_are_refused(path: Path) -> None:
    document = json.loads(path.read_bytes())
    document["roots"] *= 2
    path.write_text(json.dumps(document))
    with pytest.raises(RootKeyError):
        read_roots(path)


def test_a_missing_file_a_folder_and_another_users_file_are_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RootKeyError, match="no root key file"):
        read_roots(tmp_path / "absent.json")
    with pytest.raises(RootKeyError, match="no root key file"):
        RootKeys(tmp_path / "absent.json", Clock().monotonic_s)
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(RootKeyError, match="not a regular file"):
        read_roots(tmp_path / "folder")
    monkeypatch.setattr("os.geteuid", lambda: 12_345)
    if path.stat().st_uid:
        with pytest.raises(RootKeyError, match="another user"):
            read_roots(path)
    else:  # Root's files are everyone's who may read them.
        assert read_roots(path)


def test_a_root_mints_thirty_days_at_most_and_then_only_verifies(path: Path) -> None:
    (root,) = read_roots(path)
    assert root.mints_at(NOW_S + MAX_MINTING_AGE_S - 1)
    assert not root.mints_at(NOW_S + MAX_MINTING_AGE_S)
    assert root.not_after_s == NOW_S + MAX_ROOT_LIFE_S
    keys = RootKeys(path, Clock().monotonic_s)
    assert not keys.rotation_due(NOW_S)
    assert keys.rotation_due(NOW_S + MAX_MINTING_AGE_S)


def test_a_rotation_dates_the_former_roots_and_erases_those_past_their_date(path: Path) -> None:
    first = read_roots(path)[0].id
    second = rotate_root(path, NOW_S + 10, seeded("second"), overlap_s=100)
    old, new = read_roots(path)
    assert (old.id, old.not_after_s, new.id) == (first, NOW_S + 110, second.id)
    third = rotate_root(path, NOW_S + 110, seeded("third"), overlap_s=0)
    assert [(each.id, each.not_after_s) for each in read_roots(path)] == [
        (second.id, NOW_S + 110),
        (third.id, NOW_S + 110 + MAX_ROOT_LIFE_S),
    ]
    assert first.encode() not in path.read_bytes()


def test_a_rotation_never_makes_a_root_verify_longer(path: Path) -> None:
    rotate_root(path, NOW_S, seeded("second"), overlap_s=100)
    rotate_root(path, NOW_S + 50, seeded("third"), overlap_s=1000)
    assert [each.not_after_s - NOW_S for each in read_roots(path)[:2]] == [100, 1050]


@pytest.mark.parametrize("overlap_s", [-1, MAX_MINTING_AGE_S + 1])
def test_an_overlap_out_of_its_bounds_is_refused(path: Path, overlap_s: int) -> None:
    with pytest.raises(RootKeyError, match="overlap"):
        rotate_root(path, NOW_S, seeded("x"), overlap_s=overlap_s)


def test_roots_in_force_are_bounded(path: Path) -> None:
    for number in range(MAX_ROOTS - 1):
        rotate_root(path, NOW_S, seeded(str(number)))
    with pytest.raises(RootKeyError, match="still verify"):
        rotate_root(path, NOW_S, seeded("one more"))
    assert len(read_roots(path)) == MAX_ROOTS


def test_a_rotation_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RootKeyError, match="no root key file"):
        rotate_root(tmp_path / "root.json", NOW_S, seeded("x"))
    with pytest.raises(RootKeyError, match="cannot be locked"):
        rotate_root(tmp_path / "no" / "root.json", NOW_S, seeded("x"))
    with pytest.raises(RootKeyError, match="cannot be written"):
        create_root_file(tmp_path / "no" / "root.json", NOW_S, seeded("x"))


def test_roots_stay_in_memory_when_the_file_goes_or_breaks(path: Path) -> None:
    clock = Clock()
    keys = RootKeys(path, clock.monotonic_s)
    root_id = read_roots(path)[0].id
    content = path.read_bytes()
    for breaking in (path.unlink, lambda: path.write_text("{")):
        breaking()
        clock.seconds += 1
        assert keys.find(root_id) is not None
        assert keys.problem is not None
    path.write_bytes(content)
    path.chmod(0o600)
    keys.reload()
    assert keys.problem is None
    assert keys.find("0" * 16) is None
