from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kms.errors import StoreUnavailable
from kms.private_file import PrivateFileError, check_private_folder
from kms.state_file import open_state

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770, 0o777])
def test_a_folder_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    open_state(folder).close()
    folder.chmod(mode)
    with pytest.raises(StoreUnavailable, match="0700") as caught:
        open_state(folder)
    assert caught.value.reason == "key_store_folder"
    folder.chmod(0o700)
    open_state(folder).close()


def test_a_private_folder_is_a_folder_and_there(tmp_path: Path) -> None:
    check_private_folder(tmp_path)
    (tmp_path / "file").touch(0o600)
    for name, text in (("file", "is not a folder"), ("none", "cannot be looked at")):
        with pytest.raises(PrivateFileError, match=text):
            check_private_folder(tmp_path / name)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tmp_path.stat().st_uid == 0:  # What root owns is trusted: give it to somebody else.
        os.chown(tmp_path, 12345, -1)
    monkeypatch.setattr("os.geteuid", lambda: 54321)
    with pytest.raises(PrivateFileError, match="another user"):
        check_private_folder(tmp_path)
