from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from receipts.checkpoint import HeadRequest, SignerBehind, SignerRefused
from receipts.log import LogSettings
from receipts.log_errors import LogForked, LogUnavailable
from receipts.merkle import EMPTY_ROOT
from tests.support.log_parts import LogParts, check, heads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from receipts.signed_note import NoteSignature, SignedNote, VerifierKey


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[LogParts]:
    parts = LogParts(tmp_path)
    yield parts
    parts.close()


class RememberingSigner:
    """A signer with a memory of its own, as a key management service has."""

    def __init__(self, parts: LogParts) -> None:
        self.inner = parts.signer
        self.size = 0
        self.root = EMPTY_ROOT
        self.dies = False

    def sign(self, request: HeadRequest) -> tuple[NoteSignature, ...]:
        if request.old.size != self.size:
            raise SignerBehind(self.size)
        if request.old.root != self.root:
            raise SignerRefused("another tree")
        signatures = self.inner.sign(request)
        self.size, self.root = request.new.size, request.new.root
        if self.dies:
            self.dies = False
            raise LogUnavailable("the answer got lost")
        return signatures

    def verifier_keys(self) -> tuple[VerifierKey, ...]:
        return self.inner.verifier_keys()

    def confirm(self, note: SignedNote) -> None:
        self.inner.confirm(note)


def test_a_head_whose_signature_got_lost_is_gone_on_from(parts: LogParts) -> None:
    signer = RememberingSigner(parts)
    writer = parts.writer(signer=signer)
    writer.step()
    parts.add(90)
    signer.dies = True
    with pytest.raises(LogUnavailable):
        writer.flush()
    assert writer.problem == "log_unavailable"
    parts.add(5)
    assert writer.flush().size == 95
    assert signer.size == 95
    check(parts)


@pytest.mark.parametrize("method", ["flush", "step"])
def test_a_signer_that_went_further_is_caught_up_with_before_anything_is_signed(parts: LogParts, method: str) -> None:
    signer = RememberingSigner(parts)
    writer = parts.writer(signer=signer)
    writer.step()
    parts.add(900)
    parts.settings = LogSettings(max_batch_receipts=900)
    parts.close_writer(writer)
    writer = parts.writer(signer=signer)
    signer.dies = True
    with pytest.raises(LogUnavailable):
        writer.flush()
    assert signer.size == 900
    parts.close_writer(writer)
    parts.settings = LogSettings(max_batch_receipts=100)
    writer = parts.writer(signer=signer)
    if method == "flush":
        writer.flush()
    else:
        while writer.step():
            pass
        parts.clock.seconds += 1
        writer.step()
    assert [head.size for head in heads_of(parts)] == [0, 900]
    check(parts)


def test_a_store_that_lost_receipts_below_a_signed_head_is_a_fork(parts: LogParts) -> None:
    signer = RememberingSigner(parts)
    writer = parts.writer(signer=signer)
    writer.step()
    parts.add(10)
    signer.size = 20
    for _ in range(2):
        with pytest.raises(LogForked, match="20 entries"):
            writer.flush()
    assert writer.problem == "log_forked"
    with pytest.raises(LogForked):
        for _ in range(3):
            parts.clock.seconds += 1
            writer.step()


def test_a_signer_that_signed_another_tree_refuses(parts: LogParts) -> None:
    signer = RememberingSigner(parts)
    writer = parts.writer(signer=signer)
    parts.add(10)
    writer.flush()
    signer.root = bytes(32)
    parts.add(1)
    with pytest.raises(LogForked):
        writer.flush()


class OtherAnswer(RememberingSigner):
    """A signer whose answer is changed on its way."""

    change: Callable[[tuple[NoteSignature, ...]], tuple[NoteSignature, ...]]

    def sign(self, request: HeadRequest) -> tuple[NoteSignature, ...]:
        return type(self).change(self.inner.sign(request))


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: (),
        lambda lines: lines[:1],
        lambda lines: lines[1:],
        lambda lines: (*lines, lines[0]),
        lambda lines: (type(lines[0])(lines[0].name, lines[0].key_id, bytes(64)), lines[1]),
    ],
)
def test_what_the_signer_answers_is_verified_before_it_is_stored(
    parts: LogParts, change: Callable[[tuple[NoteSignature, ...]], tuple[NoteSignature, ...]]
) -> None:
    signer = type("Changed", (OtherAnswer,), {"change": staticmethod(change)})(parts)
    with pytest.raises(LogUnavailable, match="does not verify"):
        parts.writer(signer=signer).flush()
    assert heads_of(parts) == []
    assert not (parts.log_folder / "checkpoint").exists()


def test_a_head_that_is_earlier_than_the_last_one_is_not_stored(parts: LogParts) -> None:
    class Back(RememberingSigner):
        def sign(self, request: HeadRequest) -> tuple[NoteSignature, ...]:
            return super().sign(HeadRequest(request.old, request.new, request.consistency, 0))

    writer = parts.writer(signer=Back(parts))
    writer.flush()
    parts.clock.seconds -= 100
    parts.add(1)
    with pytest.raises(LogUnavailable, match="clock"):
        writer.flush()
    assert len(heads_of(parts)) == 1
