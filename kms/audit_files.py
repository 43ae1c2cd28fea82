"""The audit log on disk, in one folder of mode 0700 (docs/reference/kms.md).

    log.json             which log this is, its epoch and its public key
    00000000.records     records, one a line, 65,536 to a segment; the last segment grows
    00000000.sealed      of a full segment: its length in bytes and the root over its records
    checkpoints          signed heads, one a line, every N records or T seconds
    head                 the newest signed head, twice in turn, so that one is always whole
    attestation.json     the provider's newest evidence of where the audit key is, where that is asked for

Appending writes and syncs records first, the head after them: so what `head` says was durable before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from kms.audit_head import AuditIdentity
from kms.errors import StoreUnavailable
from kms.private_file import (
    PrivateFileError,
    check_private_folder,
    create_private,
    open_private,
    read_private,
    replace_private,
    sync_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

SEGMENT_BITS: Final = 16
SEGMENT_RECORDS: Final = 1 << SEGMENT_BITS
MAX_SEGMENT_BYTES: Final = 1 << 30
MAX_SEGMENTS: Final = 100_000
HEAD_SLOT_BYTES: Final = 4096
"""What disks write whole."""
IDENTITY_NAME: Final = "log.json"
_CHECKPOINTS_NAME: Final = "checkpoints"
_LOCK_NAME: Final = "writer.lock"
_MAX_SMALL_BYTES: Final = 65_536
_MAX_CHECKPOINT_LINE_BYTES: Final = 2 * HEAD_SLOT_BYTES + 3
"""A head as a JSON string of which every character is escaped, and the line's end."""
_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700


