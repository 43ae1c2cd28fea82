from __future__ import annotations

import json
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from receipts.checkpoint import HeadRequest, SignerRefused, TreeHead, compose_checkpoint, verify_checkpoint
from receipts.checkpoint_keys import MAX_KEY_AGE_S, FileCheckpointSigner, KeyFileError, create_key_file, keys_event
from receipts.cosignature import note_verifier
from receipts.log_errors import LogUnavailable
from receipts.merkle import EMPTY_ROOT
from receipts.merkle_prove import prove_consistency
from receipts.signed_note import SignedNote, parse_verifier_key
from tests.support import merkle_reference as reference
from tests.support.log_parts import NOW_S, ORIGIN, Clock, seeded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LEAVES = [reference.leaf(number) for number in range(8)]


def head(size: int, origin: str = ORIGIN) -> TreeHead:
    return TreeHead(origin, size, reference.mth(LEAVES[:size]))


def request(old: int, new: int, not_before_s: int = 0) -> HeadRequest:
    proof = prove_consistency(reference.LeafNodes(LEAVES), old, new)
    return HeadRequest(head(old), head(new), tuple(proof), not_before_s)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    create_key_file(path, ORIGIN, NOW_S, seeded("first"))
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(path: Path, clock: Clock) -> FileCheckpointSigner:
    return FileCheckpointSigner(path, clock.now_s)


def signed(signer: FileCheckpointSigner, ask: HeadRequest) -> SignedNote:
    return SignedNote(compose_checkpoint(ask.new), signer.sign(ask))


def test_a_head_is_signed_by_both_kinds_of_key(signer: FileCheckpointSigner) -> None:
    note = signed(signer, request(3, 7))
    keys = [note_verifier(key) for key in signer.verifier_keys()]
    checkpoint = verify_checkpoint(note.data, keys, signer.origin)
    assert (checkpoint.head, checkpoint.time_s) == (head(7), NOW_S)
    assert len(checkpoint.signatures) == len(keys) == 2


def test_the_time_is_not_before_that_of_the_last_head(signer: FileCheckpointSigner) -> None:
    keys = [note_verifier(key) for key in signer.verifier_keys()]
    late = signed(signer, request(3, 7, NOW_S + 60)).data
    assert verify_checkpoint(late, keys, ORIGIN).time_s == NOW_S + 60


@pytest.mark.parametrize(
    "ask",
    [
        HeadRequest(head(3), head(7), (), 0),
        HeadRequest(head(3), TreeHead(ORIGIN, 7, bytes(32)), request(3, 7).consistency, 0),
        HeadRequest(TreeHead(ORIGIN, 3, bytes(32)), head(7), request(3, 7).consistency, 0),
        HeadRequest(head(7), head(3), request(3, 7).consistency, 0),
        HeadRequest(TreeHead(ORIGIN, 7, bytes(32)), head(7), (), 0),
        HeadRequest(TreeHead(ORIGIN, 0, bytes(32)), head(7), (), 0),
        HeadRequest(head(3, "other.example"), head(7), request(3, 7).consistency, 0),
        HeadRequest(head(3), head(7, "other.example"), request(3, 7).consistency, 0),
        HeadRequest(head(3, "other.example"), head(7, "other.example"), request(3, 7).consistency, 0),
    ],
)
def test_a_head_that_does_not_go_on_from_the_last_is_not_signed(signer: FileCheckpointSigner, ask: HeadRequest) -> None:
    signer.sign(request(3, 7))
    with pytest.raises(SignerRefused):
        signer.sign(ask)


def test_the_file_is_private_and_made_only_once(path: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        create_key_file(path, ORIGIN, NOW_S, seeded("other"))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]


def test_of_several_that_make_the_file_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made: list[str] = []

    def make(name: str) -> None:
        try:
            create_key_file(path, ORIGIN, NOW_S, seeded(name))
            made.append(name)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=make, args=(f"thread {number}",)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    assert len(made) == 1
    FileCheckpointSigner(path, lambda: NOW_S).sign(request(0, 1))
    assert [each.name for each in tmp_path.iterdir()] == ["keys.json"]


def test_a_log_has_a_key_name(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        create_key_file(tmp_path / "keys.json", "no name", NOW_S, seeded("x"))
    with pytest.raises(LogUnavailable):
        create_key_file(tmp_path / "nowhere" / "keys.json", ORIGIN, NOW_S, seeded("x"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700 | 0o001])
def test_a_file_that_others_may_read_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="0600"):
        FileCheckpointSigner(path, lambda: NOW_S)


def test_a_missing_file_is_log_unavailable(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable):
        FileCheckpointSigner(tmp_path / "keys.json", lambda: NOW_S)


