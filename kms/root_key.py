"""The keys that capabilities are minted under: a file of mode 0600, read into memory (docs/reference/kms.md).

    {"version": 1, "roots": [{"id": "…", "key_b64": "…", "created_s": 0, "not_after_s": 0}]}

The newest root mints, for at most 30 days. Older ones still verify what they minted, each until its own date: so a
rotation breaks no token at once. `python -m kms root-key` makes and rotates the file; the service only reads it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from kms.private_file import PrivateFileError, changing, create_private, read_private, replace_private
from kms.watched_file import WatchedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DAY_S: Final = 86_400
MAX_MINTING_AGE_S: Final = 30 * DAY_S
"""A root mints no longer than this (CONFIG.md §8: rotate within 30 days)."""
MAX_TOKEN_LIFE_S: Final = 30 * DAY_S
MAX_ROOT_LIFE_S: Final = MAX_MINTING_AGE_S + MAX_TOKEN_LIFE_S
"""What a root minted on its last day still verifies for its whole life."""
DEFAULT_OVERLAP_S: Final = DAY_S
"""How long the former root verifies after a rotation, unless told otherwise."""
KEY_BYTES: Final = 32
ID_BYTES: Final = 8
MAX_ROOTS: Final = 8
MAX_FILE_BYTES: Final = 16_384

ROOT_ID: Final = re.compile(r"[0-9a-f]{16}\Z")
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class RootKeyError(PrivateFileError):
    """The root key file cannot be used, or not in this way; the message never holds a key."""


class RootKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One root. `not_after_s`: POSIX seconds after which nothing that it minted verifies."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]
    key_b64: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    created_s: _Seconds
    not_after_s: _Seconds

    def __post_init__(self) -> None:
        if not self.created_s <= self.not_after_s <= self.created_s + MAX_ROOT_LIFE_S:
            raise ValueError("a root's dates are not in order")

    def __repr__(self) -> str:
        return f"RootKey({self.id!r}, created_s={self.created_s}, not_after_s={self.not_after_s})"

    @property
    def key(self) -> bytes:
        """The key itself, 32 bytes."""
        return self.key_b64

    def mints_at(self, now_s: int) -> bool:
        """Say whether it may mint at `now_s`, POSIX seconds."""
        return now_s < min(self.created_s + MAX_MINTING_AGE_S, self.not_after_s)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    roots: Annotated[tuple[RootKey, ...], msgspec.Meta(min_length=1, max_length=MAX_ROOTS)]

    def __post_init__(self) -> None:
        if len({each.id for each in self.roots}) != len(self.roots):
            raise ValueError("two roots have one id")


class RootKeys:
    """The roots in force, by id; a rotation is taken up within `watched_file.LOOK_EVERY_S` seconds.

    A change that cannot be used leaves the roots of before in memory. Raises RootKeyError when there are none at start.
    """

    def __init__(self, path: Path, monotonic_s: Callable[[], float]) -> None:
        try:
            self._file = WatchedFile(path, lambda data: _by_id(_parse(path, data)), MAX_FILE_BYTES, monotonic_s)
        except RootKeyError:
            raise
        except PrivateFileError as error:
            raise RootKeyError(str(error)) from error

    @property
    def problem(self) -> str | None:
        """Why the file as it is now is not in force; None when it is."""
        return self._file.problem

    def find(self, root_id: str) -> RootKey | None:
        """Give the root of this id, or None."""
        self._file.refresh()
        return self._file.value.get(root_id)

    @property
    def in_force(self) -> tuple[str, ...]:
        """List the ids of the roots, in their order."""
        self._file.refresh()
        return tuple(self._file.value)

    def reload(self) -> None:
        """Look at the file now."""
        self._file.reload()

    def rotation_due(self, now_s: int) -> bool:
        """Say whether no root may mint any more, so that a new one is needed."""
        return not any(each.mints_at(now_s) for each in self._file.value.values())


def read_roots(path: Path) -> tuple[RootKey, ...]:
    """Read every root, the newest last. Raises RootKeyError."""
    try:
        return _parse(path, read_private(path, MAX_FILE_BYTES))
    except FileNotFoundError as error:
        raise RootKeyError(f"{path}: there is no root key file") from error
    except RootKeyError:
        raise
    except PrivateFileError as error:
        raise RootKeyError(str(error)) from error


def create_root_file(path: Path, now_s: int, random_bytes: Callable[[int], bytes]) -> RootKey:
    """Make the file with its first root. Raises RootKeyError, also when there is a file already."""
    root = _new_root(now_s, random_bytes)
    try:
        create_private(path, _serialise((root,)))
    except FileExistsError as error:
        raise RootKeyError(f"{path}: there is a root key file already") from error
    except PrivateFileError as error:
        raise RootKeyError(str(error)) from error
    return root


def rotate_root(
    path: Path, now_s: int, random_bytes: Callable[[int], bytes], *, overlap_s: int = DEFAULT_OVERLAP_S
) -> RootKey:
    """Begin a new root: those before verify `overlap_s` longer at most; those whose date has passed are erased.

    Raises RootKeyError.
    """
    if not 0 <= overlap_s <= MAX_TOKEN_LIFE_S:
        raise RootKeyError(f"the overlap must be 0 to {MAX_TOKEN_LIFE_S} seconds")
    try:
        with changing(path):
            kept = [
                msgspec.structs.replace(each, not_after_s=max(each.created_s, min(each.not_after_s, now_s + overlap_s)))
                for each in read_roots(path)
                if each.not_after_s > now_s
            ]
            if len(kept) >= MAX_ROOTS:
                raise RootKeyError(f"{path}: {MAX_ROOTS} roots still verify: rotate later, or with a shorter overlap")
            root = _new_root(now_s, random_bytes)
            replace_private(path, _serialise((*kept, root)))
            return root
    except RootKeyError:
        raise
    except PrivateFileError as error:
        raise RootKeyError(str(error)) from error


def _new_root(now_s: int, random_bytes: Callable[[int], bytes]) -> RootKey:
    return RootKey(random_bytes(ID_BYTES).hex(), random_bytes(KEY_BYTES), now_s, now_s + MAX_ROOT_LIFE_S)


def _serialise(roots: tuple[RootKey, ...]) -> bytes:
    return msgspec.json.encode(_File(1, roots)) + b"\n"


def _parse(path: Path, content: bytes | None) -> tuple[RootKey, ...]:
    if content is None:
        raise RootKeyError(f"{path}: there is no root key file")
    try:
        return msgspec.json.decode(content, type=_File).roots
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Not chained: the parser's message may quote the content.
        raise RootKeyError(f"{path}: is not a root key file") from None


def _by_id(roots: tuple[RootKey, ...]) -> Mapping[str, RootKey]:
    return {each.id: each for each in roots}
