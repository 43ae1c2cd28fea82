"""What the service knows of a key: its versions, their public halves, its state and its fence (I-5, I-6).

Records are immutable: a change makes a new record, and whoever holds the old one keeps a whole picture (G-4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from kms.errors import Conflict, NotFound
from kms.kid import parse_key_name
from kms.primitive import KEY_ALGORITHMS, KeyAlgorithm, Primitive
from kms.providers.key_handle import check_handle_binding
from kms.providers.provider import KeyHandle, ProviderKey

if TYPE_CHECKING:
    from kms.kid import KeyName, Kid

# One record is one row and one leaf of the state digest: its size is bounded by its versions.
MAX_VERSIONS: Final = 512
RECORD_FORMAT: Final = 1

Hint = str | int | bool


class KeyState(StrEnum):
    """What may be done with a key. A destroyed one never comes back."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One version: its parts in the order of their signatures, the classical half first."""

    number: int
    parts: tuple[ProviderKey, ...]
    created_ms: int

    def part(self, primitive: Primitive) -> ProviderKey | None:
        """Give the part of one primitive, or None."""
        return next((part for part in self.parts if part.primitive is primitive), None)

    @property
    def post_quantum(self) -> bool:
        """Tell whether a part of it is post-quantum."""
        return any(part.primitive.post_quantum for part in self.parts)


@dataclass(frozen=True, slots=True)
class LastHead:
    """The last tree head that a `tlog` key signed, and when (POSIX seconds); `root`: 32 bytes."""

    origin: str
    size: int
    root: bytes
    time_s: int


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key. `provider` names who holds its private halves; `derived_from` is the root version of a derived key.

    `last_head` is what a key of purpose `tlog` signed last; None before its first head, and for every other key.
    """

    name: KeyName
    versions: tuple[KeyVersion, ...]
    state: KeyState
    min_version: int
    policy_hints: tuple[tuple[str, Hint], ...]
    provider: str
    derived_from: str = ""
    last_head: LastHead | None = None

    @property
    def newest(self) -> KeyVersion:
        """Give the version that signs when none is named."""
        return self.versions[-1]

    @property
    def algorithm(self) -> KeyAlgorithm:
        """Give what the kid's algorithm segment stands for."""
        return KEY_ALGORITHMS[self.name.alg]

    @property
    def newest_kid(self) -> Kid:
        """Name the newest version."""
        return self.name.version(self.newest.number)

    def version(self, number: int) -> KeyVersion:
        """Give one version. Raises NotFound."""
        if not 1 <= number <= len(self.versions):
            raise NotFound("no such key or version")
        return self.versions[number - 1]

    def version_at(self, number: int | None) -> KeyVersion:
        """Give a version that the fence lets pass (None: the newest). Raises NotFound, Conflict."""
        version = self.newest if number is None else self.version(number)
        if version.number < self.min_version:
            raise Conflict("this version is below the key's min_version", reason="version_fenced")
        return version

    def private_version(self, number: int | None) -> KeyVersion:
        """Give a version whose private half may be used now. Raises NotFound, Conflict when disabled, gone or fenced.

        The state governs private halves only: what was signed stays verifiable above the fence.
        """
        version = self.version_at(number)
        if self.state is not KeyState.ENABLED:
            raise Conflict(f"the key is {self.state.value}", reason=f"key_{self.state.value}")
        self.check_handles(version)
        return version

    def check_handles(self, version: KeyVersion) -> None:
        """Raise NotFound when a version's record names private halves that were made for another kid (I-5, I-9)."""
        kid = self.name.version(version.number)
        for part in version.parts:
            check_handle_binding(part.handle, kid, part.primitive)

    def open_versions(self) -> tuple[KeyVersion, ...]:
        """List the versions that the fence lets pass, newest first."""
        return self.versions[self.min_version - 1 :][::-1]

    def check_room(self) -> None:
        """Raise Conflict when the key holds as many versions as it may."""
        if len(self.versions) >= MAX_VERSIONS:
            raise Conflict(f"the key has {MAX_VERSIONS} versions already: create another one", reason="version_limit")

    def rotated(self, version: KeyVersion) -> KeyRecord:
        """Add a version. Raises Conflict when the key holds as many as it may."""
        self.check_room()
        if version.number != self.newest.number + 1:
            raise ValueError("versions are numbered without gaps")
        return replace(self, versions=(*self.versions, version))

    def changed(self, state: KeyState, min_version: int | None) -> KeyRecord:
        """Set state and fence. Raises Conflict for a destroyed key and for a fence that sinks or is out of reach."""
        if self.state is KeyState.DESTROYED and state is not KeyState.DESTROYED:
            raise Conflict("the key is destroyed", reason="key_destroyed")
        fence = self.min_version if min_version is None else min_version
        if fence < self.min_version:
            raise Conflict("min_version never sinks", reason="fence_sinks")
        if fence > self.newest.number + 1:
            raise Conflict("min_version is beyond the next version", reason="fence_beyond")
        return replace(self, state=state, min_version=fence)


class _StoredPart(msgspec.Struct, frozen=True, array_like=True):
    primitive: Primitive
    handle: str
    public: bytes


class _StoredVersion(msgspec.Struct, frozen=True, array_like=True):
    number: int
    created_ms: int
    parts: list[_StoredPart]


class _StoredRecord(msgspec.Struct, frozen=True, array_like=True):
    format: int
    name: str
    state: KeyState
    min_version: int
    policy_hints: list[tuple[str, Hint]]
    provider: str
    derived_from: str
    versions: list[_StoredVersion]
    last_head: tuple[str, int, bytes, int] | None


def encode_record(record: KeyRecord) -> bytes:
    """Write a record in its one form: the same record is always the same bytes (the state digest is over them)."""
    return msgspec.msgpack.encode(
        _StoredRecord(
            RECORD_FORMAT,
            str(record.name),
            record.state,
            record.min_version,
            list(record.policy_hints),
            record.provider,
            record.derived_from,
            [
                _StoredVersion(
                    version.number,
                    version.created_ms,
                    [_StoredPart(part.primitive, part.handle, part.public) for part in version.parts],
                )
                for version in record.versions
            ],
            None if (head := record.last_head) is None else (head.origin, head.size, head.root, head.time_s),
        )
    )


def decode_record(data: bytes) -> KeyRecord:
    """Read what `encode_record` wrote. Raises ValueError for anything else."""
    try:
        stored = msgspec.msgpack.decode(data, type=_StoredRecord)
        record = KeyRecord(
            parse_key_name(stored.name),
            tuple(
                KeyVersion(
                    version.number,
                    tuple(ProviderKey(part.primitive, KeyHandle(part.handle), part.public) for part in version.parts),
                    version.created_ms,
                )
                for version in stored.versions
            ),
            stored.state,
            stored.min_version,
            tuple(stored.policy_hints),
            stored.provider,
            stored.derived_from,
            None if stored.last_head is None else LastHead(*stored.last_head),
        )
    except Exception as error:
        raise ValueError("a key record cannot be read") from error
    numbered = [version.number for version in record.versions] == list(range(1, len(record.versions) + 1))
    if stored.format != RECORD_FORMAT or not record.versions or not numbered or encode_record(record) != data:
        raise ValueError("a key record contradicts itself")
    return record
