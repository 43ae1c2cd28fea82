"""Keys that seal challenges, by epoch (docs/reference/pch.md §2).

The interface is what the custody of keys will implement later; until then a file of mode 0600, shared by
the workers, holds them:

    {"epochs": [{"epoch": 1, "key_b64": "<32 bytes, base64>", "created_ms": 0, "retired_ms": null}]}

One epoch, the highest, is not retired and seals. A retired one still opens challenges for max-age.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from extproc.errors import ServerFault
from extproc.file_watch import (
    PRIVATE_MODE,
    FileRefusedError,
    identity_of,
    locked,
    read_file,
    replace,
    unchanged,
    write_new,
)
from pch.errors import StaleChallenge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from extproc.file_watch import FileIdentity

KEY_BYTES: Final = 32
MAX_EPOCH: Final = 0xFFFF_FFFF
MAX_EPOCHS: Final = 64
MAX_FILE_BYTES: Final = 65_536
RELOAD_INTERVAL_MS: Final = 250
"""How often `current` looks at the file; an unknown epoch makes `by_epoch` look at once."""
OTHERS_MODE: Final = 0o077


class SealingKeyError(ServerFault):
    """The file of sealing keys is not usable; the message names the file and the rule, never a key."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """One epoch's key. `key`: 32 bytes, left out of `repr`."""

    epoch: int
    key: bytes = field(repr=False)


class SealingKeys(Protocol):
    """Where sealing keys come from. Both calls are made for every request and never wait."""

    def current(self) -> SealingKey:
        """Give the key that seals now."""
        ...

    def by_epoch(self, epoch: int) -> SealingKey:
        """Give the key of `epoch`. Raises `StaleChallenge` when unknown or retired longer than max-age."""
        ...


class _Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: int
    key_b64: str
    created_ms: int
    retired_ms: int | None

    def __repr__(self) -> str:
        return f"_Epoch({self.epoch})"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epochs: list[_Epoch]


@dataclass(frozen=True, slots=True)
class _KeySet:
    """A checked file, ready for look-ups. `keys`: epoch to key and time of retirement."""

    current: SealingKey
    keys: dict[int, tuple[SealingKey, int | None]]


