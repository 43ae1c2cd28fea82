"""Capabilities that are taken back before they expire: by token id, or all of a root's (docs/reference/kms.md).

    {"version": 1, "tokens": {"<token id>": <revoked at, POSIX seconds>}, "roots": {"<root id>": <…>}}

The service looks at the file every second, so that a revocation counts within five (GOVERNANCE.md §3). When it was
there and cannot be used any more, nobody is let in: who is revoked is not known then.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from kms.errors import StoreUnavailable
from kms.private_file import PrivateFileError, changing, read_private, replace_private
from kms.root_key import MAX_ROOT_LIFE_S, ROOT_ID
from kms.watched_file import WatchedFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_REVOCATIONS: Final = 10_000
MAX_FILE_BYTES: Final = 1 << 20
TOKEN_ID: Final = re.compile(r"[0-9a-f]{32}\Z")

_Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class RevocationError(PrivateFileError):
    """The file of revocations cannot be used, or not in this way."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    tokens: Annotated[dict[str, _Seconds], msgspec.Meta(max_length=MAX_REVOCATIONS)] = {}
    roots: Annotated[dict[str, _Seconds], msgspec.Meta(max_length=MAX_REVOCATIONS)] = {}

    def __post_init__(self) -> None:
        if not all(map(TOKEN_ID.match, self.tokens)) or not all(map(ROOT_ID.match, self.roots)):
            raise ValueError("not the id of a token or root")

    @property
    def ids(self) -> frozenset[str]:
        """Give the ids of both kinds."""
        return frozenset((*self.tokens, *self.roots))


class Revocations:
    """What is revoked, as the file at `path` says. Without a file at start, nothing is. Raises RevocationError."""

    def __init__(self, path: Path, monotonic_s: Callable[[], float]) -> None:
        self._path = path
        self._was_there = False
        try:
            self._file = WatchedFile(path, self._parse, MAX_FILE_BYTES, monotonic_s)
        except RevocationError:
            raise
        except PrivateFileError as error:
            raise RevocationError(str(error)) from error

    @property
    def problem(self) -> str | None:
        """Why nobody is let in; None when revocations are known."""
        return self._file.problem

    def is_revoked(self, token_id: str, root_id: str) -> bool:
        """Say whether the token, or all of its root, is revoked. Raises StoreUnavailable when that is not known."""
        self._file.refresh()
        if self._file.problem is not None:
            raise StoreUnavailable("the revocations cannot be read", reason="revocations")
        return token_id in self._file.value.tokens or root_id in self._file.value.roots

    @property
    def in_force(self) -> frozenset[str]:
        """List the ids that are revoked: those of tokens have 32 hex digits, those of roots 16."""
        self._file.refresh()
        return self._file.value.ids

    def reload(self) -> None:
        """Look at the file now."""
        self._file.reload()

    def _parse(self, content: bytes | None) -> _File:
        if content is None:
            if self._was_there:
                raise RevocationError(f"{self._path}: the file of revocations is gone")
            return _File()
        self._was_there = True
        return _decode(self._path, content)


def revoke(path: Path, now_s: int, *, token_ids: tuple[str, ...] = (), root_ids: tuple[str, ...] = ()) -> None:
    """Add revocations to the file, making it when there is none. `now_s`: POSIX seconds.

    Those older than any root may verify are dropped. Raises RevocationError.
    """
    if not all(map(TOKEN_ID.match, token_ids)) or not all(map(ROOT_ID.match, root_ids)):
        raise RevocationError("not the id of a token or root")
    try:
        with changing(path):
            try:
                content = _decode(path, read_private(path, MAX_FILE_BYTES))
            except FileNotFoundError:
                content = _File()
            tokens = _current(content.tokens, now_s) | {each: content.tokens.get(each, now_s) for each in token_ids}
            roots = _current(content.roots, now_s) | {each: content.roots.get(each, now_s) for each in root_ids}
            if len(tokens) + len(roots) > MAX_REVOCATIONS:
                raise RevocationError(f"{path}: {MAX_REVOCATIONS} revocations are in force: rotate the root instead")
            replace_private(path, msgspec.json.encode(_File(1, tokens, roots)) + b"\n")
    except RevocationError:
        raise
    except PrivateFileError as error:
        raise RevocationError(str(error)) from error


def _current(revoked: dict[str, int], now_s: int) -> dict[str, int]:
    return {each: revoked_s for each, revoked_s in revoked.items() if revoked_s + MAX_ROOT_LIFE_S > now_s}


def _decode(path: Path, content: bytes) -> _File:
    try:
        return msgspec.json.decode(content, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RevocationError(f"{path}: is not a file of revocations") from error