class AuditDamaged(Exception):
    """What is stored is not what was written; `reason` is a stable code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SealedSegment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A full segment. `root`: over its records, 32 bytes."""

    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEGMENT_BYTES)]
    root: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class AuditFiles:
    """The files of one log. One process writes, and the caller keeps threads apart. Raises StoreUnavailable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: int | None = None
        self._checkpoints: int | None = None
        self._head: int | None = None
        self._next_slot = 0
        self._lock: int | None = None

    def lock(self) -> None:
        """Make the folder and become its one writer.

        Raises StoreUnavailable when another process is, and when others may use the folder.
        """
        with unavailable():
            self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        try:
            check_private_folder(self._folder)
        except PrivateFileError as error:
            raise StoreUnavailable(str(error), reason="audit_folder") from error
        with unavailable():
            lock = os.open(self._folder / _LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StoreUnavailable("another process writes this audit log", reason="audit_busy") from error
        self._lock = lock

    def read_identity(self) -> AuditIdentity | None:
        """Read `log.json`; None when there is none. Raises AuditDamaged."""
        try:
            return msgspec.json.decode(read_private(self._folder / IDENTITY_NAME, _MAX_SMALL_BYTES), type=AuditIdentity)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, PrivateFileError) as error:
            raise AuditDamaged("identity", f"{IDENTITY_NAME} is not as it was written") from error

    def write_identity(self, identity: AuditIdentity) -> None:
        """Write `log.json` anew."""
        with unavailable():
            replace_private(self._folder / IDENTITY_NAME, msgspec.json.encode(identity) + b"\n")

    def write_attestation(self, class_: str, nonce: bytes, evidence: bytes) -> None:
        """Keep the newest evidence of where the audit key is, in `attestation.json`."""
        shown = {"class": class_, "nonce": nonce.hex(), "evidence_b64": evidence}
        with unavailable():
            replace_private(self._folder / "attestation.json", msgspec.json.encode(shown) + b"\n")

    def segments(self) -> int:
        """Count the segments; they are numbered without a gap. Raises AuditDamaged."""
        with unavailable():
            names = sorted(each.name for each in self._folder.glob("*.records"))
        if names != [_records_name(number) for number in range(len(names))]:
            raise AuditDamaged("segment_missing", "a segment of the audit log is missing")
        return len(names)

    def read_segment(self, number: int) -> bytes:
        """Read a segment whole. Raises AuditDamaged."""
        try:
            return read_private(self._folder / _records_name(number), MAX_SEGMENT_BYTES)
        except (FileNotFoundError, PrivateFileError) as error:
            raise AuditDamaged("segment_missing", "a segment of the audit log cannot be read") from error

    def read_sealed(self, number: int) -> SealedSegment:
        """Read what was noted of a full segment, and check its length. Raises AuditDamaged."""
        try:
            data = read_private(self._folder / _sealed_name(number), _MAX_SMALL_BYTES)
            sealed = msgspec.json.decode(data, type=SealedSegment)
            size_bytes = (self._folder / _records_name(number)).stat().st_size
        except (OSError, PrivateFileError, msgspec.MsgspecError) as error:
            raise AuditDamaged("segment_missing", "a full segment of the audit log is not as it was left") from error
        if size_bytes != sealed.size_bytes:
            raise AuditDamaged("segment_changed", "a full segment of the audit log has another length")
        return sealed

    def read_heads(self) -> list[bytes]:
        """Read both slots of the newest head; those never written are left out. Raises AuditDamaged."""
        try:
            data = read_private(self._folder / "head", 2 * HEAD_SLOT_BYTES)
        except FileNotFoundError:
            return []
        except PrivateFileError as error:
            raise AuditDamaged("head", "the newest head cannot be read") from error
        slots = (data[:HEAD_SLOT_BYTES], data[HEAD_SLOT_BYTES:])
        return [each.rstrip(b"\0") for each in slots if each.strip(b"\0")]

    def newest_checkpoint(self) -> bytes | None:
        """Read the last whole checkpoint's note, however long the file is; None when there is none.

        Raises AuditDamaged.
        """
        with self._reading_checkpoints() as file:
            if file is None:
                return None
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * _MAX_CHECKPOINT_LINE_BYTES))
            # A line that a crash cut off comes behind it, one that is cut off here before it.
            lines = file.read(2 * _MAX_CHECKPOINT_LINE_BYTES).split(b"\n")[:-1]
        if not lines and size > _MAX_CHECKPOINT_LINE_BYTES:
            raise AuditDamaged("checkpoint", "a checkpoint is longer than any that is written")
        return _note_of(lines[-1]) if lines else None

    def read_checkpoints(self) -> Iterator[bytes]:
        """Read the notes of all checkpoints there are now, oldest first, one at a time.

        A line that a crash cut off is left out. Raises AuditDamaged, while they are read.
        """
        with self._reading_checkpoints() as file:
            left_bytes = 0 if file is None else os.fstat(file.fileno()).st_size
        return self._checkpoints_in(left_bytes)

    def _checkpoints_in(self, left_bytes: int) -> Iterator[bytes]:
        with self._reading_checkpoints() as file:
            while file is not None and left_bytes:
                line = file.readline(min(left_bytes, _MAX_CHECKPOINT_LINE_BYTES))
                left_bytes -= len(line)
                if line.endswith(b"\n"):
                    yield _note_of(line)
                elif left_bytes:
                    raise AuditDamaged("checkpoint", "a checkpoint is longer than any that is written")

    @contextlib.contextmanager
    def _reading_checkpoints(self) -> Iterator[BinaryIO | None]:
        try:
            with open_private(self._folder / _CHECKPOINTS_NAME) as file:
                yield file
        except FileNotFoundError:
            yield None
        except PrivateFileError as error:
            raise AuditDamaged("checkpoint", "the checkpoints cannot be read") from error

    # Writing.

    def open_for_append(self, segment: int, size_bytes: int) -> None:
        """Go on in `segment` after its first `size_bytes`; what a crash left behind them is cut off."""
        with unavailable():
            records = self._append_to(_records_name(segment))
            try:
                os.ftruncate(records, size_bytes)
                if self._checkpoints is None:
                    self._checkpoints = self._append_to(_CHECKPOINTS_NAME)
                    _cut_unfinished_line(self._checkpoints)
                    self._head = os.open(self._folder / "head", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _MODE)
                    os.fsync(self._checkpoints)
                os.fsync(records)
                sync_folder(self._folder)
            except BaseException:
                os.close(records)
                raise
            former, self._records = self._records, records
            if former is not None:
                os.close(former)

    def append(self, data: bytes, at_bytes: int) -> None:
        """Make `data` durable at the end of the growing segment, which is `at_bytes` long.

        Raises StoreUnavailable; the segment is then as long as before, or `append` cuts it the next time.
        """
        descriptor = self._opened(self._records)
        with unavailable():
            # Whatever an earlier attempt left behind goes first.
            if os.fstat(descriptor).st_size != at_bytes:
                os.ftruncate(descriptor, at_bytes)
            _write_all(descriptor, data)
            os.fdatasync(descriptor)

    def seal(self, number: int, sealed: SealedSegment) -> None:
        """Note that a segment is full, and begin the next one. May be called again after it raised StoreUnavailable."""
        self._opened(self._records)
        with unavailable(), contextlib.suppress(FileExistsError):
            create_private(self._folder / _sealed_name(number), msgspec.json.encode(sealed) + b"\n")
        self.open_for_append(number + 1, 0)

    def write_head(self, note: bytes, *, synced: bool = False) -> None:
        """Put the newest head into the slot whose turn it is."""
        if len(note) > HEAD_SLOT_BYTES:
            raise ValueError("a head is longer than its slot")
        descriptor = self._opened(self._head)
        with unavailable():
            os.pwrite(descriptor, note.ljust(HEAD_SLOT_BYTES, b"\0"), self._next_slot * HEAD_SLOT_BYTES)
            if synced:
                os.fdatasync(descriptor)
        self._next_slot ^= 1

    def append_checkpoint(self, note: bytes) -> None:
        """Make a checkpoint durable."""
        descriptor = self._opened(self._checkpoints)
        with unavailable():
            _cut_unfinished_line(descriptor)
            _write_all(descriptor, msgspec.json.encode(note.decode()) + b"\n")
            os.fdatasync(descriptor)

    def is_empty(self) -> bool:
        """Say whether there is no record at all."""
        with unavailable():
            return not any(each.stat().st_size for each in self._folder.glob("*.records"))

    def forget_heads(self) -> None:
        """Remove the heads of a log that was never begun."""
        with unavailable():
            for name in ("head", _CHECKPOINTS_NAME):
                (self._folder / name).unlink(missing_ok=True)

    def set_aside_after(self, segment: int, size_bytes: int) -> None:
        """Rename heads, checkpoints and what lies after the first `size_bytes` of a segment; nothing is deleted."""
        with unavailable():
            names = ["head", _CHECKPOINTS_NAME]
            for path in self._folder.iterdir():
                number, _, kind = path.name.partition(".")
                if number.isdecimal() and kind in {"records", "sealed"} and int(number) >= segment:
                    names.append(path.name)
            kept = b""
            growing = self._folder / _records_name(segment)
            if growing.exists():
                kept = growing.read_bytes()[:size_bytes]
            for name in names:
                self._rename_aside(name)
            if kept:
                create_private(growing, kept)
            sync_folder(self._folder)

    def _rename_aside(self, name: str) -> None:
        path = self._folder / name
        number = 0
        while path.with_name(f"{name}.aside-{number}").exists():
            number += 1
        if path.exists():
            path.rename(path.with_name(f"{name}.aside-{number}"))

    def close(self) -> None:
        """Let go of every file, and let another writer in. A second call does nothing."""
        for descriptor in (self._records, self._checkpoints, self._head, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._records = self._checkpoints = self._head = self._lock = None

    def _append_to(self, name: str) -> int:
        return os.open(self._folder / name, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)

    @staticmethod
    def _opened(descriptor: int | None) -> int:
        if descriptor is None:
            raise StoreUnavailable("the audit log is not open", reason="audit_closed")
        return descriptor


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """Turn what the system says into StoreUnavailable."""
    try:
        yield
    except (OSError, PrivateFileError) as error:
        raise StoreUnavailable("the audit log's disk does not serve", reason="audit_disk") from error


def _records_name(number: int) -> str:
    return f"{number:08d}.records"


def _sealed_name(number: int) -> str:
    return f"{number:08d}.sealed"


def _note_of(line: bytes) -> bytes:
    try:
        return msgspec.json.decode(line, type=str).encode()
    except msgspec.MsgspecError as error:
        raise AuditDamaged("checkpoint", "a checkpoint is not as it was written") from error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _cut_unfinished_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, min(size, _MAX_SMALL_BYTES), max(0, size - _MAX_SMALL_BYTES))
    kept = tail.rfind(b"\n") + 1
    if kept < len(tail):
        os.ftruncate(descriptor, size - len(tail) + kept)
