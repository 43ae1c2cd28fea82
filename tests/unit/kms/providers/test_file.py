"""The file provider's start and its folder: what it refuses, what survives."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from kms.errors import NotFound, StoreUnavailable, Unsupported
from kms.primitive import Primitive
from kms.providers import key_folder
from kms.providers.file import ROOT_NAME, open_file_provider
from tests.support.provider_parts import PASSPHRASE, QUICK_SCRYPT, kid_of, open_quick_file_provider, write_passphrase
from tests.support.public_operations import verify

DIGEST = bytes(32)


def reason_of_open(folder: Path, passphrase: Path | None, **settings: str) -> str:
    with pytest.raises((StoreUnavailable, Unsupported)) as caught:
        open_file_provider(folder / "sealed", passphrase, cost=QUICK_SCRYPT, **settings)  # type: ignore[arg-type]
    assert str(folder) not in caught.value.message
    return caught.value.reason


def test_keys_survive_a_restart(tmp_path: Path) -> None:
    provider = open_quick_file_provider(tmp_path)
    keys = [provider.generate(primitive, kid_of(primitive)) for primitive in Primitive]
    root = next(key for key in keys if key.primitive is Primitive.HKDF_ROOT)
    child = provider.derive(root.handle, b"x", Primitive.ED25519, kid_of(Primitive.ED25519))
    provider.close()
    again = open_quick_file_provider(tmp_path)
    for key in keys:
        if key.primitive.signs:
            verify(key.primitive, key.public, DIGEST, again.sign(key.handle, key.primitive, DIGEST))
    verify(child.primitive, child.public, DIGEST, again.sign(child.handle, child.primitive, DIGEST))
    same = again.derive(root.handle, b"x", Primitive.ED25519, kid_of(Primitive.ED25519))
    assert same.public == child.public
    again.close()


def test_a_destroyed_key_stays_gone_over_a_restart(tmp_path: Path) -> None:
    provider = open_quick_file_provider(tmp_path)
    key = provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519))
    provider.destroy(key.handle)
    provider.close()
    again = open_quick_file_provider(tmp_path)
    with pytest.raises(NotFound):
        again.sign(key.handle, Primitive.ED25519, DIGEST)
    again.close()
    assert not list((tmp_path / "sealed").glob("*.key"))


def test_a_start_takes_less_than_two_seconds_with_the_costs_in_force(tmp_path: Path) -> None:
    passphrase = write_passphrase(tmp_path)
    open_file_provider(tmp_path / "sealed", passphrase).close()
    started_s = time.process_time()
    provider = open_file_provider(tmp_path / "sealed", passphrase)
    assert time.process_time() - started_s < 2.0
    provider.close()


def test_age_and_unknown_names_are_unsupported(tmp_path: Path) -> None:
    passphrase = write_passphrase(tmp_path)
    assert reason_of_open(tmp_path, passphrase, kdf="age") == "unsupported_kdf"
    assert reason_of_open(tmp_path, passphrase, aead="aes-cbc") == "unsupported_aead"
    assert not (tmp_path / "sealed").exists()


def test_nothing_starts_without_a_private_passphrase_file(tmp_path: Path) -> None:
    assert reason_of_open(tmp_path, None) == "passphrase_file_unset"
    assert reason_of_open(tmp_path, tmp_path / "nothing") == "passphrase_file_missing"
    assert reason_of_open(tmp_path, tmp_path) == "passphrase_file_refused"
    passphrase = write_passphrase(tmp_path)
    for mode in (0o640, 0o604, 0o660, 0o644):
        passphrase.chmod(mode)
        assert reason_of_open(tmp_path, passphrase) == "passphrase_file_refused"
    for content in (b"", b"\n", b"fifteen bytes!!", b"fifteen bytes!!\n", b"x" * 1025):
        assert reason_of_open(tmp_path, write_passphrase(tmp_path, content)) == "passphrase_length"
    write_passphrase(tmp_path, b"x" * 1026)
    assert reason_of_open(tmp_path, passphrase) == "passphrase_file_refused"
    assert not (tmp_path / "sealed").exists()
    write_passphrase(tmp_path, b"x" * 1024 + b"\n")
    open_quick_file_provider(tmp_path).close()


def test_a_wrong_passphrase_and_an_altered_root_are_refused(tmp_path: Path) -> None:
    open_quick_file_provider(tmp_path).close()
    wrong = write_passphrase(tmp_path, PASSPHRASE + b"x")
    assert reason_of_open(tmp_path, wrong) == "root_seal_broken"
    right = write_passphrase(tmp_path)
    root = tmp_path / "sealed" / ROOT_NAME
    content = root.read_bytes()
    root.write_bytes(content[:8] + b"\2" + content[9:])
    assert reason_of_open(tmp_path, right) == "root_unknown_version"
    root.write_bytes(content)
    open_quick_file_provider(tmp_path).close()


def test_keys_without_their_root_get_no_new_root(tmp_path: Path) -> None:
    provider = open_quick_file_provider(tmp_path)
    provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519))
    provider.close()
    (tmp_path / "sealed" / ROOT_NAME).unlink()
    assert reason_of_open(tmp_path, write_passphrase(tmp_path)) == "root_missing"


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    provider = open_quick_file_provider(tmp_path)
    assert reason_of_open(tmp_path, tmp_path / "passphrase") == "folder_locked"
    provider.close()
    open_quick_file_provider(tmp_path).close()


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    open_quick_file_provider(tmp_path).close()
    (tmp_path / "sealed").chmod(0o755)
    assert reason_of_open(tmp_path, tmp_path / "passphrase") == "folder_mode"


def test_a_key_file_open_to_others_is_not_used(tmp_path: Path) -> None:
    provider = open_quick_file_provider(tmp_path)
    key = provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519))
    provider.close()
    (tmp_path / "sealed" / f"{key.handle}.key").chmod(0o644)
    again = open_quick_file_provider(tmp_path)
    with pytest.raises(StoreUnavailable) as caught:
        again.sign(key.handle, Primitive.ED25519, DIGEST)
    assert caught.value.reason == "sealed_file_unreadable"
    again.destroy(key.handle)
    with pytest.raises(NotFound):
        again.sign(key.handle, Primitive.ED25519, DIGEST)
    again.close()


def test_strange_files_are_left_alone_and_unfinished_ones_removed(tmp_path: Path) -> None:
    open_quick_file_provider(tmp_path).close()
    sealed = tmp_path / "sealed"
    for name in ("notes.txt", "x.key", "a.tmp"):
        (sealed / name).write_text("x")
    open_quick_file_provider(tmp_path).close()
    assert {path.name for path in sealed.iterdir()} == {"notes.txt", "x.key", ROOT_NAME, key_folder.LOCK_NAME}


def test_the_number_of_keys_is_bounded(tmp_path: Path) -> None:
    passphrase = write_passphrase(tmp_path)
    provider = open_file_provider(tmp_path / "sealed", passphrase, cost=QUICK_SCRYPT, max_key_files=2)
    for version in (1, 2):
        provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, version))
    with pytest.raises(StoreUnavailable) as caught:
        provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 3))
    assert caught.value.reason == "key_limit"
    provider.close()
    with pytest.raises(StoreUnavailable, match="more keys"):
        open_file_provider(tmp_path / "sealed", passphrase, max_key_files=1)


def test_few_keys_stay_open_and_all_stay_usable(tmp_path: Path) -> None:
    passphrase = write_passphrase(tmp_path)
    provider = open_file_provider(tmp_path / "sealed", passphrase, cost=QUICK_SCRYPT, max_open_keys=2)
    keys = [provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, version)) for version in range(1, 6)]
    for _ in range(2):
        for key in keys:
            verify(key.primitive, key.public, DIGEST, provider.sign(key.handle, key.primitive, DIGEST))
            assert len(provider._open) <= 2
    provider.close()


def test_a_full_disk_refuses_a_new_key_and_keeps_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = open_quick_file_provider(tmp_path)
    key = provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519))
    before = set((tmp_path / "sealed").iterdir())
    for code, reason in ((errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "disk")):
        # From the n-th sync on the disk refuses: of the file, then of the folder.
        for failing in (1, 2):
            calls = iter(range(1, 100))

            def broken(descriptor: int, calls=calls, failing=failing, code=code) -> None:
                if next(calls) >= failing:
                    raise OSError(code, os.strerror(code))

            monkeypatch.setattr(os, "fsync", broken)
            with pytest.raises(StoreUnavailable) as caught:
                provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 2))
            assert caught.value.reason == reason
            monkeypatch.undo()
            assert set((tmp_path / "sealed").iterdir()) == before
    verify(key.primitive, key.public, DIGEST, provider.sign(key.handle, key.primitive, DIGEST))
    assert provider.generate(Primitive.ED25519, kid_of(Primitive.ED25519, 2)).public
    provider.close()


def test_check_tells_when_the_folder_is_away(tmp_path: Path) -> None:
    provider = open_quick_file_provider(tmp_path)
    provider.check()
    (tmp_path / "sealed").rename(tmp_path / "moved")
    with pytest.raises(StoreUnavailable):
        provider.check()
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / key_folder.LOCK_NAME).touch()
    with pytest.raises(StoreUnavailable) as caught:
        provider.check()
    assert caught.value.reason == "folder_replaced"
    provider.close()