class FileSealingKeys:
    """Sealing keys in a file, created when absent, loaded again when it changes. Owned by one thread.

    A change that cannot be used keeps the keys of before, and `problem` says why.
    """

    def __init__(
        self,
        path: Path,
        clock_ms: Callable[[], int],
        max_age_s: int,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Load `path`, creating it with one fresh epoch when it is absent. Raises `SealingKeyError`."""
        self._path = path
        self._clock_ms = clock_ms
        self._max_age_ms = max_age_s * 1000
        self._problem: str | None = None
        self._checked_ms = clock_ms()
        if not path.exists():
            _create(path, clock_ms(), random_bytes)
        self._seen: FileIdentity | None = identity_of(path)
        self._keys = _load(path)

    @property
    def problem(self) -> str | None:
        """Say why the file as it is now is not in force; None when it is."""
        return self._problem

    def current(self) -> SealingKey:
        """Give the key that seals now."""
        if abs(self._clock_ms() - self._checked_ms) >= RELOAD_INTERVAL_MS:
            self.reload()
        return self._keys.current

    def by_epoch(self, epoch: int) -> SealingKey:
        """Give the key of `epoch`. Raises `StaleChallenge` when unknown or retired longer than max-age."""
        found = self._keys.keys.get(epoch)
        if found is None:
            # Another worker may have seen a rotation before us.
            self.reload()
            found = self._keys.keys.get(epoch)
        if found is None:
            raise StaleChallenge("the sealing key of this epoch is not known")
        key, retired_ms = found
        if retired_ms is not None and self._clock_ms() - retired_ms > self._max_age_ms:
            raise StaleChallenge("the sealing key of this epoch is retired")
        return key

    def reload(self) -> None:
        """Look at the file and take it in force if it changed and can be used."""
        self._checked_ms = self._clock_ms()
        if unchanged(self._seen, self._path):
            return
        self._seen = identity_of(self._path)
        try:
            self._keys = _load(self._path)
            self._problem = None
        except SealingKeyError as error:
            self._problem = str(error)


def rotate(
    path: Path,
    clock_ms: Callable[[], int],
    max_age_s: int,
    *,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> int:
    """Begin a new epoch: retire the current key, forget those retired longer than max-age. Returns the epoch.

    Safe against other rotations; running workers take it up by themselves. Raises `SealingKeyError`.
    """
    try:
        with locked(path):
            epochs = _parse(path, _read(path))
            now_ms = clock_ms()
            kept = [
                each
                for each in epochs[:-1]
                if each.retired_ms is not None and now_ms - each.retired_ms <= max_age_s * 1000
            ]
            newest = epochs[-1]
            if newest.epoch == MAX_EPOCH or len(kept) + 2 > MAX_EPOCHS:
                raise SealingKeyError(f"{path}: no epoch is free")
            retired = msgspec.structs.replace(newest, retired_ms=max(now_ms, newest.created_ms))
            fresh = _fresh(newest.epoch + 1, now_ms, random_bytes)
            replace(path, _serialise([*kept, retired, fresh]), PRIVATE_MODE)
            return fresh.epoch
    except OSError as error:
        raise SealingKeyError(f"{path}: cannot be replaced: {error.strerror}") from error


def _create(path: Path, now_ms: int, random_bytes: Callable[[int], bytes]) -> None:
    """Create the file with epoch 1. Of workers that start at once, one's file stays and all load that."""
    try:
        write_new(path, _serialise([_fresh(1, now_ms, random_bytes)]))
    except OSError as error:
        raise SealingKeyError(f"{path}: cannot be created: {error.strerror}") from error


def _fresh(epoch: int, now_ms: int, random_bytes: Callable[[int], bytes]) -> _Epoch:
    return _Epoch(epoch, base64.b64encode(random_bytes(KEY_BYTES)).decode("ascii"), now_ms, None)


def _serialise(epochs: Sequence[_Epoch]) -> bytes:
    document = {"epochs": [msgspec.to_builtins(epoch) for epoch in epochs]}
    return json.dumps(document, indent=1).encode("ascii") + b"\n"


def _load(path: Path) -> _KeySet:
    epochs = _parse(path, _read(path))
    keys = {each.epoch: (SealingKey(each.epoch, _key(path, each)), each.retired_ms) for each in epochs}
    return _KeySet(keys[epochs[-1].epoch][0], keys)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, max_bytes=MAX_FILE_BYTES, forbidden_mode=OTHERS_MODE).content
    except FileRefusedError as error:
        raise SealingKeyError(str(error)) from error


def _parse(path: Path, content: bytes) -> list[_Epoch]:
    """Check the file and give its epochs in rising order."""
    try:
        epochs = sorted(msgspec.json.decode(content, type=_File).epochs, key=lambda each: each.epoch)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Not chained: the parser's message may quote the content.
        raise SealingKeyError(f"{path}: is not a file of sealing keys") from None
    if not 1 <= len(epochs) <= MAX_EPOCHS:
        raise SealingKeyError(f"{path}: must have 1 to {MAX_EPOCHS} epochs")
    if len({each.epoch for each in epochs}) != len(epochs):
        raise SealingKeyError(f"{path}: has an epoch twice")
    for each in epochs:
        if not 0 <= each.epoch <= MAX_EPOCH:
            raise SealingKeyError(f"{path}: an epoch must be from 0 to {MAX_EPOCH}")
        if (each.retired_ms is None) != (each is epochs[-1]):
            raise SealingKeyError(f"{path}: the highest epoch, and no other, must have retired_ms null")
        if each.created_ms < 0 or (each.retired_ms is not None and each.retired_ms < each.created_ms):
            raise SealingKeyError(f"{path}: an epoch must not be retired before it was created")
        _key(path, each)
    return epochs


def _key(path: Path, epoch: _Epoch) -> bytes:
    try:
        key = base64.b64decode(epoch.key_b64, validate=True)
    except ValueError:
        # Not chained, as above.
        key = b""
    if len(key) != KEY_BYTES:
        raise SealingKeyError(f"{path}: a key must be {KEY_BYTES} bytes in base64")
    return key