def _change(content: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {**content, **members}


def _set(content: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {**content, "sets": [{**content["sets"][0], **members}]}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: _change(content, version=2),
        lambda content: _change(content, more=1),
        lambda content: _change(content, origin=""),
        lambda content: _change(content, sets=[]),
        lambda content: _change(content, sets=content["sets"] * 3),
        lambda content: _set(content, ed25519_seed=None),
        lambda content: _set(content, ml_dsa_44_seed=None),
        lambda content: _set(content, ed25519_seed=None, ml_dsa_44_seed=None),
        lambda content: _set(content, state="retired"),
        lambda content: _set(content, state="retired", ed25519_seed=None, ml_dsa_44_seed=None),
        lambda content: _set(content, state="pending"),
        lambda content: _set(content, state="other"),
        lambda content: _set(content, introduced_size=-1),
        lambda content: _set(content, ed25519_seed="AAAA"),
        lambda content: _set(content, ed25519_public="AAAA"),
        lambda content: _set(content, ml_dsa_44_public="AAAA"),
        lambda content: _set(content, created_s=-1),
        lambda content: _set(content, more=1),
        lambda content: "x" * (1024 * 1024),
    ],
)
def test_a_file_of_another_form_is_refused_without_quoting_it(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))
    with pytest.raises(KeyFileError) as caught:
        FileCheckpointSigner(path, lambda: NOW_S)
    assert content["sets"][0]["ed25519_seed"] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_seed_is_in_any_repr(signer: FileCheckpointSigner, path: Path) -> None:
    content = signer._read()
    seed = content.sets[0].ed25519_seed
    assert seed is not None
    assert repr(seed)[2:-1] not in repr(content)
    assert "seed" not in repr(content.sets[0])
    assert json.loads(path.read_text())["sets"][0]["ed25519_seed"] not in repr(content)


def test_a_rotation_ends_once_both_sets_signed_a_durable_head_over_the_entry_that_names_the_new_one(
    signer: FileCheckpointSigner, path: Path, clock: Clock
) -> None:
    clock.seconds += MAX_KEY_AGE_S
    assert not signer.rotation_due()
    clock.seconds += 1
    assert signer.rotation_due()
    old_keys = signer.verifier_keys()
    new_keys = signer.prepare_rotation(seeded("second"))
    assert signer.prepare_rotation(seeded("again")) == new_keys
    assert signer.verifier_keys() == old_keys
    first = signed(signer, request(0, 3))
    assert len(first.signatures) == 2
    assert signer.rotation_due()

    signer.introduce(new_keys, 5)
    assert not signer.rotation_due()
    assert signer.verifier_keys() == (*old_keys, *new_keys)
    early, joint = signed(signer, request(3, 4)), signed(signer, request(4, 7))
    assert len(joint.signatures) == len({*old_keys, *new_keys}) == 4
    for too_early in (first, early):
        signer.confirm(too_early)
        assert len(signer.sign(request(3, 7))) == 4
    with pytest.raises(KeyFileError, match="earlier rotation"):
        signer.prepare_rotation(seeded("third"))

    signer.confirm(joint)
    signer.confirm(joint)
    last = signed(signer, request(3, 7))
    assert signer.verifier_keys() == (*old_keys, *new_keys)
    for note, trusted in ((first, old_keys), (joint, old_keys), (joint, new_keys), (last, new_keys)):
        verify_checkpoint(note.data, [note_verifier(key) for key in trusted], ORIGIN)
    with pytest.raises(ValueError, match="missing"):
        verify_checkpoint(last.data, [note_verifier(key) for key in old_keys], ORIGIN)
    retired, active = json.loads(path.read_text())["sets"]
    assert retired["ed25519_seed"] is retired["ml_dsa_44_seed"] is None
    assert None not in active.values()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    signer.prepare_rotation(seeded("third"))


def test_a_head_that_only_one_set_signed_retires_nothing(signer: FileCheckpointSigner) -> None:
    signer.introduce(signer.prepare_rotation(seeded("second")), 1)
    note = signed(signer, request(3, 7))
    for left_out in range(4):
        lines = tuple(line for place, line in enumerate(note.signatures) if place != left_out)
        signer.confirm(SignedNote(note.text, lines))
    assert len(signer.sign(request(3, 7))) == 4


def test_only_the_pending_set_is_introduced(signer: FileCheckpointSigner) -> None:
    old_keys = signer.verifier_keys()
    with pytest.raises(KeyFileError):
        signer.introduce(old_keys, 1)
    new_keys = signer.prepare_rotation(seeded("second"))
    for keys, size in ((old_keys, 1), (new_keys[:1], 1), ((), 1), (new_keys, 0), (new_keys, 2**63)):
        with pytest.raises(KeyFileError):
            signer.introduce(keys, size)
    signer.introduce(new_keys, 1)
    with pytest.raises(KeyFileError):
        signer.introduce(new_keys, 1)


def test_the_event_names_keys_as_verifiers_read_them(signer: FileCheckpointSigner) -> None:
    event = keys_event(signer.verifier_keys())
    assert event.name == "log_keys_added"
    assert tuple(parse_verifier_key(text) for text in event.facts["verifier_keys"]) == signer.verifier_keys()


def test_a_rotation_by_another_process_takes_effect(signer: FileCheckpointSigner, path: Path, clock: Clock) -> None:
    other = FileCheckpointSigner(path, clock.now_s)
    other.introduce(other.prepare_rotation(seeded("second")), 1)
    assert len(signer.sign(request(0, 3))) == 4


def test_a_rotation_that_cannot_be_stored_changes_nothing(
    signer: FileCheckpointSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LogUnavailable):
            signer.prepare_rotation(seeded("second"))
    assert len(signer.sign(request(0, 3))) == 2


def test_the_empty_tree_can_be_signed(signer: FileCheckpointSigner) -> None:
    empty = TreeHead(ORIGIN, 0, EMPTY_ROOT)
    note = signed(signer, HeadRequest(empty, empty, (), 0))
    keys = [note_verifier(key) for key in signer.verifier_keys()]
    assert verify_checkpoint(note.data, keys, ORIGIN).head == empty
