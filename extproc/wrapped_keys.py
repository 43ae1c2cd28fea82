"""Sealing keys as the key service wrapped them: one file, shared by the workers, that nobody reads without the service.

    {"epochs": [{"epoch": 1, "kid": "<…#vN>", "wrapped_b64": "…", "created_ms": 0, "retired_ms": null}]}

One epoch, the highest, is not retired and seals; a retired one still opens challenges for max-age. The key service
makes the keys itself, so nobody but a worker ever has one in the clear.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from extproc.file_watch import PRIVATE_MODE, FileRefusedError, locked, read_file, replace, write_new
from extproc.sealing_keys import KEY_BYTES, MAX_EPOCH, MAX_EPOCHS, MAX_FILE_BYTES, OTHERS_MODE, SealingKeyError
from kms.messages import WrapRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from kms.client import KmsClient

_MAX_WRAPPED_CHARS: Final = 8192
_Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class WrappedEpoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One epoch. `kid`: the version of the key that unwraps it."""

    epoch: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)]
    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    wrapped_b64: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_WRAPPED_CHARS)]
    created_ms: _Millis
    retired_ms: _Millis | None

    def opens_at(self, now_ms: int, max_age_ms: int) -> bool:
        """Say whether a challenge of this epoch may still be opened."""
        return self.retired_ms is None or now_ms - self.retired_ms <= max_age_ms


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epochs: Annotated[list[WrappedEpoch], msgspec.Meta(min_length=1, max_length=MAX_EPOCHS)]


def read_wrapped(path: Path) -> list[WrappedEpoch]:
    """Read the epochs in rising order. Raises SealingKeyError."""
    try:
        content = read_file(path, max_bytes=MAX_FILE_BYTES * 8, forbidden_mode=OTHERS_MODE).content
    except FileRefusedError as error:
        raise SealingKeyError(str(error)) from error
    try:
        epochs = sorted(msgspec.json.decode(content, type=_File).epochs, key=lambda each: each.epoch)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SealingKeyError(f"{path}: is not a file of wrapped sealing keys") from error
    if len({each.epoch for each in epochs}) != len(epochs):
        raise SealingKeyError(f"{path}: has an epoch twice")
    for each in epochs:
        if (each.retired_ms is None) != (each is epochs[-1]):
            raise SealingKeyError(f"{path}: the highest epoch, and no other, must have retired_ms null")
    return epochs


def create_wrapped(path: Path, client: KmsClient, key: str, now_ms: int) -> None:
    """Make the file with epoch 1. Of workers that start at once, one's file stays. Raises SealingKeyError, KmsError."""
    content = _serialise([_fresh(client, key, 1, now_ms)])
    try:
        write_new(path, content)
    except OSError as error:
        raise SealingKeyError(f"{path}: cannot be created: {error.strerror}") from error


def rotate_wrapped(path: Path, client: KmsClient, key: str, clock_ms: Callable[[], int], max_age_s: int) -> int:
    """Begin a new epoch: retire the current key, forget those retired longer than max-age. Returns the epoch.

    Running workers take it up by themselves. Raises SealingKeyError, KmsError.
    """
    try:
        with locked(path):
            epochs = read_wrapped(path)
            now_ms = clock_ms()
            kept = [each for each in epochs[:-1] if each.opens_at(now_ms, max_age_s * 1000)]
            newest = epochs[-1]
            if newest.epoch == MAX_EPOCH or len(kept) + 2 > MAX_EPOCHS:
                raise SealingKeyError(f"{path}: no epoch is free")
            fresh = _fresh(client, key, newest.epoch + 1, now_ms)
            retired = msgspec.structs.replace(newest, retired_ms=max(now_ms, newest.created_ms))
            replace(path, _serialise([*kept, retired, fresh]), PRIVATE_MODE)
            return fresh.epoch
    except OSError as error:
        raise SealingKeyError(f"{path}: cannot be replaced: {error.strerror}") from error


def _fresh(client: KmsClient, key: str, epoch: int, now_ms: int) -> WrappedEpoch:
    made = client.wrap(WrapRequest(kid=key, size=KEY_BYTES))
    return WrappedEpoch(epoch, made.kid, made.wrapped_b64, now_ms, None)


def _serialise(epochs: Sequence[WrappedEpoch]) -> bytes:
    return json.dumps({"epochs": [msgspec.to_builtins(each) for each in epochs]}, indent=1).encode("ascii") + b"\n"
