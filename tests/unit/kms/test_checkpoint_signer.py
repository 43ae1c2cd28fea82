"""The receipts log with its keys at a real key service."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from kms.checkpoint_signer import KmsCheckpointSigner
from kms.kid import parse_key_name
from receipts.checkpoint import HeadRequest, SignerBehind, SignerRefused, TreeHead
from receipts.checkpoint_keys import MAX_KEY_AGE_S, KeyFileError
from receipts.log_errors import LogForked, LogUnavailable
from receipts.log_notes import LogNotes
from receipts.merkle import EMPTY_ROOT
from receipts.receipt_id import WriterId
from receipts.rotation import rotate_keys
from receipts.signed_note import SignedNote, parse_note
from tests.support import merkle_reference as reference
from tests.support.kms_process import KmsProcess
from tests.support.log_parts import ORIGIN, Clock, LogParts, check, heads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LEAVES = [reference.leaf(number) for number in range(8)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KmsProcess]:
    with KmsProcess(tmp_path_factory.mktemp("kms") / "kms") as service:
        yield service


class KmsLog(LogParts):
    """A log whose heads the key service signs."""

    def __init__(self, folder: Path, service: KmsProcess, kid: str | None = None) -> None:
        super().__init__(folder, clock=Clock(float(int(time.time()))))
        self.service = service
        self.kid = kid or service.create("hybrid", "tlog").partition("#")[0]
        self.kms_path = folder / "checkpoint-kms.json"
        self.signer = self.open_signer()  # type: ignore[assignment]

    def open_signer(self) -> KmsCheckpointSigner:
        client = self.service.client(name=f"log-{id(self)}", timeout_s=2.0)
        return KmsCheckpointSigner(self.kms_path, client, parse_key_name(self.kid), ORIGIN, lambda: int(time.time()))


@pytest.fixture
def log(tmp_path: Path, service: KmsProcess) -> Iterator[KmsLog]:
    log = KmsLog(tmp_path / "log", service)
    yield log
    log.close()


def test_the_log_and_its_checks_accept_what_the_service_signs(log: KmsLog) -> None:
    writer = log.writer()
    for count in (0, 1, 5, 300):
        log.add(count)
        assert writer.flush().size == log.store.latest(1)[0].seq if count else True
    check(log)
    assert log.signer.origin == ORIGIN
    assert not log.signer.rotation_due()
    assert log.signer.rotation_due(-2)
    assert MAX_KEY_AGE_S


def test_a_head_whose_answer_got_lost_is_gone_on_from(log: KmsLog) -> None:
    writer = log.writer()
    log.add(10)
    writer.flush()
    log.add(10)
    lost: list[HeadRequest] = []
    real = log.signer.sign

    def sign(request: HeadRequest) -> Any:
        real(request)
        lost.append(request)
        raise LogUnavailable("the answer got lost")

    log.signer.sign = sign  # type: ignore[method-assign]
    with pytest.raises(LogUnavailable):
        writer.flush()
    log.signer.sign = real  # type: ignore[method-assign]
    log.add(3)
    assert writer.flush().size == 23
    assert lost
    check(log)


@pytest.mark.parametrize("what", ["set back", "set back and grown anew", "rewritten"])
def test_who_owns_the_logs_disk_can_neither_set_it_back_nor_fork_it(
    tmp_path: Path, service: KmsProcess, what: str
) -> None:
    log = KmsLog(tmp_path / "log", service)
    log.add(10)
    log.writer().flush()
    log.close()
    shutil.copytree(tmp_path / "log", tmp_path / "old")
    log = KmsLog(tmp_path / "log", service, log.kid)
    log.add(20)
    log.writer().flush()
    log.close()
    if what == "rewritten":
        other = KmsLog(tmp_path / "forged", service, log.kid)
        other.add(40, WriterId("00000000-0000-4000-8000-000000000000"))
        with pytest.raises((SignerRefused, LogForked)):
            other.writer().flush()
        other.close()
        return
    back = KmsLog(tmp_path / "old", service, log.kid)
    if what == "set back and grown anew":
        back.add(30, WriterId("00000000-0000-4000-8000-000000000000"))
    writer = back.writer()
    back.add(1, WriterId("00000000-0000-4000-8000-000000000001"))
    with pytest.raises((SignerRefused, LogForked)):
        writer.flush()
    assert heads_of(back)[-1].size == 10
    back.close()


def test_through_an_outage_receipts_are_stored_and_heads_follow(tmp_path: Path) -> None:
    with KmsProcess(tmp_path / "kms") as service:
        log = KmsLog(tmp_path / "log", service)
        writer = log.writer()
        log.add(5)
        writer.flush()
        service.kill()
        log.add(5)
        with pytest.raises(LogUnavailable):
            writer.flush()
        assert writer.problem == "log_unavailable"
        assert len(log.signer.verifier_keys()) == 2
        assert log.open_signer().verifier_keys() == log.signer.verifier_keys()
        service.start()
        assert writer.flush().size == 10
        check(log)
        log.close()


def test_a_rotation_is_named_by_the_log_signed_by_both_and_retires_the_older(log: KmsLog) -> None:
    log.add(5)
    writer = log.writer()
    writer.flush()
    before = log.signer.verifier_keys()
    index = rotate_keys(
        log.store,
        LogNotes(log.log_folder),
        log.signer,
        writer=WriterId("00000000-0000-4000-8000-00000000000a"),
        now_ms=time.time_ns() // 1_000_000,
        random_bytes=os.urandom,
    )
    assert index == 5
    head = writer.flush()
    assert len(parse_note(head.note).signatures) == 4
    log.add(1)
    assert len(parse_note(writer.flush().note).signatures) == 2
    states = [each["state"] for each in json.loads(log.kms_path.read_bytes())["versions"]]
    assert states == ["retired", "active"]
    assert log.signer.verifier_keys()[:2] == before
    assert len(log.signer.verifier_keys()) == 4
    check(log)


def test_a_rotation_that_died_half_way_goes_on(log: KmsLog) -> None:
    keys = log.signer.prepare_rotation(os.urandom)
    assert log.signer.prepare_rotation(os.urandom) == keys
    # As if it had died between the rotation at the service and the file.
    document = json.loads(log.kms_path.read_bytes())
    document["versions"].pop()
    log.kms_path.write_text(json.dumps(document))
    assert log.signer.prepare_rotation(os.urandom) == keys
    with pytest.raises(KeyFileError):
        log.signer.introduce(keys[:1], 5)
    with pytest.raises(KeyFileError):
        log.signer.introduce(keys, 0)
    log.signer.introduce(keys, 5)
    with pytest.raises(KeyFileError, match="waits"):
        log.signer.prepare_rotation(os.urandom)
    with pytest.raises(KeyFileError):
        log.signer.introduce(keys, 5)


def head(size: int) -> TreeHead:
    return TreeHead(ORIGIN, size, reference.mth(LEAVES[:size]))


def test_what_the_service_says_becomes_what_the_log_understands(log: KmsLog) -> None:
    signer = log.signer
    assert len(signer.sign(HeadRequest(TreeHead(ORIGIN, 0, EMPTY_ROOT), head(4), (), 0))) == 2
    with pytest.raises(SignerBehind) as behind:
        signer.sign(HeadRequest(TreeHead(ORIGIN, 0, EMPTY_ROOT), head(4), (), 0))
    assert behind.value.size == 4
    with pytest.raises(SignerRefused):
        signer.sign(HeadRequest(head(4), head(8), (b"\0" * 32,), 0))
    with pytest.raises(SignerRefused):
        signer.sign(HeadRequest(head(4), TreeHead("other.example", 8, head(8).root), (), 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.replace("\n4\n", "\n5\n"),
        lambda note: note.rsplit("\n", 2)[0] + "\n",
        lambda note: note.replace("—", "-"),
        lambda note: note[:-20] + "\n",
        lambda note: "",
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_not_taken(
    log: KmsLog, change: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = log.signer._client  # type: ignore[attr-defined]
    real = client.checkpoint

    def checkpoint(request: Any) -> Any:
        answer = real(request)
        return type(answer)(kid=answer.kid, note=change(answer.note))

    monkeypatch.setattr(client, "checkpoint", checkpoint)
    with pytest.raises(LogUnavailable):
        log.signer.sign(HeadRequest(TreeHead(ORIGIN, 0, EMPTY_ROOT), head(4), (), 0))


def test_a_file_of_public_keys_of_another_log_or_key_is_refused(log: KmsLog, service: KmsProcess) -> None:
    good = log.kms_path.read_bytes()
    for change in ({"origin": "other"}, {"key": "core/tlog/hybrid/x"}, {"versions": []}, {"version": 2}, {"x": 1}):
        log.kms_path.write_text(json.dumps({**json.loads(good), **change}))
        with pytest.raises(KeyFileError):
            log.open_signer()
    log.kms_path.chmod(0o644)
    with pytest.raises(LogUnavailable, match="0600"):
        log.open_signer()
    log.kms_path.unlink()
    with pytest.raises(LogUnavailable, match="gone"):
        log.signer.verifier_keys()
    plain = service.create("ed25519", "audit").partition("#")[0]
    client = service.client(name="plain")
    with pytest.raises(KeyFileError, match="tlog"):
        KmsCheckpointSigner(log.kms_path, client, parse_key_name(plain), ORIGIN, lambda: 0)


def test_confirming_with_one_version_changes_nothing(log: KmsLog) -> None:
    before = log.kms_path.read_bytes()
    signatures = log.signer.sign(HeadRequest(TreeHead(ORIGIN, 0, EMPTY_ROOT), head(4), (), 0))
    log.signer.confirm(SignedNote(b"x\n", signatures))
    assert log.kms_path.read_bytes() == before
